"""How a run, or a series of runs, starts in its output folder without losing anything that the folder contains.

An earlier run in the folder is moved to `.previous` and deleted when the new run has a model. If the new run fails
before that, the earlier run is moved back. The same holds for an earlier series and a new one.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from finetune.errors import DataError, TrainingError
from finetune.recipe.data_files import expand_files
from finetune.recipe.loader import dump_recipe
from finetune.recipe.python_rows import is_written_by_python
from finetune.recipe.schema import Recipe
from finetune.runs.atomic_files import atomic_file, report_write_errors, write_text
from finetune.runs.json_files import read_json, write_json
from finetune.runs.locks import LOCK
from finetune.runs.results import SplitSummary
from finetune.runs.run_files import OWNERSHIP_MARKER, OwnershipMarker, not_a_run, not_a_series, read_history
from finetune.runs.run_folder import RunFolder, SeriesFolder
from finetune.runs.series import SeriesResult, is_series
from finetune.version import __version__

Folder = RunFolder | SeriesFolder
_PREVIOUS = ".previous"
# Files that a process leaves in an empty folder if it is killed before it has taken ownership.
_LEFTOVERS = {LOCK, OWNERSHIP_MARKER, f".{OWNERSHIP_MARKER}.tmp"}
_SEED_LOCK = re.compile(r"\.seed-\d+\.lock")


def output_folder(recipe: Recipe) -> Folder:
    """Return the folder that a recipe's run or series writes to.

    The folder of a series has the seeds of the recipe, and those of an earlier series in it.
    """
    path = Path(recipe.output_dir)
    return RunFolder(path) if recipe.seeds is None else series_folder(path, recipe.seeds)


def series_folder(path: Path, seeds: Iterable[int]) -> SeriesFolder:
    """Return the folder of a series, with these seeds and those of an earlier series in it."""
    earlier = (SeriesFolder(part).results for part in (path, path / _PREVIOUS))
    return SeriesFolder(path, dict.fromkeys([*seeds, *(seed for file in earlier for seed in _stored_seeds(file))]))


def _stored_seeds(file: Path) -> list[int]:
    try:
        return [member.seed for member in read_json(file, SeriesResult).members]
    except DataError:  # missing, or not a file of a series
        return []


def check_output_dir(folder: Folder, recipe: Recipe) -> None:
    """Check that a run or series may write to its output folder, and that nothing in it would be lost.

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
    if all(name in _LEFTOVERS or _SEED_LOCK.fullmatch(name) for name in names):
        return
    is_run = isinstance(folder, RunFolder)
    kind, other = ("run", "series of runs") if is_run else ("series", "single run")
    if is_series(path) if is_run else RunFolder(path).environment.is_file() and not not_a_run(RunFolder(path)):
        raise TrainingError(
            f"output_dir {path} contains a {other}, which a {kind} does not replace or resume; name another folder, or "
            "empty this one yourself"
        )
    if is_run:
        is_taken, is_other = "contains an earlier run", "is not empty and is not a finetune run"
    else:
        is_taken, is_other = "contains an earlier series", "is not empty and is not a finetune series"
    if reason := not_a_run(folder) if isinstance(folder, RunFolder) else not_a_series(folder):
        raise TrainingError(f"output_dir {path} {is_other} ({reason}); name another folder, or empty this one yourself")
    if not recipe.overwrite_output_dir and not resumed:
        raise TrainingError(
            f"output_dir {path} {is_taken}; name another folder, resume the {kind} "
            "(checkpoint.resume_from_checkpoint=auto), or replace it (overwrite_output_dir=true)"
        )
    if resumed and isinstance(folder, RunFolder) and folder.history.is_file():
        read_history(folder)  # raises DataError if it is damaged


def input_files(recipe: Recipe) -> dict[str, Path]:
    """Return every local file and folder that the run reads, by recipe key; of several files, with their position."""
    files: dict[str, Path] = {}
    for split, entries in recipe.data.local_files().items():
        listed = expand_files(entries)
        positions = [""] if len(listed) == 1 else [f"[{index}]" for index in range(len(listed))]
        files |= {f"data.{split}_file{position}": file for position, file in zip(positions, listed, strict=True)}
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
    _take(folder, recipe, {folder.environment: dict(environment), folder.data: dict(summary)})


def take_series_ownership(folder: SeriesFolder, recipe: Recipe, result: SeriesResult) -> None:
    """Do the same for the folder of a series: move an earlier one to `.previous` unless it is resumed."""
    _take(folder, recipe, {folder.results: result})


def _take(folder: Folder, recipe: Recipe, files: Mapping[Path, object]) -> None:
    marker = folder.path / OWNERSHIP_MARKER
    with report_write_errors(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
        resumed = recipe.checkpoint.resume_from_checkpoint is not None
        unfinished = marker.is_file()
        if not resumed and not unfinished and folder.has_model():
            delete_previous_run(folder)
        write_json(marker, OwnershipMarker(__version__, datetime.now(UTC).isoformat(timespec="seconds")))
        if not resumed:
            _move_to_previous(folder, unfinished=unfinished)
        # The written recipe repeats the run from its start; it does not resume it.
        recipe = _with_stored_rows(folder, recipe)
        from_start = recipe.checkpoint.model_copy(update={"resume_from_checkpoint": None})
        write_text(folder.recipe, dump_recipe(recipe.model_copy(update={"checkpoint": from_start})))
        for file, content in files.items():
            write_json(file, content)
        marker.unlink()


def _with_stored_rows(folder: Folder, recipe: Recipe) -> Recipe:
    """Copy the rows that come from Python into the folder, and return the recipe that names the copies."""
    stored = {}
    for split, files in recipe.data.local_files().items():
        if is_written_by_python(files[0]):
            folder.rows.mkdir(exist_ok=True)
            copy = folder.rows / Path(files[0]).name
            with atomic_file(copy) as temporary:
                shutil.copyfile(files[0], temporary)
            stored[f"{split}_file"] = str(copy.absolute())
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=stored)}) if stored else recipe


def delete_previous_run(folder: Folder) -> None:
    """Delete the run that was replaced, because the new one has a model."""
    with report_write_errors(folder.path):
        if (folder.path / _PREVIOUS).is_dir():
            shutil.rmtree(folder.path / _PREVIOUS)


def discard_new_run(folder: RunFolder) -> None:
    """Delete the outputs of a run that could not start; `restore_previous_on_failure` moves an earlier run back."""
    _delete_outputs(folder, unfinished=False)


@contextmanager
def restore_previous_on_failure(folder: Folder, *, is_main_process: bool) -> Iterator[None]:
    """Move the earlier run back on any error in the block, unless the new run has a checkpoint or a model.

    Only the main process moves files.
    """
    try:
        yield
    except BaseException:
        previous, marker = folder.path / _PREVIOUS, folder.path / OWNERSHIP_MARKER
        unfinished = marker.is_file()  # if so, a model in the folder still belongs to the earlier run
        started = (folder.has_model() and not unfinished) or folder.has_checkpoint()
        if is_main_process and previous.is_dir() and not started:
            _delete_outputs(folder, unfinished=unfinished)
            for path in list(previous.iterdir()):
                path.rename(folder.path / path.name)
            previous.rmdir()
            marker.unlink(missing_ok=True)
        raise


def _check_inputs_outside_output(folder: Folder, recipe: Recipe, *, resumed: bool) -> None:
    """Raise TrainingError if the run would overwrite a file that it reads."""
    outputs = [path.resolve() for path in folder.outputs() if path != folder.rows]  # a resumed run reads its own rows
    for key, path in input_files(recipe).items():
        inside = path.resolve().is_relative_to(folder.path.resolve())
        if inside and (not resumed or any(path.resolve().is_relative_to(output) for output in outputs)):
            raise TrainingError(
                f"{key} is inside output_dir {folder.path}, which the run writes to; name another output_dir"
            )


def _move_to_previous(folder: Folder, *, unfinished: bool) -> None:
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


def _delete_outputs(folder: Folder, *, unfinished: bool) -> None:
    """Delete the outputs of the run that replaces the one in `.previous`, and nothing else in the folder.

    Args:
        unfinished: whether the move to `.previous` was interrupted. An output that has no counterpart in `.previous`
            then still belongs to the earlier run, and is kept.
    """
    for output in folder.outputs():
        if not unfinished or os.path.lexists(folder.path / _PREVIOUS / output.name):
            is_folder = output.is_dir() and not output.is_symlink()
            shutil.rmtree(output) if is_folder else output.unlink(missing_ok=True)
