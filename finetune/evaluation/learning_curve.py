"""Warnings about the course of training: the metric never changed, or the loss was still falling at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from finetune.recipe.named_metrics import lower_is_better
from finetune.runs.results import format_number

Evaluations = Sequence[Mapping[str, int | float | None]]
# Part of the whole fall of the validation loss in the last third of the evaluations, measured with MiniLM: 0.15 to 0.42
# in runs of few steps (TREC: 200 rows for 3 and 6 epochs, 1,000 rows for 3 epochs), at most 0.05 in longer ones (NLU++
# with 300 and 2,460 rows), and the loss rose in others (MRPC, SST-2 with 5 % positive rows).
MIN_SHARE = 0.12
MIN_CHANGE = 0.01  # of the loss; a smaller change is noise
_FIX = "Raise training.num_train_epochs (or max_steps) or training.learning_rate"


def learning_curve_warnings(
    history: Evaluations, metric: str, *, constant_score: float | None, all_steps_done: bool
) -> list[str]:
    """Return warnings about a training run: what was measured, what it means, what to change.

    Args:
        history: the entries of the run's history; those with an `eval_loss` are evaluations.
        metric: the metric that selects the best model, or `loss`.
        constant_score: this metric of the best constant prediction; None if it is not known.
        all_steps_done: whether training took all its steps, and did not stop early.
    """
    evaluations = [entry for entry in history if "eval_loss" in entry]
    warnings = [_unchanged_metric(evaluations, metric, constant_score)]
    if all_steps_done:
        warnings.append(_falling_loss(evaluations))
    return [warning for warning in warnings if warning]


def _unchanged_metric(evaluations: Evaluations, metric: str, constant_score: float | None) -> str:
    """Return a warning if the metric had one value in all evaluations, "" if that is no sign of a bad model.

    It is none if the value is perfect, or if it is above that of a constant prediction and the loss has changed: a few
    validation rows may show no further progress.
    """
    values = {entry.get(f"eval_{metric}") for entry in evaluations}
    if len(evaluations) < 2 or len(values) > 1:
        return ""
    (value,) = values
    if value is None:
        return (
            f"{metric} was undefined in all {len(evaluations)} evaluations during training, so the weights with the "
            "lowest loss were kept."
        )
    is_above = value is not None and constant_score is not None and value > constant_score
    losses = [float(entry["eval_loss"] or 0) for entry in evaluations]
    if _is_perfect(f"eval_{metric}", value) or (is_above and max(losses) - min(losses) > MIN_CHANGE * max(losses)):
        return ""
    return (
        f"{metric} was {format_number(value)} in all {len(evaluations)} evaluations during training, so training did "
        f"not improve it. {_FIX}."
    )


def _falling_loss(evaluations: Evaluations) -> str:
    """Return a warning if a large part of the fall of the loss was in the last third of the evaluations, else "".

    There is none if a metric is already perfect.
    """
    losses = [float(entry["eval_loss"] or 0) for entry in evaluations]
    if len(losses) < 3:
        return ""
    if any(_is_perfect(name, value) for name, value in evaluations[-1].items()):
        return ""
    intervals = round((len(losses) - 1) / 3)
    first, before, last = losses[0], losses[-1 - intervals], losses[-1]
    if last >= first or last > min(losses) or before - last < max(MIN_CHANGE * before, MIN_SHARE * (first - last)):
        return ""
    return (
        f"The validation loss was still falling when training ended: from {before:.4f} at step "
        f"{evaluations[-1 - intervals]['step']} to {last:.4f} at step {evaluations[-1]['step']}, "
        f"{100 * min(1.0, (before - last) / (first - last)):.0f} % of its whole fall. {_FIX}."
    )


def _is_perfect(name: str, value: float | None) -> bool:
    """Return whether an entry of an evaluation is a metric with its best possible value."""
    metric = name.removeprefix("eval_")
    return name.startswith("eval_") and value == (0.0 if lower_is_better(metric) else 1.0)
