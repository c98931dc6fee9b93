"""How the processes of one launch train a series: each trains whole runs, or all train each run together (FSDP)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState

from finetune.distributed import on_main_process
from finetune.errors import TrainingError
from finetune.pipeline.launch_checks import check_shared_folder
from finetune.recipe.schema import Recipe
from finetune.training.fsdp import fsdp_plugin

# The variables by which torch and Accelerate recognize one of several processes. LOCAL_WORLD_SIZE stays, so that the
# processes of a machine share its cores.
_LAUNCH_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class SeriesProcesses:
    """This process among those of the launch.

    Attributes:
        group: all processes, if they train each run together.
    """

    index: int = 0
    count: int = 1
    group: PartialState | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process opens the series and prints."""
        return self.index == 0


@contextmanager
def series_processes(recipe: Recipe, path: Path, open_series: Callable[[], None]) -> Iterator[SeriesProcesses]:
    """Call `open_series` on the main process, and yield this process in the role that it has for the series.

    Without FSDP, this process then looks like the only one: to train whole runs alone, on its own GPU.

    Raises:
        FinetuneError: `open_series` failed, or not all processes see the folder. Every process raises it.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        open_series()
        yield SeriesProcesses()
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # avoids a warning from Accelerate, as in session.py
    together = fsdp_plugin(recipe.training) is not None
    state = PartialState(cpu=not together or recipe.training.use_cpu or not torch.accelerator.is_available())
    if state.num_processes != count:
        raise TrainingError(
            f"the launcher started {count} processes (WORLD_SIZE), but they form no group; use torchrun or accelerate "
            "launch"
        )
    check_shared_folder(path, state)
    on_main_process(state, open_series)
    if together:
        yield SeriesProcesses(state.process_index, count, state)
        return
    index, local_index = state.process_index, state.local_process_index
    state.destroy_process_group()
    PartialState._reset_state()
    with alone(local_index, use_cpu=recipe.training.use_cpu):
        yield SeriesProcesses(index, count)


@contextmanager
def alone(local_index: int, *, use_cpu: bool) -> Iterator[None]:
    """Hide the launch from torch and Accelerate in the block, and use the GPU of this process as the current one."""
    hidden = {name: os.environ.pop(name) for name in _LAUNCH_VARIABLES if name in os.environ}
    if not use_cpu and torch.cuda.is_available():
        torch.cuda.set_device(local_index % torch.cuda.device_count())
    try:
        yield
    finally:
        os.environ.update(hidden)
