"""Metrics that the library evaluate loads: from a Python file or folder of the user, or from the hub.

Loading runs the code of the file, which is what the recipe asks for.

    N rows, C classes
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import evaluate
import numpy as np

from finetune.errors import RecipeError
from finetune.evaluation.scored_rows import ScoredRows, UndefinedMetricError
from finetune.recipe.loaded_metrics import available_metrics, is_path, metric_file, names_of, value_name

_ROWS_TO_TRY = 50
_INPUTS = ("predictions", "references", "prediction_scores")


def loaded_values(source: str, rows: ScoredRows) -> dict[str, float]:
    """Return the values of a loaded metric by their names in results: that of the metric, or `metric_key` for each key.

    A value that is undefined is NaN; results that are no single numbers are skipped.

    Args:
        source: path or name on the hub.

    Raises:
        UndefinedMetricError: the metric fails for these rows.
        RecipeError: it cannot be loaded, or needs other inputs than labels and predictions.
    """
    metric, name = _load(source, rows.problem_type), value_name(source)
    inputs = _inputs(metric, source, rows)
    try:
        result = metric.compute(**inputs)
    except Exception as error:  # code of the user, which may raise anything
        raise UndefinedMetricError(_reason(error)) from error
    numbers = {key: float(value) for key, value in (result or {}).items() if _is_number(value)}
    if len(numbers) == 1:
        return {name: next(iter(numbers.values()))}
    return {name if key == name else f"{name}_{key}": value for key, value in numbers.items()}


def check_loaded_metrics(sources: Mapping[str, str], rows: ScoredRows, best_metric: str) -> None:
    """Load every metric and compute it once on a few rows, so that a mistake is found before training.

    Args:
        sources: name in results to path or name on the hub.
        rows: a split with its labels as predictions.
        best_metric: the metric that selects the best model.

    Raises:
        RecipeError: a metric cannot be loaded or computed, or has no value with the name of the best metric.
    """
    few = rows.select(np.arange(min(len(rows), _ROWS_TO_TRY)))
    for name, source in sources.items():
        try:
            values = loaded_values(source, few)
        except UndefinedMetricError as error:
            raise RecipeError(
                f"evaluation.metrics: '{source}' fails on {len(few)} rows of this data: {error}; correct its code, or "
                "remove it"
            ) from error
        if not values:
            raise RecipeError(f"evaluation.metrics: '{source}' returns no number; let it return a dict of numbers")
        if names_of([best_metric], name) and best_metric not in values:
            raise RecipeError(
                f"evaluation.metric_for_best_model: given '{best_metric}'; '{source}' has the values "
                f"{', '.join(values)}"
            )


@cache
def _load(source: str, problem_type: str) -> Any:
    """Return the metric of a path or of a name on the hub.

    Raises:
        RecipeError: it cannot be loaded.
    """
    try:
        return _metric_of_file(metric_file(source)) if is_path(source) else evaluate.load(source, keep_in_memory=True)
    except Exception as error:  # code of the user and of the hub, which may raise anything
        if is_path(source):
            fix = "the file must define one class that inherits from evaluate.Metric"
        else:
            fix = f"without network {problem_type} has {available_metrics(problem_type)}"
        raise RecipeError(f"evaluation.metrics: '{source}' cannot be loaded ({_reason(error)}); {fix}") from error


def _metric_of_file(file: Path) -> evaluate.Metric:
    """Return the metric that a Python file defines; it may import its neighbors (`from .helper import x`).

    `evaluate.load` also takes a path, but it copies the file into a cache, and fails on `import a, b`.

    Raises:
        ValueError: the file defines no metric, or several.
    """
    name = f"finetune_metric_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=[str(file.parent)])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, evaluate.Metric) and value.__module__ == name
    ]
    if len(found) != 1:
        raise ValueError(f"it defines {len(found)} metrics")
    return found[0](keep_in_memory=True)


def _inputs(metric: Any, source: str, rows: ScoredRows) -> dict[str, Any]:
    """Return the inputs of a metric: labels and predictions, as names where it reads texts."""
    features = metric.features[0] if isinstance(metric.features, Sequence) else metric.features
    other = [name for name in features if name not in _INPUTS]
    if other:
        raise RecipeError(
            f"evaluation.metrics: '{source}' needs {', '.join(other)}; a metric here gets predictions, references and "
            "prediction_scores"
        )
    given = {"predictions": rows.predicted, "references": rows.labels}
    inputs: dict[str, Any] = {
        name: _as_names(values, rows.label_names) if _reads_texts(features[name]) else values
        for name, values in given.items()
        if name in features
    }
    if "prediction_scores" in features:
        scores = rows.scores
        is_vector = isinstance(features["prediction_scores"], datasets.Value)
        inputs["prediction_scores"] = scores[:, 1] if is_vector and scores.shape[1] == 2 else scores
    return inputs


def _reads_texts(feature: Any) -> bool:
    inner = getattr(feature, "feature", feature)
    return isinstance(inner, datasets.Value) and inner.dtype == "string"


def _as_names(values: np.ndarray, names: tuple[str, ...]) -> list[Any]:
    """Return class ids (N,) or 0/1 label sets (N, C) as label names, and numbers as text."""
    if values.dtype.kind == "f":
        return [str(value) for value in values]
    if values.ndim == 1:
        return [names[index] for index in values]
    return [[names[index] for index in np.flatnonzero(row)] for row in values]


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float | np.number | np.bool_)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:300].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
