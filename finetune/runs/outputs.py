"""What was fitted to the validation rows after training, as stored in `outputs.json`."""

from __future__ import annotations

from dataclasses import dataclass, field

from finetune.runs.results import MetricValue, format_number

_MAX_SHOWN = 3  # labels


@dataclass(frozen=True)
class FittedThresholds:
    """Thresholds of labels, and what they change.

    Attributes:
        goal: what they were tuned for, such as "the highest F1".
        values: by label name, the probability above which the label is predicted.
        metric: the F1 that is compared: f1_micro, f1_macro or f1_weighted over the labels that have a threshold.
        gain: F1 with tuned thresholds minus that without, cross-fitted on the validation rows; None if the recipe gives
            the thresholds.
        precision, recall: with tuned thresholds, of all these labels together, cross-fitted; None if undefined.
        used: whether the model has these thresholds; `auto` keeps the default if they gain nothing.
        notes: what the thresholds do not promise.
    """

    goal: str
    values: dict[str, float]
    metric: str = "f1_micro"
    gain: MetricValue | None = None
    precision: float | None = None
    recall: float | None = None
    used: bool = True
    notes: list[str] = field(default_factory=list)

    def text(self, rows: int) -> str:
        """Return what was tuned and what it gains, as sentences.

        Args:
            rows: number of validation rows.
        """
        if self.gain is None:
            return f"Thresholds from the recipe: {self._values_text()}."
        metric = f"F1 of {next(iter(self.values))}" if len(self.values) == 1 else self.metric
        bounds = self.gain.interval() or (f"({self.gain.note})" if self.gain.note else "")
        gain = "undefined" if self.gain.value is None else f"{self.gain.value:+.3f} {bounds}".rstrip()
        measured = (
            f"{metric} {gain}, precision {format_number(self.precision)}, recall {format_number(self.recall)} "
            "(cross-fitted)"
        )
        if not self.used:
            return (
                f"Thresholds tuned on the {rows:,} validation rows for {self.goal} would gain nothing, so they are not "
                f"used: {measured}."
            )
        notes = "".join(f" Note: {note}." for note in self.notes)
        return (
            f"Thresholds tuned on the {rows:,} validation rows for {self.goal}: {self._values_text()}. Change on rows "
            f"that did not tune them: {measured}. The validation scores are optimistic, since these rows tuned the "
            f"thresholds.{notes}"
        )

    def _values_text(self) -> str:
        """Return the thresholds of up to three labels, or the range of more."""
        if len(self.values) <= _MAX_SHOWN:
            return ", ".join(f"{name} {value:.3g}" for name, value in self.values.items())
        low, high = min(self.values.values()), max(self.values.values())
        return f"{low:.3g} to {high:.3g} for {len(self.values)} labels" if low < high else f"{low:.3g} for every label"


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
        changes = []
        for name, old, new in self.figures():
            changes.append(f"{name} {format_number(old.value, 4)} to {format_number(new.value, 4)}")
        if self.decrease is not None and self.decrease.interval():
            changes[0] += f" (lower by {format_number(self.decrease.value)} {self.decrease.interval()})"
        state = "" if self.applied else f", not applied because {self.reason}"
        rows = f"held-out folds of {self.rows:,} validation rows"
        return f"Temperature {self.value:.3g}{state}: {', '.join(changes)} on {rows}."

    def figures(self) -> list[tuple[str, MetricValue, MetricValue]]:
        """Return the name of each figure, and its value before and after; [] if the rows are too few."""
        if self.before is None or self.after is None:
            return []
        names = {"log_loss": "log loss", "calibration_error": "calibration error", "brier": "Brier score"}
        return [(name, getattr(self.before, key), getattr(self.after, key)) for key, name in names.items()]


@dataclass(frozen=True)
class FittedOutputs:
    """How the logits of a trained model become probabilities and predicted labels, and what was measured for it.

    Attributes:
        rows: number of validation rows to which it was fitted.
        temperature: the number by which logits are divided.
        temperature_fit: how `outputs.temperature: auto` found it; None with a number or null, and in regression.
        conformal_rows: number of validation rows whose scores are saved for prediction sets.
        thresholds: None if no label has one.
    """

    rows: int
    temperature: float = 1.0
    temperature_fit: TemperatureFit | None = None
    conformal_rows: int = 0
    thresholds: FittedThresholds | None = None
