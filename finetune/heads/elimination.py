"""Backward elimination: the order in which parts of a sublayer are removed, what it costs, and the refitted weights.

The remaining columns of the output projection are refitted by least squares so that its output changes as little as
possible: the optimal brain surgeon (Hassibi and Stork 1992) for groups of columns (Kurtic et al. 2023, ZipLM). The
change is measured by its effect on the logits, not by its norm, so the costs of different sublayers can be added.

    P parts, w columns per part, D = P * w inputs of a projection, E outputs, K remaining columns
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.heads.output_moments import OutputMoments
from finetune.heads.sublayers import Sublayer

RIDGE = 1e-3  # of the mean variance of an input, added to the variance of each


@dataclass(frozen=True)
class Elimination:
    """The result of removing the parts of a sublayer one step after another.

    Attributes:
        order: all parts, the first to remove first.
        costs: expected squared change of the logits of a row for each of `Sublayer.sizes()`.
    """

    order: tuple[int, ...]
    costs: tuple[float, ...]

    def remaining(self, size: int) -> list[int]:
        """Return the parts that remain if `size` of them do."""
        return sorted(self.order[len(self.order) - size :])


def eliminate(sublayer: Sublayer, moments: OutputMoments, weight: Tensor) -> Elimination:
    """Remove the parts of a sublayer, each time those whose removal and refit changes the logits least.

    Args:
        weight: of the output projection, (E, D).
    """
    width, inverse = sublayer.width, torch.linalg.inv(_regularized(moments.covariance))
    values = _root(moments.sensitivity) @ weight.detach().cpu().double()  # (E, D): output changes in logits
    alive, order, costs = torch.arange(sublayer.num_parts), list[int](), [0.0]
    sizes = sublayer.sizes()
    for size in sizes[1:]:
        count = len(alive)
        blocks = inverse.view(count, width, count, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # (P, w, w)
        split = values.view(-1, count, width).transpose(0, 1)  # (P, E, w)
        scores = (split @ torch.linalg.inv(blocks) * split).sum((1, 2))
        removed = torch.argsort(scores, stable=True)[: count - size]
        gone = torch.zeros(count, dtype=torch.bool).index_fill_(0, removed, True)
        columns = gone.repeat_interleave(width)
        removed_values, rows = values[:, columns], inverse[columns]
        block = torch.linalg.inv(rows[:, columns])
        costs.append(costs[-1] + float((removed_values @ block * removed_values).sum()))
        order += alive[removed].tolist()
        gain = block @ rows[:, ~columns]
        values = values[:, ~columns] - removed_values @ gain
        inverse = inverse[~columns][:, ~columns] - rows[:, ~columns].T @ gain
        alive = alive[~gone]
    return Elimination(tuple(order), tuple(costs))


def refitted(moments: OutputMoments, weight: Tensor, columns: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the least-squares weights (E, K) of the remaining columns, and the change of the bias, (E,).

    They minimize the mean squared change of the projection's output over tokens. The ridge keeps the weights near the
    original ones. The mean of what was removed goes to the bias (optimal constants: Li and Janson 2024).

    Args:
        weight: (E, D).
        columns: those that remain.
    """
    original = weight.detach().cpu().double()
    kept = torch.zeros(original.shape[1], dtype=torch.bool).index_fill_(
        0, torch.tensor(columns, dtype=torch.long), True
    )
    covariance = _regularized(moments.covariance)
    change = torch.linalg.solve(covariance[kept][:, kept], moments.covariance[kept][:, ~kept] @ original[:, ~kept].T).T
    bias = original[:, ~kept] @ moments.mean[~kept] - change @ moments.mean[kept]
    return (original[:, kept] + change).to(weight), bias.to(weight)


def _regularized(covariance: Tensor) -> Tensor:
    """Return the covariance with the ridge on its diagonal; of inputs that are all constant, the identity."""
    ridge = RIDGE * float(covariance.diagonal().mean()) or 1.0
    return covariance + ridge * torch.eye(len(covariance), dtype=covariance.dtype)


def _root(matrix: Tensor) -> Tensor:
    """Return a matrix S with S' S equal to a positive semidefinite matrix."""
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    root: Tensor = (vectors * eigenvalues.clamp(min=0).sqrt()).T
    return root
