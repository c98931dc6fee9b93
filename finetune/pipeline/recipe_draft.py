"""What `finetune init` decides from a data file and the files next to it, and the recipe it writes."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune.data.column_roles import MULTI, SINGLE, UsedColumns
from finetune.data.label_set_guess import with_sets
from finetune.data.preview import Preview, PreviewColumn, read_preview
from finetune.errors import DataError, ModelError
from finetune.models.checkpoint_config import FOLDER_FIX, checkpoint_location, token_limit
from finetune.recipe.loader import yaml_text
from finetune.runs.token_lengths import usual_length

_UNLABELED = "-1"
_TRAIN = re.compile(r"(?<![A-Za-z])(train|training)(?![A-Za-z])", re.IGNORECASE)
_OTHER_SPLITS = {"validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
_MAX_MEASURED = 2000  # rows whose tokens are counted
_IMBALANCED = 10  # rows of the largest class per row of the smallest


@dataclass(frozen=True)
class Length:
    """The proposed maximum number of tokens, and a comment that says where it comes from."""

    max_length: int
    comment: str


def sibling_splits(
    preview: Preview, used: UsedColumns, delimiter: str | None = None
) -> tuple[dict[str, Preview], list[str]]:
    """Return split name -> first rows of a file next to a training file, and notes on files that cannot be used.

    The name of such a file has validation, valid, val, dev or test where the training file's name has train.
    """
    match = _TRAIN.search(preview.file.stem)
    found: dict[str, Preview] = {}
    notes: list[str] = []
    if match is None:
        return {}, []
    stem = preview.file.stem
    for split, words in _OTHER_SPLITS.items():
        names = [f"{stem[: match.start()]}{word}{stem[match.end() :]}{preview.file.suffix}" for word in words]
        file = next((path for name in names if (path := preview.file.with_name(name)).is_file()), None)
        if file is None:
            continue
        try:
            other = read_preview(file, delimiter)
        except DataError as error:
            notes.append(f"the {split} file is not used: {error}")
            continue
        labels = used.label_columns or (used.label,)
        missing = [name for name in (*used.texts(), *labels) if name not in other.columns]
        if missing:
            notes.append(f"{file} is not used: it has no column {missing[0]}")
            continue
        other = with_label_lists(other, used)
        if not _has_labels(other.columns[used.label]):
            notes.append(f"{file} is not used: its rows have no labels")
        else:
            found[split] = other
    return found, notes


def with_label_lists(preview: Preview, used: UsedColumns) -> Preview:
    """Return the first rows with the labels of each row as a list, if a row has several labels."""
    if used.problem_type != MULTI or not (used.label_columns or used.label in preview.columns):
        return preview
    return with_sets(preview, used.label, used.label_columns, used.label_delimiter)


def _has_labels(column: PreviewColumn) -> bool:
    return column.has_lists or not column.counts.keys() <= {_UNLABELED}


def marks_unlabeled(column: PreviewColumn) -> bool:
    """Return whether the label -1 of training rows probably marks rows without a label: it counts from 0 otherwise."""
    return {_UNLABELED, "0"} <= column.counts.keys() and column.is_integer


def has_unlabeled_rows(column: PreviewColumn, train: PreviewColumn) -> bool:
    """Return whether rows of a split have no label: an empty cell, or -1 if it is no label of the training rows."""
    marked = _UNLABELED in column.counts and (_UNLABELED not in train.counts or marks_unlabeled(train))
    return not column.has_lists and (column.num_empty > 0 or marked)


def label_counts(column: PreviewColumn, *, unlabeled: bool) -> Counter[str]:
    """Return the number of rows per label; if rows without a label are skipped, so are those with the label -1."""
    return Counter({text: rows for text, rows in column.counts.items() if not (unlabeled and text == _UNLABELED)})


def names_of_ids(preview: Preview, used: UsedColumns) -> tuple[list[str], Path] | None:
    """Return the label names of a column of ids, and the JSON file next to the data file that lists them, or None.

    For the column `label` this is labels.json or label.json, for `label_fine` labels_fine.json, and so on.
    """
    column = preview.columns[used.label]
    if not column.texts or not all(PreviewColumn.whole_number(text) for text in column.counts):
        return None
    names = dict.fromkeys(f"{name}.json" for name in (f"{column.name}s", column.name, _plural_first(column.name)))
    highest = max(int(text) for text in column.counts)
    for file in (preview.file.parent / name for name in names if Path(name).name == name):
        try:
            labels = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        is_list = isinstance(labels, list) and all(isinstance(label, str) and label.strip() for label in labels)
        # Names that are whole numbers would be read as labels, not as names of ids.
        if is_list and highest < len(set(labels)) == len(labels) and not any(map(PreviewColumn.whole_number, labels)):
            return labels, file
    return None


def _plural_first(name: str) -> str:
    first, underscore, rest = name.partition("_")
    return f"{first}s{underscore}{rest}"


def propose_length(preview: Preview, used: UsedColumns, model: str) -> Length:
    """Return the smallest usual length that 99 % of the rows have at most, within the limit of the model."""
    columns = [preview.columns[name] for name in used.texts()]
    rows = np.unique(np.linspace(0, preview.num_rows - 1, _MAX_MEASURED, dtype=np.int64))
    texts = [tuple(str(column.values[row] or "") for column in columns) for row in rows]
    counts, source = _token_counts(texts, model)
    needed = math.ceil(np.quantile(counts, 0.99))
    proposed = usual_length(needed, math.inf)
    limit = token_limit(model, "main")
    if proposed > limit:
        share = np.mean(np.asarray(counts) > limit)
        return Length(int(limit), f"the model's limit; {share:.0%} of the rows are longer and are truncated")
    return Length(proposed, f"99 % of the rows have at most {needed} tokens ({source})")


def _token_counts(texts: Sequence[tuple[str, ...]], model: str) -> tuple[list[int], str]:
    """Return the number of tokens of each row, and how they were counted."""
    file = Path(checkpoint_location(model), "tokenizer.json")
    if file.is_file():
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library has no narrower type
            raise ModelError(
                f"model '{model}': tokenizer.json cannot be read: {str(error)[:200]}; {FOLDER_FIX}"
            ) from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        encoded = tokenizer.encode_batch([row[0] if len(row) == 1 else row for row in texts])
        return [len(row.ids) for row in encoded], "measured with the tokenizer of the model"
    # English has about 1.3 word pieces per word; languages without spaces have few words.
    counts = [sum(max(math.ceil(1.4 * len(text.split())), len(text) // 4) + 1 for text in row) + 1 for row in texts]
    return counts, "estimated from the number of words"


@dataclass(frozen=True)
class Draft:
    """All decisions for a recipe.

    Attributes:
        files: split name -> file, at least "train".
        label_names: the names of ids, and the file they are from; None: the labels are used as they are.
        unlabeled: whether there are rows without a label, which are skipped.
        imbalance: rows of the largest class divided by rows of the smallest, for one label per row.
        delimiter: what separates the cells of the csv files; None: a comma, or another format.
    """

    model: str
    used: UsedColumns
    files: dict[str, Path]
    validation_size: float | None
    length: Length
    label_names: tuple[list[str], Path] | None
    unlabeled: bool
    imbalance: float
    delimiter: str | None = None

    def text(self) -> str:
        """Return the recipe as commented YAML."""
        used = self.used
        lines = [
            "# Written by `finetune init`. `finetune help recipes` lists every key.",
            "model:",
            f"  model_name_or_path: {yaml_text(self.model)}   # or another encoder: a model id on the hub, or a folder",
            "task:",
            f"  problem_type: {used.problem_type}",
        ]
        if self.label_names:
            names, file = self.label_names
            lines += [f"  label_names:   # of the ids 0 to {len(names) - 1}, from {' '.join(file.name.split())}"]
            lines += [f"    - {yaml_text(name)}" for name in names]
        lines += ["data:", *(f"  {split}_file: {yaml_text(str(file))}" for split, file in self.files.items())]
        if self.delimiter is not None:
            lines.append(f"  delimiter: {yaml_text(self.delimiter)}")
        if self.validation_size is not None:
            lines.append(f"  validation_size: {self.validation_size:g}   # share of the training rows, held out")
        lines.append(f"  text_column: {yaml_text(used.text)}")
        if used.pair is not None:
            lines.append(f"  text_pair_column: {yaml_text(used.pair)}")
        if used.label_columns:
            lines += ["  label_columns:   # with 0 and 1", *(f"    - {yaml_text(name)}" for name in used.label_columns)]
        else:
            lines.append(f"  label_column: {yaml_text(used.label)}")
        if used.label_delimiter is not None:
            lines.append(f"  label_delimiter: {yaml_text(used.label_delimiter)}   # between the labels in a cell")
        if self.unlabeled:
            lines.append("  drop_unlabeled: true   # some rows have no label")
        lines.append(f"  max_length: {self.length.max_length}   # {self.length.comment}")
        if used.problem_type == SINGLE and self.imbalance >= _IMBALANCED:
            lines += [
                f"# The largest class has {self.imbalance:.0f} times the rows of the smallest. For equal weights:",
                "# training: {class_weights: balanced}",
            ]
        lines += ["# To train LoRA adapters instead of all weights:", "# peft: {r: 8}"]
        return "\n".join(lines) + "\n"


def class_imbalance(counts: Mapping[str, int]) -> float:
    """Return the number of rows of the most frequent label divided by that of the rarest."""
    return max(counts.values()) / min(counts.values()) if counts else 1.0
