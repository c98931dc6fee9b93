"""Prune a finished run's heads: choose on validation rows, cut out, heal, compare, save.

N rows, L layers, H heads
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import peft

from finetune.errors import DataError, ModelError
from finetune.families import attention_sites
from finetune.finished import FinishedRun, open_run
from finetune.freezing import freeze
from finetune.head_results import HeadAnalysis, HeadScores, Pruning
from finetune.heads.curves import gates_without, scorer
from finetune.heads.estimate import Head
from finetune.heads.importance import measure_importance
from finetune.heads.pruning import (
    check_pruned,
    footprint,
    heads_to_prune,
    measure_speed,
    pruned_classifier,
    write_zeroed,
)
from finetune.heads.sample import Sample, sample_rows
from finetune.lora import add_lora, merge_adapters
from finetune.modeling import Classifier
from finetune.plan import make_plan
from finetune.preparation import lora_of
from finetune.progress import TrainingProgress
from finetune.recipe import HeadImportanceSection
from finetune.results import RunFolder, read_json, write_json
from finetune.saving import check_reload, load_classifier, save_classifier
from finetune.scoring import predict
from finetune.session import finish
from finetune.terminal import say, show_pruning
from finetune.training import Loop, fit

STEP = 0.05  # shares that are tried for `keep_within`
_TEXTS = 8  # rows on which classifiers are compared
_SPEED_ROWS = 256


@dataclass(frozen=True)
class Choice:
    """Which heads go: a share of them, as many as keep the metric within a distance, or these."""

    share: float | None = None
    keep_within: float | None = None
    heads: Sequence[Head] | None = None


def prune(path: Path, choice: Choice, *, method: str | None, heal_epochs: int, output: Path | None) -> Pruning:
    """Cut heads out of a finished run's model, and write what is left, with what it costs, beside the run.

    Heads are chosen by a ranking from training or validation rows and, for `keep_within`, by the score of the
    validation rows. Test rows are scored, and choose nothing.

    Args:
        method: the ranking; None: the one that leads the run's analysis.
        heal_epochs: epochs of training after the cut, by the run's own recipe.
        output: the folder to write; None: `pruned` in the run folder.

    Raises:
        FinetuneError: the folder holds no finished run, the output is taken, or the heads cannot be cut out.
    """
    target = output or RunFolder(path).pruned
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"{target} is there already and not empty; name another folder with --output")
    run = open_run(path, [f"head_importance.method={method}"] if method else [])
    classifier, device = run.material.classifier, run.accelerator.device
    if run.accelerator.num_processes > 1:
        raise ModelError("pruning works in one process; start it with `finetune prune`, without a launcher")
    removed, chosen_by = choose(run, choice, method)
    if not any(removed.values()):
        raise DataError(f"nothing to prune: {chosen_by}; allow more with a larger --share or --keep-within")
    texts = sample_texts(run)
    pruned = pruned_classifier(classifier, removed)
    whole = pruned_classifier(classifier, {})  # adapters merged: the fair thing to compare with
    difference = check_pruned(classifier, pruned, removed, texts)
    before, after = score_splits(run, whole), score_splits(run, pruned)
    healed = None
    if heal_epochs:
        pruned = heal(run, pruned, heal_epochs)
        healed = score_splits(run, pruned)
    speeds = measure_speed(whole, pruned, sample_texts(run, _SPEED_ROWS))
    target.mkdir(parents=True, exist_ok=True)
    save_classifier(pruned, target / "model")
    check_reload(pruned, load_classifier(target / "model"), texts, device)
    write_zeroed(pruned, target / "zeroed", texts)
    with tempfile.TemporaryDirectory() as aside:
        save_classifier(whole, Path(aside) / "model")
        footprints = footprint(whole, Path(aside) / "model", speeds[0]), footprint(pruned, target / "model", speeds[1])
    heads = sum(site.num_heads for site in attention_sites(classifier.base))
    result = Pruning(
        chosen_by=chosen_by,
        heads={str(layer): list(gone) for layer, gone in sorted(removed.items()) if gone},
        share=sum(map(len, removed.values())) / heads,
        difference=difference,
        scores_before=before,
        scores_after=after,
        heal_epochs=heal_epochs,
        scores_healed=healed,
        before=footprints[0],
        after=footprints[1],
    )
    write_json(target / "pruning.json", result)
    show_pruning(run.console, result, str(target))
    finish(run.accelerator)
    return result


def choose(run: FinishedRun, choice: Choice, method: str | None) -> tuple[dict[int, list[int]], str]:
    """Return the heads to cut out, by layer, and how they were chosen."""
    sites = attention_sites(run.material.classifier.base)
    if choice.heads is not None:
        named: dict[int, list[int]] = {}
        for layer, head in choice.heads:
            named.setdefault(layer, []).append(head)
        return named, f"{len(choice.heads)} heads were named"
    ranking = _ranking(run, method)
    origin = f"{ranking.method} on {ranking.rows} {ranking.split} rows"
    if choice.share is not None:
        return heads_to_prune(ranking.order, sites, choice.share), f"a share of {choice.share:g} by {origin}"
    assert choice.keep_within is not None
    if "validation" not in run.material.splits:
        raise DataError("--keep-within needs validation rows, and the run has none; use --share")
    sample, metric = sample_of(run, "validation"), run.recipe.metric_names()[0]
    score = scorer(sample, metric)
    whole, removed, best, missed = score(sample.gates()), heads_to_prune(ranking.order, sites, 0.0), 0.0, 0
    for step in range(1, round(1 / STEP)):
        tried = heads_to_prune(ranking.order, sites, step * STEP)
        gates = gates_without(sample, [(layer, head) for layer, gone in tried.items() for head in gone])
        if score(gates) >= whole - choice.keep_within:
            removed, best, missed = tried, step * STEP, 0
        else:
            missed += 1
        if missed == 3:  # a curve may dip and recover, but not for long
            break
    told = f"the largest share with validation {metric} within {choice.keep_within:g} of {whole:.4f}"
    return removed, f"{told} ({best:.0%}) by {origin}"


def _ranking(run: FinishedRun, method: str | None) -> HeadScores:
    """Return the ranking that the run's analysis holds, or measure it; never one from test rows."""
    if run.folder.heads.is_file():
        held = read_json(run.folder.heads, HeadAnalysis)
        fitting = [scores for scores in held.methods if scores.method == (method or held.methods[0].method)]
        if fitting and fitting[0].split != "test":
            return fitting[0]
    asked = run.recipe.head_importance or HeadImportanceSection()
    split = asked.split if asked.split != "test" else "train"
    sample = sample_of(run, split, asked.max_samples)
    name = method or asked.methods()[0]
    return measure_importance(sample, name, steps=asked.integration_steps, seed=run.recipe.seed)


def heal(run: FinishedRun, pruned: Classifier, epochs: int) -> Classifier:
    """Return the pruned classifier after so many epochs by the recipe; adapters are new ones, merged at the end."""
    recipe, own = run.recipe, run.material.classifier.model
    fields = {"num_train_epochs": epochs, "max_steps": None}
    recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update=fields)})
    trained = pruned
    if isinstance(own, peft.PeftModel) and recipe.peft is not None:
        whole = tuple(getattr(own.peft_config["default"], "modules_to_save", None) or ())
        names = [name for name, _ in pruned.base.named_parameters() if name.rpartition(".")[0] in whole]
        lora = replace(lora_of(recipe.peft, {}), init_lora_weights=True)
        source = pruned.source
        location, revision = (source.location(), source.revision) if source else ("", "main")
        trained = replace(pruned, model=add_lora(pruned.base, lora, names, location=location, revision=revision))
    else:
        settings = recipe.training
        freeze(pruned.base, freeze_embeddings=settings.freeze_embeddings, freeze_layers=settings.freeze_layers)
    plan = make_plan(recipe, rows=len(run.material.splits["train"]), processes=1)
    quiet = replace(plan, eval_every=None, save_every=None, patience=None)
    loop = Loop(
        trained,
        run.material.splits["train"],
        quiet,
        recipe.training,
        seed=recipe.seed,
        accelerator=run.accelerator,
        loraplus_lr_ratio=recipe.peft.loraplus_lr_ratio if recipe.peft else None,
    )
    say(run.console, f"Healing: {plan.total_steps} steps.")
    with TrainingProgress(run.console) as progress:
        fit(
            loop,
            best_metric="loss",
            evaluate=None,
            log=lambda entry: None,
            progress=progress,
            checkpoints=Path(),
            keep=None,
        )
    run.accelerator.unwrap_model(loop.model, keep_fp32_wrapper=False)  # takes mixed precision off the model itself
    return replace(pruned, model=merge_adapters(trained.model))


def sample_of(run: FinishedRun, split: str, most: int | None = None) -> Sample:
    """Return a sample of the run's rows: all, or `most` of them."""
    material, size = run.material, run.recipe.evaluation.per_device_eval_batch_size
    rows = np.array(sample_rows(len(material.splits[split]), most, run.recipe.seed))
    return Sample(material.classifier, material.splits[split], split, rows, size, run.accelerator)


def score_splits(run: FinishedRun, classifier: Classifier) -> dict[str, dict[str, float]]:
    """Return loss and the recipe's metrics on every split that a run scores."""
    size, found = run.recipe.evaluation.per_device_eval_batch_size, {}
    for name, split in run.material.scored().items():
        values = predict(classifier, split, batch_size=size, accelerator=run.accelerator).metrics()
        found[name] = {metric: values[metric] for metric in ("loss", *run.recipe.metric_names())}
    return found


def sample_texts(run: FinishedRun, most: int = _TEXTS) -> list[tuple[str, ...]]:
    """Return the texts of the first training rows."""
    rows = run.material.splits["train"].texts[:most]
    return list(zip(*rows.values(), strict=True))
