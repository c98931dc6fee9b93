"""The command `prune`: remove heads and neurons from a finished run's model, fine-tune it to recover, compare, save."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from finetune.errors import DataError, ModelError
from finetune.evaluation.paired_differences import paired_differences
from finetune.evaluation.prediction import Predictions, predict
from finetune.heads.pruning import check_pruned, footprint, pruned_classifier, write_zeroed
from finetune.models.attention_sites import attention_sites
from finetune.models.classifier import Classifier
from finetune.models.comparison import check_reload
from finetune.models.feed_forward_sites import feed_forward_sites
from finetune.models.loading import load_classifier
from finetune.models.saving import save_classifier
from finetune.out_of_memory import report_out_of_memory
from finetune.pipeline.choose_sizes import Removal, choose_parts, why_heads_remain, why_neurons_remain
from finetune.pipeline.finished_run import FinishedRun, finished_folder, open_run
from finetune.pipeline.head_choice import HeadChoice, check_choice, check_epochs
from finetune.pipeline.recovery import check_recoverable, recovery_finetune
from finetune.progress import stage
from finetune.report.pruning_terminal import print_pruning
from finetune.runs.json_files import write_json
from finetune.runs.new_dirs import atomic_new_dir, check_dir_is_free, lock_new_dir
from finetune.runs.pruning_result import PruningResult, StateDifference
from finetune.runs.results import ModelCost
from finetune.runs.run_files import read_heads

Scored = dict[str, Predictions]  # predictions by split


@report_out_of_memory()
def prune(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    heal_epochs: int = 0,
    control: bool = True,
    output: Path | None = None,
    **choice: Unpack[HeadChoice],
) -> PruningResult:
    """Remove heads and neurons from a finished run's model, save it, and return scores, size and speed.

    What is removed is chosen by training rows and, for `keep_within`, by the validation score. Test rows are scored,
    but never used to choose.

    Args:
        overrides: to the run's recipe, as `section.key=value`.
        heal_epochs: epochs of recovery fine-tuning by the run's recipe, with the unpruned model as the teacher.
        control: with recovery fine-tuning, also train the unpruned model for the same steps, to compare.
        output: the folder to write; None: `pruned` in the run folder.
        choice: exactly one of `speedup`, `keep_within`, `share` and `heads`, and what belongs to it; see `HeadChoice`.

    Raises:
        FinetuneError: the folder contains no finished run, the output folder is not empty, or nothing can be
            removed.
    """
    check_choice(choice)
    check_epochs(heal_epochs, control=control)
    folder = finished_folder(Path(path))
    target = (output or folder.pruned).absolute()
    check_dir_is_free(target)
    if folder.heads.exists():
        read_heads(folder)  # so that a damaged file is reported before the model is loaded
    with open_run(Path(path), overrides, read_only_ok=output is not None) as run, lock_new_dir(target):
        _check_run(run, choice)
        with stage("pruning"):
            result = _prune(run, choice, heal_epochs, target, control=control)
        print_pruning(run.context.console, result, str(target))
        if note := _outputs_note(run.inputs.classifier):
            run.context.print_line(note)
    return result


def _check_run(run: FinishedRun, choice: HeadChoice) -> None:
    """Raise a FinetuneError if this run cannot be pruned, or not by this choice."""
    if run.context.accelerator.num_processes > 1:
        raise ModelError("pruning runs in one process; start `finetune prune` without a launcher")
    config = run.inputs.classifier.base.config
    names_heads = choice.get("share") is not None or choice.get("heads") is not None or choice.get("heads_only")
    if (reason := why_heads_remain(config)) and (names_heads or why_neurons_remain(config)):
        raise ModelError(f"heads of a '{config.model_type}' model can be masked, but not pruned: {reason}")
    if choice.get("keep_within") is not None and "validation" not in run.inputs.splits:
        raise DataError("keep_within needs validation rows, and the run has none; use speedup or share")


def _prune(run: FinishedRun, choice: HeadChoice, heal_epochs: int, target: Path, *, control: bool) -> PruningResult:
    """Remove parts of the run's model and write the pruned model to `target`."""
    unpruned = pruned_classifier(run.inputs.classifier, {})  # with adapters merged, for a fair comparison
    with stage("choosing what to prune"):
        removal = choose_parts(run, unpruned, choice)
    pruned, texts = removal.pruned, run.inputs.sample_texts()
    if heal_epochs:
        check_recoverable(run, pruned)
    difference = check_pruned(removal.classifier, pruned, removal.heads, texts, removal.neurons)
    states: dict[str, Scored] = {"before": _predictions(run, unpruned)}
    if removal.is_refitted:
        states["cut"] = _predictions(run, pruned_classifier(unpruned, removal.heads, removal.neurons))
    states["after"] = _predictions(run, pruned)
    if heal_epochs:
        pruned = recovery_finetune(run, pruned, heal_epochs, teacher=unpruned)
        states["healed"] = _predictions(run, pruned)
        if control:
            trained = recovery_finetune(run, pruned_classifier(unpruned, {}), heal_epochs)
            states["control"] = _predictions(run, trained)
    with (
        stage("saving the pruned model"),
        tempfile.TemporaryDirectory() as unpruned_folder,
        atomic_new_dir(target) as temporary,
    ):
        _write_models(run, pruned, temporary)
        save_classifier(unpruned, Path(unpruned_folder))
        costs = (
            footprint(unpruned, Path(unpruned_folder), removal.speeds[0]),
            footprint(pruned, temporary / "model", removal.speeds[1]),
        )
        result = _result(run, removal, states, costs, difference, heal_epochs)
        write_json(temporary / "pruning.json", result)
    return result


def _result(
    run: FinishedRun,
    removal: Removal,
    states: dict[str, Scored],
    costs: tuple[ModelCost, ModelCost],
    difference: float,
    heal_epochs: int,
) -> PruningResult:
    """Return the result to save.

    Args:
        states: predictions of each state of the model.
        costs: of the unpruned and the pruned model.
        difference: of the logits, see `check_pruned`.
    """
    names = run.context.recipe.evaluation.metrics
    scores = {
        state: {split: predictions.metrics(names) for split, predictions in scored.items()}
        for state, scored in states.items()
    }
    heads = sum(site.num_heads for site in attention_sites(run.inputs.classifier.base))
    metric = run.context.recipe.toolkit_metrics()[0]
    pairs = [("before", state) for state in states if state != "before"]
    pairs += [("control", "healed")] if "control" in states else []
    return PruningResult(
        chosen_by=removal.chosen_by,
        heads={str(layer): list(parts) for layer, parts in sorted(removal.heads.items()) if parts},
        share=sum(map(len, removal.heads.values())) / heads,
        difference=difference,
        scores_before=scores["before"],
        scores_after=scores["after"],
        heal_epochs=heal_epochs,
        scores_healed=scores.get("healed"),
        before=costs[0],
        after=costs[1],
        requested_speedup=removal.requested_speedup,
        remaining_heads=[site.num_heads for site in attention_sites(removal.pruned.base)],
        remaining_neurons=_num_neurons(removal.pruned),
        scores_cut=scores.get("cut"),
        scores_control=scores.get("control"),
        metric=metric,
        differences=[_difference(states, pair, split, metric) for pair in pairs for split in states["before"]],
    )


def _outputs_note(classifier: Classifier) -> str:
    """Return what happens to all that was fitted to the validation rows with the unpruned classifier, or ""."""
    fitted = ["temperature"] * (classifier.temperature != 1) + ["thresholds"] * (classifier.thresholds is not None)
    sentences = []
    if fitted:
        verb = "was" if fitted == ["temperature"] else "were"
        sentences.append(f"The {' and '.join(fitted)} of the pruned model {verb} fitted with the unpruned one.")
    if classifier.conformal is not None:
        sentences.append("The pruned model has no prediction sets (--coverage): they were fitted for the unpruned one.")
    return " ".join(sentences)


def _difference(states: dict[str, Scored], pair: tuple[str, str], split: str, metric: str) -> StateDifference:
    """Return the second state's metric minus the first's on the rows of a split, with its paired interval."""
    first, second = (states[state][split] for state in pair)
    values = paired_differences(
        (first.predicted_labels(), second.predicted_labels()),
        first.labels,
        [metric],
        num_classes=first.logits.shape[1],
    )
    return StateDifference(pair[0], pair[1], split, values[metric])


def _num_neurons(classifier: Classifier) -> list[int]:
    """Return the number of feed-forward neurons of each layer, or [] if they cannot be counted."""
    try:
        return [site.num_neurons for site in feed_forward_sites(classifier.base)]
    except ModelError:
        return []


def _write_models(run: FinishedRun, pruned: Classifier, folder: Path) -> None:
    """Write the pruned classifier, and the same with zeroed heads for stock transformers; load and check both."""
    texts = run.inputs.sample_texts()
    save_classifier(pruned, folder / "model")
    check_reload(pruned, load_classifier(folder / "model"), texts, run.context.accelerator.device)
    write_zeroed(pruned, folder / "zeroed", texts)


def _predictions(run: FinishedRun, classifier: Classifier) -> Scored:
    """Return the predictions on every held-out split."""
    batch_size = run.context.recipe.evaluation.per_device_eval_batch_size
    return {
        name: predict(classifier, split, batch_size=batch_size, accelerator=run.context.accelerator)
        for name, split in run.inputs.held_out_splits().items()
    }
