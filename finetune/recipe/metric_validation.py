"""Checks of the metrics that a recipe names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from finetune.errors import did_you_mean
from finetune.recipe.loaded_metrics import (
    available_metrics,
    loaded_metrics,
    loading_problem,
    name_problem,
    names_of,
    value_name,
)
from finetune.recipe.named_metrics import SKLEARN_METRICS, find_metric
from finetune.recipe.names import METRICS, ProblemType
from finetune.recipe.validation import Problem, section_of


def metric_problems(document: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield problems with metrics that the problem type does not have, and with early stopping without evaluations."""
    task, evaluation = section_of(document, "task"), section_of(document, "evaluation")
    problem_type = task.get("problem_type", "single_label_classification")
    if problem_type not in get_args(ProblemType):
        return
    metrics = evaluation.get("metrics")
    names = [name for name in metrics if isinstance(name, str)] if isinstance(metrics, list) else []
    for index, name in enumerate(names):
        if text := _metric_problem(name, problem_type):
            yield Problem(("evaluation", "metrics", index), text)
    yield from _repeated_metrics(names, problem_type)
    best = evaluation.get("metric_for_best_model")
    if isinstance(best, str) and (text := _best_metric_problem(best, names, problem_type)):
        yield Problem(("evaluation", "metric_for_best_model"), text)
    if evaluation.get("early_stopping_patience") not in (None, "auto") and evaluation.get("eval_strategy") == "no":
        yield Problem(
            ("evaluation", "early_stopping_patience"), "needs evaluations, but eval_strategy is no; remove one"
        )


def _metric_problem(name: str, problem_type: str) -> str:
    """Return why a metric cannot be reported, or ""."""
    if find_metric(name, problem_type) is not None:
        return ""
    if hint := _metric_hint(name, problem_type):
        return f"given {name!r}; {problem_type} has {available_metrics(problem_type)}{hint}"
    return name_problem(name, problem_type)


def metric_loading_problems(document: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield problems with metrics that are loaded: a missing file, or a download while downloads are turned off."""
    problem_type = section_of(document, "task").get("problem_type", "single_label_classification")
    metrics = section_of(document, "evaluation").get("metrics")
    if problem_type not in get_args(ProblemType) or not isinstance(metrics, list):
        return
    for index, name in enumerate(metrics):
        is_loaded = isinstance(name, str) and find_metric(name, problem_type) is None
        if is_loaded and (text := loading_problem(name, problem_type)):
            yield Problem(("evaluation", "metrics", index), text)


def _best_metric_problem(name: str, listed: Sequence[str], problem_type: str) -> str:
    """Return why a metric cannot select the best model, or "".

    Args:
        listed: the metrics to report.
    """
    is_loaded = any(names_of([name], metric) for metric in loaded_metrics(listed, problem_type))
    if name == "loss" or is_loaded or find_metric(name, problem_type) is not None:
        return ""
    choices = [*METRICS[problem_type], "loss"]
    hint = _metric_hint(name, problem_type) or did_you_mean(name, [*choices, *SKLEARN_METRICS[problem_type]])
    scikit_learn = ", ".join(SKLEARN_METRICS[problem_type])
    rule = "or a metric with a path that evaluation.metrics lists"
    return f"given {name!r}; must be one of {', '.join(choices)}, {scikit_learn}, {rule}{hint}"


def _repeated_metrics(names: Sequence[str], problem_type: str) -> Iterator[Problem]:
    """Yield problems with metrics that have the same name in results."""
    seen: dict[str, str] = {}
    for index, name in enumerate(names):
        known = find_metric(name, problem_type) is not None
        result = name if known else value_name(name)
        if result in seen and not (known and seen[result] == name):
            text = f"{name!r} and {seen[result]!r} would both be reported as '{result}'; rename one of the files"
            yield Problem(("evaluation", "metrics", index), text)
        elif not known and find_metric(result, problem_type) is not None:
            text = f"{name!r} would be reported as '{result}', which is another metric; rename the file"
            yield Problem(("evaluation", "metrics", index), text)
        seen[result] = name


def _metric_hint(name: str, problem_type: str) -> str:
    """Return a suggestion for the name that a metric has in another tool, or "".

    "f1" alone is not accepted: in scikit-learn it is the F1 of the positive class, which a recipe does not name.
    """
    plain = name.lower().removeprefix("eval_")
    known = METRICS[problem_type] | SKLEARN_METRICS[problem_type]
    measure = plain.removesuffix("_score")
    averages = [metric for metric in known if metric.startswith(f"{measure}_")]
    if measure in ("f1", "precision", "recall", "jaccard") and averages:
        per_class = "; precision, recall and F1 of each class are always in scores.json and in the report"
        return f"; choose the mean over classes that you mean: {', '.join(averages)}{per_class}"
    if plain.startswith("top_k") and problem_type == "single_label_classification":
        return "; write the number of labels into the name, such as top_3_accuracy"
    renamed = [metric for metric, info in known.items() if plain in info.other_names]
    suggestion = renamed[0] if renamed else plain.removeprefix("neg_")
    if suggestion == "loss" or (suggestion != name and find_metric(suggestion, problem_type) is not None):
        return f"; did you mean '{suggestion}'?"
    return ""
