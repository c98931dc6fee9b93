"""The training loop, in the open: steps, and what falls due after each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import nn

from finetune.errors import TrainingError
from finetune.models.speedups import sped_up
from finetune.recipe import LOWER_IS_BETTER
from finetune.report.progress import TrainingProgress
from finetune.signals import Interrupted, StopRequest
from finetune.training.checkpoints import restore_weights, trained_weights
from finetune.training.trainer import Entry, Loop


def fit(
    loop: Loop,
    *,
    progress: TrainingProgress,
    checkpoints: Path,
    keep: int | None = None,
    best_metric: str = "loss",
    evaluate: Callable[[], dict[str, float | None]] | None = None,
    log: Callable[[Entry], None] = lambda entry: None,
    request: StopRequest | None = None,
) -> str:
    """Train to the end, and leave the model with the weights of its best evaluation; return why it ended.

    Args:
        checkpoints: the folder to write checkpoints to; `keep` of them are kept, None: all.
        best_metric: which of the evaluation's values chooses the best weights; of equal ones, the lower loss does.
        evaluate: returns loss and metrics on validation rows, None for a metric that is undefined; None: never
            called, the last weights stay.
        log: takes each entry of the history.
        request: filled by a signal. Training then ends after the step and what falls due with it.

    Raises:
        TrainingError: the loss is not finite, or a checkpoint cannot be written.
        Interrupted: a signal came; a checkpoint is written whatever the plan says.
    """
    plan, state = loop.plan, loop.state
    loop.request = request
    progress.start(plan.total_steps, state.step)
    with sped_up(loop.classifier, loop.accelerator):
        while (reason := plan.stop_reason(state)) is None:
            for micro_batches, rows in loop.epoch_steps():
                loop.optimise(micro_batches, rows)
                progress.advance()
                while loop.notes:
                    progress.note(loop.notes.pop(0))
                if plan.due(plan.log_every, state.step):
                    entry = loop.log_entry()
                    progress.logged(entry)
                    log(entry)
                if evaluate is not None and plan.due(plan.eval_every, state.step):
                    with loop.whole_model() as model:
                        _judge(loop, model, evaluate(), best_metric, log, progress)
                if plan.due(plan.save_every, state.step) or loop.stopped_by:
                    loop.save(checkpoints, keep)
                if loop.stopped_by:
                    raise _interrupted(loop, checkpoints)
                if plan.stop_reason(state) is not None:
                    break
    if loop.hear():  # a signal that came in the last evaluation, or while the last checkpoint was written
        loop.save(checkpoints, keep)
        raise _interrupted(loop, checkpoints)
    with loop.whole_model() as model:
        if loop.best is not None:
            restore_weights(model, loop.best)
    return reason


def _interrupted(loop: Loop, checkpoints: Path) -> Interrupted:
    where = f" after step {loop.state.step} of {loop.plan.total_steps}, saved in {checkpoints}"
    return Interrupted(loop.stopped_by, where)


def _judge(
    loop: Loop,
    model: nn.Module,
    values: Mapping[str, float | None],
    best_metric: str,
    log: Callable[[Entry], None],
    progress: TrainingProgress,
) -> None:
    """Log an evaluation, and keep the weights if it is the best so far.

    Raises:
        TrainingError: its loss is not finite.
    """
    state = loop.state
    named = {f"eval_{name}": value for name, value in values.items()}
    entry = {"step": state.step, "epoch": round(state.step / loop.plan.steps_per_epoch, 4), **named}
    loss = values["loss"]
    if loss is None or not math.isfinite(loss):
        raise TrainingError(
            f"the evaluation loss is {loss} at step {state.step}; lower training.learning_rate, or set "
            "training.mixed_precision: no"
        )
    value = values[best_metric]
    better = state.note_evaluation(value, loss=loss, lower_is_better=best_metric in LOWER_IS_BETTER)
    if better:
        loop.best = trained_weights(model)
    progress.evaluated(entry, best=better)
    log(entry)
