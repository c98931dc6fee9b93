"""The training loop, in the open.

Losses are summed over a micro-batch and divided by the number of examples of the whole optimiser step, so
that a short last batch, accumulation and several processes all give the gradient of the mean loss.

    B batch, C classes
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import get_scheduler

from finetune.checkpoints import TrainState, load_checkpoint, restore_weights, save_checkpoint, trained_weights
from finetune.data.batching import LocalBatch, load_batches, plan_epoch
from finetune.data.encoding import EncodedSplit
from finetune.errors import TrainingError
from finetune.losses import per_example_loss
from finetune.metrics import LOWER_IS_BETTER
from finetune.modeling import Classifier
from finetune.optimization import build_optimizer, class_weights
from finetune.plan import Plan
from finetune.progress import TrainingProgress
from finetune.recipe import TrainingSection
from finetune.results import Speed, Training
from finetune.speedups import sped_up, training_kernels

Entry = dict[str, Any]


class Loop:
    """Model, optimiser, schedule and data of one run, moved one optimiser step at a time."""

    def __init__(
        self,
        classifier: Classifier,
        split: EncodedSplit,
        plan: Plan,
        training: TrainingSection,
        *,
        seed: int,
        accelerator: Accelerator,
        loraplus_lr_ratio: float | None = None,
    ) -> None:
        self.classifier, self.split, self.plan, self.training = classifier, split, plan, training
        self.seed, self.accelerator = seed, accelerator
        self.state = TrainState(shape=(len(split), plan.batch_size, plan.accumulation))
        self.best: dict[str, Tensor] | None = None
        weights = class_weights(training.class_weights, torch.as_tensor(split.labels), classifier.label_names)
        self.class_weights = None if weights is None else weights.to(accelerator.device)
        optimizer = build_optimizer(classifier.model, training, loraplus_lr_ratio)
        # Not prepared by Accelerate, which would advance it once a process.
        self.scheduler = get_scheduler(training.lr_scheduler_type, optimizer, plan.warmup_steps, plan.total_steps)
        self.model, self.optimizer = accelerator.prepare(classifier.model, optimizer)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self._losses: list[Tensor] = []
        self._logged_at, self._logged_rows = 0.0, 0
        torch.manual_seed(seed + accelerator.process_index)  # each process drops other units

    def machinery(self) -> dict[str, Any]:
        """Return what a checkpoint must hold besides weights."""
        scaler = self.accelerator.scaler
        return {"optimizer": self.optimizer, "scheduler": self.scheduler, **({"scaler": scaler} if scaler else {})}

    def epoch_steps(self) -> Iterator[tuple[list[LocalBatch], int]]:
        """Yield what is left of the current epoch: each step's micro-batches, and its rows over all processes."""
        steps = plan_epoch(
            self.split.lengths,
            batch_size=self.plan.batch_size,
            accumulation=self.plan.accumulation,
            strategy=self.training.train_sampling_strategy,
            seed=self.seed,
            epoch=self.state.epoch,
        )[self.state.step_in_epoch :]
        batches = load_batches(
            self.split,
            [rows for step in steps for rows in step],
            self.classifier.tokenizer,
            device=self.accelerator.device,
            process=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
        )
        for step in steps:
            self.state.rows_seen += (rows := sum(len(batch) for batch in step))
            self.state.tokens_seen += int(sum(self.split.lengths[batch].sum() for batch in step))
            self.state.padded_seen += int(sum(len(batch) * self.split.lengths[batch].max() for batch in step))
            yield [next(batches) for _ in step], rows

    def optimise(self, micro_batches: list[LocalBatch], rows: int) -> None:
        """Do one optimiser step on the mean loss of `rows` examples."""
        started = time.perf_counter()
        self.model.train()
        loss = torch.zeros((), device=self.accelerator.device)
        for index, batch in enumerate(micro_batches):
            last = index == len(micro_batches) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                with training_kernels(self.accelerator):
                    logits = self.model(**batch.inputs).logits
                losses = per_example_loss(logits, batch.labels, self.classifier.problem_type, self.class_weights)
                # Processes average their gradients: times their number, divided by all rows of the step.
                part = (losses * batch.weights).sum() * (self.accelerator.num_processes / rows)
                self.accelerator.backward(part)
            loss += part.detach()
        if self.training.max_grad_norm is not None:
            self.accelerator.clip_grad_norm_(self.parameters, self.training.max_grad_norm)
        self.optimizer.step()
        if not self.accelerator.optimizer_step_was_skipped:
            self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._losses.append(loss)
        self._count_step()
        self.state.train_seconds += time.perf_counter() - started

    def _count_step(self) -> None:
        self.state.step += 1
        self.state.step_in_epoch += 1
        if self.state.step_in_epoch == self.plan.steps_per_epoch:
            self.state.epoch += 1
            self.state.step_in_epoch = 0

    def log_entry(self) -> Entry:
        """Return the mean loss, learning rate and speed since the last entry.

        Raises:
            TrainingError: the loss is not finite.
        """
        mean = self.accelerator.reduce(torch.stack(self._losses).mean(), "mean").item()
        self._losses.clear()
        state, rate = self.state, self.scheduler.get_last_lr()[0]
        self.refuse_not_finite("loss", mean)
        seconds, rows = state.train_seconds - self._logged_at, state.rows_seen - self._logged_rows
        self._logged_at, self._logged_rows = state.train_seconds, state.rows_seen
        return {
            "step": state.step,
            "epoch": round(state.step / self.plan.steps_per_epoch, 4),
            "loss": mean,
            "learning_rate": rate,
            "samples_per_second": round(rows / seconds, 2),
        }

    def refuse_not_finite(self, name: str, value: float) -> None:
        """Raise TrainingError if a loss is infinite or no number: weights that gave it are lost."""
        if not math.isfinite(value):
            raise TrainingError(
                f"the {name} is {value} at step {self.state.step} (learning rate {self.scheduler.get_last_lr()[0]:g}); "
                "lower training.learning_rate, or set training.mixed_precision: no"
            )

    def note_evaluation(self, value: float, lower_is_better: bool) -> bool:
        """Return whether `value` is the best so far; if it is, keep a copy of the weights."""
        best = self.state.best_value
        better = best is None or (value < best if lower_is_better else value > best)
        if better:
            self.state.best_value, self.state.best_step = value, self.state.step
            self.best = trained_weights(self.classifier.model)
        self.state.evaluations_since_best = 0 if better else self.state.evaluations_since_best + 1
        return better

    def save(self, root: Path, keep: int | None) -> None:
        """Write a checkpoint."""
        save_checkpoint(
            root,
            self.state,
            self.classifier.model,
            None if self.state.best_step == self.state.step else self.best,
            self.machinery(),
            keep=keep,
            accelerator=self.accelerator,
        )

    def resume(self, folder: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            TrainingError: it cannot be read, or its steps consist of other rows.
        """
        own = self.state.shape
        self.state, self.best = load_checkpoint(folder, self.classifier.model, self.machinery(), self.accelerator)
        if self.state.shape != own:
            names = ("training rows", "rows a batch over all processes", "batches a step")
            differ = [
                f"{n}: {was}, now {now}" for n, was, now in zip(names, self.state.shape, own, strict=True) if was != now
            ]
            raise TrainingError(f"{folder} is of a run with other steps ({'; '.join(differ)}); set them as they were")
        if self.best is None and self.state.best_step is not None:
            self.best = trained_weights(self.classifier.model)
        self._logged_at, self._logged_rows = self.state.train_seconds, self.state.rows_seen


def fit(
    loop: Loop,
    *,
    best_metric: str,
    evaluate: Callable[[], dict[str, float]] | None,
    log: Callable[[Entry], None],
    progress: TrainingProgress,
    checkpoints: Path,
    keep: int | None,
) -> str:
    """Train to the end, and leave the model with the weights of its best evaluation; return why it ended.

    Args:
        best_metric: which of the evaluation's values chooses the best weights.
        evaluate: returns loss and metrics on validation rows; None: never called, the last weights stay.
        log: takes each entry of the history.
        checkpoints: the folder to write checkpoints to; `keep` of them are kept.

    Raises:
        TrainingError: the loss is not finite, or a checkpoint cannot be written.
    """
    plan, state = loop.plan, loop.state
    progress.start(plan.total_steps, state.step)
    with sped_up(loop.classifier, loop.accelerator):
        while (reason := plan.stop_reason(state)) is None:
            for micro_batches, rows in loop.epoch_steps():
                loop.optimise(micro_batches, rows)
                progress.advance()
                if plan.due(plan.log_every, state.step):
                    entry = loop.log_entry()
                    progress.logged(entry)
                    log(entry)
                if evaluate is not None and plan.due(plan.eval_every, state.step):
                    values = {f"eval_{name}": value for name, value in evaluate().items()}
                    entry = {"step": state.step, "epoch": round(state.step / plan.steps_per_epoch, 4), **values}
                    loop.refuse_not_finite("evaluation loss", values["eval_loss"])
                    better = loop.note_evaluation(values[f"eval_{best_metric}"], best_metric in LOWER_IS_BETTER)
                    progress.evaluated(entry, best=better)
                    log(entry)
                if plan.due(plan.save_every, state.step):
                    loop.save(checkpoints, keep)
                if plan.stop_reason(state) is not None:
                    break
    if loop.best is not None:
        restore_weights(loop.classifier.model, loop.best)
    return reason


def training_result(loop: Loop, stopped: str, best_metric: str, eval_samples_per_second: float) -> Training:
    """Return how training ended and how fast it was."""
    state, (trained, total) = loop.state, loop.classifier.parameter_counts()
    seconds = max(state.train_seconds, 1e-9)
    return Training(
        steps=state.step,
        best_step=state.best_step,
        best_metric=best_metric,
        best_value=state.best_value,
        stopped=stopped,
        trainable_parameters=trained,
        total_parameters=total,
        trained_dtype=", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in loop.parameters})),
        speed=Speed(
            train_seconds=state.train_seconds,
            train_samples_per_second=state.rows_seen / seconds,
            train_tokens_per_second=state.tokens_seen / seconds,
            padding_share=1 - state.tokens_seen / max(state.padded_seen, 1),
            eval_samples_per_second=eval_samples_per_second,
            peak_memory_mb=peak_memory_mb(loop.accelerator.device),
        ),
    )


def peak_memory_mb(device: torch.device) -> float:
    """Return the most memory taken so far, in 10^6 bytes: of the accelerator if there is one, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
