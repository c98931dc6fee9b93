"""JSON files of a run: written atomically, and checked against their type when they are read."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from finetune.errors import DataError
from finetune.runs.atomic_files import report_write_errors, write_text

T = TypeVar("T")

# The command that writes a file of a finished run again.
_COMMANDS = {
    **dict.fromkeys(("scores.json", "baselines.json", "predictions.parquet", "label_errors.csv"), "evaluate"),
    **dict.fromkeys(("heads.json", "heads_failure.json", "explanations.parquet"), "heads"),
}
_OTHER_FIXES = {
    "data_quality.json": "remove the file; the report then has no section on data quality",
    "recipe.yaml": "copy the recipe of the run to that path",
    "sweep.json": "start the sweep again with the same file, which writes it and repeats no finished trial",
}


def write_json(path: Path, value: Any) -> None:
    """Write a dataclass or plain values as JSON, atomically.

    Raises:
        TrainingError: the disk is full or read-only.
        ValueError: a number is NaN or infinite.
    """
    write_text(path, json.dumps(value, default=asdict, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def append_line(path: Path, entry: dict[str, Any]) -> None:
    """Append one JSON line.

    Raises:
        TrainingError: the disk is full or read-only.
        ValueError: a number is NaN or infinite.
    """
    with report_write_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry, allow_nan=False) + "\n")


def read_json(path: Path, result_type: type[T]) -> T:
    """Return the content of a file as a value of `result_type`.

    Raises:
        DataError: the file is missing, or its content is not of that type.
    """
    content = read_bytes(path)
    try:
        json.loads(content, parse_constant=_reject_constant)  # rejects NaN and deep nesting, which pydantic accepts
        value: T = _checker(cast(Any, result_type)).validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise damaged_file(path, f"{where}: {first['msg']}" if where else first["msg"]) from error
    except (ValueError, RecursionError) as error:
        raise damaged_file(path, str(error)) from error
    return value


@cache  # building it takes longer than reading a file
def _checker(result_type: Any) -> TypeAdapter[Any]:
    """Return the check of a type."""
    return TypeAdapter(result_type)


def read_bytes(path: Path) -> bytes:
    """Return the content of a file of a run.

    Raises:
        DataError: the file is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        fix = _fix(path) or "finish or repeat the run"
        raise DataError(f"no {path.name} in {path.parent}; a finished run has one: {fix}") from error
    except OSError as error:
        raise damaged_file(path, error.strerror or str(error)) from error


def damaged_file(path: Path, reason: str) -> DataError:
    """Return the error for a file of a run that cannot be used; its message names the command that repairs it."""
    fix = _fix(path) or "finish the run (checkpoint.resume_from_checkpoint=auto) or repeat it"
    if path.name in _COMMANDS:
        fix = f"remove the file, and {fix}"
    return DataError(f"{path} is damaged or of another version ({reason}); {fix}")


def _reject_constant(name: str) -> None:
    """Raise ValueError for NaN and Infinity, which are not JSON."""
    raise ValueError(f"{name} is not a JSON number")


def _fix(path: Path) -> str:
    """Return how the user gets this file of a run again, "" if there is no way for this file alone."""
    if path.name in _COMMANDS:
        return f"`finetune {_COMMANDS[path.name]} RUN` writes it again"
    return _OTHER_FIXES.get(path.name, "")
