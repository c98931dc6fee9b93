"""Training: `Trainer.fit` is the training loop. Start reading there.

build.py            creates the trainer: model, optimizer, scheduler and loss
auto_settings.py    the numbers that a recipe leaves to `auto`
schedule.py         the plan: number of steps, and when to log, evaluate, save and stop
step.py             one optimizer step: gradient accumulation, clipping, update, recovery from out-of-memory errors
training_model.py   the model in a step: the classifier's model, or a copy sharded with FSDP (fsdp.py)
snapshot.py         the content of a checkpoint; checkpoints.py writes and reads it
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from finetune.data.batching import LocalBatch, load_batches
from finetune.data.sampler import Step
from finetune.data.tokenization import EncodedSplit
from finetune.errors import TrainingError
from finetune.models.classifier import Classifier
from finetune.models.speedups import sped_up
from finetune.models.target_scaling import StandardizedOutput, fold
from finetune.progress import stage
from finetune.recipe.named_metrics import lower_is_better
from finetune.report.terminal import evaluation_line
from finetune.signals import Interrupted, StopRequest
from finetune.training.checkpoints import load_checkpoint, save_checkpoint
from finetune.training.fsdp import is_sharded
from finetune.training.nonfinite import StepInfo
from finetune.training.padding_free_setting import with_row_lengths
from finetune.training.schedule import Plan
from finetune.training.snapshot import Snapshot, restore_weights, trained_weights
from finetune.training.state import TrainState, random_state
from finetune.training.step import Stepper

Entry = dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """How the model is evaluated during training.

    Attributes:
        run: returns the loss and metrics on the validation split, None for an undefined metric.
        best_metric: which of these values selects the best weights.
        tolerance: see `TrainState.record_evaluation`.
    """

    run: Callable[[], dict[str, float | None]]
    best_metric: str = "loss"
    tolerance: float = 0.0


@dataclass(eq=False)
class Trainer:
    """Trains a classifier. `build_trainer` (build.py) creates it.

    Attributes:
        classifier: the classifier to train; its model has the current weights only inside `full_model()`.
        split, plan: the training split; number of steps, and when to log, evaluate and save.
        plan_rows: returns the row numbers of each step of an epoch.
        accelerator: device, precision and processes.
        stepper: runs one optimizer step, with its model, optimizer and scheduler.
        run_fingerprint: what a resumed run must have in common with this one.
        standardized: the output layer of a regression, whose scaling `fit` folds into the weights at the end.
        state: counters and the best evaluation.
        best: the trainable parameters at the best evaluation, None before the first.
        messages: lines that `fit` prints after the current step.
        stop_signal: the signal that one of the processes received, 0 if none did.
    """

    classifier: Classifier
    split: EncodedSplit
    plan: Plan
    plan_rows: Callable[[int], list[Step]]
    accelerator: Accelerator
    stepper: Stepper
    run_fingerprint: dict[str, Any]
    standardized: StandardizedOutput | None = None
    state: TrainState = field(default_factory=TrainState)
    best: dict[str, Tensor] | None = None
    messages: list[str] = field(default_factory=list)
    stop_signal: int = 0
    _stop_request: StopRequest | None = field(default=None, init=False)
    _losses: list[Tensor] = field(default_factory=list, init=False)  # of each step since the last log entry
    _gradient_norm: Tensor = field(default_factory=lambda: torch.zeros(()), init=False)  # of the last step

    def fit(
        self,
        checkpoints: Path,
        *,
        keep: int | None = None,
        evaluation: Evaluation | None = None,
        log: Callable[[Entry], None] = lambda entry: None,
        print_line: Callable[[str], None] = lambda line: None,
        stop_request: StopRequest | None = None,
    ) -> str:
        """Train to the end, restore the weights of the best evaluation, and return why training ended.

        Args:
            checkpoints: the folder to save checkpoints in.
            keep: how many checkpoints to keep; None: all.
            evaluation: None: never evaluate, and keep the last weights.
            log, print_line: called with each entry of the history, and with each line for the terminal.
            stop_request: set by a signal handler; training then saves a checkpoint after the current step and stops.

        Raises:
            TrainingError: the loss is not finite, or a checkpoint cannot be written.
            Interrupted: a signal arrived; a checkpoint was saved.
        """
        plan, state, self._stop_request = self.plan, self.state, stop_request
        with (
            sped_up(self.classifier, self.accelerator),
            stage("training", plan.total_steps, done=state.step) as progress,
        ):
            while (stop_reason := plan.stop_reason(state)) is None:
                for micro_batches, rows in self.epoch_steps():
                    self.optimizer_step(micro_batches, rows)
                    progress.advance()
                    while self.messages:
                        print_line(self.messages.pop(0))
                    evaluates = evaluation is not None and plan.due(plan.eval_every, state.step)
                    if evaluates or plan.due(plan.log_every, state.step):
                        entry = self.log_entry()
                        progress.describe(f"loss {entry['loss']:.4f}  {entry['samples_per_second']:.0f} rows/s")
                        log(entry)
                    if evaluation is not None and evaluates:
                        entry, is_best = self.evaluate(evaluation)
                        print_line(evaluation_line(entry, best=is_best))
                        log(entry)
                    if plan.due(plan.save_every, state.step) or self.stop_signal:
                        self.save(checkpoints, keep)
                    if self.stop_signal:
                        raise self._interrupted(checkpoints)
                    if plan.stop_reason(state) is not None:
                        break
        if self.sync_stop_signal():  # a signal arrived during the last evaluation or the last save
            self.save(checkpoints, keep)
            raise self._interrupted(checkpoints)
        if self.best is None and self.stepper.model.average is not None:
            with self.full_model() as model:
                self.best = trained_weights(model)
        with self.current_model() as model:
            if self.best is not None:
                restore_weights(model, self.best)
            fold(self.standardized)
        return stop_reason

    def epoch_steps(self) -> Iterator[tuple[list[LocalBatch], np.ndarray]]:
        """Yield the remaining steps of the epoch: micro-batches of this process, and row indices of all processes."""
        steps = self.plan_rows(self.state.epoch)[self.state.step_in_epoch :]
        batches = load_batches(
            self.split,
            [rows for step in steps for rows in step],
            self.classifier.tokenizer,
            device=self.accelerator.device,
            process=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
        )
        for step in steps:
            started = time.perf_counter()
            self.state.count_rows(self.split.lengths, step)
            loaded = [with_row_lengths(next(batches), self.split.lengths[own], self.accelerator) for own in step]
            self.state.train_seconds += time.perf_counter() - started
            yield loaded, np.concatenate(step)

    def optimizer_step(self, micro_batches: list[LocalBatch], rows: np.ndarray) -> None:
        """Do one optimizer step on the mean loss of the rows with the indices `rows`, and count it.

        Raises:
            TrainingError: the loss or gradient is not finite, or memory does not suffice for one row.
        """
        started = time.perf_counter()
        learning_rate = float(self.stepper.scheduler.get_last_lr()[0])
        info = StepInfo(self.state.step + 1, learning_rate, self.split.numbers[rows], self.split.source)
        result = self.stepper.run(micro_batches, info, self.state, self._stop_request)
        self._losses.append(result.loss)
        self._gradient_norm = result.gradient_norm
        self.messages += result.messages
        self.stop_signal = result.stop_signal
        self.state.count_step(self.plan.steps_per_epoch)
        self.state.train_seconds += time.perf_counter() - started

    def log_entry(self) -> Entry:
        """Return a history entry: mean loss and speed since the last entry, learning rate, last gradient norm."""
        started = time.perf_counter()  # reading the losses waits for the steps that a GPU has not finished
        self.stepper.check_last_step()
        mean, norm = torch.stack(self._losses).mean().item(), self._gradient_norm.item()  # the norm before clipping
        self.state.train_seconds += time.perf_counter() - started
        self._losses.clear()
        state = self.state
        seconds, rows = state.train_seconds - state.logged_seconds, state.rows_seen - state.logged_rows
        state.logged_seconds, state.logged_rows = state.train_seconds, state.rows_seen
        return {
            **self._position(),
            "loss": mean,
            "learning_rate": self.stepper.scheduler.get_last_lr()[0],
            "grad_norm": norm if math.isfinite(norm) else None,
            "samples_per_second": round(rows / seconds, 2),
        }

    def evaluate(self, evaluation: Evaluation) -> tuple[Entry, bool]:
        """Evaluate, and return the history entry and whether it is the best so far; if so, copy the weights to `best`.

        Raises:
            TrainingError: the loss is not finite.
        """
        with self.full_model() as model:
            values = evaluation.run()
            loss = values["loss"]
            if loss is None or not math.isfinite(loss):
                raise TrainingError(
                    f"the evaluation loss is {loss} at step {self.state.step}; lower training.learning_rate, or set "
                    "training.mixed_precision: no"
                )
            is_best = self.state.record_evaluation(
                values[evaluation.best_metric],
                loss=loss,
                lower_is_better=lower_is_better(evaluation.best_metric),
                tolerance=evaluation.tolerance,
            )
            if is_best:
                self.best = trained_weights(model)
        return {**self._position(), **{f"eval_{name}": value for name, value in values.items()}}, is_best

    def full_model(self) -> AbstractContextManager[nn.Module]:
        """Return a context with the classifier's model to evaluate; all processes must enter together."""
        return self.stepper.model.averaged(self.state.weight_decay_factor)

    def current_model(self) -> AbstractContextManager[nn.Module]:
        """Return a context with the classifier's model with the weights of the last step, not their average."""
        return self.stepper.model.up_to_date(self.state.weight_decay_factor)

    def save(self, root: Path, keep: int | None) -> None:
        """Save a checkpoint, unless the last step was not finite."""
        self.stepper.check_last_step()
        save_checkpoint(root, self.snapshot(), keep=keep, accelerator=self.accelerator)

    def snapshot(self) -> Snapshot:
        """Return the content of a checkpoint of the current step; all processes must call this together."""
        best_is_current = self.stepper.model.average is None and self.state.best_step == self.state.step
        with self.current_model() as model:
            return Snapshot(
                state=self.state,
                weights=trained_weights(model) if self.accelerator.is_main_process else {},
                best=None if best_is_current else self.best,
                losses=torch.stack(self._losses).cpu() if self._losses else torch.zeros(0),
                random_states=gather_object([random_state()]),
                objects={name: item.state_dict() for name, item in self.stepper.stateful_objects().items()},
                run_fingerprint=self.run_fingerprint,
            )

    def resume(self, folder: Path) -> None:
        """Restore the state of training from a checkpoint that `find_checkpoint` returned.

        Raises:
            TrainingError: the checkpoint is of another model or another run.
        """
        model, objects = self.classifier.model, self.stepper.stateful_objects()
        snapshot = load_checkpoint(folder, self.run_fingerprint, model, objects)
        snapshot.restore(model, objects, self.accelerator.process_index)
        self.state, self.best = snapshot.state, snapshot.best
        self._losses = list(snapshot.losses.to(self.accelerator.device).unbind())
        if self.best is None and self.state.best_step is not None:  # the checkpoint was saved at the best step
            self.best = trained_weights(model)
        if is_sharded(self.accelerator):  # under FSDP all processes must do the same number of forward passes
            self.state.micro_batch_rows = None
        self.stepper.model.load(self.state.weight_decay_factor)

    def sync_stop_signal(self) -> int:
        """Check the last step, and return the signal that one of the processes received, 0 if none did.

        Raises:
            TrainingError: the last step was not finite, or fp16 skipped every step.
        """
        self.stepper.check_training()
        self.stop_signal = self.stepper.sync_stop_signal(self._stop_request)
        return self.stop_signal

    def unwrap_model(self) -> None:
        """Remove the autocast wrapper, which Accelerate added, from the model's forward pass."""
        self.accelerator.unwrap_model(self.stepper.model.module, keep_fp32_wrapper=False)

    def _position(self) -> Entry:
        return {"step": self.state.step, "epoch": round(self.state.step / self.plan.steps_per_epoch, 4)}

    def _interrupted(self, checkpoints: Path) -> Interrupted:
        step = f"step {self.state.step} of {self.plan.total_steps}"
        return Interrupted(self.stop_signal, f" after {step}, saved in {checkpoints}")
