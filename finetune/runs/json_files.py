"""JSON files: written atomically, and checked against their type when they are read. Imports no torch."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from finetune.errors import DataError
from finetune.runs.atomic_files import report_write_errors, temporary_path

T = TypeVar("T")


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: aside first, then renamed.

    Raises:
        TrainingError: the disk is full or read-only.
    """
    with report_write_errors(path):
        aside = temporary_path(path)
        try:
            aside.write_text(text, encoding="utf-8")
            aside.replace(path)
        except OSError:
            with suppress(OSError):
                aside.unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any) -> None:
    """Write a result (a dataclass or plain values) as JSON, whole or not at all; NaN is refused."""
    write_text(path, json.dumps(value, default=asdict, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def damaged(path: Path, reason: str) -> DataError:
    """Return the error for a file of a run that cannot be used, with the command that writes it again."""
    repair = _REPAIRS.get(path.name, "finish the run (checkpoint.resume_from_checkpoint=auto) or repeat it")
    return DataError(f"{path} is damaged or of another version ({reason}); {repair}")


def read_json(path: Path, kind: type[T]) -> T:
    """Return the result of type `kind` that lies in `path`.

    Raises:
        DataError: the file is missing, or does not hold such a result.
    """
    content = read_bytes(path)
    try:
        json.loads(content, parse_constant=_refuse_constant)  # pydantic takes NaN for a number, and no depth for deep
        return TypeAdapter(kind).validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise damaged(path, f"{where}: {first['msg']}" if where else first["msg"]) from error
    except (ValueError, RecursionError) as error:
        raise damaged(path, str(error)) from error


def read_bytes(path: Path) -> bytes:
    """Return the content of a file of a run.

    Raises:
        DataError: it is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        repair = _REPAIRS.get(path.name, "finish or repeat the run")
        raise DataError(f"no {path.name} in {path.parent}; a finished run has one: {repair}") from error
    except OSError as error:
        raise damaged(path, error.strerror or str(error)) from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def append_line(path: Path, entry: dict[str, Any]) -> None:
    """Append one JSON line.

    Raises:
        TrainingError: the disk is full or read-only.
    """
    with report_write_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry, allow_nan=False) + "\n")


_AGAIN = "remove the file, and `finetune {} RUN` writes it again"


_REPAIRS = {
    "recipe.yaml": "copy the recipe that was run there",
    **dict.fromkeys(("scores.json", "predictions.parquet"), _AGAIN.format("evaluate")),
    **dict.fromkeys(("heads.json", "heads_failure.json"), _AGAIN.format("heads")),
}
