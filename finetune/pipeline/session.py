"""Create the `RunContext` of a run and close it: device, threads, seed, console, and the lock on the run folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from rich.console import Console

from finetune.data.loading import quiet_datasets
from finetune.distributed import on_main_process
from finetune.errors import TrainingError
from finetune.models.cpu_kernels import keep_freed_memory
from finetune.models.precision import (
    INT8,
    avoid_cudnn_attention,
    bfloat16_warning,
    check_flash_attention,
    device_precision,
    multiply_in_int8,
)
from finetune.models.pretrained import quiet_libraries
from finetune.pipeline.context import RunContext, SharedWork
from finetune.pipeline.launch_checks import check_environment, check_launch, describe_processes, threads_per_process
from finetune.pipeline.trackers import finish_trackers
from finetune.progress import show_progress_on
from finetune.recipe.schema import Recipe
from finetune.runs.locks import locked_folder
from finetune.runs.run_folder import RunFolder
from finetune.training.fsdp import fsdp_plugin, shard_on_cpus


def start(recipe: Recipe, folder: RunFolder, *, trackers: bool = False, shared: SharedWork | None = None) -> RunContext:
    """Set up device, threads, seed and console, and return the context of the run.

    Args:
        trackers: whether to prepare the experiment tracker that the recipe names.
        shared: the work that the run shares with the other runs of its series.

    Raises:
        TrainingError: the launcher was called with options that would give wrong results or incomplete models.
    """
    shared = SharedWork() if shared is None else shared
    check_environment()
    plugin = fsdp_plugin(recipe.training)
    quiet_libraries()
    quiet_datasets()
    tracker = recipe.logging.report_to if trackers and recipe.logging.report_to != "none" else None
    if recipe.training.mixed_precision == "fp16" and (recipe.training.use_cpu or not torch.cuda.is_available()):
        raise TrainingError("training.mixed_precision: fp16 needs a GPU, and none is used; set bf16 or no")
    os.environ.setdefault(
        "OMP_NUM_THREADS", "1"
    )  # avoids a warning from Accelerate; the number of threads is set below
    precision = "no" if recipe.training.mixed_precision == INT8 else recipe.training.mixed_precision
    if AcceleratorState._shared_state.get("_mixed_precision") not in (None, precision):
        AcceleratorState._reset_state()  # an earlier run of this process used another precision
    accelerator = Accelerator(
        # Without `cpu=True`, Accelerate would not connect several CPU processes.
        cpu=recipe.training.use_cpu or not torch.accelerator.is_available(),
        mixed_precision=precision,
        fsdp_plugin=plugin,
        log_with=tracker,
        project_dir=str(folder.trackers) if tracker else None,
    )
    shard_on_cpus(accelerator, plugin)
    if recipe.training.mixed_precision == INT8:
        multiply_in_int8(accelerator)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
        torch.set_num_threads(recipe.training.num_threads or threads_per_process(accelerator.num_processes))
    elif accelerator.device.type == "cuda":
        avoid_cudnn_attention()
    check_launch(accelerator)
    set_seed(recipe.seed)
    console = Console(quiet=shared.is_quiet or not accelerator.is_main_process, highlight=False)
    show_progress_on(console)
    console.print(describe_processes(accelerator))
    if warning := bfloat16_warning(recipe.training.mixed_precision, recipe.model.dtype, accelerator.device):
        console.print(f"[yellow]{warning}[/]")
    return RunContext(recipe, folder, accelerator, console, shared)


def finish(context: RunContext) -> None:
    """Close the trackers and destroy the process group, unless the next run of a series needs it.

    Destroying the group hangs while a distributed model still refers to it, or while a thread of the group waits for
    the GIL to free a tensor. So the models are freed first, and a barrier gives the threads time to finish.
    """
    finish_trackers(context)
    context.accelerator.free_memory()
    context.accelerator.wait_for_everyone()
    if not context.shared.keeps_process_group:
        context.accelerator.end_training()


@contextmanager
def run_locked(context: RunContext, *, read_only_ok: bool = False) -> Iterator[None]:
    """Lock the run folder; the main process holds the lock for all processes of this run.

    Args:
        read_only_ok: accept a folder that cannot be written, without a lock.

    Raises:
        TrainingError: another process holds the lock. Every process raises it.
    """
    with ExitStack() as stack:

        def lock() -> None:
            stack.enter_context(locked_folder(context.folder.path, read_only_ok=read_only_ok))

        on_main_process(context.accelerator, lock)
        yield


def with_precision(recipe: Recipe) -> Recipe:
    """Return the recipe with `training.mixed_precision: auto` replaced by the precision for this machine.

    The run folder stores that precision, so that the run can be repeated or resumed on another machine.

    Raises:
        TrainingError: the recipe's attention implementation does not support this precision or this machine.
    """
    training, model = recipe.training, recipe.model
    if training.mixed_precision == "auto":
        precision = device_precision(use_cpu=training.use_cpu)
        training = training.model_copy(update={"mixed_precision": precision})
    if model.attn_implementation == "flash_attention_2":
        check_flash_attention(training.mixed_precision, model.dtype, use_cpu=training.use_cpu)
    return recipe.model_copy(update={"training": training})
