"""A recipe that can be published: without paths of this machine and, optionally, without rows."""

from __future__ import annotations

import re
from collections.abc import Iterable

from finetune.recipe.data_section import DataSection
from finetune.recipe.schema import Recipe

_SPLITS = ("train", "validation", "test")
_NAME = r"[\w.~+@=-]+"
_ABSOLUTE = re.compile(rf"(?<![\w.:/\\])(?:[A-Za-z]:)?[/\\]{_NAME}(?:[/\\]{_NAME})+")


def portable_recipe(recipe: Recipe, *, keep_rows: bool) -> Recipe:
    """Return the recipe with the names of files and folders in place of their paths on this machine.

    Args:
        keep_rows: whether rows written in the recipe stay; otherwise a file takes their place, such as train.jsonl.
    """
    model, checkpoint = recipe.model, recipe.checkpoint
    resume = checkpoint.resume_from_checkpoint
    return recipe.model_copy(
        update={
            "output_dir": f"runs/{last_part(recipe.output_dir)}",
            "model": model.model_copy(update={"model_name_or_path": _without_path(model.model_name_or_path)}),
            "data": _portable_data(recipe.data, keep_rows=keep_rows),
            "checkpoint": checkpoint.model_copy(
                update={"resume_from_checkpoint": resume if resume == "auto" else None}
            ),
        }
    )


def last_part(path: str) -> str:
    """Return the last part of a path, which may be one of another operating system."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def _portable_data(data: DataSection, *, keep_rows: bool) -> DataSection:
    changes: dict[str, object] = {}
    for split, files in data.local_files().items():
        names = [last_part(file) for file in files]
        changes[f"{split}_file"] = names[0] if len(names) == 1 else names
    changes["dataset_name"] = _without_path(data.dataset_name)
    for split in () if keep_rows else _SPLITS:
        if getattr(data, f"{split}_rows"):
            changes |= {f"{split}_rows": None, f"{split}_file": f"{split}.jsonl"}
    return data.model_copy(update=changes)


def _without_path(name: str | None) -> str | None:
    """Return "./NAME" for the absolute path of a folder NAME, and any other name unchanged."""
    return f"./{last_part(name)}" if name and is_absolute(name) else name


def is_absolute(path: str) -> bool:
    """Return whether a path is absolute, on this operating system or another one."""
    return path.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[/\\]", path) is not None


def without_paths(text: str, known: Iterable[str] = ()) -> str:
    """Return a message with the last part of each absolute path in place of the path.

    Args:
        known: paths that the message can contain; those with a space are recognized only if they are listed here.
    """
    for path in sorted(filter(is_absolute, known), key=len, reverse=True):
        text = text.replace(path, last_part(path))
    return _ABSOLUTE.sub(lambda match: last_part(match[0]), text)
