"""Random choice of validation rows (data.validation_size) and of training rows (data.max_train_samples).

N rows, C classes, G groups of rows with the same text
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from finetune.errors import DataError

_SMALL = 1000  # training rows; of fewer, a larger share is held out


def held_out_share(setting: float | str | None, rows: int) -> float | None:
    """Return the fraction of `rows` training rows to hold out where no validation rows are given, or None.

    Args:
        setting: `data.validation_size`; "auto" gives 0.2 of fewer than 1,000 rows, otherwise 0.1.
    """
    if not isinstance(setting, str):
        return setting
    return 0.2 if rows < _SMALL else 0.1


def sample_validation_rows(
    labels: np.ndarray, share: float, seed: int, text_keys: np.ndarray | None = None
) -> np.ndarray:
    """Return the positions (from 0) of the rows to hold out for validation: a fraction `share` of all rows, rounded.

    With class ids (N,) the split is stratified, and every class keeps at least one training row.

    Args:
        text_keys: rows with the same key (N,) are held out together or not at all, so that a class can have a few rows
            more or fewer; None draws each row by itself. The result is the same if all keys differ, or if there are
            so few keys that no group can be held out.

    Raises:
        DataError: there are too few rows.
    """
    classes = _classes(labels)
    sizes = np.bincount(classes)
    count = min(int(len(labels) * share + 0.5), int((sizes - 1).sum()))
    if count < 1:
        raise DataError(
            f"data.validation_size: {share:g} of {len(labels)} training rows is less than one row, or would take the "
            "last row of a class; add rows, give data.validation_file, or set evaluation.eval_strategy: no"
        )
    counts = _rows_per_class(count, sizes, np.zeros_like(sizes), sizes - 1)
    if text_keys is None or len(np.unique(text_keys)) == len(text_keys):
        return _draw(classes, counts, seed)
    rows = _draw_groups(classes, counts, text_keys, seed)
    return rows if len(rows) else _draw(classes, counts, seed)


def sample_training_rows(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return the positions (from 0) of `count` training rows; stratified, at least one per class, for class ids (N,).

    Raises:
        DataError: `count` is smaller than the number of classes.
    """
    classes = _classes(labels)
    sizes = np.bincount(classes)
    if count < len(sizes):
        raise DataError(
            f"data.max_train_samples: {count} is less than the {len(sizes)} classes of the training rows; "
            f"set it to at least {len(sizes)}"
        )
    return _draw(classes, _rows_per_class(count, sizes, np.ones_like(sizes), sizes), seed)


def _classes(labels: np.ndarray) -> np.ndarray:
    """Return the class of each row, numbered from 0, (N,); all rows are class 0 for label sets and values."""
    if labels.ndim > 1 or labels.dtype.kind == "f":
        return np.zeros(len(labels), dtype=np.int64)
    classes: np.ndarray = np.searchsorted(np.unique(labels), labels)
    return classes


def _rows_per_class(count: int, sizes: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return the number of rows to draw per class, (C,): proportional to class size, between `low` and `high`."""
    exact = sizes * (count / sizes.sum())
    counts: np.ndarray = np.clip(np.floor(exact).astype(np.int64), low, high)
    while counts.sum() < count:
        counts[np.argmax(np.where(counts < high, exact - counts, -np.inf))] += 1
    while counts.sum() > count:
        counts[np.argmin(np.where(counts > low, exact - counts, np.inf))] -= 1
    return counts


def _draw(classes: np.ndarray, counts: np.ndarray, seed: int) -> np.ndarray:
    """Return the sorted positions of rows drawn at random: `counts[c]` rows of class c."""
    order = np.random.default_rng(seed).permutation(len(classes))
    drawn = [order[classes[order] == index][:count] for index, count in enumerate(counts)]
    return np.sort(np.concatenate(drawn))


def _draw_groups(classes: np.ndarray, counts: np.ndarray, text_keys: np.ndarray, seed: int) -> np.ndarray:
    """Return the sorted positions of rows drawn in whole groups: about `counts[c]` rows of class c.

    Groups are visited in random order. First those are drawn that fit into the counts, then those that bring the number
    of rows closer to the counts. If no group could be drawn, the smallest possible one is.
    """
    groups = _Groups(text_keys, np.random.default_rng(seed).permutation(len(classes)))
    missing = counts.tolist()
    excess = np.bincount(classes) - 1 - counts  # rows that a class can give up in addition, (C,)
    is_drawn = np.zeros(len(groups), dtype=bool)
    for rule in (_fits, _is_closer):
        for group in np.flatnonzero(~is_drawn).tolist():
            if max(missing) <= 0:
                break  # neither rule draws another group
            sizes: Counter[int] = Counter(classes[groups.rows(group)].tolist())
            if rule(sizes, missing, excess):
                is_drawn[group] = True
                for index, size in sizes.items():
                    missing[index] -= size
    drawn = [groups.rows(group) for group in np.flatnonzero(is_drawn).tolist()]
    if not drawn:
        members = (groups.rows(group) for group in range(len(groups)))
        possible = (
            rows for rows in members if (np.bincount(classes[rows], minlength=len(excess)) <= counts + excess).all()
        )
        drawn = [min(possible, key=len, default=np.array([], dtype=np.int64))]
    return np.sort(np.concatenate(drawn))


class _Groups:
    """The rows with the same key, in the order in which the first row of each group is visited.

    They are positions in one array, because millions of lists would not fit in memory.
    """

    def __init__(self, text_keys: np.ndarray, order: np.ndarray) -> None:
        _, first, group_of = np.unique(text_keys[order], return_index=True, return_inverse=True)
        visited = np.argsort(first)
        rank = np.empty_like(visited)
        rank[visited] = np.arange(len(visited))
        self._rows = order[np.argsort(rank[group_of], kind="stable")]
        self._ends = np.bincount(rank[group_of]).cumsum()

    def __len__(self) -> int:
        return len(self._ends)

    def rows(self, group: int) -> np.ndarray:
        """Return the rows of a group."""
        start = self._ends[group - 1] if group else 0
        return self._rows[start : self._ends[group]]


def _fits(sizes: Counter[int], missing: list[int], excess: np.ndarray) -> bool:
    return all(size <= missing[index] for index, size in sizes.items())


def _is_closer(sizes: Counter[int], missing: list[int], excess: np.ndarray) -> bool:
    """Return whether drawing a group with these rows per class brings the number of rows closer to the counts."""
    if any(size > missing[index] + excess[index] for index, size in sizes.items()):
        return False
    return sum(abs(missing[index] - size) - abs(missing[index]) for index, size in sizes.items()) < 0
