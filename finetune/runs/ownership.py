"""Take possession of a folder without losing anything that lies in it."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from finetune.errors import DataError, TrainingError
from finetune.recipe import Recipe, dump_recipe
from finetune.runs.atomic_files import COMPLETE_MARKER, fsync_path, report_write_errors
from finetune.runs.json_files import write_json, write_text
from finetune.runs.locks import LOCK, locked_file
from finetune.runs.results import SplitSummary
from finetune.runs.run_files import CLAIM, Claim, not_a_run, read_history
from finetune.runs.run_folder import RunFolder
from finetune.version import __version__

_PREVIOUS = ".previous"  # the run that is being replaced, until the new one has a model
# What a process may leave in an empty folder that is killed before it has claimed it.
_LEFT_BY_KILLED = {LOCK, CLAIM, f".{CLAIM}.tmp"}


def check_output_dir(folder: RunFolder, recipe: Recipe) -> None:
    """Raise a FinetuneError if the run folder cannot be taken, or holds something that must not be lost."""
    path, resumed = folder.path, recipe.checkpoint.resume_from_checkpoint is not None
    try:
        _refuse_inputs(folder, recipe, resumed=resumed)
        if path.exists() and not path.is_dir():
            raise TrainingError(f"output_dir {path} is a file; name a folder")
        names = {file.name for file in path.iterdir()} if path.is_dir() else set()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symbolic links
        reason = getattr(error, "strerror", None) or str(error)
        raise TrainingError(f"output_dir {path} cannot be used: {reason}; name another folder") from error
    if names <= _LEFT_BY_KILLED:
        return
    if reason := not_a_run(folder):
        raise TrainingError(
            f"output_dir {path} is not empty and is not a finetune run ({reason}); name another folder, or empty this "
            "one yourself"
        )
    if not recipe.overwrite_output_dir and not resumed:
        raise TrainingError(
            f"output_dir {path} holds an earlier run; name another, go on with it "
            "(checkpoint.resume_from_checkpoint=auto), or replace it (overwrite_output_dir=true)"
        )
    if resumed and folder.history.is_file():
        read_history(folder)


def _refuse_inputs(folder: RunFolder, recipe: Recipe, *, resumed: bool) -> None:
    """Raise TrainingError if the run would write over what it reads."""
    outputs = [name.resolve() for name in folder.written()]
    for name, used in used_files(recipe).items():
        inside = used.resolve().is_relative_to(folder.path.resolve())
        if inside and (not resumed or any(used.resolve().is_relative_to(output) for output in outputs)):
            raise TrainingError(
                f"{name} lies in output_dir {folder.path}, which is to be written; name another output_dir"
            )


def used_files(recipe: Recipe) -> dict[str, Path]:
    """Return key -> path for everything on disk that the run reads."""
    files = {f"data.{split}_file": Path(file) for split, file in recipe.data.local_files().items()}
    for key, name in (
        ("model.model_name_or_path", recipe.model.model_name_or_path),
        ("data.dataset_name", recipe.data.dataset_name),
    ):
        if name and Path(name).is_dir():
            files[key] = Path(name)
    return files


def take_ownership(
    folder: RunFolder, recipe: Recipe, environment: Mapping[str, object], summary: Mapping[str, SplitSummary]
) -> None:
    """Make the run folder, set an earlier run aside unless it is resumed, and write down what is run.

    The earlier run is kept in the folder, under another name, until the new one has a model: see `delete_previous_run`
    and `restore_previous_on_failure`.
    """
    with report_write_errors(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
        resumed = recipe.checkpoint.resume_from_checkpoint is not None
        half_done = (folder.path / CLAIM).is_file()
        if not resumed and not half_done and folder.model.is_dir():
            delete_previous_run(folder)
        claim = Claim(__version__, datetime.now(UTC).isoformat(timespec="seconds"))
        write_json(folder.path / CLAIM, claim)
        if not resumed:
            _set_aside(folder, half_done=half_done)
        # Running it again is to repeat the run, not to go on with it.
        fresh = recipe.checkpoint.model_copy(update={"resume_from_checkpoint": None})
        write_text(folder.recipe, dump_recipe(recipe.model_copy(update={"checkpoint": fresh})))
        write_json(folder.environment, dict(environment))
        write_json(folder.data, dict(summary))
        (folder.path / CLAIM).unlink()


def _set_aside(folder: RunFolder, *, half_done: bool) -> None:
    """Move what an earlier run wrote to `_PREVIOUS`; what an unfinished run wrote that was replacing it is removed.

    Args:
        half_done: a process was killed while it did this.
    """
    aside = folder.path / _PREVIOUS
    if aside.is_dir():
        _remove(folder, half_done=half_done)
    for old in folder.written():
        if old.exists() or old.is_symlink():
            aside.mkdir(exist_ok=True)
            old.rename(aside / old.name)


def _remove(folder: RunFolder, *, half_done: bool) -> None:
    """Delete what the run wrote that replaces the one in `_PREVIOUS`, and nothing else of the folder.

    Args:
        half_done: not all of the earlier run was set aside: what has no counterpart there is still that run's.
    """
    for new in folder.written():
        if not half_done or os.path.lexists(folder.path / _PREVIOUS / new.name):
            shutil.rmtree(new) if new.is_dir() and not new.is_symlink() else new.unlink(missing_ok=True)


def delete_previous_run(folder: RunFolder) -> None:
    """Delete the run that was replaced, now that the new one has a model."""
    with report_write_errors(folder.path):
        if (folder.path / _PREVIOUS).is_dir():
            shutil.rmtree(folder.path / _PREVIOUS)


@contextmanager
def restore_previous_on_failure(folder: RunFolder, *, is_main_process: bool) -> Iterator[None]:
    """On any error, put the run that was to be replaced back, unless the new one has a checkpoint or a model.

    Where several processes work, the main one does it.
    """
    try:
        yield
    except BaseException:
        aside = folder.path / _PREVIOUS
        half_done = (folder.path / CLAIM).is_file()  # a model that is there is still the earlier run's
        started = (folder.model.is_dir() and not half_done) or any(folder.checkpoints.glob(f"*/{COMPLETE_MARKER}"))
        if is_main_process and aside.is_dir() and not started:
            _remove(folder, half_done=half_done)
            for old in list(aside.iterdir()):
                old.rename(folder.path / old.name)
            aside.rmdir()
            (folder.path / CLAIM).unlink(missing_ok=True)
        raise


def truncate_history(folder: RunFolder, step: int) -> None:
    """Drop the history's entries after `step`: a resumed run writes them again."""
    entries = read_history(folder) if folder.history.is_file() else []
    kept = [json.dumps(entry, allow_nan=False) + "\n" for entry in entries if (entry["step"] or 0) <= step]
    write_text(folder.history, "".join(kept))


@contextmanager
def lock_new_dir(target: Path) -> Iterator[None]:
    """Hold the lock of a folder that is to be written beside a run, from before the work until it is there.

    Raises:
        DataError: it is there already.
        TrainingError: another process writes it.
    """
    check_dir_is_free(target)
    with locked_file(target.with_name(f".{target.name}.lock"), target):
        check_dir_is_free(target)
        yield


def check_dir_is_free(target: Path) -> None:
    """Raise DataError if a folder that is to be written is taken."""
    try:
        taken = target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir())))
        above = next(path for path in target.parents if path.exists())
        if not above.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    except OSError as error:
        raise DataError(f"{target} cannot be written: {error.strerror}; name another folder with --output") from error
    if taken:
        raise DataError(f"{target} is there already and not empty; name another folder with --output")


@contextmanager
def atomic_replace_dir(target: Path) -> Iterator[Path]:
    """Give a folder beside `target` to write to; at the end it replaces what is there, and on any error it goes.

    What is there is lost at no moment.

    Raises:
        TrainingError: the disk is full or read-only.
    """
    aside, old = (target.with_name(f".{target.name}.{kind}") for kind in ("tmp", "old"))
    try:
        with report_write_errors(target):
            shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
            aside.mkdir(parents=True)
            yield aside
            for path in (*aside.iterdir(), aside):
                fsync_path(path)
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
def atomic_new_dir(target: Path) -> Iterator[Path]:
    """Give a folder beside `target` to write to; it takes the target's place at the end, and goes on any error.

    Raises:
        DataError: the target is taken, or cannot be made.
        TrainingError: the disk is full.
    """
    check_dir_is_free(target)
    aside = target.with_name(f".{target.name}.tmp")
    try:
        shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
        aside.mkdir(parents=True)
    except OSError as error:
        raise DataError(f"{target} cannot be written: {error.strerror}; name another folder with --output") from error
    try:
        with report_write_errors(target):
            yield aside
            aside.replace(target)  # an empty folder gives way
    finally:
        shutil.rmtree(aside, ignore_errors=True)
