"""The command `prune`: remove heads from a finished run's model, fine-tune it to recover, compare, save."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from finetune.errors import DataError, ModelError
from finetune.evaluation.prediction import predict
from finetune.heads.pruning import check_pruned, footprint, measure_speed, pruned_classifier, write_zeroed
from finetune.models.architectures import family_of
from finetune.models.attention_sites import attention_sites
from finetune.models.classifier import Classifier
from finetune.models.comparison import check_reload
from finetune.models.loading import load_classifier
from finetune.models.saving import save_classifier
from finetune.out_of_memory import report_out_of_memory
from finetune.pipeline.choose_heads import choose_heads
from finetune.pipeline.finished_run import FinishedRun, finished_folder, open_run
from finetune.pipeline.head_choice import HeadChoice, check_choice, check_epochs
from finetune.pipeline.recovery import recovery_finetune
from finetune.progress import stage
from finetune.report.terminal import print_pruning
from finetune.runs.head_results import PruningResult
from finetune.runs.json_files import write_json
from finetune.runs.new_dirs import atomic_new_dir, check_dir_is_free, lock_new_dir
from finetune.runs.run_files import read_heads

_SPEED_ROWS = 256


@report_out_of_memory()
def prune(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    heal_epochs: int = 0,
    output: Path | None = None,
    **choice: Unpack[HeadChoice],
) -> PruningResult:
    """Remove heads from a finished run's model, save it, and return scores, size and speed before and after.

    Heads are chosen by a ranking from training or validation rows and, for `keep_within`, by the validation score.
    Test rows are scored, but never used to choose heads.

    Args:
        overrides: to the run's recipe, as `section.key=value`.
        heal_epochs: epochs of recovery fine-tuning by the run's recipe.
        output: the folder to write; None: `pruned` in the run folder.
        choice: exactly one of `share`, `keep_within` and `heads`, and a `method`; see `HeadChoice`.

    Raises:
        FinetuneError: the folder contains no finished run, the output folder is not empty, or the heads cannot be
            removed.
    """
    check_choice(choice)
    check_epochs(heal_epochs)
    folder = finished_folder(Path(path))
    target = (output or folder.pruned).absolute()
    check_dir_is_free(target)
    if folder.heads.exists():
        read_heads(folder)  # so that a damaged file is reported before the model is loaded
    with open_run(Path(path), overrides, read_only_ok=output is not None) as run, lock_new_dir(target):
        _check_run(run, choice)
        with stage("pruning"):
            result = _prune(run, choice, heal_epochs, target)
        print_pruning(run.context.console, result, str(target))
    return result


def _check_run(run: FinishedRun, choice: HeadChoice) -> None:
    """Raise a FinetuneError if this run cannot be pruned, or not by this choice."""
    if run.context.accelerator.num_processes > 1:
        raise ModelError("pruning runs in one process; start `finetune prune` without a launcher")
    config = run.inputs.classifier.base.config
    if reason := family_of(config).why_not_prunable(config):
        raise ModelError(f"heads of a '{config.model_type}' model can be masked, but not pruned: {reason}")
    if choice.get("keep_within") is not None and "validation" not in run.inputs.splits:
        raise DataError("keep_within needs validation rows, and the run has none; use share")


def _prune(run: FinishedRun, choice: HeadChoice, heal_epochs: int, target: Path) -> PruningResult:
    """Remove heads from the run's model and write the pruned model to `target`."""
    classifier = run.inputs.classifier
    with stage("choosing the heads to prune"):
        removed, chosen_by = choose_heads(run, choice)
    if not any(removed.values()):
        raise DataError(f"nothing to prune: {chosen_by}; increase share or keep_within")
    pruned = pruned_classifier(classifier, removed)
    unpruned = pruned_classifier(classifier, {})  # with adapters merged, for a fair comparison
    difference = check_pruned(classifier, pruned, removed, run.inputs.sample_texts())
    scores_before, scores_after = _score_splits(run, unpruned), _score_splits(run, pruned)
    scores_healed = None
    if heal_epochs:
        pruned = recovery_finetune(run, pruned, heal_epochs)
        scores_healed = _score_splits(run, pruned)
    with stage("measuring speed"):
        speeds = measure_speed(unpruned, pruned, _speed_texts(run), device=run.context.accelerator.device)
    with (
        stage("saving the pruned model"),
        tempfile.TemporaryDirectory() as unpruned_folder,
        atomic_new_dir(target) as temporary,
    ):
        _write_models(run, pruned, temporary)
        save_classifier(unpruned, Path(unpruned_folder))
        result = PruningResult(
            chosen_by=chosen_by,
            heads={str(layer): list(heads) for layer, heads in sorted(removed.items()) if heads},
            share=sum(map(len, removed.values())) / sum(site.num_heads for site in attention_sites(classifier.base)),
            difference=difference,
            scores_before=scores_before,
            scores_after=scores_after,
            heal_epochs=heal_epochs,
            scores_healed=scores_healed,
            before=footprint(unpruned, Path(unpruned_folder), speeds[0]),
            after=footprint(pruned, temporary / "model", speeds[1]),
        )
        write_json(temporary / "pruning.json", result)
    return result


def _write_models(run: FinishedRun, pruned: Classifier, folder: Path) -> None:
    """Write the pruned classifier, and the same with zeroed heads for stock transformers; load and check both."""
    texts = run.inputs.sample_texts()
    save_classifier(pruned, folder / "model")
    check_reload(pruned, load_classifier(folder / "model"), texts, run.context.accelerator.device)
    write_zeroed(pruned, folder / "zeroed", texts)


def _score_splits(run: FinishedRun, classifier: Classifier) -> dict[str, dict[str, float | None]]:
    """Return loss and the recipe's metrics on every held-out split."""
    recipe = run.context.recipe
    batch_size = recipe.evaluation.per_device_eval_batch_size
    scores: dict[str, dict[str, float | None]] = {}
    for name, split in run.inputs.held_out_splits().items():
        predictions = predict(classifier, split, batch_size=batch_size, accelerator=run.context.accelerator)
        scores[name] = predictions.metrics(recipe.evaluation.metrics)
    return scores


def _speed_texts(run: FinishedRun) -> list[tuple[str, ...]]:
    """Return the texts of _SPEED_ROWS training rows, repeated if there are fewer."""
    texts = run.inputs.sample_texts(_SPEED_ROWS)
    return [texts[index % len(texts)] for index in range(_SPEED_ROWS)]
