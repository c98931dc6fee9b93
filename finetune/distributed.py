"""Communication between the processes of a run: results, errors, weights and gradients.

P processes
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed import ProcessGroup, ReduceOp, all_reduce, broadcast, get_backend, new_group

from finetune.errors import DataError, FinetuneError, ModelError, RecipeError, TrainingError

T = TypeVar("T")
Processes: TypeAlias = Accelerator | PartialState

_BUCKET_SIZE = 2**23  # numbers per message; larger: fewer messages, but a larger temporary buffer


class CpuGroup:
    """A process group that exchanges small integers between CPUs, such as a signal number or an out-of-memory flag."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._single_process = accelerator.num_processes == 1
        # NCCL only communicates between GPUs, so each exchange would wait for the GPU to finish its work.
        needs_gloo = not self._single_process and get_backend() != "gloo"
        self._group: ProcessGroup | None = new_group(backend="gloo") if needs_gloo else None

    def all_reduce_max(self, *values: int) -> list[int]:
        """Return, for each value, its maximum over all processes."""
        if self._single_process:
            return list(values)
        maxima = torch.tensor(values, dtype=torch.int32)
        all_reduce(maxima, op=ReduceOp.MAX, group=self._group)
        return [int(value) for value in maxima.tolist()]


def gather_results(accelerator: Processes, function: Callable[[], T]) -> list[T]:
    """Call `function` on every process and return all results, (P,), in the order of the process indices.

    Raises:
        Exception: `function` failed on a process. That process raises the original error; every other process raises
            a FinetuneError with the same message, so that none waits for a process that has failed.
    """
    result: list[T] = []
    error: Exception | None = None
    try:
        result.append(function())
    except Exception as caught:
        error = caught
    reports = gather_object([(result, None if error is None else _describe(error, accelerator.process_index))])
    if error is not None:
        raise error
    for _, description in reports:
        if description is not None:
            raise _error_from(*description)
    return [value for values, _ in reports for value in values]


def on_main_process(accelerator: Processes, function: Callable[[], None]) -> None:
    """Call `function` on the main process while the others wait; an error is raised on all, as in `gather_results`."""
    gather_results(accelerator, lambda: function() if accelerator.is_main_process else None)


def local_main_process_first(accelerator: Accelerator, function: Callable[[], T]) -> T:
    """Return the result of `function`, called first on one process per machine, then on the other processes.

    An error on one process is raised on all, as in `gather_results`. (Accelerate's context manager of the same name
    makes the others wait for a process that has failed.)
    """
    results: list[T] = []
    for main_process_turn in (True, False):
        is_my_turn = accelerator.is_local_main_process == main_process_turn
        gather_results(accelerator, lambda run=is_my_turn: results.append(function()) if run else None)  # type: ignore[misc]
    return results[0]


def _describe(error: Exception, process: int) -> tuple[str, str]:
    """Return the class name and the message of an error, with which the other processes raise it."""
    if isinstance(error, FinetuneError):
        return type(error).__name__, f"{error} (on process {process})" if process else str(error)
    return "", f"process {process} failed with {type(error).__name__}: {error}; it prints the traceback"


def _error_from(name: str, message: str) -> FinetuneError:
    """Return the error that `_describe` described; TrainingError if its class is not one of this package."""
    classes = {error.__name__: error for error in (DataError, ModelError, RecipeError, TrainingError)}
    return classes.get(name, TrainingError)(message)


@torch.no_grad()
def broadcast_weights(model: nn.Module, accelerator: Accelerator) -> None:
    """Move the model to the accelerator's device and copy the main process's parameters and buffers to all others."""
    model.to(accelerator.device)
    if accelerator.num_processes > 1:
        _apply_in_buckets([*model.parameters(), *model.buffers()], lambda flat: broadcast(flat, src=0))


@torch.no_grad()
def average_gradients(parameters: Sequence[nn.Parameter], num_processes: int) -> None:
    """Replace each gradient by its mean over the processes.

    Call it after the last backward pass, not in it: a process that runs out of memory in a backward pass must be able
    to report this before the others wait for its gradients.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    _apply_in_buckets(gradients, lambda flat: all_reduce(flat.div_(num_processes)))


def _apply_in_buckets(tensors: Sequence[Tensor], communicate: Callable[[Tensor], object]) -> None:
    """Copy the tensors into flat buffers, call `communicate` on each buffer, and copy the results back."""
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.flatten() for tensor in bucket])
        communicate(flat)
        for tensor, part in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
            tensor.copy_(part.view_as(tensor))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield lists of tensors of one dtype, each with about _BUCKET_SIZE numbers in total."""
    for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
        bucket: list[Tensor] = []
        for tensor in tensors:
            if tensor.dtype != dtype:
                continue
            bucket.append(tensor)
            if sum(member.numel() for member in bucket) >= _BUCKET_SIZE:
                yield bucket
                bucket = []
        if bucket:
            yield bucket
