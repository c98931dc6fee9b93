"""The command `merge`: a run's model as plain weights that stock transformers reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from finetune.models.merging import merge_classifier
from finetune.models.pretrained import quiet_libraries
from finetune.pipeline.finished_run import finished_folder, finished_recipe, load_received
from finetune.runs.locks import locked_folder
from finetune.runs.ownership import atomic_new_dir, lock_new_dir


def merge(path: Path, output: Path | None = None, overrides: Sequence[str] = ()) -> tuple[Path, float]:
    """Write a finished run's model as plain weights; return the folder and the largest difference of a logit.

    Args:
        overrides: to the run's recipe, as `section.key=value`.

    Raises:
        FinetuneError: the folder holds no finished run, or the output folder is not empty.
    """
    quiet_libraries()
    folder = finished_folder(path)
    recipe = finished_recipe(folder, overrides, read_data=False)
    target = (output or folder.merged).absolute()
    texts = [("one short text",), ("another text, which is a little longer than the first",)]
    with (
        locked_folder(folder.path, read_only_ok=output is not None),
        lock_new_dir(target),
        atomic_new_dir(target) as aside,
    ):
        return target, merge_classifier(load_received(folder, recipe, overrides), aside, texts)
