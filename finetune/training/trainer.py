"""One run's training, an optimiser step at a time.

Losses are summed over a micro-batch and divided by the number of examples of the whole optimiser step, so
that a short last batch, accumulation and several processes all give the gradient of the mean loss.

    B batch, C classes
"""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import get_scheduler

from finetune.data.batching import LocalBatch, load_batches, plan_epoch, split_batch
from finetune.data.tokenization import EncodedSplit
from finetune.distributed import CpuGroup, average_gradients, broadcast_weights
from finetune.models.classifier import Classifier
from finetune.models.losses import per_example_loss
from finetune.models.speedups import sped_up, training_kernels
from finetune.out_of_memory import halve_rows, is_out_of_memory, oom_message
from finetune.recipe import TrainingSection
from finetune.signals import StopRequest
from finetune.training.checkpoints import load_checkpoint, save_checkpoint, trained_weights
from finetune.training.embedding_subset import trained_words
from finetune.training.fsdp import WholeState, is_sharded, prepared, scatter, up_to_date
from finetune.training.nonfinite import FiniteCheck, SkippedSteps, StepFacts, gradient_norm
from finetune.training.optimizer import build_optimizer, class_weights, clip
from finetune.training.schedule import Plan
from finetune.training.state import Progress, TrainState, random_state, restore_random_state

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
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Prepare step 0. `facts`: what a run that goes on from a checkpoint of this one must have in common."""
        self.classifier, self.split, self.plan, self.training = classifier, split, plan, training
        self.seed, self.accelerator = seed, accelerator
        self.state = TrainState()
        self.best: dict[str, Tensor] | None = None
        self.facts = {**(facts or {}), **plan.facts(len(split), accelerator)}
        self.request: StopRequest | None = None  # of this process
        self.stopped_by = 0  # the signal that a process heard, known to all
        self.notes: list[str] = []  # to be told, see `fit`
        weights = class_weights(training.class_weights, torch.as_tensor(split.labels), classifier.label_names)
        self.class_weights = None if weights is None else weights.to(accelerator.device)
        self._sharded = is_sharded(accelerator)
        if not self._sharded:
            broadcast_weights(classifier.model, accelerator)
        padding = classifier.tokenizer.pad_token_id
        self.words = None if self._sharded else trained_words(classifier.base, split, padding, accelerator.device)
        self.facts["trained words"] = len(self.words.ids) if self.words else None
        model = self._to_share_out() if self._sharded else classifier.model
        trained = {
            name: self.words.rows if self.words and p is self.words.weight else p
            for name, p in model.named_parameters()
            if p.requires_grad
        }
        optimizer = build_optimizer(trained, training, loraplus_lr_ratio)
        # Not prepared by Accelerate, which would advance it once a process.
        self.scheduler = get_scheduler(training.lr_scheduler_type, optimizer, plan.warmup_steps, plan.total_steps)
        self.model, self.optimizer = prepared(model, optimizer, classifier.base, accelerator)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self._losses: list[Tensor] = []  # means over all processes, of the steps since the last entry
        self._rows = np.array([], dtype=np.int64)  # of the current step
        self._cpu_group = CpuGroup(accelerator)
        self._check = FiniteCheck(late=accelerator.device.type == "cuda")
        self._skipped = SkippedSteps()
        self._averages = accelerator.num_processes > 1 and not self._sharded
        torch.manual_seed(seed + accelerator.process_index)  # each process drops other units

    def _to_share_out(self) -> nn.Module:
        """Return a copy of the classifier's model, sped up for good: nothing else is done with it than training."""
        self.classifier.model.to("cpu")
        with sped_up(self.classifier, self.accelerator):
            return copy.deepcopy(self.classifier.model)

    @contextmanager
    def whole_model(self) -> Iterator[nn.Module]:
        """Yield the classifier's model as it is trained by now; all processes must enter together."""
        if self.words:
            self.words.write_back(self.state.undecayed)
        with up_to_date(self.classifier.model, self.model) as model:
            yield model

    def machinery(self) -> dict[str, Any]:
        """Return what a checkpoint must hold besides weights."""
        scaler, optimizer = self.accelerator.scaler, WholeState(self.optimizer) if self._sharded else self.optimizer
        return {"optimizer": optimizer, "scheduler": self.scheduler, **({"scaler": scaler} if scaler else {})}

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
            started = time.perf_counter()
            self._rows = np.concatenate(step)
            self.state.count_rows(self.split.lengths, step)
            loaded = [next(batches) for _ in step]
            self.state.train_seconds += time.perf_counter() - started
            yield loaded, len(self._rows)

    def optimise(self, micro_batches: list[LocalBatch], rows: int) -> None:
        """Do one optimiser step on the mean loss of `rows` examples.

        Where memory runs out in a process, all do the step again in smaller parts, from the same random state.

        Raises:
            TrainingError: loss or gradient is not finite, or memory does not suffice for one row.
        """
        started = time.perf_counter()
        self.model.train()
        drawn = random_state()
        while (loss := self._add_gradients(micro_batches, rows)) is None:
            self._take_fewer_rows()
            restore_random_state(drawn)
        if self._averages:
            average_gradients(self.parameters, self.accelerator.num_processes)
        self._update(self.accelerator.reduce(loss, "mean"))
        self._count_step()
        self.state.train_seconds += time.perf_counter() - started

    def _add_gradients(self, micro_batches: Sequence[LocalBatch], rows: int) -> Tensor | None:
        """Add up the gradients of a step; return this process's share of the loss, None where memory ran out."""
        loss, out = torch.zeros((), device=self.accelerator.device), False
        parts = [part for batch in micro_batches for part in split_batch(batch, self.state.micro_batch_rows)]
        try:
            for batch in parts:
                with self._fast_forward():
                    logits = self.model(**batch.inputs).logits
                losses = per_example_loss(logits, batch.labels, self.classifier.problem_type, self.class_weights)
                # Processes average their gradients: times their number, divided by all rows of the step.
                part = (losses * batch.weights).sum() * (self.accelerator.num_processes / rows)
                self.accelerator.backward(part)
                loss += part.detach()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if self._sharded:  # the others wait in the midst of a pass, and hear nothing more
                told = f"Out of memory at step {self.state.step + 1} in process {self.accelerator.process_index}."
                print(told, file=sys.stderr)
                raise
            out = True  # and nothing more in here: the error holds on to what filled the memory
        ran_out, self.stopped_by = self._cpu_group.all_reduce_max(out, self.request.number if self.request else 0)
        return None if ran_out else loss

    @contextmanager
    def _fast_forward(self) -> Iterator[None]:
        words = self.words.in_use() if self.words else nullcontext()
        with words, training_kernels(self.accelerator.device, compiled=self.training.torch_compile):
            yield

    def hear(self) -> int:
        """Return the signal that one of the processes heard, 0 if none did, once the last step is known to be finite.

        Raises:
            TrainingError: it is not, or fp16 skipped every step.
        """
        self._check.settle()
        self._skipped.finish()
        (self.stopped_by,) = self._cpu_group.all_reduce_max(self.request.number if self.request else 0)
        return self.stopped_by

    def _take_fewer_rows(self) -> None:
        """Halve the rows that are put to the model at a time; the step stays the same, in twice as many parts."""
        self.optimizer.zero_grad(set_to_none=True)
        whole, step = self.plan.batch_size // self.accelerator.num_processes, self.state.step + 1
        rows = halve_rows(self.state.micro_batch_rows or whole, f"step {step} of training")
        self.state.micro_batch_rows = rows
        self.notes.append(oom_message(rows, whole, step))

    def _update(self, loss: Tensor) -> None:
        """Change the weights by the gradients, unless loss or gradient is not finite."""
        optimizer, scaler, most = self.optimizer.optimizer, self.accelerator.scaler, self.training.max_grad_norm
        if scaler is None:
            norm = gradient_norm(self.parameters)
            if most is not None:
                clip(optimizer, self.parameters, norm, most)
            # Fused AdamW leaves out a step by this mark, without the processor having to know.
            optimizer.found_inf = (~(loss.isfinite() & norm.isfinite())).float()
        else:
            self.accelerator.clip_grad_norm_(self.parameters, math.inf if most is None else most)
            norm = torch.zeros_like(loss)  # infinite in fp16 now and then: the scaler leaves the step out and goes on
        rate, scale = self.scheduler.get_last_lr()[0], scaler.get_scale() if scaler else 0.0
        self.optimizer.step()
        left_out = scaler is not None and scaler.get_scale() < scale
        if not left_out:
            self.state.undecayed *= 1 - rate * self.training.weight_decay
        self.scheduler.step()  # in fp16 also after a step that the scaler left out: rate and step stay together
        self.optimizer.zero_grad(set_to_none=True)
        facts = StepFacts(self.state.step + 1, rate, self.split.numbers[self._rows], self.split.where)
        self._check.note(loss, norm, facts)
        self._skipped.note(left_out, facts)
        self._losses.append(loss)

    def _count_step(self) -> None:
        self.state.step += 1
        self.state.step_in_epoch += 1
        if self.state.step_in_epoch == self.plan.steps_per_epoch:
            self.state.epoch += 1
            self.state.step_in_epoch = 0

    def log_entry(self) -> Entry:
        """Return the mean loss, learning rate and speed since the last entry."""
        started = time.perf_counter()  # a GPU may still be at work
        self._check.settle()
        mean = torch.stack(self._losses).mean().item()
        self.state.train_seconds += time.perf_counter() - started
        self._losses.clear()
        state, rate = self.state, self.scheduler.get_last_lr()[0]
        seconds, rows = state.train_seconds - state.logged_seconds, state.rows_seen - state.logged_rows
        state.logged_seconds, state.logged_rows = state.train_seconds, state.rows_seen
        return {
            "step": state.step,
            "epoch": round(state.step / self.plan.steps_per_epoch, 4),
            "loss": mean,
            "learning_rate": rate,
            "samples_per_second": round(rows / seconds, 2),
        }

    def save(self, root: Path, keep: int | None) -> None:
        """Write a checkpoint, unless the last step was not finite."""
        self._check.settle()
        losses = torch.stack(self._losses).cpu() if self._losses else torch.zeros(0)
        best = None if self.state.best_step == self.state.step else self.best
        with self.whole_model() as model:
            save_checkpoint(
                root,
                Progress(self.state, best, losses),
                model,
                self.machinery(),
                self.facts,
                keep=keep,
                accelerator=self.accelerator,
            )

    def resume(self, folder: Path) -> None:
        """Go on from a checkpoint that is complete and intact, see `find_checkpoint`.

        Raises:
            TrainingError: it is of another model or another run.
        """
        found = load_checkpoint(folder, self.classifier.model, self.machinery(), self.facts, self.accelerator)
        self.state, self.best = found.state, found.best
        if self.words:
            self.words.read_again(self.state.undecayed)
        if self._sharded:
            scatter(self.classifier.model, self.model)
            self.state.micro_batch_rows = None  # of a run that was not: now all processes must do as many passes
        self._losses = list(found.losses.to(self.accelerator.device).unbind())
        if self.best is None and self.state.best_step is not None:
            self.best = trained_weights(self.classifier.model)
