"""The training log of the model card: one line per evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_MAX_LINES = 12

HistoryEntry = Mapping[str, int | float | None]


@dataclass(frozen=True)
class LogLine:
    """Training loss and evaluation at one optimizer step.

    Attributes:
        loss: the last training loss that was logged since the previous line; None if there is none.
        evaluation: loss and metrics on the validation rows, by name.
        saved: whether these weights are the saved ones.
    """

    step: int
    epoch: float
    loss: float | None
    evaluation: Mapping[str, float | None]
    saved: bool = False


def training_log(history: Sequence[HistoryEntry], best_step: int | None) -> list[LogLine]:
    """Return a line per evaluation, or per logged loss if there was none; of many lines at most 12, evenly spaced.

    The first line, the last line and that of the best step are always kept.
    """
    lines: list[LogLine] = []
    loss = None
    evaluated = any("eval_loss" in entry for entry in history)
    for entry in history:
        loss = entry.get("loss", loss)
        if "eval_loss" in entry or not evaluated:
            step = int(entry["step"] or 0)
            evaluation = {
                name.removeprefix("eval_"): value for name, value in entry.items() if name.startswith("eval_")
            }
            lines.append(LogLine(step, entry.get("epoch") or 0.0, loss, evaluation, evaluated and step == best_step))
            loss = None
    if len(lines) <= _MAX_LINES:
        return lines
    spaced = {round(index * (len(lines) - 1) / (_MAX_LINES - 1)) for index in range(_MAX_LINES)}
    return [line for index, line in enumerate(lines) if index in spaced or line.saved]
