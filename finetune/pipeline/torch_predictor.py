"""A PyTorch model for prediction: loaded, on its device, in the processes that a launcher started."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator

from finetune.distributed import gather_results, local_main_process_first
from finetune.models.cpu_kernels import keep_freed_memory
from finetune.models.int8_products import check_int8_layers
from finetune.models.precision import INT8, check_autocast, multiply_in_int8
from finetune.models.speedups import sped_up
from finetune.pipeline.launch_checks import check_environment, check_launch, threads_per_process
from finetune.pipeline.load_classifier import load_with_text_columns
from finetune.pipeline.predict import PredictOptions, Predictor

T = TypeVar("T")

_CPU_BATCH, _GPU_BATCH = 32, 256  # rows per forward pass


class _LaunchedProcesses:
    """The processes that a launcher started; see `predict.Processes`."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self.index, self.count = accelerator.process_index, accelerator.num_processes

    def gather(self, function: Callable[[], T]) -> list[T]:
        """Return the results of all processes; see `gather_results`."""
        return [function()] if self.count == 1 else gather_results(self._accelerator, function)


@contextmanager
def torch_predictor(model: Path, options: PredictOptions) -> Iterator[Predictor]:
    """Yield the model of a folder in evaluation mode, on the GPU of this process or on the CPU.

    Raises:
        FinetuneError: the folder holds no trained model, the launcher was called with options that do not fit,
            or `options.precision` is int8 and the model has no layers for it.
    """
    check_environment()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # avoids a warning from Accelerate; see below
    precision = "no" if options.precision == INT8 else options.precision
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision=precision)
    if options.precision == INT8:
        multiply_in_int8(accelerator)
    check_launch(accelerator)
    on_cpu = accelerator.device.type == "cpu"
    if on_cpu:
        keep_freed_memory()
        torch.set_num_threads(threads_per_process(accelerator.num_processes))
    classifier = local_main_process_first(
        accelerator, lambda: load_with_text_columns(model, options.trust_remote_code, options.base)
    )
    check_autocast(classifier.base, precision)
    if options.precision == INT8:
        check_int8_layers(classifier.base)
    classifier.model.to(accelerator.device)
    batch_size = options.batch_size or (_CPU_BATCH if on_cpu else _GPU_BATCH)
    with torch.no_grad(), sped_up(classifier, accelerator), accelerator.autocast():
        yield Predictor(classifier, batch_size, _LaunchedProcesses(accelerator))
    if accelerator.num_processes > 1:
        accelerator.wait_for_everyone()
        accelerator.end_training()
