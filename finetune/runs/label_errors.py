"""The file `label_errors.csv` of a run: rows whose label is probably wrong, per split, the most likely errors first."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.runs.atomic_files import write_text
from finetune.runs.json_files import damaged_file, read_bytes
from finetune.runs.run_folder import RunFolder

MIN_CHECKED_ROWS = 50  # per split: of fewer rows, no model and no threshold says much
MAX_CHECKED_ROWS = 50_000  # per split, drawn at random from more: the encoder has to read all of them
MAX_PLAUSIBLE_SHARE = (
    0.2  # of the checked rows; of ten test sets, 0.2 to 10 % have wrong labels (Northcutt et al. 2021)
)
MANY_ERRORS = (
    f"That is over {MAX_PLAUSIBLE_SHARE:.0%} of the checked rows: the model that judges the labels is probably wrong "
    "more often than the labels are"
)
_COLUMNS = ("split", "row", "label", "suggested_label", "label_probability", "suggested_probability")
_TEXTS = ("text", "text_1")


@dataclass(frozen=True)
class LabelError:
    """A row whose label is probably wrong.

    Attributes:
        row: its number in the file or data set, counted from 1.
        texts: the text, or both texts of a pair.
        label, suggested_label: names; those of a label set are joined by a semicolon.
        label_probability, suggested_probability: see `LikelyErrors`.
    """

    split: str
    row: int
    texts: tuple[str, ...]
    label: str
    suggested_label: str
    label_probability: float
    suggested_probability: float


def write_label_errors(path: Path, errors: Sequence[LabelError], num_texts: int) -> None:
    """Write the file, atomically.

    Args:
        num_texts: number of texts of a row, 1 or 2.

    Raises:
        TrainingError: the disk is full or read-only.
    """
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow([*_COLUMNS[:2], *_TEXTS[:num_texts], *_COLUMNS[2:]])
    for error in errors:
        probabilities = (f"{error.label_probability:.6f}", f"{error.suggested_probability:.6f}")
        writer.writerow([error.split, error.row, *error.texts, error.label, error.suggested_label, *probabilities])
    write_text(path, content.getvalue())


def read_label_errors(folder: RunFolder) -> list[LabelError] | None:
    """Return the content of the file, None if there is none; DataError if it is damaged."""
    path = folder.label_errors
    if not path.exists():
        return None
    try:
        content = read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise damaged_file(path, "it is not UTF-8") from error
    if not content.endswith("\n"):
        raise damaged_file(path, "its last line is incomplete")
    csv.field_size_limit(2**31 - 1)
    try:
        header, *lines = csv.reader(io.StringIO(content, newline=""), strict=True)
        num_texts = len(header) - len(_COLUMNS)
        if header != [*_COLUMNS[:2], *_TEXTS[:num_texts], *_COLUMNS[2:]] or num_texts < 1:
            raise damaged_file(path, f"its first line must be {','.join((*_COLUMNS[:2], 'text', *_COLUMNS[2:]))}")
        return [_label_error(line, num_texts) for line in lines]
    except (csv.Error, ValueError) as error:
        raise damaged_file(path, str(error)) from error


def _label_error(line: Sequence[str], num_texts: int) -> LabelError:
    """Return a row of the file; ValueError if it is not valid."""
    split, row, *texts = line[: 2 + num_texts]
    label, suggested_label, *probabilities = line[2 + num_texts :]
    first, second = (float(value) for value in probabilities)
    if not (split and int(row) >= 1 and 0 <= first <= 1 and 0 <= second <= 1):
        raise ValueError(f"split '{split}' row {row} is not a row with probabilities")
    return LabelError(split, int(row), tuple(texts), label, suggested_label, first, second)
