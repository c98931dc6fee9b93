"""Shapley values of attention heads: the share of each head in the drop of the loss from no heads to all heads.

The players are the heads. The value of a set of heads is minus the mean loss of the rows with all other heads gated
to 0. The Shapley value of a head is what it adds when the heads are added one after another, averaged over all orders
(Shapley 1953; for attention heads Held and Yang 2023). It is estimated from random orders.

    N rows, B batch, L layers, H heads (of the layer with the most heads), P players (heads of all layers)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from finetune.data.batching import LocalBatch
from finetune.errors import ModelError
from finetune.heads.gated_forward import GatedRows, row_losses
from finetune.models.attention_sites import all_heads
from finetune.models.head_gates import head_gates, max_num_heads
from finetune.models.losses import per_example_loss
from finetune.progress import stage
from finetune.recipe.head_costs import MAX_PERMUTATIONS


@dataclass(frozen=True)
class ShapleyValues:
    """Estimated Shapley values.

    Attributes:
        contributions: Shapley values of each row, (N, L, H), in units of the loss. Over the heads they sum to the loss
            of the row without any head minus its loss with all heads. NaN where a layer lacks the head.
        standard_errors: of the values due to the random orders, for the given rows, (L, H); None after one pair.
        row_standard_errors: of the values due to the choice of rows, (L, H), including the noise of the orders; None
            for one row.
        permutations: number of orders per row.
        converged: whether the required precision was reached.
    """

    contributions: np.ndarray
    standard_errors: np.ndarray | None
    row_standard_errors: np.ndarray | None
    permutations: int
    converged: bool

    @property
    def values(self) -> np.ndarray:
        """The Shapley values, (L, H), in units of the loss (nats for classification)."""
        return np.asarray(self.contributions.mean(0))


def shapley_values(
    sample: GatedRows, *, max_permutations: int = MAX_PERMUTATIONS, precision: float = 0.05, seed: int = 0
) -> ShapleyValues:
    """Return the Shapley values of the heads for the loss.

    Orders are evaluated in rounds. In a round each row gets its own random order and the reverse of it (antithetic
    pairs, Mitchell et al. 2022), which takes 2 (P - 1) forward passes over the rows.

    One order per row gives a smaller variance than one order for all rows, at the same cost. Let m_n be what the head
    adds for row n. The variance of the mean over rows is sum_n Var(m_n) / N^2 with an order per row, and
    sum_n,n' Cov(m_n, m_n') / N^2 with a common order. The covariances are positive, since the same set of other heads
    makes a head useless for many rows; on a small trained BERT with 48 rows they were two thirds of the variance.
    An order per row also gives the standard error after few rounds, from the variance over the rounds of each row.
    Rotating one order over the rows did not help further: a pair already balances early and late positions.

    Args:
        max_permutations: per row, at least 2; an odd number is rounded down.
        precision: stop when the largest standard error over permutations is at most this fraction of the range of
            the values, but not before the second round.
        seed: of the orders, which do not depend on the batch size or the number of processes.

    Raises:
        ModelError: `max_permutations` is below 2.
    """
    if max_permutations < 2:
        raise ModelError(f"max_permutations is {max_permutations}; orders come in pairs, so it must be at least 2")
    players = np.array(all_heads(sample.sites))  # (P, 2)
    # The losses without any head and with all heads, (N,) each.
    loss_none, loss_all = (
        row_losses(sample, gates).astype(np.float64) for gates in (0 * sample.gates(), sample.gates())
    )
    total, squares = np.zeros((2, len(sample), len(players)))
    converged, error, rounds = False, None, 0
    with stage("rounds (may stop early)", total=max_permutations // 2) as progress:
        while rounds < max_permutations // 2 and not converged:
            orders = _orders(len(sample), len(players), seed, rounds)
            added = _round_contributions(sample, players, orders, loss_none, loss_all)  # (N, P)
            rounds += 1
            total, squares = total + added, squares + added**2
            if rounds > 1:
                variance = (squares - total**2 / rounds) / (rounds - 1)  # (N, P), of each row over the rounds
                error = np.sqrt((variance.clip(min=0) / rounds).sum(0)) / len(sample)  # (P,)
                converged = bool(error.max() <= precision * np.ptp((total / rounds).mean(0)))
            progress.advance()
    contributions = total / rounds
    spread = contributions.std(0, ddof=1) / np.sqrt(len(sample)) if len(sample) > 1 else None
    shape = (len(sample.sites), max_num_heads(sample.sites))
    return ShapleyValues(
        _as_table(contributions, players, shape),
        None if error is None else _as_table(error, players, shape),
        None if spread is None else _as_table(spread, players, shape),
        2 * rounds,
        converged,
    )


def _orders(rows: int, players: int, seed: int, round_number: int) -> np.ndarray:
    """Return the random order of each row in a round, (N, P): indices of players."""
    rng = np.random.default_rng([seed, round_number])
    return rng.permuted(np.tile(np.arange(players), (rows, 1)), axis=1)


def _round_contributions(
    sample: GatedRows, players: np.ndarray, orders: np.ndarray, loss_none: np.ndarray, loss_all: np.ndarray
) -> np.ndarray:
    """Return what each player adds for each row, the mean over the order of the row and its reverse: (N, P)."""
    base, sites, accelerator = sample.classifier.base, sample.sites, sample.accelerator
    layers, heads = torch.from_numpy(players).T.to(accelerator.device)

    @torch.no_grad()
    def losses_of(batch: LocalBatch, positions: np.ndarray) -> Tensor:
        """Return the losses of the first heads of each row's order and of the others, (B, 2, P - 1)."""
        ranks = torch.from_numpy(np.argsort(orders[positions], axis=1)).to(accelerator.device)  # (B, P)
        losses = torch.empty(len(ranks), 2, ranks.shape[1] - 1, device=accelerator.device)  # copied once per batch
        for count in range(1, ranks.shape[1]):
            first = ranks < count
            for direction, present in enumerate((first, ~first)):
                gates = sample.gates().repeat(len(ranks), 1, 1)  # (B, L, H)
                gates[:, layers, heads] = present.to(gates.dtype)
                with head_gates(base, sites, gates), accelerator.autocast():
                    logits = base(**batch.inputs).logits
                losses[:, direction, count - 1] = per_example_loss(logits, batch.labels, sample.classifier.problem_type)
        return losses

    losses = sample.map_batches(losses_of).astype(np.float64)
    # Losses with the first t players, t = 0 .. P, and with all but the first t: (N, P + 1).
    forward = np.concatenate([loss_none[:, None], losses[:, 0], loss_all[:, None]], 1)
    backward = np.concatenate([loss_all[:, None], losses[:, 1], loss_none[:, None]], 1)
    added = (np.diff(backward) - np.diff(forward)) / 2  # (N, P), in the order of the row
    result = np.empty_like(added)
    np.put_along_axis(result, orders, added, axis=1)
    return result


def _as_table(values: np.ndarray, players: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return values (..., P) as (..., L, H)."""
    result = np.full((*values.shape[:-1], *shape), np.nan)
    result[..., players[:, 0], players[:, 1]] = values
    return result
