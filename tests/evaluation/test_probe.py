"""A linear model on pooled states: finetune/evaluation/probe.py."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from finetune.evaluation.probe import fit_probe

RANDOM = np.random.default_rng(0)
# Features of unlike scale and offset, as the states of a pretrained encoder have; the last one is constant.
SCALE, OFFSET = np.array([1e-2, 1.0, 30.0, 0.1, 0.0]), np.array([5.0, -2.0, 100.0, 0.0, 3.0])
CENTERS = RANDOM.normal(size=(4, 5)) * 2


def states_of(classes: np.ndarray) -> np.ndarray:
    """Return states of rows of these classes, as float32."""
    return ((CENTERS[classes] + RANDOM.normal(size=(len(classes), 5)) * 0.5) * SCALE + OFFSET).astype(np.float32)


@pytest.mark.parametrize(("classes", "rows"), [([0, 1], 40), ([0, 1, 2, 3], 12), ([1, 3], 40), ([0, 2, 3], 40)])
def test_classes_are_predicted_and_those_without_rows_never(classes: list[int], rows: int) -> None:
    labels = RANDOM.choice(classes, rows)
    labels[: len(classes)] = classes
    probe = fit_probe(states_of(labels), labels, "single_label_classification", 4, 0)
    held_out = RANDOM.choice(classes, 200)
    logits = probe.logits(states_of(held_out))
    assert (logits.argmax(1) == held_out).mean() > 0.9
    unseen = sorted({0, 1, 2, 3} - set(classes))
    assert not probe.weight[unseen].any()
    assert set(logits.argmax(1)) <= set(classes)
    if unseen:
        assert probe.bias[unseen].max() < probe.bias[classes].min()
    assert (probe.weight.shape, probe.bias.shape) == ((4, 5), (4,))
    assert not probe.weight[:, 4].any()  # a constant feature says nothing


def test_one_class_is_always_predicted() -> None:
    probe = fit_probe(states_of(np.full(10, 2)), np.full(10, 2), "single_label_classification", 4, 0)
    assert (probe.logits(states_of(np.array([0, 1, 2, 3]))).argmax(1) == 2).all()


def test_labels_of_sets_are_fitted_one_by_one() -> None:
    classes = RANDOM.integers(0, 4, 200)
    sets = np.stack([classes % 2, classes > 1, np.zeros(200, int), np.ones(200, int)], axis=1).astype(int)
    probe = fit_probe(states_of(classes), sets, "multi_label_classification", 4, 0)
    assert f1_score(sets, probe.logits(states_of(classes)) > 0, average="micro") > 0.9
    assert not probe.weight[2:].any()
    assert probe.bias[2] == pytest.approx(np.log(0.5 / 200.5))
    assert probe.bias[3] == pytest.approx(np.log(200.5 / 0.5))


def test_values_are_predicted() -> None:
    states = states_of(RANDOM.integers(0, 4, 200))
    values = 20 + 3 * (states[:, 1] - OFFSET[1]) + RANDOM.normal(size=200) * 0.1
    probe = fit_probe(states[:100], values[:100], "regression", 1, 0)
    assert np.abs(probe.logits(states[100:])[:, 0] - values[100:]).mean() < 0.2


def test_a_fit_that_is_cut_short_does_not_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.evaluation.probe._MAX_ITERATIONS", 1)
    labels = np.arange(40) % 4
    assert fit_probe(states_of(labels), labels, "single_label_classification", 4, 0).weight.any()
