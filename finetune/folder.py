"""Take possession of a folder without losing anything that lies in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from finetune.errors import DataError, TrainingError
from finetune.files import to_disk, writing
from finetune.recipe import Recipe, dump_recipe
from finetune.results import RunFolder, SplitSummary, read_lines, write_json, write_text

_CLAIMED = ".claimed"  # lies in a folder while it is made a run's: whoever is killed then can start again


def check_folder(folder: RunFolder, recipe: Recipe) -> None:
    """Raise TrainingError if the run folder holds something that must not be lost."""
    path = folder.path
    for name, used in used_files(recipe).items():
        if used.resolve().is_relative_to(path.resolve()) and not recipe.checkpoint.resume_from_checkpoint:
            raise TrainingError(f"{name} lies in output_dir {path}, which is to be written; name another output_dir")
    if path.exists() and not path.is_dir():
        raise TrainingError(f"output_dir {path} is a file; name a folder")
    if not path.is_dir() or not any(path.iterdir()):
        return
    ours = all(file.is_file() for file in (folder.recipe, folder.environment, folder.data))
    if not ours and not (path / _CLAIMED).is_file():
        raise TrainingError(f"output_dir {path} holds files that are no run; name another folder")
    if not recipe.overwrite_output_dir and not recipe.checkpoint.resume_from_checkpoint:
        raise TrainingError(
            f"output_dir {path} holds an earlier run; name another, go on with it "
            "(checkpoint.resume_from_checkpoint=auto), or replace it (overwrite_output_dir=true)"
        )


def used_files(recipe: Recipe) -> dict[str, Path]:
    """Return key -> path for everything on disk that the run reads."""
    files = {f"data.{split}_file": Path(file) for split, file in recipe.data.local_files().items()}
    name = recipe.model.model_name_or_path
    return files | ({"model.model_name_or_path": Path(name)} if name and Path(name).is_dir() else {})


def claim_folder(
    folder: RunFolder, recipe: Recipe, environment: Mapping[str, object], summary: Mapping[str, SplitSummary]
) -> None:
    """Make the run folder, clear an earlier run out of it unless it is resumed, and write down what is run."""
    with writing(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
        (folder.path / _CLAIMED).touch()  # whole at once, unlike what is written aside first
        if not recipe.checkpoint.resume_from_checkpoint:
            for old in folder.written():
                shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
        # Running it again is to repeat the run, not to go on with it.
        fresh = recipe.checkpoint.model_copy(update={"resume_from_checkpoint": None})
        write_text(folder.recipe, dump_recipe(recipe.model_copy(update={"checkpoint": fresh})))
        write_json(folder.environment, dict(environment))
        write_json(folder.data, dict(summary))
        (folder.path / _CLAIMED).unlink()


def forget_after(history: Path, step: int) -> None:
    """Drop the history's entries after `step`: a resumed run writes them again."""
    kept = [json.dumps(entry, allow_nan=False) + "\n" for entry in read_lines(history) if entry["step"] <= step]
    write_text(history, "".join(kept))


def check_free(target: Path) -> None:
    """Raise DataError if a folder that is to be written is taken."""
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise DataError(f"{target} is there already and not empty; name another folder with --output")


@contextmanager
def replaced_whole(target: Path) -> Iterator[Path]:
    """Give a folder beside `target` to write to; at the end it replaces what is there, and on any error it goes.

    What is there is lost at no moment.

    Raises:
        TrainingError: the disk is full or read-only.
    """
    aside, old = (target.with_name(f".{target.name}.{kind}") for kind in ("tmp", "old"))
    try:
        with writing(target):
            shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
            aside.mkdir(parents=True)
            yield aside
            for path in (*aside.iterdir(), aside):
                to_disk(path)
            if target.exists():
                shutil.rmtree(old, ignore_errors=True)
                target.rename(old)
            aside.replace(target)
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        for left in (aside, old):
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """Give a folder beside `target` to write to; it takes the target's place at the end, and goes on any error.

    Raises:
        DataError: the target is taken, or cannot be made.
        TrainingError: the disk is full.
    """
    check_free(target)
    aside = target.with_name(f".{target.name}.tmp")
    try:
        shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
        aside.mkdir(parents=True)
    except OSError as error:
        raise DataError(f"{target} cannot be written: {error.strerror}; name another folder with --output") from error
    try:
        with writing(target):
            yield aside
            aside.replace(target)  # an empty folder gives way
    finally:
        shutil.rmtree(aside, ignore_errors=True)
