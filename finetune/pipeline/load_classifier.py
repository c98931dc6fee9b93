"""Load the trained classifier of a run: in Python, and for every command that opens a finished run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from finetune.errors import DataError
from finetune.imports import collector_paused
from finetune.models import loading
from finetune.models.checkpoint_checks import check_token_ids
from finetune.models.classifier import Classifier
from finetune.models.pretrained import quiet_libraries
from finetune.runs.run_files import not_a_run, read_recipe, sweep_message
from finetune.runs.run_folder import RunFolder
from finetune.runs.sweep_results import is_sweep


@collector_paused()
def load_classifier(
    path: str | Path, *, trust_remote_code: bool = False, use_safetensors: bool = True, base: str | None = None
) -> Classifier:
    """Return the classifier of a run, on the CPU and in evaluation mode.

    Args:
        path: a run folder or the `model` folder in it; both may have been moved.
        trust_remote_code: whether code that comes with the base model may run.
        use_safetensors: False allows a base model with pickled weights, which can run code when they are read.
        base: hub id or folder of the base model, for a run with adapters; None: the one it was trained from.

    Raises:
        DataError: the folder is missing or holds no model.
        ModelError: the model's files are damaged, its base model is missing or has changed, or its tokenizer has token
            ids without an embedding.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; name a run folder, such as runs/toy")
    if (folder / "model").is_dir():
        folder = folder / "model"
    elif not (folder / "classifier.json").is_file():
        if is_sweep(folder):
            raise DataError(sweep_message(folder))
        raise DataError(f"{folder} holds no trained model; name a run folder whose training has finished")
    quiet_libraries()
    classifier = loading.load_classifier(
        folder, trust_remote_code=trust_remote_code, use_safetensors=use_safetensors, base=base
    )
    check_token_ids(classifier.base, classifier.tokenizer, str(folder))
    return classifier


def load_with_text_columns(model: Path, trust_remote_code: bool, base: str | None) -> Classifier:
    """Return the classifier; one of an earlier version has its text columns from the recipe of the run it is in.

    Args:
        model: a run folder, or a model folder in it.
        trust_remote_code, base: see `load_classifier`, which also lists the errors.
    """
    classifier = load_classifier(model, trust_remote_code=trust_remote_code, base=base)
    if classifier.text_columns:
        return classifier
    for run in map(RunFolder, (model, model.absolute().parent)):
        if run.recipe.is_file() and not not_a_run(run):
            return replace(classifier, text_columns=tuple(read_recipe(run, read_data=False).data.text_columns()))
    return classifier
