"""The simulation of intervals: its populations, and the kept results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from finetune.runs.results import MetricValue
from tests.benchmarks import intervals
from tests.benchmarks.intervals import FILE, GUIDE, Coverage, shown
from tests.benchmarks.kept_results import replace_block
from tests.benchmarks.populations import Setting, confusion_shares, label_sets, pair

SETTING = Setting("single-label", 6, 200_000, 0.9, "95:5", "spread")


@pytest.mark.parametrize("errors", ["spread", "concentrated"])
def test_a_population_has_the_error_rate_and_the_class_sizes_of_its_setting(errors: str) -> None:
    setting = Setting("single-label", 6, 200, 0.9, "95:5", errors)
    shares = confusion_shares(setting, np.random.default_rng(0), 0.1)
    assert shares.sum() == pytest.approx(1)
    assert shares.sum(1) == pytest.approx([0.95, *[0.01] * 5])
    assert np.trace(shares) == pytest.approx(0.9)


def test_samples_of_label_sets_have_the_shares_of_their_population() -> None:
    rng = np.random.default_rng(1)
    population = label_sets(Setting("multi-label", 5, 200, 0.9, "long tail", "spread"), rng)
    predicted, actual = population.draw(200_000, rng)
    hits, chosen = population.hits_predicted()
    # Shares of 200,000 rows have a standard error of at most 0.0011.
    assert (predicted * actual).mean(0) == pytest.approx(hits, abs=0.005)
    assert predicted.mean(0) == pytest.approx(chosen, abs=0.005)
    assert actual.mean(0) == pytest.approx(population.prevalence, abs=0.005)
    assert (predicted == actual).all(-1).mean() == pytest.approx(population.subset_accuracy(), abs=0.005)


def test_samples_of_two_classifiers_have_the_shares_of_their_population() -> None:
    rng = np.random.default_rng(2)
    population = pair(Setting("difference", 3, 200, 0.9, "balanced", "spread"), rng)
    labels, predictions = population.draw(200_000, rng)
    for shares, predicted in zip((population.first, population.second), predictions, strict=True):
        drawn = np.bincount(labels * 3 + predicted, minlength=9).reshape(3, 3) / 200_000
        assert drawn == pytest.approx(shares, abs=0.005)


def test_coverage_counts_intervals_on_both_sides() -> None:
    coverage = Coverage()
    for low, high in ((0.1, 0.3), (0.3, 0.5), (0.45, 0.6), (0.7, 0.9)):
        coverage.add(MetricValue(0.5, low, high), 0.48)
    coverage.add(MetricValue(0.5), 0.48)
    assert coverage.shares() == pytest.approx((0.5, 0.25, 0.25, 0.1875, 0.2))


def test_the_kept_intervals_cover_what_they_should() -> None:
    """400 data sets have a standard error of 1.1 %; the guide names the metrics whose intervals cover less."""
    repetitions, rows = intervals.read_results(FILE)
    assert repetitions >= 400
    assert list(dict.fromkeys(setting for setting, *_ in rows)) == intervals.settings()
    for name, group in shown(rows).items():
        covered = np.array([values[0] for _, _, values in group])
        assert len(covered) >= 12, name
        assert covered.min() >= 0.90, name
        assert 0.935 <= np.median(covered) <= 0.965, name
        too_low, too_high = (np.mean([values[side] for _, _, values in group]) for side in (1, 2))
        assert max(too_low, too_high) <= 0.045, name


def test_the_table_of_the_guide_is_that_of_the_kept_results() -> None:
    guide = GUIDE.read_text(encoding="utf-8")
    assert replace_block(guide, FILE.stem, intervals.table(FILE)) == guide, "run tests/benchmarks/intervals.py"


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = [(SETTING, "accuracy", (0.95, 0.02, 0.03, 0.1, 0.0)), (SETTING, "f1_macro", (0.9, 0.1, 0.0, 0.1, 0.75))]
    intervals.write_results(rows, tmp_path / "x.json", 7)
    assert intervals.read_results(tmp_path / "x.json") == (7, rows)
    assert "| accuracy | 1 | 95.0 | 95.0 | 95.0 | 100% | 2.0 | 3.0 |" in intervals.table(tmp_path / "x.json")
    assert "f1 macro" not in intervals.table(tmp_path / "x.json")  # most data sets have no interval
