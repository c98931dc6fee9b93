from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from finetune.errors import DataError, ModelError
from finetune.models import losses
from finetune.models.outputs import OutputRules, Prediction

NAMES = ("a", "b", "c")
SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


@pytest.mark.parametrize(
    ("problem_type", "logits", "expected"),
    [
        ("single_label_classification", [[0.0, 0.0, 2.0]], Prediction("c", {"a": 0.1065, "b": 0.1065, "c": 0.7870})),
        (
            "multi_label_classification", [[1.0, -1.0, 2.0]],
            Prediction(("a", "c"), {"a": 0.7311, "b": 0.2689, "c": 0.8808}),
        ),
        ("multi_label_classification", [[-1.0, -1.0, -2.0]], Prediction((), {"a": 0.2689, "b": 0.2689, "c": 0.1192})),
        ("regression", [[3.5]], Prediction(3.5, {})),
    ],
)  # fmt: skip
def test_labels_and_probabilities_by_problem_type(
    problem_type: str, logits: list[list[float]], expected: Prediction
) -> None:
    (result,) = OutputRules(NAMES, problem_type).predictions(np.array(logits))
    assert result.label == expected.label
    assert result.probabilities == pytest.approx(expected.probabilities, abs=1e-4)  # expected has four decimals


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI, REGRESSION])
def test_without_options_the_rules_are_those_of_the_scores(problem_type: str) -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(200, 1 if problem_type == REGRESSION else 3)).astype(np.float32) * 40
    rules = OutputRules(NAMES, problem_type)
    as_torch = torch.from_numpy(logits)
    expected = {SINGLE: as_torch.softmax(-1), MULTI: as_torch.sigmoid(), REGRESSION: as_torch}[problem_type].numpy()
    # float32 in torch, float64 here: measured 1.2e-7 for probabilities; the logits, up to 150, are returned unchanged.
    np.testing.assert_allclose(rules.probabilities(logits), expected, rtol=0, atol=1e-6)
    decided = rules.decisions(rules.probabilities(logits))
    np.testing.assert_array_equal(decided, losses.decisions(as_torch, problem_type).numpy())


def test_temperature_divides_the_logits_of_a_classification() -> None:
    logits = np.array([[2.0, 0.0, -2.0]])
    for problem_type in (SINGLE, MULTI):
        expected = OutputRules(NAMES, problem_type).probabilities(logits / 4)
        actual = OutputRules(NAMES, problem_type, temperature=4.0).probabilities(logits)
        np.testing.assert_array_equal(actual, expected)
        assert not np.allclose(actual, OutputRules(NAMES, problem_type).probabilities(logits))
    assert OutputRules(("x",), REGRESSION, temperature=4.0).probabilities(logits[:, :1]) == 2.0


def test_each_label_has_its_own_threshold() -> None:
    logits = np.log([[0.25, 1.0, 4.0]])  # probabilities 0.2, 0.5, 0.8
    assert OutputRules(NAMES, MULTI).predictions(logits)[0].label == ("c",)  # above 0.5, as in the scores
    rules = OutputRules(NAMES, MULTI, thresholds=(0.1, 0.49, 0.9))
    assert rules.predictions(logits)[0].label == ("a", "b")


def test_a_rare_class_is_predicted_above_its_threshold_and_otherwise_the_best_of_the_others() -> None:
    probabilities = np.array([[0.6, 0.3, 0.1], [0.6, 0.15, 0.25], [0.1, 0.2, 0.7], [0.1, 0.8, 0.1]])
    expected = {
        (None, 0.2, None): [1, 0, 2, 1],
        (None, 0.9, None): [0, 0, 2, 0],
        (None, 0.2, 0.2): [1, 2, 2, 1],  # the most probable of those above their thresholds
        (0.7, 0.9, 0.9): [0, 0, 2, 1],  # none is above, and every label has a threshold: the most probable
    }
    for thresholds, labels in expected.items():
        rules = OutputRules(NAMES, SINGLE, thresholds=thresholds)
        assert rules.decisions(probabilities).tolist() == labels
        assert [prediction.label for prediction in rules.predictions(np.log(probabilities))] == [
            NAMES[label] for label in labels
        ]


def test_top_k_keeps_the_most_probable_labels_highest_first() -> None:
    logits = np.array([[0.0, 2.0, 1.0], [3.0, 1.0, 1.0]])
    rules = OutputRules(NAMES, SINGLE)
    everything = rules.predictions(logits)
    for k, expected in {1: [["b"], ["a"]], 2: [["b", "c"], ["a", "b"]], 9: [["b", "c", "a"], ["a", "b", "c"]]}.items():
        result = rules.predictions(logits, top_k=k)
        assert [list(prediction.probabilities) for prediction in result] == expected
        for prediction, full in zip(result, everything, strict=True):
            assert prediction.label == full.label
            assert prediction.probabilities.items() <= full.probabilities.items()
    with pytest.raises(DataError, match="top_k is 0; it must be at least 1"):
        rules.predictions(logits, top_k=0)


@pytest.mark.parametrize(
    ("problem_type", "options", "message"),
    [
        (SINGLE, {"temperature": 0.0}, "the temperature of the model is 0.0; it must be a number above 0"),
        (SINGLE, {"temperature": float("nan")}, "the temperature of the model is nan"),
        (REGRESSION, {"thresholds": (0.5, 0.5, 0.5)}, "thresholds are for labels, and this model is regression"),
        (SINGLE, {"thresholds": (None, 1.5, None)}, "there must be one from 0 to 1, or none, for each of its 3 labels"),
        (SINGLE, {"thresholds": (None, 0.5)}, "for each of its 3 labels"),
        (MULTI, {"thresholds": (None, 0.5, 0.5)}, "there must be one from 0 to 1 for each of its 3 labels"),
        (
            MULTI,
            {"thresholds": (0.5, 0.5)},
            "the thresholds of the model are [0.5, 0.5]; there must be one from 0 to 1",
        ),
        (MULTI, {"thresholds": (0.5, 0.5, 1.5)}, "for each of its 3 labels"),
    ],
)
def test_wrong_options_give_one_error_message(problem_type: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=re.escape(message)):
        OutputRules(NAMES, problem_type, **options)  # type: ignore[arg-type]


def test_importing_the_rules_loads_numpy_only() -> None:
    program = "import sys, finetune.models.outputs; print({'numpy', 'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "{'numpy'}\n"
