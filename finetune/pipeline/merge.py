"""The command `merge`: save a run's model as plain weights that stock transformers loads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from finetune.models.merging import merge_classifier
from finetune.models.pretrained import quiet_libraries
from finetune.pipeline.finished_run import finished_folder, finished_recipe, load_saved_classifier
from finetune.runs.locks import locked_folder
from finetune.runs.new_dirs import atomic_new_dir, lock_new_dir

_SAMPLE_TEXTS = [("one short text",), ("another text, which is a little longer than the first",)]


def merge(path: str | Path, overrides: Sequence[str] = (), *, output: Path | None = None) -> tuple[Path, float]:
    """Save a finished run's model with its adapters merged, and return the new folder and the largest logit difference.

    Args:
        overrides: to the run's recipe, as `section.key=value`.
        output: the folder to write; None: `merged` in the run folder.

    Raises:
        FinetuneError: the folder contains no finished run, or the output folder is not empty.
    """
    quiet_libraries()
    folder = finished_folder(Path(path))
    recipe = finished_recipe(folder, overrides, read_data=False)
    target = (output or folder.merged).absolute()
    with (
        locked_folder(folder.path, read_only_ok=output is not None),
        lock_new_dir(target),
        atomic_new_dir(target) as temporary,
    ):
        return target, merge_classifier(load_saved_classifier(folder, recipe, overrides), temporary, _SAMPLE_TEXTS)
