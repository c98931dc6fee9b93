"""The statements about heads: intervals, rules, verdicts from made-up measurements, and the generated guide."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from scipy import stats

from finetune.models.attention_sites import AttentionSite
from tests.benchmarks import claims_page
from tests.benchmarks.cells import Cell, Line, ResultsLog
from tests.benchmarks.claims import Runner, cells, main
from tests.benchmarks.claims_figures import Measurements, summarized, tau
from tests.benchmarks.claims_interval import Interval, nested_interval
from tests.benchmarks.claims_measure import CURVES, DEFAULT_METHOD, ITERATIVE, named, numbered, per_batch
from tests.benchmarks.claims_page import DATA, anchor, keep, read_kept, section, verdict, verdict_table, write_guide
from tests.benchmarks.claims_retrain import removed_heads
from tests.benchmarks.claims_rules import FAILS, HOLDS, OPEN, Rule, at_least, at_most, between, positive
from tests.benchmarks.claims_statements import STATEMENTS
from tests.benchmarks.heads import LoadedRun

SEEDS = (0, 1, 2)


def test_the_interval_is_that_of_the_data_set_means_if_the_data_sets_differ() -> None:
    values = {"a": [1.0, 1.2, 1.1], "b": [3.0, 3.1, 2.9], "c": [2.0, 2.2, 2.1]}
    means = [np.mean(seeds) for seeds in values.values()]
    expected = stats.t.interval(0.95, 2, np.mean(means), stats.sem(means))
    interval = nested_interval(values)
    assert (interval.low, interval.high) == pytest.approx(expected)
    pooled = np.mean([np.var(seeds, ddof=1) for seeds in values.values()])
    expected = stats.t.interval(0.95, 6, np.mean(means), np.sqrt(pooled / 9))
    assert (interval.seeds_low, interval.seeds_high) == pytest.approx(expected)


def test_the_interval_is_that_of_the_seeds_if_they_differ_more_than_the_data_sets() -> None:
    interval = nested_interval({"a": [1.0, 2.0, 3.0], "b": [3.1, 1.0, 2.0], "c": [2.0, 3.0, 1.1]})
    assert interval.low == interval.seeds_low
    assert interval.high == interval.seeds_high


def test_without_other_data_sets_or_other_seeds_there_is_no_interval_over_them() -> None:
    one_set, one_seed = nested_interval({"a": [1.0, 2.0]}), nested_interval({"a": [1.0], "b": [2.0]})
    assert (one_set.low, one_set.seeds_low is None) == (None, False)
    assert (one_seed.low is None, one_seed.seeds_low) == (False, None)
    with pytest.raises(ValueError, match=r"\[1, 2\] values; they must have the same number"):
        nested_interval({"a": [1.0], "b": [1.0, 2.0]})


@pytest.mark.parametrize("deviation", [0.0, 1.0, 3.0])
def test_the_interval_contains_the_true_mean_in_95_percent_of_the_cases(deviation: float) -> None:
    rng, cases = np.random.default_rng(0), 800
    tables = deviation * rng.standard_normal((cases, 3, 1)) + rng.standard_normal((cases, 3, 3))
    intervals = [nested_interval({str(data): row for data, row in enumerate(table)}) for table in tables.tolist()]
    inside = np.mean([(i.low or 0) <= 0 <= (i.high or 0) for i in intervals])
    assert inside > 0.927  # 0.95 to 0.98 in 20,000 cases; less three standard errors of 800 cases


@pytest.mark.parametrize(
    ("rule", "holding", "failing", "undecided"),
    [
        (at_most(2, "2"), (0, 2), (2.1, 3), (1, 3)),
        (at_least(2, "2"), (2, 3), (0, 1.9), (1, 3)),
        (positive(1.0), (0.1, 5), (-3, 0.9), (-1, 2)),
        (positive(0.0), (0.1, 5), (-3, -0.1), (-1, 2)),
        (between(-1, 1, "-1 and 1"), (-0.9, 0.9), (1.1, 2), (0.5, 1.5)),
        (between(-1, 1, "-1 and 1"), (-0.9, 0.9), (-3, -1.1), (-5, 5)),
    ],
)
def test_a_rule_has_three_outcomes(
    rule: Rule, holding: tuple[float, float], failing: tuple[float, float], undecided: tuple[float, float]
) -> None:
    outcomes = [rule.verdict(Interval(sum(pair) / 2, *pair)) for pair in (holding, failing, undecided)]
    assert outcomes == [HOLDS, FAILS, OPEN]
    assert rule.verdict(Interval(0.0)) == OPEN


# Accuracy by part, where all statements hold and where none does.
ACCURACY = {
    f"curve {DEFAULT_METHOD}": (0.90, 0.70),
    "curve gradient_layer_norm": (0.86, 0.74),
    "curve gradient": (0.82, 0.78),
    "curve hies": (0.88, 0.70),
    "curve gradient_batch_32": (0.78, 0.82),
    "curve random": (0.75, 0.80),
    "curve confidence": (0.70, 0.86),
    "curve entropy": (0.70, 0.86),
    f"curve {ITERATIVE}": (0.80, 0.80),
    "forty_percent": (0.90, 0.80),
    "single_heads": (0.04, 0.30),  # share of the heads
    "retrain good": (0.90, 0.90),
    "retrain random": (0.90, 0.80),
    "retrain bad": (0.88, 0.70),
    "retrain full": (0.91, 0.91),
    "small 16": (0.90, 0.80),
    "small 1": (0.85, 0.85),
}
MASKED = {"retrain good": (0.80, 0.60), "retrain random": (0.60, 0.80)}
FLAT_THEN_STEEP, EVEN = [0.9] * 6 + [0.7, 0.4, 0.1], np.linspace(0.85, 0.05, 9).tolist()


def made_up(*worlds: int) -> Measurements:
    """Return measurements of each data set: where all statements hold (0), or none (1)."""
    lines, rng = list[Line](), np.random.default_rng(1)
    for data, world in zip(DATA, worlds, strict=True):
        for seed in SEEDS:
            common = {"data": data, "rows": "all", "seed": seed, "cpu_seconds": 1.0, "commit": "abc", "date": "2026"}
            for index, (part, levels) in enumerate(ACCURACY.items()):
                jitter = 0.0004 * ((seed + index) % 3)
                lines.append(
                    common
                    | {"variant": part, "score": levels[world] + jitter, "whole": 0.905}
                    | {"masked": MASKED.get(part, levels)[world] + jitter, "scores": EVEN if world else FLAT_THEN_STEEP}
                )
            lines.append(common | {"variant": "rank", "orders": made_up_orders(world, rng)})
    return Measurements(lines)


def made_up_orders(world: int, rng: np.random.Generator) -> dict[str, list[int]]:
    """Return orders of 72 heads that agree partly between seeds (world 0), or completely (world 1)."""
    same, related = list(range(72)), sorted(range(72), key=lambda head: head + rng.normal(0, 18))
    return {
        DEFAULT_METHOD: same if world else related,
        "gradient": same,
        "gradient_half_1": same,
        "gradient_half_2": related if world else same,
        "gradient_batch_32": same if world else related,
    }


@pytest.mark.parametrize(
    ("worlds", "expected"), [((0, 0, 0), HOLDS), ((1, 1, 1), FAILS), ((0, 0, 1), OPEN), ((1, 0, 1), OPEN)]
)
def test_every_statement_can_hold_fail_and_be_undecided(worlds: tuple[int, ...], expected: str) -> None:
    measured = made_up(*worlds)
    intervals = {statement.title: summarized(statement.figure(measured)) for statement in STATEMENTS}
    verdicts = {statement.title: verdict(statement, intervals[statement.title]) for statement in STATEMENTS}
    assert verdicts == dict.fromkeys(verdicts, expected)
    assert len(verdicts) == len(STATEMENTS) > 10


def test_what_is_not_measured_is_not_judged() -> None:
    measured = Measurements([])
    table = verdict_table(measured)
    assert len(table) == len(STATEMENTS) + 1
    assert {tuple(row[1:]) for row in table[1:]} == {("**not measured**", "not measured", "not measured", "", "", "")}


def test_only_seeds_that_all_data_sets_have_are_counted() -> None:
    measured = made_up(0, 0, 0)
    partial = Measurements([line for line in measured.lines if (line["data"], line["seed"]) != ("trec", 2)])
    figure = STATEMENTS[0].figure
    assert sum(map(len, figure(partial).values())) == 8
    interval = summarized(
        {data: {s: v for s, v in of_set.items() if s < 2} for data, of_set in figure(measured).items()}
    )
    assert summarized(figure(partial)) == interval


def test_the_guide_has_the_kept_results(tmp_path: Path) -> None:
    measured, file, guide = made_up(0, 1, 0), tmp_path / "claims.json", tmp_path / "guide.md"
    keep([*measured.lines, *measured.lines], file)
    document, kept = read_kept(file)
    assert document == {"dates": ["2026", "2026"], "commits": ["abc"]}
    assert len(kept.lines) == len(measured.lines)
    guide.write_text("# Claims\n\n<!-- begin claims -->\nstale table\n<!-- end claims -->\n\n## Limits\n")
    write_guide(file, guide)
    text = guide.read_text()
    assert "stale table" not in text
    assert text.endswith("<!-- end claims -->\n\n## Limits\n")
    headings = {re.sub(r"[^\w -]", "", line[4:].lower()).replace(" ", "-") for line in re.findall(r"### .*", text)}
    links = set(re.findall(r"\]\(#([^)]+)\)", text))
    assert links == headings == {anchor(number, item.title) for number, item in enumerate(STATEMENTS, 1)}
    for number, statement in enumerate(STATEMENTS, 1):
        part = text.partition(f"### {number}. ")[2].partition("\n### ")[0]
        decided = next(word for word in (HOLDS, FAILS, OPEN) if f"**{word}**" in part)
        assert statement.advice[decided] in part


def test_the_committed_guide_is_made_from_the_committed_results() -> None:
    content = section(*read_kept())
    assert f"<!-- begin claims -->\n{content}\n<!-- end claims -->" in claims_page.GUIDE.read_text(encoding="utf-8")


def test_a_batch_of_one_row_is_the_absolute_value_per_row_and_larger_ones_cancel() -> None:
    gradients = np.random.default_rng(0).normal(size=(12, 2, 3))
    assert per_batch(gradients, 1) == pytest.approx(np.abs(gradients).mean(0))
    assert per_batch(gradients, 12) == pytest.approx(np.abs(gradients.mean(0)))
    assert (per_batch(gradients, 4) <= per_batch(gradients, 1) + 1e-12).all()


def test_orders_are_numbers_and_tau_compares_them() -> None:
    assert numbered([(0, 2), (1, 0)], 3) == [2, 3]
    assert named([2, 3], 3) == [(0, 2), (1, 0)]
    assert tau([2, 0, 1], [2, 0, 1]) == 1
    assert tau([2, 0, 1], [1, 0, 2]) == -1


def test_sub_networks_have_half_of_the_heads_and_good_keeps_what_bad_removes() -> None:
    sites = [AttentionSite(layer, 4, 4, "query", "key", "value", f"output.{layer}") for layer in range(3)]
    run = cast(
        LoadedRun, SimpleNamespace(sample=lambda *_: SimpleNamespace(sites=sites), recipe=SimpleNamespace(seed=0))
    )
    order = [(layer, head) for head in range(4) for layer in range(3)]
    sub_networks = {kind: removed_heads(run, kind, order) for kind in ("good", "random", "bad", "full")}
    assert {kind: sum(map(len, heads.values())) for kind, heads in sub_networks.items()} == {
        "good": 6, "random": 6, "bad": 6, "full": 0,
    }  # fmt: skip
    assert sub_networks["good"] == {0: [0, 1], 1: [0, 1], 2: [0, 1]}
    assert sub_networks["bad"] == {0: [2, 3], 1: [2, 3], 2: [2, 3]}


def test_a_curve_waits_for_its_ranking(tmp_path: Path) -> None:
    runner = Runner(tmp_path, tmp_path, ResultsLog(tmp_path / "log.jsonl"))
    assert runner.run(Cell("trec", "all", 0, "curve gradient")) is None
    runner.log.append({"data": "trec", "rows": "all", "seed": 0, "variant": "rank x", "orders": {"gradient": [1, 0]}})
    assert runner.order_for(Cell("trec", "all", 0, "curve gradient"), "curve", "gradient") == [1, 0]
    assert runner.order_for(Cell("trec", "all", 1, "curve gradient"), "curve", "gradient") is None
    assert runner.order_for(Cell("trec", "all", 1, "curve random"), "curve", "random") == []


def test_every_figure_has_its_measurements() -> None:
    measured = {cell.variant for cell in cells(SEEDS)}
    assert len(cells(SEEDS)) == len(set(cells(SEEDS)))
    assert set(ACCURACY) <= measured
    assert {f"curve {name}" for name in CURVES} <= measured


def test_data_are_required_to_measure(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--data is missing"):
        main(["--results", str(tmp_path / "log.jsonl")])
