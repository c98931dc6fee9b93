"""The columns that prediction adds to the rows of a file, in Arrow.

N rows, C labels
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from finetune.errors import DataError
from finetune.models.conformal import Limits
from finetune.models.outputs import OutputRules, most_probable


@dataclass(frozen=True)
class ColumnOptions:
    """Which columns are added.

    Attributes:
        top_k: number of most probable labels to add, each with its probability.
        probabilities: whether to add the probability of every label.
        threshold: the probability above which each label of a `multi_label_classification` is predicted; None: the
            thresholds of the model.
        prefix: the beginning of the name of every column.
        coverage, coverage_per_class, in_scope: see `Classifier.predict`.
    """

    top_k: int | None = None
    probabilities: bool = False
    threshold: float | None = None
    prefix: str = ""
    coverage: float | None = None
    coverage_per_class: bool = False
    in_scope: float | None = None


def checked_rules(rules: OutputRules, options: ColumnOptions) -> OutputRules:
    """Return the model's rules with the requested threshold.

    Raises:
        DataError: an option is outside its range or does not fit the model's problem type.
    """
    labels = len(rules.label_names)
    _limits(rules, options)
    if rules.problem_type == "regression" and (options.top_k is not None or options.probabilities):
        raise DataError("--top-k and --probabilities are for labels, and this model predicts a number; remove them")
    if options.top_k is not None and not 1 <= options.top_k <= labels:
        raise DataError(f"--top-k is {options.top_k}; it must be from 1 to {labels}, the number of labels")
    if options.threshold is None:
        return rules
    if rules.problem_type != "multi_label_classification":
        raise DataError(
            f"--threshold is for multi_label_classification, and this model is {rules.problem_type}; remove it, or use "
            "--probabilities and choose rows by their probability"
        )
    if not 0 <= options.threshold <= 1:
        raise DataError(f"--threshold is {options.threshold:g}; it must be from 0 to 1")
    return replace(rules, thresholds=(options.threshold,) * labels)


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
        columns["probability"] = _numbers(probabilities.max(axis=1))
    order = most_probable(probabilities, options.top_k)
    for rank in range(0 if order is None else order.shape[1]):
        chosen = order[:, rank]  # type: ignore[index]
        columns[f"top_{rank + 1}"] = names.take(pa.array(chosen))
        columns[f"top_{rank + 1}_probability"] = _numbers(probabilities[np.arange(len(chosen)), chosen])
    if options.probabilities:
        for index, name in enumerate(rules.label_names):
            columns[f"probability_{name}"] = _numbers(probabilities[:, index])
    columns |= _set_columns(rules, probabilities, _limits(rules, options))
    names_with_prefix = [options.prefix + name for name in columns]
    return pa.RecordBatch.from_arrays(list(columns.values()), names=names_with_prefix)


def _limits(rules: OutputRules, options: ColumnOptions) -> Limits:
    """Return the limits of prediction sets; raise DataError if their coverage cannot be promised."""
    return rules.limits(options.coverage, per_class=options.coverage_per_class, in_scope=options.in_scope)


def _set_columns(rules: OutputRules, probabilities: np.ndarray, limits: Limits) -> dict[str, pa.Array]:
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
        decided = probabilities.argmax(axis=1)
    if (in_scope := limits.in_scope(probabilities)) is not None:
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
