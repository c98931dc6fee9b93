"""Prune a finished run's heads: choose on validation rows, cut out, heal, compare, save.

N rows, L layers, H heads
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune.errors import DataError, ModelError, did_you_mean
from finetune.evaluation.prediction import predict
from finetune.heads.estimate import Head
from finetune.heads.gated_forward import GatedRows, sample_rows
from finetune.heads.methods import measure_importance
from finetune.heads.pruning import (
    check_pruned,
    footprint,
    heads_to_prune,
    measure_speed,
    pruned_classifier,
    write_zeroed,
)
from finetune.heads.pruning_curve import gates_without, scorer
from finetune.models.architectures import family_of
from finetune.models.attention_sites import attention_sites
from finetune.models.classifier import Classifier
from finetune.models.comparison import check_reload
from finetune.models.loading import load_classifier
from finetune.models.saving import save_classifier
from finetune.out_of_memory import report_out_of_memory
from finetune.pipeline.finished_run import FinishedRun, finished_folder, open_run
from finetune.pipeline.recovery import heal
from finetune.recipe import HeadImportanceSection
from finetune.recipe.names import HEAD_METHOD_NAMES
from finetune.report.terminal import print_pruning
from finetune.runs.head_results import HeadScores, PruningResult
from finetune.runs.json_files import write_json
from finetune.runs.ownership import atomic_new_dir, check_dir_is_free, lock_new_dir
from finetune.runs.run_files import read_heads

STEP = 0.05  # shares that are tried for `keep_within`
PATIENCE = 3  # shares in a row that may score too low: a curve may dip and recover, but not for long
_TEXTS = 8  # rows on which classifiers are compared
_SPEED_ROWS = 256


@dataclass(frozen=True)
class Choice:
    """Which heads go: a share of them, as many as keep the metric within a distance, or these."""

    share: float | None = None
    keep_within: float | None = None
    heads: Sequence[Head] | None = None


@report_out_of_memory()
def prune(
    path: Path,
    choice: Choice,
    *,
    method: str | None,
    heal_epochs: int,
    output: Path | None,
    overrides: Sequence[str] = (),
) -> PruningResult:
    """Cut heads out of a finished run's model, and write what is left, with what it costs, beside the run.

    Heads are chosen by a ranking from training or validation rows and, for `keep_within`, by the score of the
    validation rows. Test rows are scored, and choose nothing.

    Args:
        method: the ranking; None: the one that leads the run's analysis.
        heal_epochs: epochs of training after the cut, by the run's own recipe.
        output: the folder to write, whole or not at all; None: `pruned` in the run folder.
        overrides: to the run's recipe, as `section.key=value`.

    Raises:
        FinetuneError: the folder holds no finished run, the output is taken, or the heads cannot be cut out.
    """
    folder = finished_folder(path)
    target = (output or folder.pruned).absolute()
    check_dir_is_free(target)
    _check_choice(choice, method)
    if folder.heads.exists():
        read_heads(folder)
    with open_run(path, overrides, read_only_ok=output is not None) as run, lock_new_dir(target):
        _check_run(run, choice)
        result = _prune(run, choice, method, heal_epochs, target)
        print_pruning(run.console, result, str(target))
    return result


def _prune(run: FinishedRun, choice: Choice, method: str | None, heal_epochs: int, target: Path) -> PruningResult:
    """Cut heads out of the run's model and write what is left to `target`."""
    classifier = run.material.classifier
    removed, chosen_by = choose(run, choice, method)
    if not any(removed.values()):
        raise DataError(f"nothing to prune: {chosen_by}; allow more with a larger --share or --keep-within")
    pruned = pruned_classifier(classifier, removed)
    whole = pruned_classifier(classifier, {})  # adapters merged: the fair thing to compare with
    difference = check_pruned(classifier, pruned, removed, sample_texts(run))
    before, after = score_splits(run, whole), score_splits(run, pruned)
    healed = None
    if heal_epochs:
        pruned = heal(run, pruned, heal_epochs)
        healed = score_splits(run, pruned)
    speeds = measure_speed(whole, pruned, _speed_texts(run), device=run.accelerator.device)
    heads = sum(site.num_heads for site in attention_sites(classifier.base))
    with tempfile.TemporaryDirectory() as spare, atomic_new_dir(target) as aside:
        write_models(run, pruned, aside)
        save_classifier(whole, Path(spare))
        result = PruningResult(
            chosen_by=chosen_by,
            heads={str(layer): list(gone) for layer, gone in sorted(removed.items()) if gone},
            share=sum(map(len, removed.values())) / heads,
            difference=difference,
            scores_before=before,
            scores_after=after,
            heal_epochs=heal_epochs,
            scores_healed=healed,
            before=footprint(whole, Path(spare), speeds[0]),
            after=footprint(pruned, aside / "model", speeds[1]),
        )
        write_json(aside / "pruning.json", result)
    return result


def write_models(run: FinishedRun, pruned: Classifier, folder: Path) -> None:
    """Write the pruned classifier, and the same in whole sizes for stock transformers; read both back."""
    texts = sample_texts(run)
    save_classifier(pruned, folder / "model")
    check_reload(pruned, load_classifier(folder / "model"), texts, run.accelerator.device)
    write_zeroed(pruned, folder / "zeroed", texts)


def _check_choice(choice: Choice, method: str | None) -> None:
    """Raise DataError for what is wrong whatever the run is."""
    if method is not None and method not in HEAD_METHOD_NAMES:
        names, hint = ", ".join(HEAD_METHOD_NAMES), did_you_mean(method, HEAD_METHOD_NAMES)
        raise DataError(f"--method is '{method}'; it must be one of {names}{hint}")
    twice = [head for place, head in enumerate(choice.heads or ()) if head in (choice.heads or ())[:place]]
    if twice:
        raise DataError(f"--heads names {twice[0][0]}.{twice[0][1]} twice; name each head once")
    if choice.heads is not None and method is not None:
        raise DataError("--method ranks heads to choose from, but --heads names them; give one of the two")


def _check_run(run: FinishedRun, choice: Choice) -> None:
    """Raise a FinetuneError where this run cannot be pruned, or not so, before anything is measured."""
    if run.accelerator.num_processes > 1:
        raise ModelError("pruning works in one process; start it with `finetune prune`, without a launcher")
    config = run.material.classifier.base.config
    if reason := family_of(config).why_not_prunable(config):
        raise ModelError(f"heads of a '{config.model_type}' model can be masked, but not pruned: {reason}")
    if choice.keep_within is not None and "validation" not in run.material.splits:
        raise DataError("--keep-within needs validation rows, and the run has none; use --share")


def choose(run: FinishedRun, choice: Choice, method: str | None) -> tuple[dict[int, list[int]], str]:
    """Return the heads to cut out, by layer, and how they were chosen."""
    if choice.heads is not None:
        named: dict[int, list[int]] = {}
        for layer, head in choice.heads:
            named.setdefault(layer, []).append(head)
        return named, f"named were {', '.join(f'{layer}.{head}' for layer, head in choice.heads)}"
    ranking = _ranking(run, method)
    origin = f"{ranking.method} on {ranking.rows} {ranking.split} rows"
    if choice.share is not None:
        sites = attention_sites(run.material.classifier.base)
        return heads_to_prune(ranking.order, sites, choice.share), f"a share of {choice.share:g} by {origin}"
    assert choice.keep_within is not None
    metric = run.recipe.metric_names()[0]
    removed, whole = most_within(sample_of(run, "validation"), ranking.order, metric, choice.keep_within)
    told = f"as many as keep validation {metric} within {choice.keep_within:g} of {abs(whole):.4f}"
    return removed, f"{told}, by {origin}"


def most_within(
    sample: GatedRows, order: Sequence[Head], metric: str, distance: float
) -> tuple[dict[int, list[int]], float]:
    """Return the heads of the largest share whose removal lowers the metric by `distance` at most, and the whole score.

    Shares rise in steps of STEP until PATIENCE in a row score too low. The score of an error is negated.
    """
    score = scorer(sample, metric)
    best: dict[int, list[int]] = {}
    whole, last, missed = score(sample.gates()), best, 0
    for step in range(1, round(1 / STEP)):
        tried = heads_to_prune(order, sample.sites, step * STEP)
        if tried == last:  # few heads: the next step removes no more
            continue
        last = tried
        found = score(gates_without(sample, [(layer, head) for layer, gone in tried.items() for head in gone]))
        if found >= whole - distance - 1e-9:  # 0.8 - 0.1 is a little more than 0.7
            best, missed = tried, 0
        else:
            missed += 1
        if missed == PATIENCE:
            break
    return best, whole


def _ranking(run: FinishedRun, method: str | None) -> HeadScores:
    """Return the ranking that the run's analysis holds, or measure it; never one from test rows."""
    if run.folder.heads.is_file():
        held = read_heads(run.folder).methods
        fitting = [scores for scores in held if scores.method == (method or held[0].method) and scores.split != "test"]
        if fitting:
            return fitting[0]
        method = method or held[0].method
    asked = run.recipe.head_importance or HeadImportanceSection()
    split = asked.split if asked.split != "test" else "train"
    sample = sample_of(run, split, asked.max_samples)
    return measure_importance(
        sample,
        method or asked.methods()[0],
        steps=asked.integration_steps,
        seed=run.recipe.seed,
        max_seconds=asked.max_seconds,
    )


def sample_of(run: FinishedRun, split: str, most: int | None = None) -> GatedRows:
    """Return a sample of the run's rows: all, or `most` of them."""
    material, size = run.material, run.recipe.evaluation.per_device_eval_batch_size
    rows = np.array(sample_rows(len(material.splits[split]), most, run.recipe.seed))
    return GatedRows(material.classifier, material.splits[split], split, rows, size, run.accelerator)


def score_splits(run: FinishedRun, classifier: Classifier) -> dict[str, dict[str, float | None]]:
    """Return loss and the recipe's metrics on every split that a run scores."""
    size = run.recipe.evaluation.per_device_eval_batch_size
    found: dict[str, dict[str, float | None]] = {}
    for name, split in run.material.scored().items():
        values = predict(classifier, split, batch_size=size, accelerator=run.accelerator).metrics()
        found[name] = {metric: values[metric] for metric in ("loss", *run.recipe.metric_names())}
    return found


def sample_texts(run: FinishedRun, most: int = _TEXTS) -> list[tuple[str, ...]]:
    """Return the texts of the first training rows."""
    rows = run.material.splits["train"].texts[:most]
    return list(zip(*rows.values(), strict=True))


def _speed_texts(run: FinishedRun) -> list[tuple[str, ...]]:
    """Return the texts of _SPEED_ROWS rows, over and over the same where there are fewer."""
    texts = sample_texts(run, _SPEED_ROWS)
    return [texts[place % len(texts)] for place in range(_SPEED_ROWS)]
