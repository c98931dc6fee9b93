"""How a run starts in its output folder without losing anything that the folder already contains.

An earlier run in the folder is moved to `.previous` and deleted when the new run has a model. If the new run fails
before that, the earlier run is moved back.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from finetune.errors import TrainingError
from finetune.recipe.loader import dump_recipe
from finetune.recipe.schema import Recipe
from finetune.runs.atomic_files import report_write_errors, write_text
from finetune.runs.completion_marker import COMPLETE_MARKER
from finetune.runs.json_files import write_json
from finetune.runs.locks import LOCK
from finetune.runs.results import SplitSummary
from finetune.runs.run_files import OWNERSHIP_MARKER, OwnershipMarker, not_a_run, read_history
from finetune.runs.run_folder import RunFolder
from finetune.version import __version__

_PREVIOUS = ".previous"
# Files that a process leaves in an empty folder if it is killed before it has taken ownership.
_LEFTOVERS = {LOCK, OWNERSHIP_MARKER, f".{OWNERSHIP_MARKER}.tmp"}


def check_output_dir(folder: RunFolder, recipe: Recipe) -> None:
    """Check that a run may write to its output folder, and that nothing in it would be lost.

    Raises:
        TrainingError: the folder cannot be used, contains other files or an earlier run, or an input of this run.
        DataError: the history of the run to resume is damaged.
    """
    path, resumed = folder.path, recipe.checkpoint.resume_from_checkpoint is not None
    try:
        _check_inputs_outside_output(folder, recipe, resumed=resumed)
        if path.exists() and not path.is_dir():
            raise TrainingError(f"output_dir {path} is a file; name a folder")
        names = {file.name for file in path.iterdir()} if path.is_dir() else set()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symbolic links
        reason = getattr(error, "strerror", None) or str(error)
        raise TrainingError(f"output_dir {path} cannot be used: {reason}; name another folder") from error
    if names <= _LEFTOVERS:
        return
    if reason := not_a_run(folder):
        raise TrainingError(
            f"output_dir {path} is not empty and is not a finetune run ({reason}); name another folder, or empty this "
            "one yourself"
        )
    if not recipe.overwrite_output_dir and not resumed:
        raise TrainingError(
            f"output_dir {path} contains an earlier run; name another folder, resume the run "
            "(checkpoint.resume_from_checkpoint=auto), or replace it (overwrite_output_dir=true)"
        )
    if resumed and folder.history.is_file():
        read_history(folder)  # raises DataError if it is damaged


def input_files(recipe: Recipe) -> dict[str, Path]:
    """Return every local file and folder that the run reads, by recipe key."""
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
    """Create the run folder, move an earlier run to `.previous` unless it is resumed, and write the first files.

    Later the earlier run is deleted (`delete_previous_run`) or moved back (`restore_previous_on_failure`). A marker
    file exists during this function, so that the next start can complete it if the process is killed.
    """
    marker = folder.path / OWNERSHIP_MARKER
    with report_write_errors(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
        resumed = recipe.checkpoint.resume_from_checkpoint is not None
        unfinished = marker.is_file()
        if not resumed and not unfinished and folder.model.is_dir():
            delete_previous_run(folder)
        write_json(marker, OwnershipMarker(__version__, datetime.now(UTC).isoformat(timespec="seconds")))
        if not resumed:
            _move_to_previous(folder, unfinished=unfinished)
        # The written recipe repeats the run from its start; it does not resume it.
        from_start = recipe.checkpoint.model_copy(update={"resume_from_checkpoint": None})
        write_text(folder.recipe, dump_recipe(recipe.model_copy(update={"checkpoint": from_start})))
        write_json(folder.environment, dict(environment))
        write_json(folder.data, dict(summary))
        marker.unlink()


def delete_previous_run(folder: RunFolder) -> None:
    """Delete the run that was replaced, because the new one has a model."""
    with report_write_errors(folder.path):
        if (folder.path / _PREVIOUS).is_dir():
            shutil.rmtree(folder.path / _PREVIOUS)


@contextmanager
def restore_previous_on_failure(folder: RunFolder, *, is_main_process: bool) -> Iterator[None]:
    """Move the earlier run back on any error in the block, unless the new run has a checkpoint or a model.

    Only the main process moves files.
    """
    try:
        yield
    except BaseException:
        previous, marker = folder.path / _PREVIOUS, folder.path / OWNERSHIP_MARKER
        unfinished = marker.is_file()  # if so, a model in the folder still belongs to the earlier run
        started = (folder.model.is_dir() and not unfinished) or any(folder.checkpoints.glob(f"*/{COMPLETE_MARKER}"))
        if is_main_process and previous.is_dir() and not started:
            _delete_outputs(folder, unfinished=unfinished)
            for path in list(previous.iterdir()):
                path.rename(folder.path / path.name)
            previous.rmdir()
            marker.unlink(missing_ok=True)
        raise


def _check_inputs_outside_output(folder: RunFolder, recipe: Recipe, *, resumed: bool) -> None:
    """Raise TrainingError if the run would overwrite a file that it reads."""
    outputs = [path.resolve() for path in folder.outputs()]
    for key, path in input_files(recipe).items():
        inside = path.resolve().is_relative_to(folder.path.resolve())
        if inside and (not resumed or any(path.resolve().is_relative_to(output) for output in outputs)):
            raise TrainingError(
                f"{key} is inside output_dir {folder.path}, which the run writes to; name another output_dir"
            )


def _move_to_previous(folder: RunFolder, *, unfinished: bool) -> None:
    """Move the outputs of an earlier run to `.previous`.

    If `.previous` already exists, an unfinished run was replacing the one in it. The outputs of that unfinished run are
    deleted.

    Args:
        unfinished: a process was killed during this function.
    """
    previous = folder.path / _PREVIOUS
    if previous.is_dir():
        _delete_outputs(folder, unfinished=unfinished)
    for output in folder.outputs():
        if output.exists() or output.is_symlink():
            previous.mkdir(exist_ok=True)
            output.rename(previous / output.name)


def _delete_outputs(folder: RunFolder, *, unfinished: bool) -> None:
    """Delete the outputs of the run that replaces the one in `.previous`, and nothing else in the folder.

    Args:
        unfinished: whether the move to `.previous` was interrupted. An output that has no counterpart in `.previous`
            then still belongs to the earlier run, and is kept.
    """
    for output in folder.outputs():
        if not unfinished or os.path.lexists(folder.path / _PREVIOUS / output.name):
            is_folder = output.is_dir() and not output.is_symlink()
            shutil.rmtree(output) if is_folder else output.unlink(missing_ok=True)
