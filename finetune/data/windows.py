"""Batches in which a row can have several windows.

The model inputs of such a batch hold one sequence per window, the windows of a row one after the other, and
`window_counts`, the number of windows of each row. Batches for an accelerator have it on the CPU: it decides on shapes,
and reading it from the accelerator would wait for all that runs there.

    B rows, W windows of all rows
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

WINDOW_COUNTS = "window_counts"  # model input (B,); there is none if every row has one window

Inputs = Mapping[str, Tensor]


def num_rows(inputs: Inputs) -> int:
    """Return the number of rows in a batch, B."""
    return len(inputs.get(WINDOW_COUNTS, inputs["input_ids"]))


def select_rows(inputs: Inputs, rows: slice | Tensor) -> dict[str, Tensor]:
    """Return the model inputs of some rows of a batch; row numbers may repeat."""
    counts = inputs.get(WINDOW_COUNTS)
    if counts is None:
        return {name: tensor[rows] for name, tensor in inputs.items()}
    numbers = torch.arange(len(counts), device=counts.device)[rows]
    starts = counts.cumsum(0) - counts
    windows = torch.cat([torch.arange(int(counts[row]), device=counts.device) + starts[row] for row in numbers])
    selected = {name: tensor[windows] for name, tensor in inputs.items() if name != WINDOW_COUNTS}
    return {**selected, WINDOW_COUNTS: counts[rows]}


def pool_windows(values: Tensor, counts: Tensor | None, pooling: str) -> Tensor:
    """Return one value per row, (B, ...), from the values of its windows, (W, ...), in at least float32.

    Args:
        counts: number of windows of each row, (B,); None: one each, and the values are returned unchanged.
        pooling: mean or max.
    """
    if counts is None:
        return values
    rows = values.to(torch.promote_types(values.dtype, torch.float32)).split(counts.tolist())
    return torch.stack([row.mean(0) if pooling == "mean" else row.amax(0) for row in rows])


def repeat_per_window(values: Tensor, counts: Tensor | None) -> Tensor:
    """Return the values (B, ...) of the rows for each of their windows, (W, ...)."""
    if counts is None:
        return values
    return values.repeat_interleave(counts.to(values.device), 0, output_size=int(counts.sum()))
