from __future__ import annotations

from dataclasses import replace

from finetune.report.comparison_heads import compared_maps
from finetune.report.comparison_page import render_comparison
from finetune.report.comparison_text import difference_text, result_text
from finetune.runs.comparison import (
    ChangedRow,
    ClassDifference,
    MetricDifference,
    PairComparison,
    PairedTest,
    RunsComparison,
    RunSummary,
    SplitDifference,
)
from finetune.runs.head_results import HeadScores, TauValue
from finetune.runs.results import MetricValue

CELL = MetricValue(0.0312, 0.0102, 0.0522)
TEST = PairedTest("McNemar's exact test", "right and wrong rows", 0.03125, 0.0625)
RESULT = SplitDifference(
    1234, {"accuracy": MetricDifference(0.5, 0.5312, CELL), "f1_macro": MetricDifference(None, 0.5, MetricValue(None))},
    TEST, [ClassDifference("<b>", 7, CELL, MetricValue(-0.5))], 12, 5, ["Few rows."],
)  # fmt: skip


def run(name: str) -> RunSummary:
    return RunSummary(
        name, f"runs/{name}", [1, 2], 1000, 20000, 1.5, 2.5, 3.5, 4000, "cpu", 1.5e9, "gradient", 72, 22.5
    )


def comparison(*names: str) -> RunsComparison:
    pairs = [
        PairComparison(
            names[1], {"test": RESULT}, {"validation": "rows only in a: 3"}, TauValue(0.5), "mean of 4 pairs"
        ),
        *(PairComparison(name, {"test": RESULT}, head_note="Not <analyzed>.") for name in names[2:]),
    ]
    recipe = {"peft.r": ["–", *["<8>"] * (len(names) - 1)]}
    return RunsComparison("regression", "accuracy", [run(name) for name in names], pairs, recipe, ["Beware."])


def test_texts_of_differences_and_tests() -> None:
    assert difference_text(CELL) == "+0.0312 [+0.0102, +0.0522]"
    assert difference_text(MetricValue(-0.5), 3) == "-0.500"
    assert difference_text(MetricValue(None)) == "undefined"
    gained = "12 rows gained, 5 lost; McNemar's exact test of right and wrong rows: p = 0.031"
    assert result_text(RESULT, 1) == gained
    assert result_text(RESULT, 3) == f"{gained}, corrected for 3 comparisons p = 0.062"
    none = SplitDifference(9, {}, None)
    assert result_text(none, 1) == "no test, because the scores do not vary"
    few = replace(none, notes=["4 rows are too few for an interval (at least 10)."])
    assert result_text(few, 1) == "no test, because there are too few rows"
    tiny = SplitDifference(9, {}, PairedTest("t-test", "accuracy", 1e-9, 1e-9))
    assert result_text(tiny, 1) == "t-test of accuracy: p < 0.0001"


def test_the_page_has_every_part() -> None:
    html = render_comparison(comparison("a", "<i>", "c"))
    for expected in (
        "&lt;i&gt;, c compared with a", "validation was not compared: rows only in a: 3.", "Test, 1,234 rows",
        "<td>0.5312</td><td>0.5000</td><td>+0.0312 [+0.0102, +0.0522]</td>", "<td>undefined</td>",
        "p = 0.031, corrected for 2 comparisons p = 0.062", "&lt;b&gt;", "<td>&lt;8&gt;</td>", "22.5 of 72", "1.5e+09",
        "0.50 (mean of 4 pairs)", "Not &lt;analyzed&gt;.", "Beware.", "Few rows.", "1, 2", "--ink: ",
    ):  # fmt: skip
        assert expected in html, expected
    assert html.count('class="chart"') == 1
    assert render_comparison(comparison("a", "<i>", "c")) == html


def ranking(values: list[list[float | None]], method: str = "gradient") -> HeadScores:
    errors: list[list[float | None]] = [[None if cell is None else 0.01 for cell in row] for row in values]
    return HeadScores(method, "E|g|", "test", 40, values, errors, [(0, 0)])


def test_rows_that_changed_sides_are_shown_and_the_rest_is_in_the_file() -> None:
    changed = [
        ChangedRow("b", "test", row, f"text {row} <i>", "", "no", "no", "yes", 1.0, 0.0, "lost") for row in range(250)
    ]
    html = render_comparison(comparison("a", "b"), changed, changed_file="changed_rows.csv")
    assert "250 rows that only one of two runs predicts correctly" in html
    assert 'All rows are in <a href="changed_rows.csv">' in html
    assert "text 199 &lt;i&gt;" in html
    assert "text 200" not in html
    assert "--output FOLDER" in render_comparison(comparison("a", "b"), changed)
    assert 'id="changed"' not in render_comparison(comparison("a", "b"))


def test_the_difference_of_two_head_maps_has_the_error_of_both() -> None:
    first, second = ranking([[0.1, 0.2], [0.0]]), ranking([[0.4, 0.2], [0.004]])
    (maps,) = compared_maps([("a", first), ("b", second), ("c", None), ("d", ranking([[0.1, 0.2], [0.0]], "fisher"))])
    cells = [cell for row in maps.difference.cells for cell in row if cell is not None]
    assert [cell.text for cell in cells] == ["+50", "-50", "+1"]
    assert [cell.uncertain for cell in cells] == [False, False, True]
    assert maps.difference.cells[1][1] is None
    assert compared_maps([("a", None), ("b", second)]) == []
    html = render_comparison(comparison("a", "<b>"), rankings=[("a", first), ("<b>", second)])
    assert "&lt;b&gt; minus a" in html
