from __future__ import annotations

from dataclasses import replace

import pytest
from scipy import stats

from finetune.report.head_maps import change_maps, head_maps, importance_map, leave_one_out_map, names_map
from finetune.runs.head_results import HeadScores, HeadTest, LeaveOneOut
from tests.support.known_run import full_analysis

# A pruned model: layer 1 has two of three heads.
SCORES = HeadScores(
    "ablation_loss", "L without - L", "train", 10, [[0.5, 0.4, -0.1], [0.2, 0.3, None]],
    [[0.1, 0.04, 0.1], [0.05, 0.01, None]], [(0, 2), (1, 0), (1, 1), (0, 1), (0, 0)],
)  # fmt: skip


def test_importance_is_scaled_to_one_hundred_and_a_missing_head_has_no_cell() -> None:
    cells = importance_map(SCORES).cells
    assert [[cell and (cell.text, cell.level) for cell in row] for row in cells] == [
        [("100", 100), ("80", 80), ("-20", -20)],
        [("40", 40), ("60", 60), None],
    ]
    assert cells[0][2] is not None
    assert cells[0][2].title == "-0.1 ± 0.1, rank 5 of 5"


def test_heads_that_the_error_does_not_separate_from_the_median_are_hatched() -> None:
    """The median is 0.3; with ten rows an interval extends by t(9) = 2.262 standard errors."""
    critical = stats.t.ppf(0.975, 9)
    expected = [[0.1 * critical >= 0.2, 0.04 * critical >= 0.1, 0.1 * critical >= 0.4], [True, True]]
    assert expected == [[True, False, False], [True, True]]
    result = importance_map(SCORES)
    assert [[cell.uncertain for cell in row if cell] for row in result.cells] == expected
    assert "value ± 2.26 standard errors over rows) contains the value of the median head, 0.3" in result.note
    learned = importance_map(replace(SCORES, errors_over="4 folds"))  # three degrees of freedom
    assert "value ± 3.18 standard errors over 4 folds" in learned.note
    exact = importance_map(replace(SCORES, standard_errors=[[None] * 3] * 2))
    assert not any(cell.uncertain for row in exact.cells for cell in row if cell)
    assert "Hatched" not in exact.note


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([0.5, 0.4], ["100", "80"]),  # colors start at zero
        ([-1.0, -3.0, -2.0], ["100", "0", "50"]),  # entropy: zero is not among the values
        ([0.0, 0.0], ["0", "0"]),
        ([-2.0, -2.0], ["0", "0"]),
        ([-1.0, 3.0], ["0", "100"]),  # learned gates: a negative value is no harm
    ],
)
def test_the_scale_depends_on_the_signs(values: list[float], texts: list[str]) -> None:
    heads = [(0, head) for head in range(len(values))]
    scores = HeadScores("random", "chance", "test", 9, [list(values)], [[None] * len(values)], heads)
    assert [cell.text for cell in importance_map(scores).cells[0] if cell] == texts


def test_only_a_signed_method_has_two_colors() -> None:
    assert importance_map(SCORES).signed()
    assert "better without the head" in importance_map(SCORES).note
    learned = importance_map(replace(SCORES, method="learned_order"))
    assert not learned.signed()
    assert "better without" not in learned.note
    assert all(cell.level >= 0 for row in learned.cells for cell in row if cell)
    assert importance_map(replace(SCORES, method="iterative_shapley")).signed()


def test_removing_one_head_is_hatched_unless_its_corrected_test_is_significant() -> None:
    tests = [HeadTest(0, 0, -0.1, -0.2, 0.0, 4, 0, 0.001, 0.01), HeadTest(0, 1, 0.05, -0.1, 0.2, 1, 3, 0.5, 1.0)]
    accuracy = leave_one_out_map(LeaveOneOut("test", 40, "accuracy", tests), [[0.0, 0.0, None]])
    first, second, third = accuracy.cells[0]
    assert first is not None
    assert second is not None
    assert third is None
    assert (first.text, first.level, first.uncertain) == ("-10.0", 100, False)  # needed: accuracy falls without it
    assert (second.text, second.level, second.uncertain) == ("+5.0", -50, True)
    assert first.title.startswith("accuracy -0.1000 [-0.2000, +0.0000] without it; 4 rows become wrong, 0 become right")
    error = leave_one_out_map(LeaveOneOut("test", 40, "mean squared error", tests), [[0.0, 0.0]])
    assert [cell.level for cell in error.cells[0] if cell] == [-100, 50]  # needed: the error rises without it


def test_changes_have_a_map_each_and_effects_only_if_they_were_measured() -> None:
    analysis = full_analysis(1)
    assert analysis.changes is not None
    maps = change_maps(analysis)
    assert [each.key for each in maps] == ["output_value", "query_key", "effect"]
    assert [cell.text for cell in maps[0].cells[1] if cell] == ["14.0"] * 11
    assert maps[0].cells[1][11] is None
    unmeasured = replace(analysis, changes=replace(analysis.changes, effect=[[None] * 12] * 2))
    assert [each.key for each in change_maps(unmeasured)] == ["output_value", "query_key"]
    assert change_maps(replace(analysis, changes=None)) == []


def test_every_method_and_the_single_removals_have_a_map() -> None:
    assert [each.key for each in head_maps(full_analysis(2))] == [
        "iterative_method_0",
        "iterative_method_1",
        "leave_one_out",
        "names",
    ]
    assert len(head_maps(replace(full_analysis(2), leave_one_out=None, names=None))) == 2


def test_names_are_letters_and_heads_without_a_name_are_hatched() -> None:
    names = full_analysis(1).names
    assert names is not None
    (first, second), note = names_map(names).cells, names_map(names).note
    cells = [first[0], first[1], first[3], second[0], second[10]]
    assert [(cell.text, cell.level, cell.uncertain) for cell in cells if cell] == [
        ("U", 0, False),
        ("R", 45, False),
        ("", 0, True),
        ("H", -100, False),
        ("R E", 100, False),
    ]
    assert second[11] is None
    assert first[1] is not None
    assert first[1].title == (
        "redundant with layer 1, head 10 (q-value 0.001); score -0.0100 without it; -0.0900 without both; "
        "output changes by 0.0100, with others removed by 0.0100"
    )
    assert note.startswith("E essential, R redundant, H harmful, U unused, by tests on 40 test rows")
