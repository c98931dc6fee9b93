"""Checks of a recipe that need several keys or the disk. Checks of single values are in schema_validation.py.

Each problem becomes one line of the error message, which says how to fix it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from finetune.errors import DataError, printable, shorten
from finetune.paths import absolute_path, new_dir_problem, path_problem
from finetune.recipe.data_files import ENDINGS, expand_files, is_data_file
from finetune.recipe.training_section import LoggingSection
from finetune.recipe.yaml_parser import Location

NO_VALIDATION = (
    "give data.validation_file (or rows, or split), or hold out training rows with data.validation_size: auto"
)


@dataclass(frozen=True)
class Problem:
    """One mistake in a recipe: the location of the key, and the message."""

    location: Location
    text: str

    def line(self, lines: Mapping[Location, str]) -> str:
        """Return the mistake as one line: path of the key, line of the file, and message, shortened if it is long."""
        known = nearest_written(self.location, lines)
        where = f" ({lines[known]})" if known else ""
        path = ".".join(str(part) for part in self.location) or "recipe"
        return printable(f"{shorten(path)}{where}: {shorten(self.text)}".replace("\n", "\\n"))


def nearest_written(location: Location, lines: Mapping[Location, str]) -> Location | None:
    """Return the innermost enclosing key or section that the file or an override contains, or None."""
    enclosing = (location[:n] for n in range(len(location), 0, -1))
    return next((known for known in enclosing if known in lines), None)


def freezing_problems(document: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield problems with keys for frozen layers that have no effect or cannot be used together."""
    training = section_of(document, "training")
    for key in ("freeze_embeddings", "freeze_layers"):
        if document.get("peft") is not None and training.get(key):
            yield Problem(("training", key), "LoRA trains only its adapters; remove this key, or the peft section")
    if training.get("cache_frozen_layers") is True:
        text = ""
        if document.get("peft") is not None:
            text = "LoRA adapts every layer, so no layer is completely frozen; remove this key, or the peft section"
        elif section_of(document, "model").get("model_type"):
            text = "a new model has random weights, which should not be frozen; remove this key"
        elif not (training.get("freeze_embeddings") and training.get("freeze_layers")):
            text = "needs freeze_embeddings: true and freeze_layers of at least 1; only frozen layers can be cached"
        if text:
            yield Problem(("training", "cache_frozen_layers"), text)


def label_set_problems(document: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield problems with keys of the data section that are for several labels per row."""
    data, task = section_of(document, "data"), section_of(document, "task")
    if task.get("problem_type") != "multi_label_classification":
        for key in ("label_columns", "label_delimiter"):
            if data.get(key) not in (None, "auto"):
                text = "is for several labels per row; set task.problem_type: multi_label_classification, or remove it"
                yield Problem(("data", key), text)
    columns, names = data.get("label_columns"), task.get("label_names")
    if isinstance(columns, list) and isinstance(names, list) and columns != names:
        yield Problem(("task", "label_names"), "the names are those of data.label_columns; remove label_names")


def cross_section_problems(document: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield problems where one section needs something that another section does not provide."""
    model, data, training = (section_of(document, name) for name in ("model", "data", "training"))
    if document.get("peft") is not None and model.get("model_type"):
        text = "adapters need pretrained weights, but model.model_type builds a new model; remove the peft section"
        yield Problem(("peft",), text)
    if training.get("mixed_precision") == "fp16" and training.get("use_cpu"):
        yield Problem(("training", "mixed_precision"), "fp16 needs a GPU, but use_cpu is true; use bf16 or no")
    if training.get("mixed_precision") == "int8":
        yield from _int8_problems(model, training)
    method = section_of(document, "head_importance").get("method")
    if "ablation_accuracy" in str(method) and section_of(document, "task").get("problem_type") == "regression":
        text = "ablation_accuracy needs classes, but problem_type is regression; use ablation_loss or ablation_kl"
        yield Problem(("head_importance", "method"), text)
    temperature = section_of(document, "outputs").get("temperature")
    if isinstance(temperature, int | float) and section_of(document, "task").get("problem_type") == "regression":
        yield Problem(("outputs", "temperature"), "needs labels, but problem_type is regression; remove it")
    held_out = data.get("validation_size", "auto")
    has_validation = bool(data.get("validation_file") or data.get("validation_rows") or held_out not in (None, "auto"))
    if data.get("dataset_name") and data.get("validation_split", "validation"):
        has_validation = True
    strategy = section_of(document, "evaluation").get("eval_strategy", "epoch")
    if not has_validation and held_out is None and strategy != "no":
        yield Problem(
            ("data",),
            f"there are no validation rows to evaluate on; {NO_VALIDATION}, or set evaluation.eval_strategy: no",
        )
    heads = document.get("head_importance", {})
    split = heads.get("split") if isinstance(heads, dict) else None
    if not has_validation and strategy == "no" and split == "validation":
        yield Problem(
            ("head_importance",),
            f"split is validation, but there are no validation rows; {NO_VALIDATION}, or set another split",
        )


def _int8_problems(model: Mapping[str, Any], training: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield problems with keys that int8 cannot be combined with."""
    if training.get("torch_compile"):
        yield Problem(("training", "torch_compile"), "compiled layers do not multiply in int8; remove one of the keys")
    if model.get("dtype", "float32") != "float32":
        text = "int8 copies are made of float32 weights; set model.dtype: float32"
        yield Problem(("training", "mixed_precision"), text)


def series_problems(document: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield problems with keys that apply to one run, in a recipe for several."""
    resume = section_of(document, "checkpoint").get("resume_from_checkpoint")
    if document.get("seeds") is not None and resume not in (None, "auto"):
        text = (
            "names the checkpoint of one run, but seeds trains several; set auto, which resumes each run from its own"
        )
        yield Problem(("checkpoint", "resume_from_checkpoint"), text)


def disk_problems(document: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield problems with paths that cannot be used, missing files, and trackers that are not installed."""
    for split in ("train", "validation", "test"):
        given = section_of(document, "data").get(f"{split}_file")
        files = [file for file in (given if isinstance(given, list) else [given]) if isinstance(file, str) and file]
        if files:
            yield from _source_problems(("data", f"{split}_file"), files)
    output = document.get("output_dir")
    if isinstance(output, str) and (problem := new_dir_problem(output)):
        yield Problem(("output_dir",), f"{_quoted(output)} {problem}")
    for section, key in (
        ("model", "model_name_or_path"),
        ("data", "dataset_name"),
        ("checkpoint", "resume_from_checkpoint"),
    ):
        name = section_of(document, section).get(key)
        if isinstance(name, str) and name:
            yield from _folder_problems((section, key), name)
    tracker = section_of(document, "logging").get("report_to", "none")
    known = get_args(LoggingSection.model_fields["report_to"].annotation)
    if tracker in known and tracker != "none" and importlib.util.find_spec(tracker) is None:
        yield Problem(("logging", "report_to"), f"'{tracker}' is not installed; run `pip install {tracker}`")


def file_problems(location: Location, file: str) -> Iterator[Problem]:
    """Yield the problem with the path of a data file, if it has one."""
    problem = path_problem(file)
    if problem is not None:
        yield Problem(location, f"{_quoted(file)} {problem}")
    elif absolute_path(file).is_dir():
        yield Problem(location, f"{_quoted(file)} is a folder; name one file")
    elif not absolute_path(file).is_file():
        text = f"there is no file {_quoted(file)} (full path: {absolute_path(file)}); correct the path"
        yield Problem(location, text)
    elif not is_data_file(Path(file)):
        yield Problem(location, f"given {_quoted(file)}; the name of a data file must end in {ENDINGS}")


def _source_problems(location: Location, entries: Sequence[str]) -> Iterator[Problem]:
    """Yield the problem with the files, folders and patterns of a split, if they have one."""
    problem = next(
        (Problem(location, f"{_quoted(entry)} {text}") for entry in entries if (text := path_problem(entry))), None
    )
    if problem is None:
        try:
            files = expand_files(entries)
        except DataError as error:
            problem = Problem(location, str(error))
        else:
            problem = next((problem for file in files for problem in file_problems(location, str(file))), None)
    if problem is not None:
        yield problem


def _folder_problems(location: Location, name: str) -> Iterator[Problem]:
    """Yield problems with a folder or a name on the hub. A value that can only be a folder must exist."""
    problem = path_problem(name)
    must_be_folder = name.startswith(("/", "./", "../", "~")) or location[0] == "checkpoint"
    if problem is not None:
        yield Problem(location, f"{_quoted(name)} {problem}")
    elif must_be_folder and name != "auto" and not absolute_path(name).exists():
        yield Problem(
            location, f"there is no folder {_quoted(name)} (full path: {absolute_path(name)}); correct the path"
        )
    elif location[0] == "data" and absolute_path(name).is_file():
        yield Problem(location, f"{_quoted(name)} is a file; give it as data.train_file")


def _quoted(path: str) -> str:
    return f"'{shorten(path, 120)}'"


def section_of(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a section of a recipe file, {} if it is not a mapping."""
    content = document.get(name)
    return content if isinstance(content, dict) else {}
