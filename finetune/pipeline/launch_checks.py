"""Checks of how the launcher started the processes of a run."""

from __future__ import annotations

import os
import socket
import time
import uuid
from contextlib import suppress
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list, gather_object

from finetune.distributed import Processes
from finetune.errors import TrainingError
from finetune.models.cpu_kernels import SWITCH
from finetune.training.fsdp import is_sharded

DISK_SECONDS = 30.0  # a network disk may show a new folder to other machines only after this time
# The environment variables of `accelerate launch` and the strategies they select; without a GPU it ignores them.
_SHARDING_VARIABLES = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
}
_LAUNCH_ALL = "use accelerate launch --multi_gpu (not --cpu), which starts all processes, with or without GPUs"


def check_environment() -> None:
    """Raise TrainingError for environment variables that are not supported.

    These are the sharding strategies of `accelerate launch`, and other values than 0 and 1 of FINETUNE_CPU_KERNELS.
    """
    if (kernels := os.environ.get(SWITCH, "")) not in ("", "0", "1"):
        raise TrainingError(f"{SWITCH} is '{kernels}'; set 0, which turns the kernels for CPUs off, or unset it")
    for variable, name in _SHARDING_VARIABLES.items():
        if os.environ.get(variable, "").lower() == "true":
            raise _unsupported(name)


def check_launch(accelerator: Accelerator) -> None:
    """Raise TrainingError unless all processes form one group, with data parallelism or FSDP 2."""
    strategy = accelerator.distributed_type
    if not (strategy == DistributedType.NO or strategy.startswith("MULTI_") or is_sharded(accelerator)):
        raise _unsupported(str(strategy.value))
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise TrainingError(
            f"the launcher started {launched} processes (WORLD_SIZE), but Accelerate runs each of them alone, and all "
            "would write to the same folder; use torchrun or accelerate launch, with training.use_cpu=true unless "
            f"Accelerate supports several processes on '{accelerator.device.type}'"
        )
    address = _unused_main_address()
    if address not in {None, "127.0.0.1", "localhost"}:
        raise TrainingError(
            f"accelerate launch was given the main address {address} but started a single process, and the process "
            f"of each machine would write to the same folder; {_LAUNCH_ALL}, or, for one process, unset MASTER_ADDR "
            "and MASTER_PORT"
        )
    precisions = sorted(set(gather_object([accelerator.mixed_precision])))
    if len(precisions) > 1:
        raise TrainingError(
            f"the processes would train in {' and '.join(precisions)}, as their processors or GPUs differ; set one of "
            "them in training.mixed_precision"
        )
    if accelerator.gradient_accumulation_steps != 1:  # it would divide every loss a second time
        raise TrainingError(
            f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS is {accelerator.gradient_accumulation_steps}; unset it, and set "
            "training.gradient_accumulation_steps in the recipe"
        )


def _unsupported(strategy: str) -> TrainingError:
    return TrainingError(
        f"the launcher requests {strategy}, but every process needs the full model for scoring, saving and head "
        "analysis; launch without it (accelerate launch --multi_gpu, or torchrun)"
    )


def describe_processes(accelerator: Accelerator) -> str:
    """Return the number of processes and their device, with a warning if fewer were started than requested."""
    count = accelerator.num_processes
    machines = count // int(os.environ.get("LOCAL_WORLD_SIZE", count))
    text = f"{count} process{'es' if count > 1 else ''}"
    text += f" on {machines} machines" if machines > 1 else ""
    text += f", {accelerator.device.type}"
    text += ", model sharded with FSDP 2" if accelerator.distributed_type == DistributedType.FSDP else ""
    if _unused_main_address() is not None:
        text += (
            "\n[yellow]accelerate launch was called for several processes and started one, as it does with fewer than "
            f"two GPUs; {_LAUNCH_ALL}[/]"
        )
    return text


def _unused_main_address() -> str | None:
    """Return the main address if `accelerate launch` was configured for several processes but started only one."""
    launched_by_accelerate = {"ACCELERATE_MIXED_PRECISION", "MASTER_PORT"} <= os.environ.keys()
    return os.environ.get("MASTER_ADDR") if launched_by_accelerate and "WORLD_SIZE" not in os.environ else None


def check_shared_folder(path: Path, accelerator: Processes) -> None:
    """Raise TrainingError on all processes unless each of them sees a folder that the main process creates by `path`.

    All processes read checkpoints and the saved model from `path`. The check leaves no file.
    """
    if accelerator.num_processes == 1:
        return
    (name,) = broadcast_object_list([f".{path.name}.{uuid.uuid4().hex}"])
    probe, created, problem = path.absolute().parent / name, [], ""
    if accelerator.is_main_process:
        created = [folder for folder in (probe, *probe.parents) if not folder.exists()]
        try:
            probe.mkdir(parents=True)
        except OSError as error:
            problem = f"output_dir {path} cannot be written: {error.strerror}; use another folder"
    (problem,) = broadcast_object_list([problem])
    deadline = time.monotonic() + (0.0 if problem else DISK_SECONDS)
    while not (is_visible := probe.is_dir()) and time.monotonic() < deadline:
        time.sleep(0.1)
    hosts = gather_object([(socket.gethostname(), is_visible)])
    hosts_without_access = [host for host, has_access in hosts if not has_access]
    for folder in created:
        with suppress(OSError):  # another run may have written there in the meantime
            folder.rmdir()
    if problem or hosts_without_access:
        raise TrainingError(
            problem
            or f"{path.absolute()} is not the same folder for all processes (not visible on: "
            f"{', '.join(hosts_without_access)}); with several machines output_dir must be on a shared disk, at the "
            "same path on each; start a dry run on one machine"
        )


def threads_per_process(processes: int) -> int:
    """Return the number of CPU threads of each process: OMP_NUM_THREADS if above 1, else an equal share of the cores.

    `accelerate launch` sets OMP_NUM_THREADS to 1 by default, so 1 does not count as the user's choice.
    """
    num_threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return num_threads if num_threads > 1 else max(1, cores // local_processes)
