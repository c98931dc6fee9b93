"""The metrics that a recipe can name in addition to those of `names.METRICS`: the ones of scikit-learn, by its names.

scikit-learn's scorers for errors have a prefix `neg_` because a search maximizes them. Here a metric has the sign that
its name says: `log_loss` instead of `neg_log_loss`, and lower is better.

Names with a number: `top_3_accuracy`, and `f2_macro` or `f0.5_macro` for F-beta.
"""

from __future__ import annotations

import re
from dataclasses import replace

from finetune.recipe.names import METRICS, Metric

SHARE, CORRELATION = (0.0, 1.0), (-1.0, 1.0)
AVERAGES = {
    "macro": "mean over the {classes}",
    "micro": "of the counts summed over all {classes}",
    "weighted": "mean over the {classes}, weighted by their numbers of rows",
    "samples": "mean over the rows",
}
_TOP_K = re.compile(r"top_([1-9]\d{0,3})_accuracy")
_F_BETA = re.compile(r"f(\d{1,2}(?:\.\d{1,2})?)_(macro|micro|weighted|samples)")
# A name that ends in one of these measures an error, as in scikit-learn, and also in a metric that is loaded.
_ERROR_ENDINGS = ("_error", "_loss", "_deviance", "_distance")
_ERROR_NAMES = frozenset({"loss", "mse", "mae", "rmse", "wer", "cer", "mape", "perplexity", "brier_score"})


def _averaged(measure: str, title: str, classes: str, averages: tuple[str, ...]) -> dict[str, Metric]:
    return {
        f"{measure}_{average}": Metric(f"{title}, {AVERAGES[average].format(classes=classes)}", measure, bounds=SHARE)
        for average in averages
    }


def _decided(classes: str, averages: tuple[str, ...]) -> dict[str, Metric]:
    """Return precision, recall and Jaccard index in each average."""
    titles = {"precision": "precision", "recall": "recall", "jaccard": "Jaccard index (hits / hits or misses)"}
    return {
        name: metric
        for measure, title in titles.items()
        for name, metric in _averaged(measure, title, classes, averages).items()
    }


def _ranked(
    description: str, hub_name: str, *other_names: str, bounds: tuple[float, float] | None = SHARE, lower: bool = False
) -> Metric:
    """Return a metric of probabilities."""
    return Metric(description, hub_name, lower, other_names, needs_probabilities=True, bounds=bounds)


_AUC = "area under the ROC curve"
_SINGLE_LABEL = {
    "balanced_accuracy": Metric(
        "mean recall of the classes that occur",
        "balanced_accuracy",
        bounds=SHARE,
        other_names=("balanced_accuracy_score",),
    ),
    "cohen_kappa": Metric(
        "Cohen's kappa: agreement above chance",
        "cohen_kappa",
        other_names=("cohen_kappa_score", "kappa"),
        bounds=CORRELATION,
    ),
    **_decided("classes", ("macro", "micro", "weighted")),
    "hamming_loss": Metric("share of rows whose label was not predicted", "hamming_loss", True, bounds=SHARE),
    "roc_auc": _ranked(
        f"{_AUC} of the second label; with more than two labels the mean of one-vs-rest areas",
        "roc_auc",
        *("roc_auc_score", "auc", "auroc", "roc"),
    ),
    "roc_auc_ovr": _ranked(f"{_AUC}, each label against the rest, mean over the labels", "roc_auc"),
    "roc_auc_ovr_weighted": _ranked(f"{_AUC}, each label against the rest, weighted by their rows", "roc_auc"),
    "roc_auc_ovo": _ranked(f"{_AUC}, mean over all pairs of labels", "roc_auc"),
    "roc_auc_ovo_weighted": _ranked(f"{_AUC}, mean over all pairs of labels, weighted by their rows", "roc_auc"),
    "average_precision": _ranked(
        "average precision of the second label; with more than two labels the mean over the labels",
        "average_precision",
        *("average_precision_score", "ap", "pr_auc", "auprc", "map"),
    ),
    "log_loss": _ranked(
        "cross-entropy of the probabilities in nats",
        "log_loss",
        *("neg_log_loss", "cross_entropy", "nll"),
        bounds=None,
        lower=True,
    ),
    "brier_score": _ranked(
        "mean squared error of the probabilities, summed over the labels (with two labels: of the second one)",
        "brier_score",
        *("brier", "neg_brier_score", "brier_score_loss"),
        bounds=None,
        lower=True,
    ),
}
_MULTI_LABEL = {
    **_averaged("f1", "F1", "labels", ("samples",)),
    **_decided("labels", ("macro", "micro", "weighted", "samples")),
    "hamming_loss": Metric("share of wrong decisions, over all rows and labels", "hamming_loss", True, bounds=SHARE),
    "roc_auc": _ranked(f"{_AUC}, mean over the labels", "roc_auc", "roc_auc_score", "auc", "auroc", "roc_auc_macro"),
    "roc_auc_micro": _ranked(f"{_AUC} of all rows and labels together", "roc_auc"),
    "roc_auc_weighted": _ranked(f"{_AUC}, mean over the labels, weighted by their rows", "roc_auc"),
    "average_precision": _ranked(
        "average precision, mean over the labels",
        "average_precision",
        *("average_precision_score", "ap", "pr_auc", "map", "average_precision_macro"),
    ),
    "average_precision_micro": _ranked("average precision of all rows and labels together", "average_precision"),
    "average_precision_weighted": _ranked(
        "average precision, mean over the labels, weighted by their rows", "average_precision"
    ),
    "average_precision_samples": _ranked("average precision, mean over the rows", "average_precision"),
    "label_ranking_average_precision": _ranked(
        "mean over a row's labels of the share of labels ranked above it that are right", "average_precision", "lrap"
    ),
    "label_ranking_loss": _ranked(
        "share of pairs of labels of a row that are ranked the wrong way round", "label_ranking_loss", lower=True
    ),
    "coverage_error": _ranked(
        "number of labels down the ranking to include all labels of a row", "coverage_error", bounds=None, lower=True
    ),
}
_REGRESSION = {
    "r2": Metric(
        "coefficient of determination: 1 is perfect, 0 the mean of the labels",
        "r_squared",
        other_names=("r2_score", "r_squared"),
    ),
    "root_mean_squared_error": Metric("root mean squared error", "rmse", True, other_names=("rmse",)),
    "median_absolute_error": Metric("median absolute error", "median_absolute_error", True, other_names=("medae",)),
    "max_error": Metric("largest absolute error", "max_error", True),
    "explained_variance": Metric(
        "share of the labels' variance that the predictions explain, apart from a constant error",
        "explained_variance",
        other_names=("explained_variance_score",),
    ),
    "mean_absolute_percentage_error": Metric(
        "mean of the absolute error divided by the absolute label", "mape", True, other_names=("mape",)
    ),
    "mean_squared_log_error": Metric(
        "mean squared error of log(1 + value), for values above -1", "mean_squared_log_error", True, ("msle",)
    ),
    "root_mean_squared_log_error": Metric(
        "root of the mean_squared_log_error", "root_mean_squared_log_error", True, ("rmsle",)
    ),
    "mean_poisson_deviance": Metric("mean Poisson deviance, for predictions above 0", "mean_poisson_deviance", True),
    "mean_gamma_deviance": Metric("mean gamma deviance, for values above 0", "mean_gamma_deviance", True),
    "d2_absolute_error_score": Metric(
        "share of the absolute error of the median of the labels that is explained", "d2_absolute_error_score"
    ),
}
SKLEARN_METRICS: dict[str, dict[str, Metric]] = {
    "single_label_classification": _SINGLE_LABEL,
    "multi_label_classification": _MULTI_LABEL,
    "regression": _REGRESSION,
}
# Patterns of the names with a number, for people and for the JSON schema.
NUMBERED = {
    "single_label_classification": {
        "top_3_accuracy": (_TOP_K.pattern, "share of rows whose label is among the 3 most probable ones (any number)"),
        "f2_macro": (
            r"f\d{1,2}(\.\d{1,2})?_(macro|micro|weighted)",
            "F-beta, which counts recall beta times as much as precision (`f0.5_macro`, `f2_weighted`)",
        ),
    },
    "multi_label_classification": {
        "f2_macro": (
            _F_BETA.pattern,
            "F-beta, which counts recall beta times as much as precision (`f0.5_micro`, `f2_samples`)",
        ),
    },
    "regression": {},
}


def top_k(name: str) -> int | None:
    """Return the k of `top_3_accuracy`, None for any other name."""
    match = _TOP_K.fullmatch(name)
    return int(match[1]) if match else None


def f_beta(name: str) -> tuple[float, str] | None:
    """Return beta and average of a name such as `f0.5_macro`, None for any other name; `f1_macro` is in the tables."""
    match = _F_BETA.fullmatch(name)
    return (float(match[1]), match[2]) if match and float(match[1]) not in (0, 1) else None


def find_metric(name: str, problem_type: str) -> Metric | None:
    """Return the description of a metric, or None if the problem type has none of this name."""
    known = METRICS[problem_type].get(name) or SKLEARN_METRICS[problem_type].get(name)
    if known is not None or problem_type == "regression":
        return known
    single_label = problem_type == "single_label_classification"
    if (k := top_k(name)) is not None and single_label:
        description = f"share of rows whose label is among the {k} most probable ones"
        return Metric(description, "top_k_accuracy", needs_probabilities=True, bounds=SHARE)
    if (parts := f_beta(name)) is not None and not (single_label and parts[1] == "samples"):
        classes = "classes" if single_label else "labels"
        return Metric(f"F-{parts[0]:g}, {AVERAGES[parts[1]].format(classes=classes)}", "f_beta", bounds=SHARE)
    return None


def is_toolkit_metric(name: str, problem_type: str) -> bool:
    """Return whether the toolkit itself computes the metric, from counts of rows, instead of scikit-learn."""
    return name in METRICS[problem_type]


def lower_is_better(name: str) -> bool:
    """Return whether a metric measures an error: by the tables, or for a metric that is loaded by its name."""
    for tables in (METRICS, SKLEARN_METRICS):
        for table in tables.values():
            if name in table:
                return table[name].lower_is_better
    return name in _ERROR_NAMES or name.endswith(_ERROR_ENDINGS)


def metric_bounds(name: str) -> tuple[float, float] | None:
    """Return the values that a metric can have, None if it has no lower or no upper bound, or if they are unknown."""
    known = (find_metric(name, problem_type) for problem_type in METRICS)
    return next((metric.bounds for metric in known if metric is not None), None)


def names_and_descriptions(problem_type: str) -> dict[str, Metric]:
    """Return all metrics of a problem type by name, with an example of each pattern of names."""
    numbered = {
        name: replace(metric, description=description)
        for name, (_, description) in NUMBERED[problem_type].items()
        if (metric := find_metric(name, problem_type)) is not None
    }
    return METRICS[problem_type] | SKLEARN_METRICS[problem_type] | numbered
