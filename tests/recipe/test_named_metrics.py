from __future__ import annotations

import pytest
from sklearn.metrics import get_scorer_names

from finetune.recipe.named_metrics import SKLEARN_METRICS, find_metric, lower_is_better, metric_bounds
from finetune.recipe.names import METRICS

# Scorers of clusterings, and those that need a positive class or an average, which the name does not say.
_NO_METRIC = {
    *("adjusted_mutual_info_score", "adjusted_rand_score", "completeness_score", "fowlkes_mallows_score"),
    *("homogeneity_score", "mutual_info_score", "normalized_mutual_info_score", "rand_score", "v_measure_score"),
    *("f1", "precision", "recall", "jaccard", "positive_likelihood_ratio", "neg_negative_likelihood_ratio"),
    *("top_k_accuracy", "d2_brier_score", "d2_log_loss_score"),
}


def test_the_scorers_of_sklearn_are_known_by_their_names() -> None:
    known = {name for table in (METRICS, SKLEARN_METRICS) for metrics in table.values() for name in metrics}
    known |= {other for table in METRICS.values() for metric in table.values() for other in metric.other_names}
    known.add("accuracy")
    missing = {name for name in get_scorer_names() if name.removeprefix("neg_") not in known}
    assert missing == _NO_METRIC & set(get_scorer_names())
    assert len(missing) < len(get_scorer_names()) / 2


@pytest.mark.parametrize(
    ("name", "problem_type", "known"),
    [
        ("top_3_accuracy", "single_label_classification", True),
        ("top_0_accuracy", "single_label_classification", False),
        ("top_3_accuracy", "multi_label_classification", False),
        ("f0.5_macro", "single_label_classification", True),
        ("f2_samples", "single_label_classification", False),
        ("f2_samples", "multi_label_classification", True),
        ("f0_macro", "single_label_classification", False),
        ("f2_macro", "regression", False),
        ("r2", "regression", True),
        ("r2", "single_label_classification", False),
    ],
)
def test_names_with_a_number(name: str, problem_type: str, known: bool) -> None:
    assert (find_metric(name, problem_type) is not None) == known


def test_directions_and_bounds() -> None:
    errors = ["loss", "log_loss", "brier_score", "max_error", "hamming_loss", "my_error", "my_loss", "wer"]
    assert [name for name in (*errors, "accuracy", "r2", "my_score", "errors") if lower_is_better(name)] == errors
    assert metric_bounds("top_5_accuracy") == (0, 1)
    assert metric_bounds("pearson") == (-1, 1)
    assert metric_bounds("r2") is metric_bounds("log_loss") is metric_bounds("my_score") is None
