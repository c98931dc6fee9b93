"""What the processes of a run must agree on, step by step.

P processes
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed import ProcessGroup, all_reduce, broadcast, get_backend, new_group
from torch.distributed import ReduceOp as Reduce

from finetune.errors import DataError, FinetuneError, ModelError, RecipeError, TrainingError

T = TypeVar("T")

_BUCKET = 2**23  # numbers sent together: few messages, and little memory besides


class CpuGroup:
    """Facts that one process may know before the others, such as a signal: told to all, without the accelerator."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._alone = accelerator.num_processes == 1
        # NCCL sends from GPU to GPU alone, and every process would wait for its GPU each step.
        own_group = not self._alone and get_backend() != "gloo"
        self._group: ProcessGroup | None = new_group(backend="gloo") if own_group else None

    def all_reduce_max(self, *values: int) -> list[int]:
        """Return the highest of all processes, value by value."""
        if self._alone:
            return list(values)
        known = torch.tensor(values, dtype=torch.int32)
        all_reduce(known, op=Reduce.MAX, group=self._group)
        return [int(value) for value in known.tolist()]


def gather_results(accelerator: Accelerator, work: Callable[[], T]) -> list[T]:
    """Do `work` on every process and return all results, (P,), in the order of the processes.

    Raises:
        Exception: `work` failed somewhere. A process that failed raises its own error, each other one a FinetuneError
            that repeats it, so that none waits for one that has given up.
    """
    result: list[T] = []
    error: Exception | None = None
    try:
        result.append(work())
    except Exception as caught:
        error = caught
    reports = gather_object([(result, None if error is None else _report(error, accelerator.process_index))])
    if error is not None:
        raise error
    for _, failed in reports:
        if failed is not None:
            raise _repeated(*failed)
    return [value for values, _ in reports for value in values]


def on_main_process(accelerator: Accelerator, work: Callable[[], None]) -> None:
    """Do `work` on the main process while the others wait; an error is raised on all, as by `gather_results`."""
    gather_results(accelerator, lambda: work() if accelerator.is_main_process else None)


def local_main_process_first(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Do `work` on one process of each machine, then on its others, and return the own result.

    An error on one process is raised on all, as by `gather_results`. (With Accelerate's context manager of this name
    the others wait for a process that has failed.)
    """
    results: list[T] = []
    for local_main in (True, False):
        mine = accelerator.is_local_main_process == local_main
        gather_results(accelerator, lambda mine=mine: results.append(work()) if mine else None)  # type: ignore[misc]
    return results[0]


def _report(error: Exception, process: int) -> tuple[str, str]:
    """Return an error's class and text, as all other processes repeat it."""
    if isinstance(error, FinetuneError):
        return type(error).__name__, f"{error} (on process {process})" if process else str(error)
    return "", f"process {process} failed with {type(error).__name__}: {error}; it prints the traceback"


def _repeated(name: str, text: str) -> FinetuneError:
    kinds = {kind.__name__: kind for kind in (DataError, ModelError, RecipeError, TrainingError)}
    return kinds.get(name, TrainingError)(text)


@torch.no_grad()
def broadcast_weights(model: nn.Module, accelerator: Accelerator) -> None:
    """Move the model to the accelerator's device, and give every process the main process's parameters and buffers."""
    model.to(accelerator.device)
    if accelerator.num_processes > 1:
        _in_buckets([*model.parameters(), *model.buffers()], lambda flat: broadcast(flat, src=0))


@torch.no_grad()
def average_gradients(parameters: Sequence[nn.Parameter], processes: int) -> None:
    """Replace each gradient by the mean over the processes.

    Done after the backward passes rather than within the last: a process whose memory ran out in one must be able to
    say so before the others wait for its gradients.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    _in_buckets(gradients, lambda flat: all_reduce(flat.div_(processes)))


def _in_buckets(tensors: Sequence[Tensor], send: Callable[[Tensor], object]) -> None:
    """Change tensors as `send` changes a flat copy of many of them."""
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.flatten() for tensor in bucket])
        send(flat)
        for tensor, part in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
            tensor.copy_(part.view_as(tensor))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield tensors of one dtype, together of about _BUCKET numbers."""
    for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
        bucket: list[Tensor] = []
        for tensor in tensors:
            if tensor.dtype != dtype:
                continue
            bucket.append(tensor)
            if sum(each.numel() for each in bucket) >= _BUCKET:
                yield bucket
                bucket = []
        if bucket:
            yield bucket
