"""The statistics of paired comparisons, their tables, and the results that are kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from tests.benchmarks import defaults, peers
from tests.benchmarks.cells import Line
from tests.benchmarks.comparison import compare, comparison_table, estimate, markdown, points, sign_flip_p
from tests.benchmarks.kept_results import GUIDE, RESULTS, block_names, keep, read_kept, replace_block

GROUPS = (("clinc", "3/class"), ("cr", "100"), ("cr", "1000"))


def cell(group: tuple[str, str], seed: int, variant: str, score: float, seconds: float = 10.0) -> Line:
    return {
        "data": group[0], "rows": group[1], "seed": seed, "variant": variant, "score": score, "metric": "accuracy",
        "steps": 300, "train_seconds": seconds, "cpu_seconds": seconds, "scored": ["validation", 600],
        "encoder": "package:some_model/model", "precision": "bf16", "threads": 1, "date": f"2026-01-0{1 + seed}",
        "commit": "0123456789abcdef", "versions": {"torch": "2"}, "device": "cpu",
        "differs": [] if variant == "plain" else [f"training.{variant}=1"],
    }  # fmt: skip


@pytest.fixture
def cells() -> list[Line]:
    """Three groups, five seeds: `better` gains 4 to 6 points, and seed 4 of one of its groups is not measured."""
    rng = np.random.default_rng(0)
    made = []
    for number, group in enumerate(GROUPS):
        for seed in range(5):
            score = 0.7 + 0.1 * rng.random()
            made.append(cell(group, seed, "plain", score))
            made.append(cell(group, seed, "same", score, 30.0))
            if (number, seed) != (0, 4):
                made.append(cell(group, seed, "better", score + 0.04 + 0.01 * number, 20.0))
    return made


def test_the_interval_and_p_value_are_those_of_a_t_test() -> None:
    values = [1.0, 2.5, -0.5, 3.0]
    result, expected = estimate(values), stats.ttest_1samp(values, 0)
    low, high = expected.confidence_interval(0.95)
    assert result.half_width is not None
    assert (result.mean - result.half_width, result.mean + result.half_width) == pytest.approx((low, high))
    assert result.p == pytest.approx(expected.pvalue)
    assert (estimate([2.0]).half_width, estimate([2.0]).p) == (None, None)
    assert (estimate([0.0, 0.0]).p, estimate([1.0, 1.0]).p) == (1.0, 0.0)


def test_the_sign_flip_test_agrees_with_all_flips() -> None:
    differences = {GROUPS[0]: [2.0, 1.0, 3.0], GROUPS[1]: [1.5, -0.5, 2.5]}
    flat = np.array([2.0, 1.0, 3.0, 1.5, -0.5, 2.5])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 6)).reshape(6, -1)
    exact = (np.abs(flat @ signs) >= flat.sum() - 1e-9).mean()
    standard_error = (exact * (1 - exact) / 9999) ** 0.5
    assert sign_flip_p(differences) == pytest.approx(exact, abs=5 * standard_error)


def test_differences_are_taken_within_group_and_seed(cells: list[Line]) -> None:
    better = compare(cells, "better", "plain")
    assert better is not None
    assert {group: len(values) for group, values in better.differences.items()} == dict(
        zip(GROUPS, (4, 5, 5), strict=True)
    )
    assert [each.mean for each in better.groups().values()] == pytest.approx([4, 5, 6])
    assert better.overall().mean == pytest.approx(5)  # each group counts once
    assert better.overall().p == pytest.approx(stats.ttest_1samp([4, 5, 6], 0).pvalue)
    assert better.time_ratio == 2
    assert compare(cells, "missing", "plain") is None


def test_the_table_has_the_largest_gain_first(cells: list[Line]) -> None:
    header, plain, *rows = comparison_table(cells)
    assert header[4:] == ["clinc, 3 per class", "cr, 100", "cr, 1000", "pairs", "time"]
    assert plain[0] == "plain"
    assert [(row[0], row[1], row[-2], row[-1]) for row in rows] == [
        ("better", "+5.0 ± 2.5", "14", "2.00"),
        ("same", "+0.0 ± 0.0", "15", "3.00"),
    ]
    assert [row[3] for row in rows] == ["< 0.001", "1.000"]
    assert all(cell.startswith("**+") for cell in rows[0][4:7])  # p below 0.01 in each group
    assert markdown([header, *rows]).splitlines()[1].count("---") == len(header)
    assert points(estimate([1.0])) == "+1.0"


def test_kept_results_give_the_same_table(cells: list[Line], tmp_path: Path) -> None:
    file = tmp_path / "defaults-choose.json"
    keep([{"cost": {}, "variant": "better"}, *cells], file)
    document, kept = read_kept(file)
    assert len(kept) == len(cells)
    assert comparison_table(kept) == comparison_table(sorted(cells, key=lambda line: (line["data"], line["rows"])))
    assert document["variants"] == {"plain": [], "same": ["training.same=1"], "better": ["training.better=1"]}
    assert (document["dates"], document["threads"]) == (["2026-01-01", "2026-01-05"], [1])
    assert len(file.read_text()) < 80 * len(cells) + 1500


def test_a_block_of_the_guide_is_replaced_or_appended() -> None:
    text = "before\n<!-- begin one -->\nold\n<!-- end one -->\nafter\n"
    assert replace_block(text, "one", "new") == text.replace("old", "new")
    assert block_names(replace_block(text, "two", "new")) == ["one", "two"]
    assert replace_block(text, "two", "new").endswith("after\n\n<!-- begin two -->\nnew\n<!-- end two -->\n")


def test_the_tables_of_the_guide_are_those_of_the_kept_results() -> None:
    guide = GUIDE.read_text(encoding="utf-8")
    names = [file.stem for file in sorted(RESULTS.glob("*.json")) if "cells" in json.loads(file.read_text())]
    assert names == [name for name in sorted(block_names(guide)) if (RESULTS / f"{name}.json").is_file()]
    for name in names:
        section = peers.section if name.startswith("peers") else defaults.section
        assert replace_block(guide, name, section(name)) == guide, f"{name}: run the benchmark with --write"
        assert (RESULTS / f"{name}.json").stat().st_size < 200_000


def test_the_tables_of_peers() -> None:
    scores = {"ours": (0.9, 0.8), "tfidf": (0.7, 0.75), "frozen": (0.6, 0.82)}
    cells = [
        cell(group, seed, peer, score[number] + 0.01 * seed)
        for number, group in enumerate(GROUPS[:2])
        for peer, score in scores.items()
        for seed in range(2)
    ]
    table = peers.score_table(cells)
    assert table[0] == ["data, rows", "ours", "frozen", "tfidf"]
    assert [row[1].startswith("**") for row in table[1:]] == [True, False]
    assert peers.seconds_table(cells)[1] == ["clinc, 3 per class", "10", "10", "10"]
    gains = {row[0]: row for row in peers.gain_table(cells)}
    assert gains["tfidf"][1].startswith("+12.5 ±")
    assert gains["frozen"][2].startswith("cr, 100: ")
    assert gains["frozen"][2].partition(": ")[2].strip("*").startswith("-2.0")
    assert gains["the best peer of each group"][1].startswith("+9.0 ±")  # 20 over tfidf, -2 over frozen
