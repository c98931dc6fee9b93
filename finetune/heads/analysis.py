"""All that is asked about the heads, in one result: rankings, their truth, their agreement, single heads' effects.

N rows, L layers, H heads, C classes
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import combinations

import numpy as np
import torch
from accelerate import Accelerator

from finetune.data.tokenization import EncodedSplit
from finetune.errors import ModelError
from finetune.heads.ablation import ablation
from finetune.heads.gated_forward import GatedRows, sample_rows
from finetune.heads.methods import measure_importance
from finetune.heads.pruning_curve import pruning_curves
from finetune.heads.ranking_statistics import (
    against_importance,
    helped_by_removal,
    kendall_tau,
    paired_error_tests,
    paired_tests,
)
from finetune.heads.weight_changes import head_changes
from finetune.models.classifier import Classifier
from finetune.models.losses import decisions
from finetune.recipe import HeadImportanceSection
from finetune.runs.head_results import HeadAnalysis, HeadChanges, HeadScores, LeaveOneOut, PruningCurves, RankAgreement


def analyze_heads(
    classifier: Classifier,
    splits: dict[str, EncodedSplit],
    asked: HeadImportanceSection,
    *,
    metric: str,
    batch_size: int,
    seed: int,
    accelerator: Accelerator,
) -> HeadAnalysis:
    """Return the analysis that a recipe's `head_importance` asks for.

    Args:
        splits: encoded rows by name; that of `asked.split` must be among them.
        metric: of the pruning curves.
    """

    def sample_of(split: str, rows: np.ndarray) -> GatedRows:
        return GatedRows(classifier, splits[split], split, rows, batch_size, accelerator)

    ranked, unseen = separate_rows(splits, asked, seed)
    sample = sample_of(asked.split, ranked)
    methods = [
        measure_importance(sample, method, steps=asked.integration_steps, seed=seed, max_seconds=asked.max_seconds)
        for method in asked.methods()
    ]
    truth, removed = None, None
    if asked.curve_split is not None and len(unseen):
        others = sample_of(asked.curve_split, unseen)
        orders = {scores.method: scores.order for scores in methods}
        truth = pruning_curves(others, orders, metric, random_orders=asked.random_orders, seed=seed)
        removed = leave_one_out(others, seed) if asked.leave_one_out else None
    changes, unknown = _changes(sample, effects=asked.leave_one_out)
    leading = methods[0]
    return HeadAnalysis(
        methods=methods,
        truth=truth,
        agreement=agreement(methods),
        leave_one_out=removed,
        changes=changes,
        changes_agreement=None if changes is None else against_importance(changes, leading.values, leading.method),
        warnings=[*untested(splits, asked, len(unseen)), *warnings(methods, truth, removed), *unknown],
    )


def _changes(sample: GatedRows, *, effects: bool) -> tuple[HeadChanges | None, list[str]]:
    """Return what training changed, or None and why it cannot be told where there is something to tell."""
    classifier = sample.classifier
    if classifier.source is None:
        return None, []
    try:
        return head_changes(sample, effects=effects), []
    except ModelError as error:  # a run is whole without: its base may be gone, or its heads no slices
        return None, [f"What training changed of each head cannot be told: {error}."]


def separate_rows(
    splits: dict[str, EncodedSplit], asked: HeadImportanceSection, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the row numbers that rank, and those on which the ranking is tried.

    Where both come from one split, no row is in both: at most half of the split ranks.
    """
    most, split = asked.max_samples, splits[asked.split]
    if asked.curve_split != asked.split:
        ranked = np.array(sample_rows(len(split), most, seed))
        unseen = splits.get(asked.curve_split or "")
        rows = [] if unseen is None else sample_rows(len(unseen), asked.curve_samples, seed)
        return ranked, np.array(rows, dtype=int)
    half = max(1, len(split) // 2)
    ranked = np.array(sample_rows(len(split), half if most is None else min(most, half), seed))
    rest = np.setdiff1d(np.arange(len(split)), ranked)
    return ranked, rest[sample_rows(len(rest), asked.curve_samples, seed)]


def untested(splits: Collection[str], asked: HeadImportanceSection, unseen: int) -> list[str]:
    """Return a warning if a test of the ranking was asked for, and there are no rows for it.

    Args:
        unseen: rows of `asked.curve_split` that did not rank.
    """
    name = asked.curve_split
    if name is None or unseen:
        return []
    lost = ", and no head was removed alone" if asked.leave_one_out else ""
    others = ", ".join(split for split in splits if split != asked.split)
    if name == asked.split:
        reason, repair = f"the only row of {name} ranks the heads", "give more rows"
    else:
        reason, repair = f"there are no {name} rows", f"give some (such as data.{name}_file)"
    named = f", or name another split as head_importance.curve_split ({others})" if others else ""
    return [f"The ranking was not tested: {reason}{lost}; {repair}{named}."]


def leave_one_out(sample: GatedRows, seed: int) -> LeaveOneOut:
    """Return what removal of each head alone does to the sample's rows, tested row by row."""
    found = ablation(sample)
    if sample.problem_type == "regression":
        whole, without = (_squared_errors(torch.from_numpy(logits), sample) for logits in (found.full, found.without))
        tests, measure = paired_error_tests(whole, without, sample.sites, seed=seed), "mean squared error"
    else:
        whole, without = (_right(torch.from_numpy(logits), sample) for logits in (found.full, found.without))
        several = sample.problem_type == "multi_label_classification"
        tests = paired_tests(whole, without, sample.sites, seed=seed)
        measure = "subset_accuracy" if several else "accuracy"
    return LeaveOneOut(sample.split_name, len(sample), measure, tests)


def _right(logits: torch.Tensor, sample: GatedRows) -> np.ndarray:
    """Return whether each row is right, (N, ...), from logits (N, ..., C); of several labels all must be."""
    decided, labels = decisions(logits, sample.problem_type).numpy(), sample.labels
    between = (1,) * (logits.dim() - 2)
    if sample.problem_type == "single_label_classification":
        right: np.ndarray = decided == labels.reshape(-1, *between)
        return right
    sets: np.ndarray = (decided == labels.reshape(len(labels), *between, -1)).all(-1)
    return sets


def _squared_errors(logits: torch.Tensor, sample: GatedRows) -> np.ndarray:
    values = decisions(logits, sample.problem_type).double().numpy()  # (N, ...)
    errors: np.ndarray = (values - sample.labels.reshape(-1, *(1,) * (values.ndim - 1))) ** 2
    return errors


def agreement(methods: Sequence[HeadScores]) -> list[RankAgreement]:
    """Return Kendall's tau between the values of each two methods."""
    return [
        RankAgreement(first.method, second.method, kendall_tau(first.values, second.values))
        for first, second in combinations(methods, 2)
    ]


def warnings(methods: Sequence[HeadScores], truth: PruningCurves | None, removed: LeaveOneOut | None) -> list[str]:
    """Return what a reader must know before believing the ranking."""
    found = []
    leading = methods[0]
    if truth is not None and truth.random is not None:
        curve = truth.curves[0]
        if curve.mean <= truth.random.highest_mean:
            found.append(
                f"Removal in the order of {leading.method} keeps {truth.metric} at {curve.mean:.3f} on average, no "
                f"better than the best of {truth.random.orders} random orders ({truth.random.highest_mean:.3f}): this "
                "ranking tells little here."
            )
        best = max(range(len(truth.shares)), key=lambda place: curve.scores[place])
        if curve.scores[best] > truth.whole:
            found.append(
                f"With {truth.shares[best]:.0%} of the heads removed, {truth.metric} is {curve.scores[best]:.3f}, "
                f"above {truth.whole:.3f} with all: removal can help, and so small a rise can be chance."
            )
    if leading.stability is not None and leading.stability.value is not None and leading.stability.value < 0.5:
        found.append(
            f"Different rows rank the heads unlike (tau {leading.stability.text()}): raise head_importance.max_samples."
        )
    if removed is not None and (helped := helped_by_removal(removed.tests, removed.measure)):
        found.append(helped)
    return found
