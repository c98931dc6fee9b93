"""Whether a series, or a sweep, that is started again has the recipe and the rows with which it was started."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from finetune.errors import DataError, TrainingError
from finetune.recipe.data_files import expand_files
from finetune.recipe.data_section import DataSection
from finetune.recipe.schema import Recipe
from finetune.runs.run_files import read_recipe
from finetune.runs.run_folder import SeriesFolder
from finetune.runs.series import SeriesResult
from finetune.training.resume_check import differences, recipe_fingerprint

_SPLITS = ("train", "validation", "test")


def data_checksums(data: DataSection) -> dict[str, str]:
    """Return a checksum of each data file, and of the rows in the recipe, by recipe key such as `data.train_file`.

    Raises:
        DataError: a file cannot be read.
    """
    checksums = {}
    for split, entries in data.local_files().items():
        digests = [_file_digest(file, f"data.{split}_file") for file in expand_files(entries)]
        digest = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
        checksums[f"data.{split}_file"] = digest[:16]
    for split in _SPLITS:
        if rows := getattr(data, f"{split}_rows"):
            checksums[f"data.{split}_rows"] = hashlib.sha256(repr(rows).encode()).hexdigest()[:16]
    return checksums


def _file_digest(path: Path, key: str) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{key}: {path} cannot be read: {error.strerror or error}") from error


def check_resumed(folder: SeriesFolder, recipe: Recipe, stored: SeriesResult, checksums: Mapping[str, str]) -> None:
    """Check that a series can be resumed, so that its results are those of one recipe and of the same rows.

    Args:
        checksums: of the data as they are now.

    Raises:
        TrainingError: the series was started with another recipe or other data, or with a seed that is gone.
    """
    started = read_recipe(folder, read_data=False)
    lines = list(differences(_fingerprint(started), _fingerprint(recipe)))
    removed = [seed for seed in started.seeds or [] if seed not in (recipe.seeds or [])]
    lines += [f"seeds: {', '.join(map(str, removed))} removed (more seeds can be added)"] if removed else []
    if stored.with_status("finished") and stored.data_checksums:  # earlier versions did not store them
        lines += _changed_data(stored.data_checksums, checksums)
    if lines:
        listed = "".join(f"\n  {line}" for line in lines)
        raise TrainingError(
            f"the series in {folder.path} differs from this one:{listed}\nrestore these settings, or start a new "
            "series in another output_dir"
        )


def _fingerprint(recipe: Recipe) -> dict[str, object]:
    content = recipe_fingerprint(recipe, recipe.task.label_names or [])
    return {**content, "data.split_seed": recipe.rows_seed(), "evaluation.metrics": recipe.metric_names()}


def _changed_data(stored: Mapping[str, str], current: Mapping[str, str]) -> Iterator[str]:
    for key in sorted({*stored, *current}):
        if stored.get(key) != current.get(key):
            yield f"{key}: its rows are not those of the runs that have finished"
