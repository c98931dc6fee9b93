"""Candidates for ranking attention heads, each a function of rows, a number of row passes and a seed.

A row pass is one forward and one backward pass of one row with gates. A forward pass alone counts as a third of it.
Every candidate keeps to the number of row passes that it gets; `gradient_layer_norm` at half of it is the baseline.
The candidates that are trained are in `head_learners.py`.

    N rows, B batch, L layers, H heads, D head width, E width of the encoder
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from finetune.data.batching import LocalBatch
from finetune.heads.ablation import ablation
from finetune.heads.attention_maps import entropy
from finetune.heads.gated_forward import GatedRows, attention_kernel, gate_gradients, gated_logits
from finetune.heads.gradients import integrated_gradients
from finetune.heads.importance_estimate import Estimate, layer_normalized
from finetune.heads.learned_order import draw_masks, learned_order
from finetune.heads.methods import iterative
from finetune.models.head_gates import head_gates
from finetune.models.losses import divergence, per_example_loss

Ranker = Callable[[GatedRows, int, int], np.ndarray]  # rows, row passes, seed -> values (L, H)
ROUNDS = 10  # of the iterative candidates
OBJECTIVES = ("loss", "kl", "error")


def drawn(sample: GatedRows, rows: int, seed: int) -> GatedRows:
    """Return the sample with this number of its rows, drawn at random: each once before any is repeated."""
    rng, indices = np.random.default_rng(seed), list[np.ndarray]()
    while sum(map(len, indices)) < rows:
        indices.append(rng.permutation(sample.rows))
    return sample.subset(np.concatenate(indices)[:rows])


def normalized(values: np.ndarray) -> np.ndarray:
    """Return the values of each layer divided by their Euclidean norm."""
    return layer_normalized(Estimate(values)).values


def row_cost(objective: str) -> float:
    """Return the row passes per row: the KL divergence also needs a forward pass of the whole model."""
    return 4 / 3 if objective == "kl" else 1


def gate_passes(rows: GatedRows, gates: Tensor, objective: str) -> np.ndarray:
    """Return the gradient of an objective with respect to the gates of each row, (N, L, H).

    Args:
        gates: (N, L, H).
        objective: "loss"; "kl", the KL divergence from the output of the whole model; "error", the probability of all
            classes but the label (a bounded loss).
    """
    base, sites, accelerator = rows.classifier.base, rows.sites, rows.accelerator
    whole = gated_logits(rows, rows.gates()) if objective == "kl" else None

    def gradients(batch: LocalBatch, positions: np.ndarray) -> Tensor:
        row_gates = gates[torch.as_tensor(positions)].clone().requires_grad_()
        with attention_kernel(accelerator.device), head_gates(base, sites, row_gates), accelerator.autocast():
            logits = base(**batch.inputs).logits.float()
        if whole is not None:
            values = divergence(whole[torch.as_tensor(positions)], logits, rows.problem_type)
        elif objective == "error":
            values = 1 - logits.softmax(-1).gather(1, batch.labels[:, None])[:, 0]
        else:
            values = per_example_loss(logits, batch.labels, rows.problem_type)
        (gradient,) = torch.autograd.grad(values.sum(), row_gates)
        return gradient

    return rows.map_batches(gradients)


def gradient(sample: GatedRows, row_passes: int, seed: int) -> np.ndarray:
    """Return E|g| (Michel et al. 2019), from half of the row passes."""
    values: np.ndarray = np.abs(gate_gradients(drawn(sample, row_passes // 2, seed))).mean(0)
    return values


def gradient_layer_norm(sample: GatedRows, row_passes: int, seed: int) -> np.ndarray:
    """Return E|g|, divided by the Euclidean norm of each layer, from half of the row passes."""
    return normalized(gradient(sample, row_passes, seed))


def multilinear(sample: GatedRows, row_passes: int, seed: int, objective: str, summary: str) -> np.ndarray:
    """Return the mean gate gradient under random masks over all keep rates (Owen 1972: the multilinear extension).

    Args:
        summary: "signed", the mean of -g; "absolute", the mean of |g|; "normalized", that divided by the norm of the
            layer.
    """
    rows = drawn(sample, int(row_passes / row_cost(objective)), seed)
    masks, _ = draw_masks(torch.zeros(rows.gates().shape), len(rows), torch.Generator().manual_seed(seed))
    gradients = gate_passes(rows, masks, objective)
    mean: np.ndarray = -gradients.mean(0) if summary == "signed" else np.abs(gradients).mean(0)
    return normalized(mean) if summary == "normalized" else mean


def hies(sample: GatedRows, row_passes: int, seed: int, alpha: float = 0.5) -> np.ndarray:
    """Return HIES: alpha times the importance plus (1 - alpha) times (1 - attention entropy), both scaled to 0 to 1.

    Choi et al. 2025 (arXiv 2510.13832), equations 1 and 2; the importance is that of Michel et al. 2019, E|g|. The
    authors choose alpha for each task and compression ratio; here it is fixed.
    """
    rows = drawn(sample, 3 * row_passes // 4, seed)  # a row costs 1 for its gradient and 1 / 3 for its entropy
    importance = np.abs(gate_gradients(rows)).mean(0)
    focus = entropy(rows).values  # minus the entropy
    return alpha * scaled_to_1(importance) + (1 - alpha) * scaled_to_1(focus)


def scaled_to_1(values: np.ndarray) -> np.ndarray:
    """Return the values, scaled linearly so that the smallest is 0 and the largest is 1."""
    low, high = np.nanmin(values), np.nanmax(values)
    scaled: np.ndarray = (values - low) / (high - low if high > low else 1)
    return scaled


def in_rounds(sample: GatedRows, score: Callable[[GatedRows, int], np.ndarray]) -> np.ndarray:
    """Return values that rise along the order of removal, where `score` is measured again in every round.

    Args:
        score: from the rows and the number of the round to values (L, H); removed heads have gates of 0 meanwhile.
    """
    rounds = iter(range(ROUNDS))

    def measure(gates: Tensor) -> Estimate:
        with head_gates(sample.classifier.base, sample.sites, gates, check_calls=False):
            return Estimate(score(sample, next(rounds)))

    order = iterative(sample, measure, ROUNDS).order
    assert order is not None
    values = np.full(sample.gates().shape, np.nan)
    for rank, head in enumerate(order):
        values[head] = rank
    return values


def greedy_gnorm(sample: GatedRows, row_passes: int, seed: int) -> np.ndarray:
    """Return the order of Greedy-Gnorm: the product of the norms of the query, key and value gradients of a head.

    Guo and Sheridan 2026 (arXiv 2602.04491). They remove one head per round; here it is a tenth of the heads, as for
    the other iterative candidates, so that each round has enough rows.
    """
    return in_rounds(
        sample, lambda rows, number: gradient_norms(drawn(rows, row_passes // (ROUNDS - 1), seed + number))
    )


def gradient_norms(rows: GatedRows) -> np.ndarray:
    """Return the product over query, key and value of the norm of the weight's gradient per head, (L, H)."""
    base, sites = rows.classifier.base, rows.sites
    weights = {(site.layer, role): base.get_submodule(getattr(site, role)).weight for site in sites for role in _QKV}
    norms = {key: np.zeros(sites[0].num_heads) for key in weights}

    def add(batch: LocalBatch, positions: np.ndarray) -> Tensor:
        for weight in weights.values():
            weight.requires_grad_(True)
        with rows.accelerator.autocast():
            losses = per_example_loss(base(**batch.inputs).logits, batch.labels, rows.problem_type)
        gradients = torch.autograd.grad(losses.sum(), list(weights.values()))
        for (layer, role), value in zip(weights, gradients, strict=True):
            norms[layer, role] += value.unflatten(0, (sites[layer].num_heads, -1)).flatten(1).norm(dim=1).numpy()
        for weight in weights.values():
            weight.requires_grad_(False)
        return losses

    rows.map_batches(add)
    return np.stack([np.prod([norms[site.layer, role] for role in _QKV], axis=0) for site in sites])


_QKV = ("query", "key", "value")


def grad_drop(sample: GatedRows, row_passes: int, seed: int) -> np.ndarray:
    """Return E|g|, averaged over gradients that each bypass one layer (GradDrop of AtP*, Kramar et al. 2024).

    The gradient does not pass through the attention and the feed-forward network of the layer, only through the
    residual connections around them. For encoders whose modules are named like those of BERT or MPNet.
    """
    sites = sample.sites
    rows = drawn(sample, row_passes // len(sites), seed)
    total = np.zeros(sample.gates().shape)
    for site in sites:
        with bypassed(sample.classifier.base, site.output):
            total += np.abs(gate_gradients(rows)).mean(0) / len(sites)
    return total


@contextmanager
def bypassed(base: nn.Module, output: str) -> Iterator[None]:
    """Stop the gradient at the outputs of a layer's attention and feed-forward network inside the block."""
    layer = output.partition(".attention")[0]

    def detached(module: nn.Module, args: Any, result: Tensor) -> Tensor:
        return result.detach() + 0 * result  # the graph stays connected, so that every gate has a gradient

    with ExitStack() as stack:
        for path in (output, f"{layer}.output.dense"):
            stack.callback(base.get_submodule(path).register_forward_hook(detached).remove)
        yield


def recursive_kl(sample: GatedRows, row_passes: int, seed: int) -> np.ndarray:
    """Return the order of removal by the KL divergence without each head, measured again after each tenth."""
    heads = sum(site.num_heads for site in sample.sites)
    count = max(1, 3 * row_passes // (heads * (ROUNDS - 1)))
    return in_rounds(sample, lambda rows, number: ablation(drawn(rows, count, seed + number)).kl().mean(0))


def random(sample: GatedRows, row_passes: int, seed: int) -> np.ndarray:
    """Return random values."""
    return np.random.default_rng(seed).random(tuple(sample.gates().shape))


def default(sample: GatedRows, row_passes: int, seed: int, rows: int = 256) -> np.ndarray:
    """Return the scores of `learned_order` from this number of rows, each used several times."""
    return learned_order(drawn(sample, rows, seed), row_passes, seed).values


def path_integral(sample: GatedRows, row_passes: int, seed: int) -> np.ndarray:
    """Return integrated gradients with 8 points per row."""
    return integrated_gradients(drawn(sample, row_passes // 8, seed), 8, seed=seed).values


CANDIDATES: dict[str, Ranker] = {
    "gradient_layer_norm": gradient_layer_norm,
    "gradient": gradient,
    "random": random,
    "learned_order": default,
    "learned_order, 1,024 rows": partial(default, rows=1024),
    "integrated_gradients": path_integral,
    "hies": hies,
    "greedy_gnorm": greedy_gnorm,
    "grad_drop": grad_drop,
    "recursive_kl": recursive_kl,
    **{
        f"multilinear, {objective}, {summary}": partial(multilinear, objective=objective, summary=summary)
        for objective in OBJECTIVES
        for summary in ("signed", "absolute", "normalized")
    },
}
