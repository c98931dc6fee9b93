"""Choose the heads to prune from a finished run: by share, or by name."""

from __future__ import annotations

import numpy as np

from finetune.heads.gated_forward import GatedRows, sample_rows
from finetune.heads.methods import measure_importance
from finetune.heads.pruning import heads_to_prune
from finetune.models.attention_sites import attention_sites
from finetune.pipeline.finished_run import FinishedRun
from finetune.pipeline.head_choice import HeadChoice
from finetune.pipeline.training_cost import training_cost_of_run
from finetune.recipe.evaluation_section import HeadImportanceSection
from finetune.runs.head_results import HeadScores
from finetune.runs.run_files import read_heads


def choose_heads(run: FinishedRun, choice: HeadChoice) -> tuple[dict[int, list[int]], str]:
    """Return the heads to prune, by layer, and a description of how they were chosen."""
    share, heads = choice.get("share"), choice.get("heads")
    if heads is not None:
        by_layer: dict[int, list[int]] = {}
        for layer, head in heads:
            by_layer.setdefault(layer, []).append(head)
        return by_layer, f"by name: {', '.join(f'{layer}.{head}' for layer, head in heads)}"
    ranking = _ranking(run, choice.get("method"))
    origin = f"{ranking.method} on {ranking.rows} {ranking.split} rows"
    assert share is not None
    sites = attention_sites(run.inputs.classifier.base)
    return heads_to_prune(ranking.order, sites, share), f"a share of {share:g} by {origin}"


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
    of_method = settings.settings_of(method or settings.methods()[0])
    training = training_cost_of_run(run.context, run.inputs.classifier)
    return measure_importance(
        gated_rows(run, split, of_method.max_samples),
        of_method.name,
        steps=of_method.integration_steps,
        seed=recipe.seed,
        max_seconds=settings.max_seconds,
        row_passes=None if training is None else training.allowed(settings.max_cost),
    )
