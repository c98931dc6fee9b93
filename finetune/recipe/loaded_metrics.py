"""Metrics that a recipe names by a path or by a name on the hub, which the library evaluate loads.

A path is that of a Python file with an `evaluate.Metric`, or of a folder with such a file, named like the folder. Any
other name that no table has is one on the hub (`rouge`, `user/metric`), and needs the network.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from finetune.errors import did_you_mean
from finetune.paths import absolute_path
from finetune.recipe.named_metrics import NUMBERED, SKLEARN_METRICS, find_metric
from finetune.recipe.names import METRICS

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w-]*(/[A-Za-z0-9][\w.-]*)?")
_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE", "TRANSFORMERS_OFFLINE")
PATH_PATTERN = r"[/\\]|\.py$"  # also of names on the hub with a user


def is_path(name: str) -> bool:
    """Return whether a metric is named by the path of a file or folder."""
    looks_like_path = name.endswith(".py") or name.startswith((".", "/", "~"))
    return looks_like_path or ("/" in name and absolute_path(name).exists())


def value_name(name: str) -> str:
    """Return the name of a loaded metric in results: that of the file or folder, without user and ending."""
    return Path(name.rstrip("/")).stem if name.endswith(".py") else Path(name.rstrip("/")).name


def metric_file(path: str) -> Path:
    """Return the Python file of a metric that is named by the path of the file or of its folder."""
    file = absolute_path(path)
    return file / f"{file.name}.py" if file.is_dir() else file


def loaded_metrics(names: Sequence[str], problem_type: str) -> dict[str, str]:
    """Return the metrics among `names` that are loaded: name in results to path or name on the hub."""
    return {value_name(name): name for name in names if find_metric(name, problem_type) is None}


def names_of(values: Sequence[str], metric: str) -> list[str]:
    """Return which of `values` are those of a metric: its own name, or `metric_key` for each key of a loaded metric."""
    return [name for name in values if name == metric] or [name for name in values if name.startswith(f"{metric}_")]


def is_offline() -> bool:
    """Return whether an environment variable forbids downloads."""
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in _OFFLINE)


def available_metrics(problem_type: str) -> str:
    """Return the names of all metrics that work without network, for messages."""
    named = [*METRICS[problem_type], *SKLEARN_METRICS[problem_type], *NUMBERED[problem_type]]
    return f"{', '.join(named)}, or the path of a Python file with an evaluate.Metric"


def absolute_metrics(names: Sequence[str] | None) -> list[str] | None:
    """Return metrics with absolute paths."""
    if names is None:
        return None
    return [str(absolute_path(name)) if is_path(name) else name for name in names]


def name_problem(name: str, problem_type: str) -> str:
    """Return why a name that no table has is not that of a metric on the hub either, or ""."""
    close = did_you_mean(name, [*METRICS[problem_type], *SKLEARN_METRICS[problem_type], *NUMBERED[problem_type]])
    if is_path(name) or (_HUB_NAME.fullmatch(name) and not close):
        return ""
    return f"given {name!r}; {problem_type} has {available_metrics(problem_type)}{close}"


def loading_problem(name: str, problem_type: str) -> str:
    """Return why a metric that no table has cannot be loaded, or ""."""
    if is_path(name):
        file = metric_file(name)
        if file.is_file():
            return ""
        if file.parent.is_dir() and absolute_path(name).is_dir():
            return f"the folder '{name}' has no {file.name}; the file of a metric is named like its folder"
        return f"there is no file '{name}' (full path: {file}); correct the path"
    if is_offline():
        return (
            f"given {name!r}, which finetune would have to download from the hub, and downloads are turned off "
            f"(HF_HUB_OFFLINE); without network {problem_type} has {available_metrics(problem_type)}"
        )
    return ""
