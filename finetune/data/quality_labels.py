"""Findings about the labels: spellings that differ little, classes with few rows, values far from all others.

N rows, C classes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from finetune.data.quality_texts import SplitTexts
from finetune.data.text_keys import fold_texts
from finetune.report.head_charts import wilson_interval
from finetune.runs.data_quality import NOTE, WARNING, Finding, list_names

MIN_TRAINING_ROWS = 8  # the fewest rows per class in published few-shot results for fine-tuned encoders (SetFit)
MIN_SCORED_ROWS = 10  # below it, the 95 % interval of a recall of 0.9 is wider than 0.4
_TYPICAL_RECALL = 0.9
_FAR_OUT = 3.0  # interquartile ranges beyond the quartiles: "far out" in Tukey, Exploratory Data Analysis, 1977
_EXAMPLES = 3


def label_findings(
    splits: Mapping[str, SplitTexts], labels: Mapping[str, np.ndarray], names: Sequence[str]
) -> list[Finding]:
    """Return the findings about class ids (N,) or label sets (N, C) of all splits, or about values (N,)."""
    if labels["train"].dtype.kind == "f":
        return [finding for name in splits for finding in _outliers(splits[name], labels[name], labels["train"])]
    counts = {name: _rows_per_class(labels[name], len(names)) for name in splits}
    scored = [finding for name in splits if name != "train" for finding in _rarely_scored(name, counts[name], names)]
    return [*_similar_names(names), *_rarely_trained(counts["train"], names), *scored]


def _rows_per_class(labels: np.ndarray, classes: int) -> np.ndarray:
    """Return the number of rows of each class, (C,)."""
    counts: np.ndarray = labels.sum(0) if labels.ndim == 2 else np.bincount(labels, minlength=classes)
    return counts


def _similar_names(names: Sequence[str]) -> list[Finding]:
    """Return a finding if label names differ only in case, punctuation, white space or Unicode form."""
    groups: dict[str, list[str]] = {}
    for name, folded in zip(names, fold_texts(pa.array(list(names))).to_pylist(), strict=True):
        groups.setdefault(folded, []).append(name)
    similar = [group for group in groups.values() if len(group) > 1]
    if not similar:
        return []
    shown = list_names([" and ".join(f"{name!a}" for name in group) for group in similar])
    message = (
        f"labels that differ only in case, punctuation, white space or Unicode form: {shown}. If they are one label, "
        "use one spelling in the data"
    )
    return [Finding("label_spellings", WARNING, "", sum(map(len, similar)), message)]


def _rarely_trained(counts: np.ndarray, names: Sequence[str]) -> list[Finding]:
    """Return a finding if classes have few training rows."""
    rare = np.flatnonzero(counts < MIN_TRAINING_ROWS)
    if not len(rare):
        return []
    shown = list_names([f"{names[index]} ({counts[index]})" for index in rare[np.argsort(counts[rare], kind="stable")]])
    message = (
        f"{_labels(len(rare), names)} fewer than {MIN_TRAINING_ROWS} training rows, too few to learn: {shown}. Add "
        "rows, or merge or remove these labels"
    )
    return [Finding("few_training_rows", WARNING, "train", len(rare), message)]


def _rarely_scored(split: str, counts: np.ndarray, names: Sequence[str]) -> list[Finding]:
    """Return a finding if classes have too few rows in a split for a useful recall."""
    rare = np.flatnonzero(counts < MIN_SCORED_ROWS)
    if not len(rare):
        return []
    ordered = rare[np.argsort(counts[rare], kind="stable")]
    shown = list_names([f"{names[index]} ({counts[index]})" for index in ordered])
    rows = int(np.median(counts[rare]))
    width = ""
    if rows:
        low, high = wilson_interval(_TYPICAL_RECALL, rows)
        row = "row" if rows == 1 else "rows"
        width = f"; a recall of {_TYPICAL_RECALL} on {rows} {row} has the 95 % interval {low:.2f} to {high:.2f}"
    message = (
        f"{_labels(len(rare), names)} fewer than {MIN_SCORED_ROWS} {split} rows, too few to measure each of them: "
        f"{shown}{width}. Use more {split} rows, or read only the scores over all labels"
    )
    return [Finding("few_scored_rows", WARNING, split, len(rare), message)]


def _outliers(split: SplitTexts, values: np.ndarray, train: np.ndarray) -> list[Finding]:
    """Return a finding if values (N,) are far from the middle half of the training values."""
    low, high = np.quantile(train, [0.25, 0.75])
    reach = _FAR_OUT * (high - low)
    rows = np.flatnonzero((values < low - reach) | (values > high + reach))
    if not len(rows) or not reach:
        return []
    values_are = "values are" if len(rows) > 1 else "value is"
    message = (
        f"{len(rows):,} {split.name} {values_are} more "
        f"than {_FAR_OUT:g} interquartile ranges beyond the middle half of the training values, "
        f"{low:g} to {high:g}: with a squared error such rows decide the fit. Check them"
    )
    order = rows[np.argsort(-np.abs(values[rows] - (low + high) / 2), kind="stable")]
    return [
        Finding(
            "outliers", NOTE, split.name, len(rows), message, [[split.example(int(row))] for row in order[:_EXAMPLES]]
        )
    ]


def _labels(count: int, names: Sequence[str]) -> str:
    return f"{count} of {len(names)} labels {'have' if count > 1 else 'has'}"
