"""Label names as additional training rows: the name of each label becomes one row with that label.

With many labels and few rows of each, a name such as `card_arrival` tells a pretrained encoder as much as another row.
FastFit (Yehudai and Bandel 2024) also trains on the names of the classes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from finetune.data.rows import RawSplit
from finetune.errors import DataError
from finetune.recipe.data_section import DataSection

# The names are added to few rows of many labels. With more rows, or with labels that each have many words in the rows,
# one more row per label changes little.
MAX_ROWS_PER_LABEL = 20
MIN_LABELS = 10
_GENERIC = re.compile(r"(label|class|category|intent|topic|tag)?[\W_]*\d*", re.IGNORECASE)
_WORD_STARTS = re.compile(r"(?<=[a-z])(?=[A-Z])")


def name_as_text(name: str) -> str:
    """Return a label name as words: "card_arrival" and "cardArrival" are "card arrival"."""
    return " ".join(_WORD_STARTS.sub(" ", name).replace("_", " ").replace("-", " ").split())


def adds_label_names(data: DataSection, problem_type: str, names: Sequence[str], rows: int) -> bool:
    """Return whether the names of the labels are added to `rows` training rows.

    Raises:
        DataError: `data.label_name_rows` is true, but the names cannot be rows of this task.
    """
    wanted = data.label_name_rows
    problem = ""
    if problem_type != "single_label_classification":
        problem = f"a row of {problem_type} is not described by the name of one label"
    elif data.text_pair_column:
        problem = "a label's name is one text, and the model reads pairs of texts"
    elif len({name_as_text(name).casefold() for name in names}) < len(names):
        problem = "two labels have the same name as words, such as 'card_arrival' and 'card arrival'"
    elif wanted == "auto" and not _has_few_rows_of_described_labels(names, rows):
        return False
    if wanted is True and problem:
        raise DataError(f"data.label_name_rows is true, but {problem}; set it to auto or false")
    return wanted is not False and not problem


def _has_few_rows_of_described_labels(names: Sequence[str], rows: int) -> bool:
    return len(names) >= MIN_LABELS and rows <= MAX_ROWS_PER_LABEL * len(names) and all(map(_is_described, names))


def _is_described(name: str) -> bool:
    """Return whether a name has words of its own, unlike "3", "LABEL_3" or "B"."""
    text = name_as_text(name)
    return len(re.findall(r"[^\W\d_]", text)) > 1 and not _GENERIC.fullmatch(text)


def with_label_names(
    train: RawSplit, labels: np.ndarray, names: Sequence[str], data: DataSection
) -> tuple[RawSplit, np.ndarray]:
    """Return training rows and class ids (N + C,) with one row more for each of the C label names.

    The new rows have the number 0, because they are not in the file.
    """
    import datasets  # it takes half a second, and the check of a recipe does not need it

    columns = {data.text_column: [name_as_text(name) for name in names], data.label_column: list(names)}
    cells = {name: columns[name] for name in train.rows.column_names}
    added = datasets.Dataset.from_dict(cells, features=train.rows.features)
    rows = datasets.concatenate_datasets([train.rows, added])
    numbers = np.concatenate([train.row_numbers(), np.zeros(len(names), dtype=np.int64)])
    return replace(train, rows=rows, numbers=numbers), np.concatenate([labels, np.arange(len(names))])
