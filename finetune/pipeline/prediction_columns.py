"""The columns that prediction adds to the rows of a file, in Arrow.

N rows, C labels
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from finetune.errors import DataError, did_you_mean
from finetune.models.conformal import Limits
from finetune.models.outputs import DEFAULT_THRESHOLD, OutputRules, most_probable


@dataclass(frozen=True)
class ColumnOptions:
    """Which columns are added.

    Attributes:
        top_k: number of most probable labels to add, each with its probability.
        probabilities: whether to add the probability of every label.
        thresholds: each a number, or LABEL=NUMBER: the probability above which labels are predicted; without any, the
            thresholds of the model.
        prefix: the beginning of the name of every column.
        coverage, coverage_per_class, in_scope: see `Classifier.predict`.
    """

    top_k: int | None = None
    probabilities: bool = False
    thresholds: tuple[str, ...] = ()
    prefix: str = ""
    coverage: float | None = None
    coverage_per_class: bool = False
    in_scope: float | None = None


def checked_rules(rules: OutputRules, options: ColumnOptions) -> OutputRules:
    """Return the model's rules with the requested thresholds.

    Raises:
        DataError: an option is outside its range or does not fit the model's problem type.
    """
    labels = len(rules.label_names)
    _limits(rules, options)
    if rules.problem_type == "regression" and (options.top_k is not None or options.probabilities):
        raise DataError("--top-k and --probabilities are for labels, and this model predicts a number; remove them")
    if options.top_k is not None and not 1 <= options.top_k <= labels:
        raise DataError(f"--top-k is {options.top_k}; it must be from 1 to {labels}, the number of labels")
    return _with_thresholds(rules, options.thresholds) if options.thresholds else rules


def _with_thresholds(rules: OutputRules, options: Sequence[str]) -> OutputRules:
    """Return the rules with thresholds given as T or LABEL=T.

    Raises:
        DataError: a threshold is not a number from 0 to 1, or the label does not exist or is not given.
    """
    names = rules.label_names
    if rules.problem_type == "regression":
        raise DataError("--threshold is for labels, and this model predicts a number; remove it")
    multi_label = rules.problem_type == "multi_label_classification"
    values: list[float | None] = [DEFAULT_THRESHOLD if multi_label else None] * len(names)
    values = values if rules.thresholds is None else list(rules.thresholds)
    for option in options:
        label, separator, number = option.rpartition("=")
        value = _share(number, option)
        if separator and label not in names:
            raise DataError(
                f"--threshold is {option}, but the model has no label '{label}'{did_you_mean(label, names)}"
            )
        known = [index for index, given in enumerate(values) if given is not None]
        if not separator and not multi_label and len(known) != 1:
            raise DataError(
                f"--threshold is {option}, but this model predicts one label per text, and it is not clear which label "
                f"the threshold is for; name it, such as --threshold '{names[0]}={number}'"
            )
        for index in [names.index(label)] if separator else known:
            values[index] = value
    return replace(rules, thresholds=tuple(values))


def _share(number: str, option: str) -> float:
    """Return a number from 0 to 1; raise DataError if it is not one."""
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise DataError(f"--threshold is {option}; it must be a number from 0 to 1, or LABEL=NUMBER")
    return value


def prediction_columns(rules: OutputRules, logits: np.ndarray, options: ColumnOptions) -> pa.RecordBatch:
    """Return the columns for the logits (N, C).

    - `predicted`: the label; a list of labels for `multi_label_classification`; the number for `regression`.
    - `probability`: its probability, or a list of them; not for `regression`.
    - `top_1`, `top_1_probability`, `top_2` ...: with `top_k`.
    - `probability_LABEL` for every label: with `probabilities`.
    - `labels`: the prediction set, with `coverage`; `low` and `high` for `regression`.
    - `in_scope`: with `in_scope`.
    - `answer`: with one of these, the label of a row in scope whose set has one label; else empty.
    """
    probabilities, names = rules.probabilities(logits), pa.array(rules.label_names, pa.string())
    decided = rules.decisions(probabilities)
    columns: dict[str, pa.Array] = {}
    if rules.problem_type == "regression":
        columns["predicted"] = _numbers(decided)
    elif rules.problem_type == "multi_label_classification":
        columns["predicted"] = _lists_of_names(decided, names)
        columns["probability"] = pa.ListArray.from_arrays(
            columns["predicted"].offsets, _numbers(probabilities[decided])
        )
    else:
        columns["predicted"] = names.take(pa.array(decided))
        columns["probability"] = _numbers(probabilities[np.arange(len(decided)), decided])
    order = most_probable(probabilities, options.top_k)
    for rank in range(0 if order is None else order.shape[1]):
        chosen = order[:, rank]  # type: ignore[index]
        columns[f"top_{rank + 1}"] = names.take(pa.array(chosen))
        columns[f"top_{rank + 1}_probability"] = _numbers(probabilities[np.arange(len(chosen)), chosen])
    if options.probabilities:
        for index, name in enumerate(rules.label_names):
            columns[f"probability_{name}"] = _numbers(probabilities[:, index])
    columns |= _set_columns(rules, logits, probabilities, _limits(rules, options))
    names_with_prefix = [options.prefix + name for name in columns]
    return pa.RecordBatch.from_arrays(list(columns.values()), names=names_with_prefix)


def _limits(rules: OutputRules, options: ColumnOptions) -> Limits:
    """Return the limits of prediction sets; raise DataError if their coverage cannot be promised."""
    return rules.limits(options.coverage, per_class=options.coverage_per_class, in_scope=options.in_scope)


def _set_columns(
    rules: OutputRules, logits: np.ndarray, probabilities: np.ndarray, limits: Limits
) -> dict[str, pa.Array]:
    """Return the columns of prediction sets and of rows out of scope."""
    columns: dict[str, pa.Array] = {}
    if rules.problem_type == "regression":
        if limits.error is not None:
            columns["low"] = _numbers(probabilities[:, 0] - limits.error[0])
            columns["high"] = _numbers(probabilities[:, 0] + limits.error[0])
        return columns
    names, answered = pa.array(rules.label_names, pa.string()), np.ones(len(probabilities), dtype=bool)
    if (sets := limits.label_sets(probabilities)) is not None:
        columns["labels"] = _lists_of_names(sets, names)
        answered = sets.sum(axis=1) == 1
        decided = np.where(answered, sets.argmax(axis=1), 0)
    else:
        decided = rules.decisions(probabilities)
    if (in_scope := limits.in_scope(logits)) is not None:
        columns["in_scope"] = pa.array(in_scope)
        answered = answered & in_scope
    if columns:
        columns["answer"] = names.take(pa.array(decided, mask=~answered))
    return columns


def _lists_of_names(chosen: np.ndarray, names: pa.StringArray) -> pa.ListArray:
    """Return the names of the chosen labels (N, C), as a list per row."""
    ends = pa.array(np.concatenate([[0], chosen.sum(axis=1).cumsum()]).astype(np.int32))
    return pa.ListArray.from_arrays(ends, names.take(pa.array(chosen.nonzero()[1])))


def _numbers(values: np.ndarray) -> pa.Array:
    return pa.array(np.ascontiguousarray(values, np.float32))


def check_names(existing: Sequence[str], added: Sequence[str], where: str) -> None:
    """Raise DataError if a column of the input has the name of an added one."""
    if taken := next((name for name in added if name in existing), None):
        raise DataError(
            f"{where} already has a column '{taken}'; set --prefix for the new columns, such as --prefix new_"
        )
