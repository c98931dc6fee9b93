"""Findings about the texts of all splits: repeated, with different labels, in two splits, nearly equal, other scripts.

N rows
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from finetune.data.near_duplicates import near_duplicates
from finetune.data.rows import RawSplit
from finetune.data.text_keys import fold_texts, text_keys
from finetune.errors import shorten
from finetune.runs.data_quality import NOTE, WARNING, Finding, RowExample

_EXAMPLES = 3  # groups of rows per finding
_MAX_TEXT = 200  # characters of an example
_MANY_REPEATS = 0.05  # of the rows of a split; then its texts are less varied than their number suggests
MAX_COMPARED_ROWS = 100_000  # of all splits, which take up to half a minute
_SCRIPTS = (
    "Latin", "Han", "Hiragana", "Katakana", "Hangul", "Cyrillic", "Arabic", "Devanagari", "Greek", "Hebrew", "Thai",
    "Bengali", "Tamil", "Telugu", "Georgian", "Armenian",
)  # fmt: skip
_JAPANESE = ("Hiragana", "Katakana")  # written together with Han
_DOMINANT_SHARE = 0.9  # of the rows; below it the texts are in several scripts, and no row is unusual


@dataclass(frozen=True)
class SplitTexts:
    """The rows of a split, as the findings need them.

    Attributes:
        labels: the label of each row in words, (N,); a set of labels in one text.
    """

    name: str
    raw: RawSplit
    columns: Sequence[str]
    labels: Sequence[str]
    numbers: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "numbers", self.raw.row_numbers())

    @cached_property
    def keys(self) -> np.ndarray:
        """Return the key of the folded text of each row, (N,)."""
        return text_keys(self.raw, self.columns)

    def folded(self, rows: np.ndarray) -> list[str]:
        """Return the folded texts of some rows; the two texts of a pair are joined."""
        parts = [fold_texts(self.raw.column(name).take(pa.array(rows)).combine_chunks()) for name in self.columns]
        texts = parts[0] if len(parts) == 1 else pc.binary_join_element_wise(*parts, " / ")
        return [str(text) for text in texts.to_pylist()]

    def example(self, row: int) -> RowExample:
        """Return a row, counted from 0, as an example."""
        texts = (str(self.raw.column(name)[int(row)].as_py()) for name in self.columns)
        text = shorten(" / ".join(" ".join(text.split()) for text in texts), _MAX_TEXT)
        return RowExample(self.name, int(self.numbers[row]), text, self.labels[row])


def text_findings(splits: Mapping[str, SplitTexts], what: str, *, compare_all: bool = True) -> list[Finding]:
    """Return the findings about the texts of all splits.

    Args:
        splits: split name -> rows; the training rows come first.
        what: "labels", or "values" in regression.
        compare_all: whether nearly equal texts are searched, which takes the longest.
    """
    findings = [finding for split in splits.values() for finding in _repeated(split)]
    findings += _conflicting(list(splits.values()), what)
    findings += [finding for split in splits.values() for finding in _shared(split, splits)]
    if compare_all:
        findings += _nearly_shared(splits)
    return findings + _other_script(list(splits.values()))


def _repeated(split: SplitTexts) -> list[Finding]:
    """Return a finding if a split has rows with the text of an earlier one."""
    _, first, inverse, counts = np.unique(split.keys, return_index=True, return_inverse=True, return_counts=True)
    repeats = len(split.keys) - len(first)
    if not repeats:
        return []
    share = repeats / len(split.keys)
    message = (
        f"{_rows(repeats)} of {split.name} ({share:.1%}) {_verb(repeats)} the text of an earlier row, apart from case, "
        "punctuation and white space"
    )
    if share > _MANY_REPEATS:
        message += "; repeated rows count several times in the loss and the scores: remove them"
    examples = [
        [split.example(int(row)) for row in np.flatnonzero(inverse == group)[:3]]
        for group in np.argsort(-counts, kind="stable")[:_EXAMPLES]
        if counts[group] > 1
    ]
    return [
        Finding("repeated_texts", WARNING if share > _MANY_REPEATS else NOTE, split.name, repeats, message, examples)
    ]


def _conflicting(splits: Sequence[SplitTexts], what: str) -> list[Finding]:
    """Return a finding if rows with the same text have different labels, in one split or in two."""
    keys = np.concatenate([split.keys for split in splits])
    _, labels = np.unique(np.concatenate([np.asarray(split.labels) for split in splits]), return_inverse=True)
    owner = np.repeat(np.arange(len(splits)), [len(split.keys) for split in splits])
    start = np.cumsum([0, *(len(split.keys) for split in splits)])
    pairs = np.unique(np.stack([keys, labels.astype(np.uint64)]), axis=1)[0]
    texts, counts = np.unique(pairs, return_counts=True)
    texts = texts[counts > 1]
    if not len(texts):
        return []
    rows = np.flatnonzero(np.isin(keys, texts))
    one_per_label = []
    for key in dict.fromkeys(keys[rows].tolist()):
        same = rows[keys[rows] == key]
        firsts = same[np.sort(np.unique(labels[same], return_index=True)[1])][:3]
        one_per_label.append([splits[owner[row]].example(int(row - start[owner[row]])) for row in firsts])
        if len(one_per_label) == _EXAMPLES:
            break
    texts_have = "texts have" if len(texts) > 1 else "text has"
    message = (
        f"{len(texts):,} {texts_have} different {what} in different rows ({len(rows):,} rows): at most one of them "
        "can be predicted correctly. Correct them, or remove the rows"
    )
    level = WARNING if what == "labels" else NOTE  # two people rarely give exactly the same value
    return [Finding("conflicting_labels", level, "", len(rows), message, one_per_label)]


def _shared(split: SplitTexts, splits: Mapping[str, SplitTexts]) -> list[Finding]:
    """Return a finding for each earlier split that has texts of this one; training rows come first."""
    findings = []
    for name, other in splits.items():
        if name == split.name:
            break
        rows = np.flatnonzero(np.isin(split.keys, other.keys))
        if not len(rows):
            continue
        of_name = "training" if name == "train" else name
        effect = "its scores are too good" if name == "train" else "the choice of the best weights has seen them"
        message = (
            f"{_rows(len(rows))} of {split.name} ({len(rows) / len(split.keys):.1%}) {_verb(len(rows))} the text of a "
            f"{of_name} row, so {effect}. Remove the rows from one of the two"
        )
        twin = [int(np.flatnonzero(other.keys == split.keys[row])[0]) for row in rows[:_EXAMPLES]]
        examples = [[split.example(int(row)), other.example(match)] for row, match in zip(rows, twin, strict=False)]
        level = WARNING if name == "train" else NOTE
        findings.append(Finding(f"texts_in_{name}", level, split.name, len(rows), message, examples))
    return findings


def _nearly_shared(splits: Mapping[str, SplitTexts]) -> list[Finding]:
    """Return a finding for each split with rows whose text is almost that of a training row."""
    train = splits["train"]
    _, train_rows = np.unique(train.keys, return_index=True)
    train_rows.sort()
    held_out = {name: split for name, split in splits.items() if name != "train"}
    positions, texts = [], []
    for name, split in held_out.items():
        rows = np.flatnonzero(~np.isin(split.keys, train.keys))
        positions += [(name, int(row)) for row in rows]
        texts += split.folded(rows)
    if not texts:
        return []
    matches = near_duplicates(texts, train.folded(train_rows))
    findings = []
    for name, split in held_out.items():
        near = [
            (positions[position][1], other) for position, other in matches.items() if positions[position][0] == name
        ]
        if not near:
            continue
        message = (
            f"{_rows(len(near))} of {name} ({len(near) / len(split.keys):.1%}) {_verb(len(near))} almost the text of a "
            "training row, such as one word more: the scores say little about texts that differ more"
        )
        examples = [[split.example(row), train.example(int(train_rows[other]))] for row, other in near[:_EXAMPLES]]
        findings.append(Finding("near_duplicates", NOTE, name, len(near), message, examples))
    return findings


def _other_script(splits: Sequence[SplitTexts]) -> list[Finding]:
    """Return a finding for each split with rows in another script than nearly all training rows."""
    scripts = {split.name: _main_scripts(split) for split in splits}
    known = scripts["train"][scripts["train"] >= 0]
    counts = np.bincount(known, minlength=len(_SCRIPTS))
    dominant = int(counts.argmax())
    if not len(known) or counts[dominant] / len(known) < _DOMINANT_SHARE:
        return []
    findings = []
    for split in splits:
        others = np.flatnonzero((scripts[split.name] >= 0) & (scripts[split.name] != dominant))
        if len(others):
            message = (
                f"{_rows(len(others))} of {split.name} ({len(others) / len(split.keys):.1%}) {_verb(len(others))} "
                f"mostly letters of another script than {_SCRIPTS[dominant]}, that of nearly all training rows"
            )
            examples = [[split.example(int(row))] for row in others[:_EXAMPLES]]
            findings.append(Finding("other_script", NOTE, split.name, len(others), message, examples))
    return findings


def _main_scripts(split: SplitTexts) -> np.ndarray:
    """Return the script with the most letters of each row, as a position in _SCRIPTS, (N,); -1: no letters of any."""
    totals = np.zeros((len(_SCRIPTS), len(split.keys)), dtype=np.int64)
    for name in split.columns:
        texts = split.raw.column(name)
        is_ascii = np.asarray(pc.string_is_ascii(texts).to_numpy(zero_copy_only=False), dtype=bool)
        latin = np.asarray(pc.count_substring_regex(texts, r"\p{Latin}").to_numpy(), dtype=np.int64)
        totals[0] += latin
        rows = np.flatnonzero(~is_ascii)
        for index, script in enumerate(_SCRIPTS[1:] if len(rows) else (), 1):
            found = pc.count_substring_regex(texts.take(pa.array(rows)), rf"\p{{{script}}}").to_numpy()
            totals[_SCRIPTS.index("Han") if script in _JAPANESE else index, rows] += found
    return np.where(totals.any(0), totals.argmax(0), -1)


def _rows(count: int) -> str:
    return f"{count:,} row{'s' if count > 1 else ''}"


def _verb(count: int) -> str:
    return "have" if count > 1 else "has"
