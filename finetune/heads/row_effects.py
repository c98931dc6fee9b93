"""Measures what the removal of heads does to each row: alone, in random sets, and in pairs that other rows chose.

N rows, B batch, L layers, H heads, K sets of heads, C classes
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from finetune.heads.ablation import removal_logits
from finetune.heads.gated_forward import GatedRows, gate_gradients, gated_logits
from finetune.heads.head_names import CHANGE_MARGIN, EFFECT_MARGIN, LEVEL, RowEffects, assign_names
from finetune.heads.importance_estimate import Head, as_table
from finetune.models.attention_sites import all_heads
from finetune.models.head_gates import head_mask
from finetune.progress import stage
from finetune.recipe.head_costs import SCREENING_ROWS
from finetune.runs.head_names import UNUSED, HeadNames, JointRemoval, NamedHead

RECOMMENDED_ROWS = 1000  # with 500, no head of a MiniLM model was named; 500 suffice for models of 16 heads
KEEP_RATES = (0.75, 0.5, 0.25)  # of other heads, while the use of a head is tested
_PARTIAL = 0.5  # share of the heads whose gates are drawn from 0 to 1 while pairs are screened
SCORES = {
    "single_label_classification": "probability of the right label",
    "multi_label_classification": "probability of the right set of labels",
    "regression": "1 minus the squared error in units of the variance, at least 0",
}


def head_names(sample: GatedRows, screening: GatedRows, seed: int) -> tuple[HeadNames | None, list[str]]:
    """Return the names that tests give to the heads of a classifier, and warnings; None if there can be no names.

    Args:
        sample: the rows of the tests.
        screening: other rows, which choose the pairs of heads that are tested; at most 128 of them are used.
        seed: of the screening rows and the random sets of heads.
    """
    started = time.perf_counter()
    if sample.problem_type == "regression" and not np.ptp(sample.labels) > 0:
        return None, [f"No head was named: all {len(sample)} {sample.split_name} rows have the same value."]
    rows = np.random.default_rng([seed, 0]).permutation(screening.rows)[:SCREENING_ROWS]
    screening = screening.subset(np.sort(rows))
    with stage("naming heads"):
        effects = row_effects(sample, screen_pairs(screening, seed), seed)
        named, tests = assign_names(effects, LEVEL)
        together = _unused_together(sample, effects, named)
    alone, sites = effects.effects(), sample.sites
    names = HeadNames(
        split=sample.split_name,
        rows=len(sample),
        screening_split=screening.split_name,
        screening_rows=len(screening),
        level=LEVEL,
        effect_margin=EFFECT_MARGIN,
        change_margin=CHANGE_MARGIN,
        tests=tests,
        score=SCORES[sample.problem_type],
        mean_score=float(effects.scores.mean()),
        named=named,
        effects=as_table(alone.mean(0), sites),
        effect_errors=as_table(_standard_errors(alone), sites),
        changes=as_table(effects.changes.mean(0), sites),
        context_changes=as_table(effects.context_changes.mean(0), sites),
        unused_together=together,
        seconds=time.perf_counter() - started,
    )
    return names, _few_rows(names)


def _few_rows(names: HeadNames) -> list[str]:
    """Return a warning if the tests had so few rows that most names cannot be found."""
    if names.rows >= RECOMMENDED_ROWS:
        return []
    return [
        f"The names of heads come from {names.rows} {names.split} rows; with fewer than {RECOMMENDED_ROWS:,} most "
        "heads stay undecided. Raise head_importance.curve_samples, or name a split with more rows as "
        "head_importance.curve_split."
    ]


def row_effects(sample: GatedRows, pairs: Sequence[tuple[Head, Head]], seed: int) -> RowEffects:
    """Return what the removal of each head, and of each of these pairs, does to each row."""
    heads = all_heads(sample.sites)
    singles = [(head,) for head in heads]
    with stage("single heads and pairs"):
        full, without, _ = removal_logits(sample, [*singles, *pairs])
    scores = row_scores(sample, np.concatenate([full[:, None], without], 1))
    off = random_sets(sample, seed)
    with stage("single heads while random sets of others are removed"):
        context_full, context_without, _ = removal_logits(sample, singles, gates=torch.from_numpy(~off).float())
    return RowEffects(
        scores=scores[:, 0],
        scores_without=_table(scores[:, 1 : 1 + len(heads)], sample),
        changes=_table(output_changes(sample, full, without[:, : len(heads)]), sample),
        context_changes=_table(output_changes(sample, context_full, context_without), sample),
        pairs=tuple(pairs),
        pair_scores=scores[:, 1 + len(heads) :],
    )


def random_sets(sample: GatedRows, seed: int) -> np.ndarray:
    """Return a random set of removed heads per row, (N, L, H); within a row all heads have the same probability."""
    rng = np.random.default_rng([seed, 1])
    keep = rng.choice(KEEP_RATES, (len(sample), 1, 1))
    return rng.random((len(sample), *sample.gates().shape)) >= keep


def row_scores(sample: GatedRows, logits: np.ndarray) -> np.ndarray:
    """Return the score of each prediction, 0 to 1, (N, K), from logits (N, K, C).

    It is the probability of the right label, or of exactly the right set of independent labels, with the temperature of
    the classifier; in regression 1 minus the squared error in units of the variance of the labels, but at least 0.
    """
    labels, outputs = sample.labels, _outputs(sample, logits)
    if sample.problem_type == "regression":
        errors = (outputs[..., 0] - labels[:, None]) ** 2 / labels.var()
        return np.asarray(1 - errors.clip(max=1))
    if sample.problem_type == "single_label_classification":
        return np.asarray(np.take_along_axis(outputs, labels[:, None, None], axis=2)[..., 0])
    return np.asarray(np.where(labels[:, None] > 0, outputs, 1 - outputs).prod(-1))


def output_changes(sample: GatedRows, full: np.ndarray, without: np.ndarray) -> np.ndarray:
    """Return how much the output changes, 0 to 1, (N, K), from logits (N, C) to logits (N, K, C).

    It is the total variation distance of the probabilities of the labels, half the sum of their absolute differences;
    for several labels per row the largest difference; in regression the absolute difference in units of the standard
    deviation of the labels, but at most 1.
    """
    differences = np.abs(_outputs(sample, without) - _outputs(sample, full[:, None]))
    if sample.problem_type == "regression":
        return np.asarray((differences[..., 0] / sample.labels.std()).clip(max=1))
    multi_label = sample.problem_type == "multi_label_classification"
    return np.asarray(differences.max(-1) if multi_label else differences.sum(-1) / 2)


def screen_pairs(sample: GatedRows, seed: int) -> list[tuple[Head, Head]]:
    """Return for each head the pair with the partner that it seems to replace, each pair once.

    The interaction of two heads is the rise of the effect of the second when the first is removed. It is estimated from
    gradients of the loss, one backward pass per removed head and row for all partners. In every row the gates of a
    random half of the heads are drawn from 0 to 1: there the gradient is an unbiased estimate of the effect of a
    removal (Li and Janson 2024), while at a gate of 1 it is almost 0 for heads that replace each other.
    """
    rng, shape = np.random.default_rng([seed, 2]), (len(sample), *sample.gates().shape)
    is_partial = rng.random(shape) < _PARTIAL
    point = torch.from_numpy(np.where(is_partial, rng.random(shape), 1)).float().to(sample.accelerator.device)
    heads = all_heads(sample.sites)
    mask = head_mask(sample.sites)

    def effects(gates: torch.Tensor) -> np.ndarray:
        """Return the estimated rise of the loss without each head, (heads,)."""
        gradients = np.where(is_partial, -gate_gradients(sample, gates), 0)
        return np.asarray((gradients.sum(0) / is_partial.sum(0).clip(min=1))[mask])

    interactions = np.zeros((len(heads), len(heads)))
    with stage("choosing pairs of heads", total=len(heads)) as progress:
        alone = effects(point)
        for number, (layer, head) in enumerate(heads):
            removed = point.clone()
            removed[:, layer, head] = 0
            interactions[number] = effects(removed) - alone
            progress.advance()
    interactions = interactions + interactions.T
    np.fill_diagonal(interactions, -np.inf)
    partners = interactions.argmax(1)
    chosen = {tuple(sorted((heads[number], heads[partner]))) for number, partner in enumerate(partners)}
    return [(first, second) for first, second in sorted(chosen)] if len(heads) > 1 else []


def _unused_together(sample: GatedRows, effects: RowEffects, named: Sequence[NamedHead]) -> JointRemoval | None:
    """Return the effect of the removal of all unused heads together; None if there are fewer than two."""
    unused = [(each.layer, each.head) for each in named if each.name == UNUSED]
    if len(unused) < 2:
        return None
    gates = sample.gates()
    full = gated_logits(sample, gates).numpy()
    for head in unused:
        gates[head] = 0
    without = gated_logits(sample, gates).numpy()[:, None]
    effect = effects.scores.mean() - row_scores(sample, without).mean()
    return JointRemoval(len(unused), float(effect), float(output_changes(sample, full, without).mean()))


def _outputs(sample: GatedRows, logits: np.ndarray) -> np.ndarray:
    """Return probabilities or values (N, K, C) of logits (N, K, C)."""
    flat = sample.classifier.rules.probabilities(logits.reshape(-1, logits.shape[-1]))
    return flat.reshape(logits.shape)


def _table(values: np.ndarray, sample: GatedRows) -> np.ndarray:
    """Return values of all heads (N, heads) as (N, L, H); NaN where a layer lacks the head."""
    mask = head_mask(sample.sites)
    table = np.full((len(values), *mask.shape), np.nan)
    table[:, mask] = values
    return table


def _standard_errors(values: np.ndarray) -> np.ndarray | None:
    """Return the standard errors of the means over rows of values (N, L, H); None for one row."""
    return None if len(values) < 2 else np.asarray(values.std(0, ddof=1) / np.sqrt(len(values)))
