"""Slices of the scored rows in which the classifier is wrong significantly more often than outside of them.

N rows, F conditions
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import csr_array
from scipy.special import gammaln

from finetune.report.row_columns import text_lengths
from finetune.report.row_outcomes import is_text, wrong_rows
from finetune.runs.multiple_tests import holm

MAX_ROWS = 100_000  # a random sample of more rows is tested
_MIN_ROWS = 5  # of a slice, and at least 1 % of all rows
_MAX_WORDS = 200  # the most frequent ones
_MAX_SHOWN = 10
_SIGNIFICANT = 0.05
_MIN_GAIN = 1.2  # error rate of two conditions together, relative to that of each alone
_MAX_OVERLAP = 0.7  # of the wrong rows of two slices that are both shown
_PRECISION = 1e-12  # of p-values, relative


@dataclass(frozen=True)
class Condition:
    """A condition on a row: how the page names it, and the key and value of the page's state that select it."""

    name: str
    key: str
    value: str


@dataclass(frozen=True)
class WeakSlice:
    """A slice with a high error rate; `p_value` is corrected for all candidates."""

    conditions: tuple[Condition, ...]
    rows: int
    error_rate: float
    error_rate_outside: float
    p_value: float

    def name(self) -> str:
        """Return the conditions as text."""
        return " and ".join(condition.name for condition in self.conditions)


@dataclass(frozen=True)
class WeakSlices:
    """The weak slices, how many candidates were tested on how many rows of which splits, and the state to add."""

    slices: list[WeakSlice]
    tested: int
    rows: int
    all_rows: int
    splits: list[str]
    state: str

    def fragment(self, weak: WeakSlice) -> str:
        """Return the fragment of the page's address that selects a slice."""
        values = {condition.key: condition.value for condition in weak.conditions if condition.key != "text"}
        words = [condition.value for condition in weak.conditions if condition.key == "text"]
        if words:
            orders = [words, words[::-1]] if len(words) > 1 else [words]
            values["text"] = "|".join("[^]*".join(rf"\b{word}\b" for word in order) for order in orders)
        if self.state:
            values.setdefault("split", self.state)
        return "#" + "&".join(f"{key}={quote(value, safe='')}" for key, value in values.items())


def find_weak_slices(table: pa.Table, shown_split: str) -> WeakSlices | None:
    """Return the slices with a significantly higher error rate, those with the most additional errors first.

    Candidates are the labels, predicted labels, splits, quarters of the text length and frequent words, and all pairs
    of them except a label with a predicted label, which is wrong by definition. The error rate inside is compared with
    that outside by Fisher's exact test, one-sided, because p-values of the chi-square test are several times too small
    in the tail that is left after the correction; all p-values are corrected by Holm's method (1979).

    Returns:
        None in regression, where no row is right or wrong.
    """
    if pa.types.is_floating(table["label"].type):
        return None
    splits = table["split"].unique().to_pylist()
    if "train" in splits:  # the model was fitted to these rows
        splits = [shown_split]
    table = table.filter(pc.is_in(table["split"], value_set=pa.array(splits)))
    all_rows = table.num_rows
    if all_rows > MAX_ROWS:
        table = table.take(np.sort(np.random.default_rng(0).choice(all_rows, MAX_ROWS, replace=False)))
    wrong = wrong_rows(table)
    min_rows = max(_MIN_ROWS, table.num_rows // 100)
    conditions, matrix = _conditions(table, min_rows)
    first, second, rows, errors = _candidates(conditions, matrix, wrong, min_rows)
    p_values = np.array(holm(_p_values(rows, errors, len(wrong), int(wrong.sum()))))
    found = []
    outside = (wrong.sum() - errors) / np.maximum(len(wrong) - rows, 1)
    for index in _selected(matrix[wrong].toarray() > 0, (first, second), rows, errors, outside, p_values):
        chosen = dict.fromkeys((conditions[first[index]], conditions[second[index]]))
        rates = (float(errors[index] / rows[index]), float(outside[index]))
        found.append(WeakSlice(tuple(chosen), int(rows[index]), *rates, float(p_values[index])))
    state = "" if splits == [shown_split] else "all"
    return WeakSlices(found, len(rows), table.num_rows, all_rows, splits, state)


def _conditions(table: pa.Table, min_rows: int) -> tuple[list[Condition], csr_array]:
    """Return the conditions that enough rows fulfill, and which rows do, (N, F)."""
    found = [
        (condition, positions)
        for condition, positions in _all_conditions(table, min_rows)
        if min_rows <= len(positions) <= table.num_rows - min_rows
    ]
    columns = np.repeat(np.arange(len(found)), [len(positions) for _, positions in found])
    positions = np.concatenate([np.zeros(0, np.int64), *(positions for _, positions in found)])
    shape = (table.num_rows, len(found))
    return [condition for condition, _ in found], csr_array((np.ones(len(columns)), (positions, columns)), shape)


def _all_conditions(table: pa.Table, min_rows: int) -> Iterator[tuple[Condition, np.ndarray]]:
    """Yield the conditions with the positions of the rows that fulfill them."""
    for key in ("label", "predicted", "split"):
        column = table[key].combine_chunks()
        is_single = is_text(column.type)
        parents = np.arange(len(column)) if is_single else pc.list_parent_indices(column).to_numpy()
        codes = (column if is_single else pc.list_flatten(column)).dictionary_encode()
        ids = codes.indices.to_numpy()
        for index, name in enumerate(codes.dictionary.to_pylist()):
            yield Condition(f"{key} {name}", key, name), parents[ids == index]
    lengths = text_lengths(table)
    quarters = np.quantile(lengths, [0, 0.25, 0.5, 0.75, 1]) if len(lengths) else np.zeros(0)
    bounds = np.unique(quarters.astype(np.int64))
    for low, high in pairwise(bounds):
        start = low if low == bounds[0] else low + 1
        positions = np.flatnonzero((lengths >= start) & (lengths <= high))
        yield Condition(f"{start:,} to {high:,} characters", "length", f"{start}-{high}"), positions
    yield from _words(table, min_rows)


def _words(table: pa.Table, min_rows: int) -> Iterator[tuple[Condition, np.ndarray]]:
    """Yield the most frequent words that at least `min_rows` rows contain."""
    columns = [table[name].to_pylist() for name in ("text", "text_1") if name in table.column_names]
    words = [
        set(re.findall(r"\w\w+", "\n".join(text or "" for text in texts).lower()))
        for texts in zip(*columns, strict=True)
    ]
    counts = Counter(word for row in words for word in row)
    frequent: dict[str, list[int]] = {word: [] for word, count in counts.most_common(_MAX_WORDS) if count >= min_rows}
    for position, row in enumerate(words):
        for word in row & frequent.keys():
            frequent[word].append(position)
    for word, positions in sorted(frequent.items()):
        yield Condition(f"the word “{word}”", "text", word), np.array(positions)


def _candidates(
    conditions: list[Condition], matrix: csr_array, wrong: np.ndarray, min_rows: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the two conditions of each candidate (equal if it has one), its rows and its wrong rows."""
    rows = (matrix.T @ matrix).toarray().astype(np.int64)
    errors = (matrix[wrong].T @ matrix[wrong]).toarray().astype(np.int64)
    first, second = np.triu_indices(len(conditions))
    keys = np.array([condition.key for condition in conditions], str)
    is_outcome = np.isin(keys[first], ["label", "predicted"]) & np.isin(keys[second], ["label", "predicted"])
    sizes = rows[first, second]
    # Two conditions that the same rows fulfill as one of them are not another slice.
    is_part = (sizes < np.diag(rows)[first]) & (sizes < np.diag(rows)[second])
    kept = (first == second) | (is_part & (sizes >= min_rows) & ~is_outcome)
    first, second = first[kept], second[kept]
    return first, second, rows[first, second], errors[first, second]


def _selected(
    fulfilled: np.ndarray,
    pairs: tuple[np.ndarray, np.ndarray],
    rows: np.ndarray,
    errors: np.ndarray,
    outside_rates: np.ndarray,
    p_values: np.ndarray,
) -> list[int]:
    """Return the candidates to show: significant, not explained by one of their conditions, and of different rows.

    Args:
        fulfilled: which wrong rows fulfill which condition, (wrong rows, F).
    """
    first, second = pairs
    rates = errors / np.maximum(rows, 1)
    alone = np.zeros(fulfilled.shape[1])
    single = first == second
    alone[first[single]] = rates[single]
    gains = single | (rates >= _MIN_GAIN * np.maximum(alone[first], alone[second]))
    additional = errors - rows * outside_rates
    candidates = np.flatnonzero((p_values < _SIGNIFICANT) & gains)
    selected: list[int] = []
    shown: list[np.ndarray] = []
    for index in candidates[np.argsort(-additional[candidates], kind="stable")]:
        members = fulfilled[:, first[index]] & fulfilled[:, second[index]]
        overlaps = [(members & other).sum() / (members | other).sum() for other in shown]
        if max(overlaps, default=0.0) > _MAX_OVERLAP:
            continue
        selected.append(int(index))
        shown.append(members)
        if len(selected) == _MAX_SHOWN:
            break
    return selected


def _p_values(rows: np.ndarray, errors: np.ndarray, total: int, wrong: int) -> np.ndarray:
    """Return the p-value of Fisher's exact test of each slice, one-sided; 1 where no more is wrong than outside."""
    p_values = np.ones(len(rows))
    tested = np.flatnonzero(errors * total > rows * wrong)
    rows, errors = rows[tested].astype(float), errors[tested].astype(float)
    right = total - wrong

    def log_choices(all_rows: int, drawn: np.ndarray) -> np.ndarray:
        return np.asarray(gammaln(all_rows + 1) - gammaln(drawn + 1) - gammaln(all_rows - drawn + 1))

    term = np.exp(log_choices(wrong, errors) + log_choices(right, rows - errors) - log_choices(total, rows))
    tail = term.copy()
    while (term > _PRECISION * tail).any():  # the terms of more errors, each from the one before
        term = term * (wrong - errors) * (rows - errors) / ((errors + 1) * (right - rows + errors + 1))
        tail += term
        errors = errors + 1
    p_values[tested] = np.minimum(tail, 1.0)
    return p_values
