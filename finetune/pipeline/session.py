"""The processes of a run: started, given threads and a terminal, and parted."""

from __future__ import annotations

import json
import os
import re
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list, gather_object, set_seed
from rich.console import Console

from finetune.data.loading import quiet_datasets
from finetune.distributed import on_main_process
from finetune.errors import TrainingError
from finetune.models.cpu_kernels import keep_freed_memory
from finetune.models.precision import bfloat16_warning, check_flash_attention, device_precision
from finetune.models.pretrained import quiet_libraries
from finetune.recipe import Recipe
from finetune.report.progress import show_progress_on
from finetune.runs.locks import locked_folder
from finetune.runs.run_folder import RunFolder
from finetune.training.fsdp import fsdp_plugin, is_sharded, shard_on_cpus

DISK_SECONDS = 30.0  # a network disk may show a new folder to other machines only after so long
# What `accelerate launch` sets for a way of sharing a model out -> its name. Without a GPU Accelerate forgets these.
_SHARDED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
}
# Without it Accelerate starts one process wherever it finds fewer than two GPUs.
_START_ALL = "start with accelerate launch --multi_gpu (not --cpu), which starts all that are asked for, GPUs or none"


def with_precision(recipe: Recipe) -> Recipe:
    """Return the recipe with `training.mixed_precision: auto` replaced by what it means on this machine.

    That is what the run folder says, so that the run can be repeated, and resumed, on another.

    Raises:
        TrainingError: the recipe's attention cannot be computed in this precision, or on this machine.
    """
    training, model = recipe.training, recipe.model
    if training.mixed_precision == "auto":
        found = device_precision(use_cpu=training.use_cpu)
        training = training.model_copy(update={"mixed_precision": found})
    if model.attn_implementation == "flash_attention_2":
        check_flash_attention(training.mixed_precision, model.dtype, use_cpu=training.use_cpu)
    return recipe.model_copy(update={"training": training})


def start(recipe: Recipe, *, trackers: bool) -> tuple[Accelerator, Console]:
    """Return the accelerator and the terminal (silent on all but the main process), with seed and threads set.

    Raises:
        TrainingError: the launcher asks for something that would give wrong results or half-saved models.
    """
    refuse_sharded(next((name for key, name in _SHARDED.items() if os.environ.get(key, "").lower() == "true"), None))
    plugin = fsdp_plugin(recipe.training)
    quiet_libraries()
    quiet_datasets()
    tracker = recipe.logging.report_to if trackers and recipe.logging.report_to != "none" else None
    if recipe.training.mixed_precision == "fp16" and (recipe.training.use_cpu or not torch.cuda.is_available()):
        raise TrainingError("training.mixed_precision: fp16 needs a GPU, and there is none; use bf16 or no")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # else Accelerate guesses, and warns; threads are set below
    accelerator = Accelerator(
        # Without this, Accelerate takes each of several CPU processes for one that runs alone.
        cpu=recipe.training.use_cpu or not torch.accelerator.is_available(),
        mixed_precision=recipe.training.mixed_precision,
        fsdp_plugin=plugin,
        log_with=tracker,
        project_dir=str(RunFolder(Path(recipe.output_dir)).trackers) if tracker else None,
    )
    shard_on_cpus(accelerator, plugin)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
        torch.set_num_threads(recipe.training.num_threads or threads_for_each(accelerator.num_processes))
    check_launch(accelerator)
    set_seed(recipe.seed)
    console = Console(quiet=not accelerator.is_main_process, highlight=False)
    show_progress_on(console)
    console.print(describe_processes(accelerator))
    if warning := bfloat16_warning(recipe.training.mixed_precision, recipe.model.dtype, accelerator.device):
        console.print(f"[yellow]{warning}[/]")
    return accelerator, console


def start_trackers(recipe: Recipe, folder: Path, accelerator: Accelerator) -> None:
    """Start the recipe's tracker, if it names one: the project is the run folder's name, the config the recipe."""
    # mlflow puts the name between quotation marks, and wandb allows no slash, among others, and 128 characters.
    name = re.sub(r"[^\w.-]+", "-", folder.absolute().name).strip("-.")[:128]
    accelerator.init_trackers(name or "finetune", config=hyperparameters(recipe))


def hyperparameters(recipe: Recipe) -> dict[str, bool | int | float | str]:
    """Return the recipe as one flat table, `section.key` to a value that every tracker takes; without its rows.

    None, lists and mappings with free keys are JSON text: TensorBoard takes no None.
    """
    content = recipe.model_dump(mode="json")
    content["data"] = {key: value for key, value in content["data"].items() if not key.endswith("_rows")}
    return dict(_flat(content))


def _flat(content: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, bool | int | float | str]]:
    for key, value in content.items():
        if isinstance(value, Mapping) and not prefix:  # a section
            yield from _flat(value, f"{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, bool | int | float | str) else json.dumps(value)


def refuse_sharded(name: str | None) -> None:
    """Raise TrainingError for a way of training, if one is named, that leaves no process with the whole model."""
    if name is not None:
        raise TrainingError(
            f"the launcher asks for {name}, but every process must hold the whole model here: it is scored, saved and "
            "analysed in one piece; start without it (accelerate launch --multi_gpu, or torchrun)"
        )


def check_launch(accelerator: Accelerator) -> None:
    """Raise TrainingError unless the processes that were started work together, by copies of the model or FSDP 2."""
    kind = accelerator.distributed_type
    known = kind == DistributedType.NO or kind.startswith("MULTI_") or is_sharded(accelerator)
    refuse_sharded(None if known else str(kind.value))
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if asked != accelerator.num_processes:
        raise TrainingError(
            f"the launcher started {asked} processes (WORLD_SIZE), but Accelerate takes each for one that runs alone, "
            "and all would write the same folder; use torchrun or accelerate launch, with training.use_cpu=true "
            f"unless it can share work out on '{accelerator.device.type}'"
        )
    meet_at = _address_without_processes()
    if meet_at not in {None, "127.0.0.1", "localhost"}:
        raise TrainingError(
            f"accelerate launch was asked for processes that meet at {meet_at}, but started one that runs alone, and "
            f"each machine's would write the same folder; {_START_ALL}, or, for one "
            "process alone, take MASTER_ADDR and MASTER_PORT out of the environment"
        )
    precisions = sorted(set(gather_object([accelerator.mixed_precision])))
    if len(precisions) > 1:
        raise TrainingError(
            f"the processes would train in {' and '.join(precisions)}: their processors or GPUs differ; name one in "
            "training.mixed_precision"
        )
    if accelerator.gradient_accumulation_steps != 1:  # it would divide every loss once more
        raise TrainingError(
            f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS is {accelerator.gradient_accumulation_steps}; unset it, and set "
            "training.gradient_accumulation_steps in the recipe"
        )


def describe_processes(accelerator: Accelerator) -> str:
    """Return how many processes work on what, and a warning if fewer were started than were asked for."""
    count = accelerator.num_processes
    machines = count // int(os.environ.get("LOCAL_WORLD_SIZE", count))
    where = f" on {machines} machines" if machines > 1 else ""
    how = ", which share the model out (FSDP 2)" if accelerator.distributed_type == DistributedType.FSDP else ""
    told = f"{count} process{'es' if count > 1 else ''}{where}, {accelerator.device.type}{how}"
    if _address_without_processes() is not None:
        told += (
            "\n[yellow]accelerate launch was asked for several processes and started one, as it does where it finds no "
            f"second GPU; {_START_ALL}[/]"
        )
    return told


def _address_without_processes() -> str | None:
    """Return the address that Accelerate named for several processes to meet at, if it then started but one."""
    launched = {"ACCELERATE_MIXED_PRECISION", "MASTER_PORT"} <= os.environ.keys()  # by Accelerate, and for several
    return os.environ.get("MASTER_ADDR") if launched and "WORLD_SIZE" not in os.environ else None


@contextmanager
def run_locked(folder: RunFolder, accelerator: Accelerator, *, read_only_ok: bool = False) -> Iterator[None]:
    """Let no other launch write in a run folder; the main process holds the lock for all processes of this one.

    Raises:
        TrainingError: another process writes there. Every process raises it.
    """
    with ExitStack() as held:

        def lock() -> None:
            held.enter_context(locked_folder(folder.path, read_only_ok=read_only_ok))

        on_main_process(accelerator, lock)
        yield


def check_shared(path: Path, accelerator: Accelerator) -> None:
    """Raise TrainingError, on all processes, unless each sees what the main process writes beside `path`.

    All read from there: checkpoints to go on from, and the saved model. Nothing is left behind.
    """
    if accelerator.num_processes == 1:
        return
    (name,) = broadcast_object_list([f".{path.name}.{uuid.uuid4().hex}"])
    mark, made, problem = path.absolute().parent / name, [], ""
    if accelerator.is_main_process:
        made = [folder for folder in (mark, *mark.parents) if not folder.exists()]
        try:
            mark.mkdir(parents=True)
        except OSError as error:
            problem = f"output_dir {path} cannot be written: {error.strerror}; name another"
    (problem,) = broadcast_object_list([problem])
    last = time.monotonic() + (0.0 if problem else DISK_SECONDS)
    while not (seen := mark.is_dir()) and time.monotonic() < last:
        time.sleep(0.1)
    blind = [host for host, sees in gather_object([(socket.gethostname(), seen)]) if not sees]
    for folder in made:
        with suppress(OSError):  # another run may have put something there by now
            folder.rmdir()
    if problem or blind:
        raise TrainingError(
            problem
            or f"{path.absolute()} is not the same folder for all processes (not seen on: {', '.join(blind)}); "
            "several machines need an output_dir on a disk that all share, named by the same path; "
            "start a dry run on one machine"
        )


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
