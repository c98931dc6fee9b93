"""Choose the heads to prune from a finished run: by share, by validation score, or by name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finetune.heads.gated_forward import GatedRows, sample_rows
from finetune.heads.importance_estimate import Head
from finetune.heads.methods import measure_importance
from finetune.heads.pruning import heads_to_prune
from finetune.heads.pruning_curve import gates_without, scorer
from finetune.models.attention_sites import attention_sites
from finetune.pipeline.finished_run import FinishedRun
from finetune.pipeline.head_choice import HeadChoice
from finetune.recipe.evaluation_section import HeadImportanceSection
from finetune.runs.head_results import HeadScores
from finetune.runs.run_files import read_heads

STEP = 0.05  # distance between the shares that are tried for `keep_within`
PATIENCE = 3  # consecutive shares that score too low end the search; fewer do not, as a curve can dip and recover


def choose_heads(run: FinishedRun, choice: HeadChoice) -> tuple[dict[int, list[int]], str]:
    """Return the heads to prune, by layer, and a description of how they were chosen."""
    share, keep_within, heads = choice.get("share"), choice.get("keep_within"), choice.get("heads")
    if heads is not None:
        by_layer: dict[int, list[int]] = {}
        for layer, head in heads:
            by_layer.setdefault(layer, []).append(head)
        return by_layer, f"by name: {', '.join(f'{layer}.{head}' for layer, head in heads)}"
    ranking = _ranking(run, choice.get("method"))
    origin = f"{ranking.method} on {ranking.rows} {ranking.split} rows"
    if share is not None:
        sites = attention_sites(run.inputs.classifier.base)
        return heads_to_prune(ranking.order, sites, share), f"a share of {share:g} by {origin}"
    assert keep_within is not None
    metric = run.context.recipe.toolkit_metrics()[0]
    removed, full_score = max_heads_within(gated_rows(run, "validation"), ranking.order, metric, keep_within)
    rule = f"as many as keep validation {metric} within {keep_within:g} of {abs(full_score):.4f}"
    return removed, f"{rule}, by {origin}"


def max_heads_within(
    sample: GatedRows, order: Sequence[Head], metric: str, tolerance: float
) -> tuple[dict[int, list[int]], float]:
    """Return the largest set of heads whose removal lowers the metric by at most `tolerance`, and the full score.

    Shares of all heads are tried in steps of STEP, until PATIENCE consecutive ones score too low. Error metrics are
    negated.
    """
    score = scorer(sample, metric)
    best: dict[int, list[int]] = {}
    full_score, previous, consecutive_failures = score(sample.gates()), best, 0
    for step in range(1, round(1 / STEP)):
        removed = heads_to_prune(order, sample.sites, step * STEP)
        if removed == previous:  # with few heads a step may add none
            continue
        previous = removed
        removed_heads = [(layer, head) for layer, heads in removed.items() for head in heads]
        value = score(gates_without(sample, removed_heads))
        if value >= full_score - tolerance - 1e-9:  # in floating point, 0.8 - 0.1 is above 0.7
            best, consecutive_failures = removed, 0
        else:
            consecutive_failures += 1
        if consecutive_failures == PATIENCE:
            break
    return best, full_score


def gated_rows(run: FinishedRun, split: str, max_rows: int | None = None) -> GatedRows:
    """Return a sample of at most `max_rows` of a split's rows; None: all of them."""
    recipe, inputs = run.context.recipe, run.inputs
    rows = np.array(sample_rows(len(inputs.splits[split]), max_rows, recipe.seed))
    batch_size = recipe.evaluation.per_device_eval_batch_size
    return GatedRows(inputs.classifier, inputs.splits[split], split, rows, batch_size, run.context.accelerator)


def _ranking(run: FinishedRun, method: str | None) -> HeadScores:
    """Return the ranking by `method` from the run's analysis, or measure it; never a ranking from test rows."""
    recipe, folder = run.context.recipe, run.context.folder
    if folder.heads.is_file():
        rankings = read_heads(folder).methods
        method = method or rankings[0].method
        for ranking in rankings:
            if ranking.method == method and ranking.split != "test":
                return ranking
    settings = recipe.head_importance or HeadImportanceSection()
    split = settings.split if settings.split != "test" else "train"
    return measure_importance(
        gated_rows(run, split, settings.max_samples),
        method or settings.methods()[0],
        steps=settings.integration_steps,
        seed=recipe.seed,
        max_seconds=settings.max_seconds,
    )
