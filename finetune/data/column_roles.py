"""Guess which columns of a data file are the text and the label, and what kind of problem it is. Imports no torch.

Names decide where they are usual, and otherwise the values. A guess that could be wrong is reported with the option
that changes it; where several columns fit equally well, nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from finetune.data.cell_values import Column, require_columns
from finetune.data.label_set_guess import chosen_separator, flag_columns, has_written_lists, separator_of_sets
from finetune.data.preview import Preview, PreviewColumn
from finetune.errors import DataError, shorten

# Usual names of label and text columns, the most specific first.
LABEL_NAMES = (
    "label", "labels", "class", "classes", "category", "categories", "target", "targets", "sentiment", "intent",
    "intents", "emotion", "emotions", "topic", "topics", "tag", "tags", "gold_label", "gold", "polarity", "stance",
    "is_duplicate", "rating", "stars", "score", "grade", "similarity", "similarity_score", "relevance", "y",
)  # fmt: skip
TEXT_NAMES = (
    "text", "sentence", "content", "review", "review_text", "body", "comment", "comment_text", "message", "utterance",
    "query", "question", "tweet", "post", "document", "description", "abstract", "headline", "title", "summary",
    "phrase", "sms", "email", "ticket", "input",
)  # fmt: skip
PAIR_NAMES = (
    ("sentence1", "sentence2"), ("sentence_1", "sentence_2"), ("sentence_a", "sentence_b"), ("text1", "text2"),
    ("text_1", "text_2"), ("text_a", "text_b"), ("question1", "question2"), ("premise", "hypothesis"), ("s1", "s2"),
    ("question", "answer"), ("question", "sentence"), ("question", "passage"), ("query", "passage"),
    ("query", "document"), ("claim", "evidence"),
)  # fmt: skip
_IDENTIFIERS = ("id", "idx", "index", "guid", "uuid", "key", "unnamed:_0", "date", "time", "timestamp", "url", "link")
_MAX_CLASSES = 1000
_MAX_WHOLE_NUMBERS = 20  # more different whole numbers, with gaps, are probably values to predict
_MAX_LABEL_WORDS = 5
_MIN_FLAGS = 3  # fewer columns with 0 and 1 are as likely other facts about the rows
SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


@dataclass(frozen=True)
class Roles:
    """The columns of a data file that a recipe uses.

    Attributes:
        text, pair, label: names of columns; None: not known yet, or no pair.
        label_columns: columns with 0 and 1, one per label; `label` is then a name that no column has.
        label_delimiter: what separates several labels in a cell; None: nothing does.
        problem_type: None if the label is not known yet.
        unsure: sentences about guesses that could be wrong.
        candidates: option -> columns to choose from, for a role that could not be guessed.
    """

    text: str | None = None
    pair: str | None = None
    label: str | None = None
    problem_type: str | None = None
    unsure: tuple[str, ...] = ()
    candidates: dict[str, list[str]] = field(default_factory=dict)
    label_columns: tuple[str, ...] = ()
    label_delimiter: str | None = None


@dataclass(frozen=True)
class UsedColumns:
    """The columns that a recipe uses, and its problem type."""

    text: str
    pair: str | None
    label: str
    problem_type: str
    label_columns: tuple[str, ...] = ()
    label_delimiter: str | None = None

    def texts(self) -> list[str]:
        """Return the one or two text columns."""
        return [self.text, *([self.pair] if self.pair is not None else [])]


def used_columns(roles: Roles) -> UsedColumns:
    """Return the columns of roles of which none is missing."""
    assert roles.text is not None
    assert roles.label is not None
    assert roles.problem_type is not None
    return UsedColumns(
        roles.text, roles.pair, roles.label, roles.problem_type, roles.label_columns, roles.label_delimiter
    )


def guess_roles(preview: Preview, given: Roles) -> Roles:
    """Return the roles of the columns: those that are given, and guesses for the others.

    Raises:
        DataError: a given column does not exist, or no column fits a role.
    """
    options = (("--text-column", given.text), ("--text-pair-column", given.pair), ("--label-column", given.label))
    chosen = [Column(name, option) for option, name in options if name is not None]
    require_columns(chosen, list(preview.columns), str(preview.file))
    if len({column.name for column in chosen}) < len(chosen):
        raise DataError(f"text and label columns must differ, got {', '.join(column.name for column in chosen)}")
    roles = _with_label(preview, given)
    roles = _with_texts(preview, roles)
    return _with_problem_type(preview, roles)


def _with_label(preview: Preview, roles: Roles) -> Roles:
    """Return the roles with a guess of the label column, or of the columns with 0 and 1."""
    if roles.label is not None:
        return roles
    if flags := _one_column_per_label(preview, roles):
        note = f"labels: {', '.join(flags)} have 0 and 1 in every row, and are read as one column per label; "
        note += "choose one label with --label-column"
        name = next(name for name in ("label", "labels", "label_set") if name not in preview.columns)
        return replace(roles, label=name, label_columns=tuple(flags), problem_type=MULTI, unsure=(*roles.unsure, note))
    free = [column for column in preview.columns.values() if column.name not in (roles.text, roles.pair)]
    usable = [column for column in free if column.has_lists or _is_classes(column) or _is_values(column)]
    named = sorted((column for column in usable if _label_rank(column) is not None), key=_label_rank_or_last)
    if named:
        others = [column.name for column in named[1:]]
        note = f"{', '.join(others)} could be the label too; choose with --label-column"
        unsure = (*roles.unsure, f"label column '{named[0].name}': {note}") if others else roles.unsure
        return replace(roles, label=named[0].name, unsure=unsure)
    usable = [column for column in usable if not _is_identifier(column)]
    # A column of numbers with a fraction is a label only if nothing else is.
    usable = [column for column in usable if not _is_values(column)] or usable
    if len(usable) == 1:
        note = f"label column '{usable[0].name}': its name is unusual, but no other column looks like a label; "
        return replace(roles, label=usable[0].name, unsure=(*roles.unsure, f"{note}change it with --label-column"))
    if not usable:
        raise DataError(
            f"no column of {preview.file} looks like a label (a few values that repeat, lists, or numbers); its "
            f"columns are {', '.join(preview.columns)}: name the label with --label-column"
        )
    return replace(roles, candidates={**roles.candidates, "--label-column": [column.name for column in usable]})


def _one_column_per_label(preview: Preview, roles: Roles) -> list[str]:
    """Return the columns with 0 and 1, if there are several and no other column looks like a label; otherwise []."""
    columns = [column for column in preview.columns.values() if column.name not in (roles.text, roles.pair)]
    flags = flag_columns([column for column in columns if not _is_identifier(column)])
    named = any(_normalized(name) in LABEL_NAMES for name in flags)
    others = [column for column in columns if column.name not in flags and _label_rank(column) is not None]
    enough = len(flags) >= (2 if roles.problem_type == MULTI else _MIN_FLAGS)
    return flags if enough and roles.problem_type in (None, MULTI) and not (named or others) else []


def _with_texts(preview: Preview, roles: Roles) -> Roles:
    """Return the roles with a guess of the text column, and of the pair column if no text column is given."""
    if roles.text is not None:
        return roles
    undecided = roles.candidates.get("--label-column", [])
    texts = {
        _normalized(column.name): column
        for column in preview.columns.values()
        if column.name not in (roles.label, roles.pair, *undecided) and _is_text(column)
    }
    if roles.pair is None:
        for first, second in PAIR_NAMES:
            if first in texts and second in texts:
                return replace(roles, text=texts[first].name, pair=texts[second].name)
    named = [texts[name] for name in TEXT_NAMES if name in texts]
    # The longest of the columns with a usual name: of title and body it is the body.
    best = max(named, key=lambda column: column.mean_words, default=None)
    if best is None and len(texts) == 1:
        best = next(iter(texts.values()))
    if best is None and not texts:
        raise DataError(
            f"no column of {preview.file} looks like a text; its columns are {', '.join(preview.columns)}: name the "
            "text with --text-column"
        )
    if best is None:
        names = [column.name for column in texts.values()]
        return replace(roles, candidates={**roles.candidates, "--text-column": names})
    others = [column.name for column in texts.values() if column is not best]
    if not others or roles.pair is not None:
        return replace(roles, text=best.name)
    note = (
        f"text column '{best.name}': {', '.join(others)} {'are texts' if len(others) > 1 else 'is a text'} too; choose "
        "with --text-column, and use a second text with --text-pair-column"
    )
    return replace(roles, text=best.name, unsure=(*roles.unsure, note))


def _with_problem_type(preview: Preview, roles: Roles) -> Roles:
    """Return the roles with the problem type that the values of the label column have."""
    written = preview.columns.get(roles.label or "")
    if roles.problem_type == MULTI and written is not None and not written.has_lists:
        return replace(roles, label_delimiter=chosen_separator(written))
    if roles.problem_type is not None or roles.label is None:
        return roles
    label = preview.columns[roles.label]
    if label.has_lists:
        return replace(roles, problem_type=MULTI)
    if not label.is_plain:
        raise DataError(
            f"column '{label.name}' of {preview.file} is empty or has values that are neither text nor number; name "
            "another label with --label-column"
        )
    if not label.is_number:
        if has_written_lists(label):
            return replace(roles, problem_type=MULTI)
        if separator := separator_of_sets(label):
            example = next(text for text in label.counts if separator in text)
            note = f"problem type {MULTI}: '{shorten(example, 40)}' is read as several labels, separated by "
            note += f"'{separator}'; change it with --problem-type {SINGLE}"
            return replace(roles, problem_type=MULTI, label_delimiter=separator, unsure=(*roles.unsure, note))
        return replace(roles, problem_type=SINGLE)
    if not label.is_integer:
        return replace(roles, problem_type=REGRESSION)
    numbers = sorted(int(text) for text in label.counts)
    numbered = numbers[0] in (-1, 0, 1) and numbers[-1] - numbers[0] == len(numbers) - 1
    if numbered and len(numbers) <= _MAX_CLASSES and (numbers[0] < 1 or len(numbers) > 2):
        is_scale = numbers[0] == 1 or _normalized(label.name) in ("rating", "stars", "score", "grade")
        kind, unsure = SINGLE, is_scale
    else:
        kind, unsure = (SINGLE if len(numbers) <= _MAX_WHOLE_NUMBERS else REGRESSION), len(numbers) > 2
    if unsure:
        other = REGRESSION if kind == SINGLE else SINGLE
        note = f"problem type {kind}: '{label.name}' has {len(numbers)} different whole numbers, from {numbers[0]} to "
        note += f"{numbers[-1]}; change it with --problem-type {other}"
        roles = replace(roles, unsure=(*roles.unsure, note))
    return replace(roles, problem_type=kind)


def _normalized(name: str) -> str:
    return "_".join(name.strip().lower().replace("-", " ").split())


def _label_rank(column: PreviewColumn) -> int | None:
    """Return the position of a column's name among the usual label names, or None."""
    name = _normalized(column.name)
    if name in LABEL_NAMES:
        return LABEL_NAMES.index(name)
    words = name.split("_")
    return len(LABEL_NAMES) if {"label", "class", "category", "sentiment", "intent"} & set(words) else None


def _label_rank_or_last(column: PreviewColumn) -> int:
    rank = _label_rank(column)
    return len(LABEL_NAMES) if rank is None else rank


def _is_identifier(column: PreviewColumn) -> bool:
    name = _normalized(column.name)
    return name in _IDENTIFIERS or name.endswith(("_id", "_at", "_date", "_url")) or column.is_date_or_link


def _is_classes(column: PreviewColumn) -> bool:
    """Return whether a column has a few short values that repeat."""
    if not column.is_plain or column.is_date_or_link or (column.is_number and not column.is_integer):
        return False
    repeats = len(column.counts) <= max(2, len(column.texts) // 2) or _label_rank(column) is not None
    return len(column.counts) <= _MAX_CLASSES and repeats and column.mean_words <= _MAX_LABEL_WORDS


def _is_values(column: PreviewColumn) -> bool:
    """Return whether a column has numbers with a fraction, or any numbers under the usual name of a label."""
    return column.is_number and (not column.is_integer or _label_rank(column) is not None)


def _is_text(column: PreviewColumn) -> bool:
    """Return whether a column has texts of several words that differ, or texts under a usual name."""
    if not column.is_plain or column.is_number or _is_identifier(column):
        return False
    if _normalized(column.name) in TEXT_NAMES:
        return True
    return column.mean_words >= 1.5 and len(column.counts) > min(10, len(column.texts) / 4)


def missing_roles(roles: Roles) -> Sequence[str]:
    """Return one sentence per role that could not be guessed."""
    names = {"--label-column": "the label", "--text-column": "the text"}
    return [
        f"several columns could be {names[option]}: {', '.join(columns)}; choose one with {option}"
        for option, columns in roles.candidates.items()
    ]
