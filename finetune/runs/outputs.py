"""What was fitted to the validation rows after training, as stored in `outputs.json`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FittedOutputs:
    """How the logits of a trained model become probabilities and predicted labels, and what was measured for it.

    Attributes:
        rows: number of validation rows to which it was fitted.
        temperature: the number by which logits are divided.
    """

    rows: int
    temperature: float = 1.0
