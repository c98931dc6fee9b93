"""Intervals of the metrics without a formula of the toolkit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finetune.evaluation import named_intervals
from finetune.evaluation.loaded_intervals import loaded_metric_values
from finetune.evaluation.named_differences import named_difference
from finetune.evaluation.named_intervals import named_metric_value, paired_difference
from tests.support.metric_rows import scored_rows, write_cost_metric

BINARY = scored_rows("single_label_classification", rows=200, classes=2)
RESAMPLING: dict[str, int] = {"samples": 100, "seed": 3}


@pytest.mark.parametrize("name", ["roc_auc", "log_loss", "balanced_accuracy"])
def test_a_metric_has_an_interval_around_its_value(name: str) -> None:
    value = named_metric_value(name, BINARY, **RESAMPLING)
    assert value.value is not None
    assert value.low is not None
    assert value.high is not None
    assert value.low < value.value < value.high
    assert value == named_metric_value(name, BINARY, **RESAMPLING)


def test_the_interval_of_a_share_is_as_wide_as_its_standard_error() -> None:
    value = named_metric_value("top_1_accuracy", BINARY, samples=1000, seed=0)
    assert value.value is not None
    error = np.sqrt(value.value * (1 - value.value) / len(BINARY))
    assert value.low is not None
    assert value.high is not None
    assert value.high - value.low == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_a_metric_without_row_weights_has_an_interval_from_drawn_rows() -> None:
    value = named_metric_value("roc_auc_ovo", scored_rows("single_label_classification"), **RESAMPLING)
    assert None not in (value.value, value.low, value.high)
    assert value.low < value.value < value.high  # type: ignore[operator]


def test_the_largest_error_has_no_interval() -> None:
    rows = scored_rows("regression")
    value = named_metric_value("max_error", rows, **RESAMPLING)
    assert value.value == np.abs(rows.labels - rows.predicted).max()
    assert (value.low, value.high) == (None, None)
    assert value.note == "no interval: other rows can have a larger error than any of these"
    assert paired_difference((rows, rows), "max_error", **RESAMPLING).note == value.note
    assert named_difference([rows], [rows], "max_error", **RESAMPLING).metric.difference.note == value.note


def test_undefined_metrics_and_few_rows_have_no_interval() -> None:
    one_class = BINARY.select(np.flatnonzero(BINARY.labels == 0))
    undefined = named_metric_value("roc_auc", one_class, **RESAMPLING)
    assert undefined.value is None
    assert undefined.note == "undefined: Only one class is present in y_true"
    few = named_metric_value("roc_auc", BINARY.select(np.arange(6)), **RESAMPLING)
    assert few.value is not None
    assert (few.low, few.high) == (None, None)


def test_a_slow_metric_has_a_note_instead_of_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named_intervals, "MAX_SECONDS", 0.0)
    value = named_metric_value("log_loss", BINARY, **RESAMPLING)
    assert value.value is not None
    assert value.interval() == ""
    assert value.note == "no interval: computing it 100 times would take longer than 0 s"
    assert paired_difference((BINARY, BINARY), "log_loss", **RESAMPLING).note == value.note


def test_a_difference_is_paired() -> None:
    better = replace(BINARY, predicted=np.where(np.arange(200) < 20, BINARY.labels, BINARY.predicted))
    difference = paired_difference((BINARY, better), "balanced_accuracy", **RESAMPLING)
    alone = named_metric_value("balanced_accuracy", BINARY, **RESAMPLING)
    assert None not in (difference.value, difference.low, difference.high, alone.low, alone.high)
    assert 0 <= difference.low <= difference.value <= difference.high  # type: ignore[operator]
    assert difference.high - difference.low < (alone.high - alone.low) / 2  # type: ignore[operator]
    assert paired_difference((BINARY, BINARY), "balanced_accuracy", **RESAMPLING).value == 0


def test_a_loaded_metric_has_an_interval(tmp_path: Path) -> None:
    file = write_cost_metric(tmp_path)
    ((name, value),) = loaded_metric_values(str(file), BINARY, samples=100, seed=0).items()
    wrong = BINARY.labels != BINARY.predicted
    assert name == "cost_error"
    assert value.value == pytest.approx(np.mean(wrong * np.where(BINARY.labels, 5, 1)))
    assert value.low is not None
    assert value.high is not None
    assert value.low < value.value < value.high
