"""What was fitted to the validation rows after training, as stored in `outputs.json`."""

from __future__ import annotations

from dataclasses import dataclass

from finetune.runs.results import MetricValue, format_number


@dataclass(frozen=True)
class CalibrationFigures:
    """How far the probabilities of rows are from observed frequencies, see evaluation/calibration.py."""

    log_loss: MetricValue
    calibration_error: MetricValue
    brier: MetricValue


@dataclass(frozen=True)
class TemperatureFit:
    """The temperature that fits the validation rows, and what it gains on held-out folds of them.

    Attributes:
        rows: number of validation rows.
        value: the temperature; 1 if the rows are too few to fit it.
        applied: whether the classifier uses it.
        reason: why it is not applied, or "".
        before, after: figures at temperature 1, and of each fold at the temperature of the other folds; None if the
            rows are too few.
        decrease: of the log loss, before minus after.
    """

    rows: int
    value: float
    applied: bool
    reason: str = ""
    before: CalibrationFigures | None = None
    after: CalibrationFigures | None = None
    decrease: MetricValue | None = None

    def text(self) -> str:
        """Return the result as a sentence."""
        if self.before is None or self.after is None:
            return f"Temperature: not fitted; {self.reason}."
        names = {"log loss": "log_loss", "calibration error": "calibration_error", "Brier score": "brier"}
        changes = []
        for name, key in names.items():
            old, new = getattr(self.before, key), getattr(self.after, key)
            changes.append(f"{name} {format_number(old.value, 4)} to {format_number(new.value, 4)}")
        state = "" if self.applied else f", not applied because {self.reason}"
        return (
            f"Temperature {self.value:g}{state}: {', '.join(changes)} on held-out folds of {self.rows} validation rows."
        )


@dataclass(frozen=True)
class FittedOutputs:
    """How the logits of a trained model become probabilities and predicted labels, and what was measured for it.

    Attributes:
        rows: number of validation rows to which it was fitted.
        temperature: the number by which logits are divided.
        temperature_fit: how `outputs.temperature: auto` found it; None with a number or null, and in regression.
        conformal_rows: number of validation rows whose scores are saved for prediction sets.
    """

    rows: int
    temperature: float = 1.0
    temperature_fit: TemperatureFit | None = None
    conformal_rows: int = 0
