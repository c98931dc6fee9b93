"""The head analysis of a recipe: rankings, pruning curves, agreement of methods, leave-one-out tests, weight changes.

N rows, C classes
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from accelerate import Accelerator

from finetune.data.tokenization import EncodedSplit
from finetune.errors import ModelError
from finetune.heads.ablation import ablation
from finetune.heads.gated_forward import GatedRows, sample_rows
from finetune.heads.methods import measure_importance
from finetune.heads.pruning_curve import CurveSettings, pruning_curves
from finetune.heads.rank_correlation import kendall_tau
from finetune.heads.ranking_statistics import (
    against_importance,
    helped_by_removal,
    paired_error_tests,
    paired_tests,
)
from finetune.heads.row_effects import head_names
from finetune.heads.weight_changes import head_changes
from finetune.models.classifier import Classifier
from finetune.models.losses import decisions
from finetune.progress import stage
from finetune.recipe.evaluation_section import HeadImportanceSection, MethodSettings
from finetune.recipe.head_costs import TrainingCost
from finetune.runs.head_results import HeadAnalysis, HeadChanges, HeadScores, LeaveOneOut, PruningCurves, RankAgreement


@dataclass(frozen=True)
class AnalysisSettings:
    """Settings of a head analysis that come from other sections of the recipe than `head_importance`.

    Attributes:
        metric: the metric of the pruning curves.
        batch_size: rows per batch; it changes results only by rounding.
        seed: of the choice of rows and of all random draws.
        training: what the training cost, which limits the cost of `learned_order`; None: no limit.
    """

    metric: str
    batch_size: int
    seed: int
    training: TrainingCost | None = None

    def row_passes(self, section: HeadImportanceSection) -> int | None:
        """Return the row passes that `learned_order` may make; None: its full number."""
        return None if self.training is None else self.training.allowed(section.max_cost)


def analyze_heads(
    classifier: Classifier,
    splits: dict[str, EncodedSplit],
    section: HeadImportanceSection,
    settings: AnalysisSettings,
    accelerator: Accelerator,
) -> HeadAnalysis:
    """Return the head analysis that the `head_importance` section of a recipe describes.

    Args:
        splits: tokenized splits by name; `section.split` must be among them.
    """
    seed = settings.seed

    def sample_of(split: str, rows: np.ndarray) -> GatedRows:
        return GatedRows(classifier, splits[split], split, rows, settings.batch_size, accelerator)

    ranking_rows, test_rows = separate_rows(splits, section, seed)
    sample = sample_of(section.split, ranking_rows)
    methods = [
        measure_importance(
            rows_of_method(sample, section.settings_of(name), seed),
            name,
            steps=section.settings_of(name).integration_steps,
            seed=seed,
            max_seconds=section.max_seconds,
            row_passes=settings.row_passes(section),
        )
        for name in section.methods()
    ]
    curves, single_removals, names, name_warnings = None, None, None, list[str]()
    if section.curve_split is not None and len(test_rows):
        test_sample = sample_of(section.curve_split, test_rows)
        orders = {scores.method: scores.order for scores in methods}
        curves = pruning_curves(test_sample, orders, CurveSettings(settings.metric, section.random_orders, seed=seed))
        single_removals = leave_one_out(test_sample, seed) if section.leave_one_out else None
        if section.name_heads:
            names, name_warnings = head_names(test_sample, sample, seed)
    changes, change_warnings = _changes(sample, effects=section.leave_one_out)
    leading = methods[0]
    return HeadAnalysis(
        methods=methods,
        truth=curves,
        agreement=agreement(methods),
        leave_one_out=single_removals,
        changes=changes,
        changes_agreement=None if changes is None else against_importance(changes, leading.values, leading.method),
        names=names,
        warnings=[
            *untested(splits, section, len(test_rows)),
            *warnings(methods, curves, single_removals),
            *name_warnings,
            *change_warnings,
        ],
    )


def _changes(sample: GatedRows, *, effects: bool) -> tuple[HeadChanges | None, list[str]]:
    """Return how training changed the heads, or None, and a warning if the comparison with the base fails."""
    classifier = sample.classifier
    if classifier.source is None:
        return None, []
    try:
        return head_changes(sample, effects=effects), []
    except ModelError as error:  # the analysis is useful without it
        return None, [f"How training changed the heads could not be measured: {error}."]


def separate_rows(
    splits: dict[str, EncodedSplit], section: HeadImportanceSection, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the rows that rank the heads, and of the rows that test the ranking.

    If both come from the same split, they are disjoint, and at most half of the split ranks the heads. A method with
    a smaller `max_samples` than others uses some of the rows (see `rows_of_method`).
    """
    limits, split = [section.settings_of(name).max_samples for name in section.methods()], splits[section.split]
    max_rows = None if None in limits else max(limit for limit in limits if limit is not None)
    if section.curve_split != section.split:
        ranking_rows = np.array(sample_rows(len(split), max_rows, seed))
        test_split = splits.get(section.curve_split or "")
        rows = [] if test_split is None else sample_rows(len(test_split), section.curve_samples, seed)
        return ranking_rows, np.array(rows, dtype=int)
    half = max(1, len(split) // 2)
    ranking_rows = np.array(sample_rows(len(split), half if max_rows is None else min(max_rows, half), seed))
    rest = np.setdiff1d(np.arange(len(split)), ranking_rows)
    return ranking_rows, rest[sample_rows(len(rest), section.curve_samples, seed)]


def rows_of_method(sample: GatedRows, settings: MethodSettings, seed: int) -> GatedRows:
    """Return the rows of the sample on which a method ranks the heads."""
    return sample.subset(sample.rows[sample_rows(len(sample), settings.max_samples, seed)])


def untested(splits: Collection[str], section: HeadImportanceSection, num_test_rows: int) -> list[str]:
    """Return a warning if the recipe wants the ranking tested and there are no rows for the test.

    Args:
        num_test_rows: rows of `section.curve_split` that do not rank the heads.
    """
    name = section.curve_split
    if name is None or num_test_rows:
        return []
    skipped = ", and leave-one-out was skipped" if section.leave_one_out else ""
    skipped += ", and no head was named" if section.name_heads else ""
    others = ", ".join(split for split in splits if split != section.split)
    if name == section.split:
        reason, fix = f"the only row of {name} ranks the heads", "give more rows"
    else:
        reason, fix = f"there are no {name} rows", f"give some (such as data.{name}_file)"
    named = f", or name another split as head_importance.curve_split ({others})" if others else ""
    return [f"The ranking was not tested: {reason}{skipped}; {fix}{named}."]


def leave_one_out(sample: GatedRows, seed: int) -> LeaveOneOut:
    """Return the effect of removing each head alone, with paired tests over the rows."""
    with stage("leave-one-out"):
        result = ablation(sample)
    if sample.problem_type == "regression":
        full, without = (_squared_errors(torch.from_numpy(logits), sample) for logits in (result.full, result.without))
        tests, measure = paired_error_tests(full, without, sample.sites, seed=seed), "mean squared error"
    else:
        full, without = (_correct(torch.from_numpy(logits), sample) for logits in (result.full, result.without))
        multi_label = sample.problem_type == "multi_label_classification"
        tests = paired_tests(full, without, sample.sites, seed=seed)
        measure = "subset_accuracy" if multi_label else "accuracy"
    return LeaveOneOut(sample.split_name, len(sample), measure, tests)


def _correct(logits: torch.Tensor, sample: GatedRows) -> np.ndarray:
    """Return whether each prediction is correct, (N, ...), from logits (N, ..., C); multi-label: all labels."""
    decided, labels = decisions(logits, sample.problem_type).numpy(), sample.labels
    extra_dims = (1,) * (logits.dim() - 2)
    if sample.problem_type == "single_label_classification":
        correct: np.ndarray = decided == labels.reshape(-1, *extra_dims)
        return correct
    all_correct: np.ndarray = (decided == labels.reshape(len(labels), *extra_dims, -1)).all(-1)
    return all_correct


def _squared_errors(logits: torch.Tensor, sample: GatedRows) -> np.ndarray:
    """Return the squared error of each prediction, (N, ...), from logits (N, ..., 1)."""
    values = decisions(logits, sample.problem_type).double().numpy()  # (N, ...)
    errors: np.ndarray = (values - sample.labels.reshape(-1, *(1,) * (values.ndim - 1))) ** 2
    return errors


def agreement(methods: Sequence[HeadScores]) -> list[RankAgreement]:
    """Return Kendall's tau between the values of each pair of methods."""
    return [
        RankAgreement(first.method, second.method, kendall_tau(first.values, second.values))
        for first, second in combinations(methods, 2)
    ]


def warnings(
    methods: Sequence[HeadScores], curves: PruningCurves | None, single_removals: LeaveOneOut | None
) -> list[str]:
    """Return what a reader must know before trusting the ranking of the first method."""
    messages, leading = [], methods[0]
    if curves is not None and curves.random is not None:
        curve = curves.curves[0]
        if curve.mean <= curves.random.highest_mean:
            messages.append(
                f"Removal in the order of {leading.method} keeps {curves.metric} at {curve.mean:.3f} on average, no "
                f"better than the best of {curves.random.orders} random orders ({curves.random.highest_mean:.3f}): "
                "this ranking is not informative here."
            )
        best = max(range(len(curves.shares)), key=lambda index: curve.scores[index])
        if curve.scores[best] > curves.whole:
            messages.append(
                f"With {curves.shares[best]:.0%} of the heads removed, {curves.metric} is {curve.scores[best]:.3f}, "
                f"above {curves.whole:.3f} with all: removal can help, but so small a rise can be chance."
            )
    stability = leading.stability
    if stability is not None and stability.value is not None and stability.value < 0.5:
        messages.append(
            f"The ranking is unstable across subsets of rows (tau {stability.text()}): raise "
            "head_importance.max_samples."
        )
    if single_removals is not None:
        helped = helped_by_removal(single_removals.tests, single_removals.measure)
        messages += [helped] if helped else []
    return messages
