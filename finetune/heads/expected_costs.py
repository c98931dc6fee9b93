"""The expected cost of a head analysis, as lines that are printed before it starts."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
from accelerate import Accelerator

from finetune.data.tokenization import EncodedSplit
from finetune.heads.analysis import AnalysisSettings, separate_rows
from finetune.heads.explain_choice import rows_to_explain
from finetune.heads.explain_tokens import STEPS
from finetune.heads.gated_forward import GatedRows, gated_logits
from finetune.heads.pruning_curve import MAX_HEADS_BY_COUNT, SHARES
from finetune.models.classifier import Classifier
from finetune.recipe.evaluation_section import HeadImportanceSection
from finetune.recipe.head_costs import (
    CHECKED_ROWS,
    FORWARD_COST,
    LEARNED_ORDER,
    MIN_ROW_PASSES,
    ROW_PASSES,
    cost_line,
    curve_cost,
    explanation_cost,
    method_cost,
    names_cost,
)


def expected_costs(
    classifier: Classifier,
    splits: dict[str, EncodedSplit],
    section: HeadImportanceSection,
    settings: AnalysisSettings,
    accelerator: Accelerator,
) -> Iterator[str]:
    """Yield a line with the cost of each method, of its tests, of the names of heads and of the explanations.

    The durations follow from the measured speed of a few rows.
    """
    ranking_rows, test_rows = separate_rows(splits, section, settings.seed)
    sample = GatedRows(classifier, splits[section.split], section.split, ranking_rows, settings.batch_size, accelerator)
    heads, training = sum(site.num_heads for site in sample.sites), settings.training
    seconds = _row_pass_seconds(sample)
    title = "Expected cost of the head analysis, in row passes (a forward and a backward pass of one row)"
    if training is not None:
        title += f"; the training of {training.rows:,} rows took as long as {training.row_passes:,.0f} row passes"
    yield f"{title}:"
    for name in section.methods():
        of_method, allowed = section.settings_of(name), settings.row_passes(section)
        rows = min(len(sample), of_method.max_samples or len(sample))
        cost = method_cost(name, rows, heads, of_method.integration_steps, allowed)
        limit = _limit(section, allowed) if name == LEARNED_ORDER else ""
        yield cost_line(f"  {name} on {rows} {section.split} rows", cost, training, seconds) + limit
    if len(test_rows):
        methods, counts = len(section.methods()), heads - 1 if heads <= MAX_HEADS_BY_COUNT else 0
        orders = 2 * methods + section.random_orders
        cost = curve_cost(len(test_rows), orders, len(SHARES), methods * counts)
        yield cost_line(f"  pruning curves on {len(test_rows)} {section.curve_split} rows", cost, training, seconds)
    if len(test_rows) and section.leave_one_out:
        cost = method_cost("ablation_loss", len(test_rows), heads, 0)
        yield cost_line(f"  leave-one-out on {len(test_rows)} {section.curve_split} rows", cost, training, seconds)
    if len(test_rows) and section.name_heads:
        cost = names_cost(len(test_rows), len(ranking_rows), heads)
        yield cost_line(f"  names of heads on {len(test_rows)} {section.curve_split} rows", cost, training, seconds)
    explained = rows_to_explain(splits, section, settings.seed) if section.explained_rows else None
    if explained is not None:
        name, rows_explained = explained
        detailed = min(section.explained_rows, len(rows_explained))
        cost = explanation_cost(len(rows_explained), detailed, heads, STEPS)
        yield cost_line(f"  explanations of {len(rows_explained)} {name} rows", cost, training, seconds)


def _limit(section: HeadImportanceSection, allowed: int | None) -> str:
    """Return why `learned_order` makes fewer row passes than it could, or ""."""
    if allowed is None or allowed == ROW_PASSES:
        return ""
    if allowed == MIN_ROW_PASSES:
        return f" (limited to {MIN_ROW_PASSES}, the minimum; the full number is {ROW_PASSES:,})"
    return f" (limited by head_importance.max_cost: {section.max_cost:g}; the full number is {ROW_PASSES:,})"


def _row_pass_seconds(sample: GatedRows) -> float:
    """Return the expected duration of a row pass, from a second forward pass of a few rows."""
    few = sample.subset(sample.rows[:CHECKED_ROWS])
    gated_logits(few, few.gates())
    started = time.perf_counter()
    gated_logits(few, few.gates())
    lengths = sample.split.lengths
    # In one batch all rows are as long as the longest.
    relative_length = float(np.mean(lengths[sample.rows]) / np.max(lengths[few.rows]))
    return (time.perf_counter() - started) / len(few) * relative_length / FORWARD_COST
