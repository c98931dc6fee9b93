"""Shapley values of attention heads: each head's share in what all heads together take off the loss.

The players are the heads, and a set of heads is worth minus the mean loss of the sample with the other heads gated
to 0. A head's Shapley value is what it adds when heads come in one after another, averaged over all orders
(Shapley 1953; for attention heads Held and Yang 2023), estimated from random orders.

    N rows, B batch, L layers, H heads (of the layer that has most), P players, C classes
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from finetune.data.batching import LocalBatch
from finetune.errors import ModelError
from finetune.heads.gated_forward import GatedRows, row_losses
from finetune.models.head_gates import head_gates, max_num_heads
from finetune.models.losses import per_example_loss


@dataclass(frozen=True)
class ShapleyValues:
    """Estimated Shapley values.

    Attributes:
        contributions: of each row, (N, L, H); the heads of a row add up to its loss without any head, minus its loss
            with all. Their mean over rows are the values. NaN where a layer has no such head.
        standard_errors: of the values over the draw of orders, the rows being given, (L, H); None after one pair.
        row_standard_errors: of the values over the draw of rows, (L, H), the noise of the orders included; None
            for one row.
        permutations: orders that each row followed.
        converged: whether the precision that was asked for was reached.
    """

    contributions: np.ndarray
    standard_errors: np.ndarray | None
    row_standard_errors: np.ndarray | None
    permutations: int
    converged: bool

    @property
    def values(self) -> np.ndarray:
        """The Shapley values, (L, H), in nats for classes."""
        return np.asarray(self.contributions.mean(0))


def shapley_values(sample: GatedRows, *, most: int = 64, precision: float = 0.05, seed: int = 0) -> ShapleyValues:
    """Return the heads' Shapley values for the loss.

    Orders come in rounds. In a round each row follows an order of its own and the reverse of that order (antithetic
    pairs: Mitchell et al. 2022), by 2 (P - 1) forward passes over the sample. It may seem natural to let all rows
    follow the same order. At the same cost an order for each row is the better estimator: the variance of the mean
    over rows is then sum_n Var(m_n) / N^2, where m_n is what the head adds for row n, instead of
    sum_n,n' Cov(m_n, m_n') / N^2, and those covariances are positive: the same company makes a head useless for many
    rows at once (measured on a small trained BERT with 48 rows: two thirds of the variance). A row's own values are
    as exact either way. The spread within rows also tells the error after few rounds. To stratify the orders over
    rows, by the rotations of one order, gained nothing more: a pair already evens out early and late places.

    Args:
        most: permutations of a row, at least 2; an odd number is rounded down.
        precision: stop when the largest standard error over permutations is at most this share of the range of the
            values, but not before the second round.
        seed: of the orders; they do not depend on batch size or number of processes.

    Raises:
        ModelError: `most` is below 2.
    """
    if most < 2:
        raise ModelError(f"Shapley values were to use at most {most} permutations; they come in pairs: give 2 or more")
    players = np.array([(site.layer, head) for site in sample.sites for head in range(site.num_heads)])  # (P, 2)
    ends = [row_losses(sample, gates).astype(np.float64) for gates in (0 * sample.gates(), sample.gates())]  # none, all
    total, squares = np.zeros((2, len(sample), len(players)))
    converged, error, rounds = False, None, 0
    while rounds < most // 2 and not converged:
        orders = _orders(len(sample), len(players), seed, rounds)
        found = _round(sample, players, orders, *ends)  # (N, P)
        rounds += 1
        total, squares = total + found, squares + found**2
        if rounds > 1:
            variance = (squares - total**2 / rounds) / (rounds - 1)  # (N, P), of a row over its rounds
            error = np.sqrt((variance.clip(min=0) / rounds).sum(0)) / len(sample)  # (P,)
            converged = bool(error.max() <= precision * np.ptp((total / rounds).mean(0)))
    contributions = total / rounds
    spread = contributions.std(0, ddof=1) / np.sqrt(len(sample)) if len(sample) > 1 else None
    table = (len(sample.sites), max_num_heads(sample.sites))
    return ShapleyValues(
        _tabled(contributions, players, table),
        None if error is None else _tabled(error, players, table),
        None if spread is None else _tabled(spread, players, table),
        2 * rounds,
        converged,
    )


def _orders(rows: int, players: int, seed: int, number: int) -> np.ndarray:
    """Return the order that each row follows in a round, (N, P): players by time of entry."""
    rng = np.random.default_rng([seed, number])
    return rng.permuted(np.tile(np.arange(players), (rows, 1)), axis=1)


def _round(
    sample: GatedRows, players: np.ndarray, orders: np.ndarray, nothing: np.ndarray, whole: np.ndarray
) -> np.ndarray:
    """Return what each player adds to each row, the mean over the row's order and its reverse: (N, P)."""
    base, sites, accelerator = sample.classifier.base, sample.sites, sample.accelerator
    layers, heads = torch.from_numpy(players).T.to(accelerator.device)

    @torch.no_grad()
    def measure(batch: LocalBatch, places: np.ndarray) -> Tensor:
        own = orders[places]
        rank = torch.from_numpy(np.argsort(own, axis=1)).to(accelerator.device)  # (B, P): when each player enters
        losses = torch.empty(len(own), 2, rank.shape[1] - 1, device=accelerator.device)  # read once a batch
        for entered in range(1, rank.shape[1]):
            early = rank < entered
            for way, present in enumerate((early, ~early)):
                gates = sample.gates().repeat(len(own), 1, 1)  # (B, L, H)
                gates[:, layers, heads] = present.to(gates.dtype)
                with head_gates(base, sites, gates), accelerator.autocast():
                    logits = base(**batch.inputs).logits
                losses[:, way, entered - 1] = per_example_loss(logits, batch.labels, sample.classifier.problem_type)
        return losses

    found = sample.map_batches(measure).astype(np.float64)
    # Losses with the first t players, t = 0 .. P, and with all but the first t: (N, P + 1).
    forward = np.concatenate([nothing[:, None], found[:, 0], whole[:, None]], 1)
    backward = np.concatenate([whole[:, None], found[:, 1], nothing[:, None]], 1)
    added = (np.diff(backward) - np.diff(forward)) / 2  # (N, P) by time of entry
    result = np.empty_like(added)
    np.put_along_axis(result, orders, added, axis=1)
    return result


def _tabled(values: np.ndarray, players: np.ndarray, table: tuple[int, int]) -> np.ndarray:
    """Return values (..., P) as (..., L, H)."""
    result = np.full((*values.shape[:-1], *table), np.nan)
    result[..., players[:, 0], players[:, 1]] = values
    return result
