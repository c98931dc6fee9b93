"""Take possession of a run folder without losing anything that lies in it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from finetune.errors import TrainingError
from finetune.recipe import Recipe, dump_recipe
from finetune.results import RunFolder, SplitSummary, append_line, read_lines, write_json, write_text


def check_folder(folder: RunFolder, recipe: Recipe) -> None:
    """Raise TrainingError if the run folder holds something that must not be lost."""
    path = folder.path
    if path.exists() and not path.is_dir():
        raise TrainingError(f"output_dir {path} is a file; name a folder")
    if not path.is_dir() or not any(path.iterdir()) or recipe.checkpoint.resume_from_checkpoint:
        return
    if not folder.recipe.is_file():
        raise TrainingError(f"output_dir {path} holds files that are no run; name another folder")
    if not recipe.overwrite_output_dir:
        raise TrainingError(
            f"output_dir {path} holds an earlier run; name another, go on with it "
            "(checkpoint.resume_from_checkpoint=auto), or replace it (overwrite_output_dir=true)"
        )


def claim_folder(
    folder: RunFolder, recipe: Recipe, environment: Mapping[str, object], summary: Mapping[str, SplitSummary]
) -> None:
    """Make the run folder, clear an earlier run out of it unless it is resumed, and write down what is run."""
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        if not recipe.checkpoint.resume_from_checkpoint:
            for old in folder.written():
                shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
        write_text(folder.recipe, dump_recipe(recipe))
        write_json(folder.environment, dict(environment))
        write_json(folder.data, dict(summary))
    except OSError as error:
        raise TrainingError(f"output_dir {folder.path} cannot be written: {error.strerror}; name another") from error


def forget_after(history: Path, step: int) -> None:
    """Drop the history's entries after `step`: a resumed run writes them again."""
    kept = [entry for entry in read_lines(history) if entry["step"] <= step]
    history.unlink(missing_ok=True)
    for entry in kept:
        append_line(history, entry)
