"""The processes of a run: started, given threads and a terminal, and parted."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console

from finetune.allocator import keep_freed_memory
from finetune.data.read import quiet_datasets
from finetune.errors import TrainingError
from finetune.modeling import quiet_libraries
from finetune.recipe import Recipe
from finetune.results import RunFolder


def start(recipe: Recipe, *, trackers: bool) -> tuple[Accelerator, Console]:
    """Return the accelerator and the terminal (silent on all but the main process), with seed and threads set."""
    quiet_libraries()
    quiet_datasets()
    tracker = recipe.logging.report_to if trackers and recipe.logging.report_to != "none" else None
    if recipe.training.mixed_precision == "fp16" and (recipe.training.use_cpu or not torch.cuda.is_available()):
        raise TrainingError("training.mixed_precision: fp16 needs a GPU, and there is none; use bf16 or no")
    accelerator = Accelerator(
        cpu=recipe.training.use_cpu,
        mixed_precision=recipe.training.mixed_precision,
        log_with=tracker,
        project_dir=str(RunFolder(Path(recipe.output_dir)).trackers) if tracker else None,
    )
    if accelerator.device.type == "cpu":
        keep_freed_memory()
        torch.set_num_threads(recipe.training.num_threads or threads_for_each(accelerator.num_processes))
    set_seed(recipe.seed)
    return accelerator, Console(quiet=not accelerator.is_main_process, highlight=False)


def finish(accelerator: Accelerator) -> None:
    """Close the trackers and part the processes, once nothing holds on to their group any more.

    A group that is destroyed while a distributed model still holds it, or while a thread of it waits for Python's
    lock to let go of a tensor, hangs the process: so the models go first, and a barrier lets the threads finish.
    """
    accelerator.free_memory()
    accelerator.wait_for_everyone()
    accelerator.end_training()


def threads_for_each(processes: int) -> int:
    """Return CPU threads for each process: OMP_NUM_THREADS above 1, else all cores shared out.

    `accelerate launch` sets OMP_NUM_THREADS to 1 unasked, so 1 is not taken for a wish.
    """
    asked = int(os.environ.get("OMP_NUM_THREADS", "1"))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return asked if asked > 1 else max(1, cores // here)
