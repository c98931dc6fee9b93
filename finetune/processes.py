"""What the processes of a run must agree on, step by step.

P processes
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.distributed import ProcessGroup, all_reduce, get_backend, new_group
from torch.distributed import ReduceOp as Reduce
from torch.nn.parallel import DistributedDataParallel

from finetune.errors import TrainingError

_BUCKET = 2**23  # numbers sent together: few messages, and little memory besides


class Agreement:
    """Facts that one process may know before the others, such as a signal: told to all, without the accelerator."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._alone = accelerator.num_processes == 1
        # NCCL sends from GPU to GPU alone, and every process would wait for its GPU each step.
        own_group = not self._alone and get_backend() != "gloo"
        self._group: ProcessGroup | None = new_group(backend="gloo") if own_group else None

    def highest(self, *values: int) -> list[int]:
        """Return the highest of all processes, value by value."""
        if self._alone:
            return list(values)
        known = torch.tensor(values, dtype=torch.int32)
        all_reduce(known, op=Reduce.MAX, group=self._group)
        return [int(value) for value in known.tolist()]


def on_main_process(accelerator: Accelerator, work: Callable[[], None]) -> None:
    """Do `work` on the main process while the others wait.

    Raises:
        TrainingError: it failed, on every process: none waits for one that has given up.
    """
    failed = ""
    if accelerator.is_main_process:
        try:
            work()
        except TrainingError as error:
            failed = str(error)
    (failed,) = broadcast_object_list([failed])
    if failed:
        raise TrainingError(failed)


def averages_by_hand(model: nn.Module) -> bool:
    """Return whether `average_gradients` is to be called: whether each process holds the whole model."""
    return isinstance(model, DistributedDataParallel)


def average_gradients(parameters: Sequence[nn.Parameter], processes: int) -> None:
    """Replace each gradient by the mean over the processes.

    Done after the backward passes rather than within the last: a process whose memory ran out in one must be able to
    say so before the others wait for its gradients.
    """
    for gradients in _buckets([p.grad for p in parameters if p.grad is not None]):
        flat = torch.cat([gradient.flatten() for gradient in gradients]).div_(processes)
        all_reduce(flat)
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield gradients of one dtype, together of about _BUCKET numbers."""
    for dtype in sorted({gradient.dtype for gradient in gradients}, key=str):
        bucket: list[Tensor] = []
        for gradient in gradients:
            if gradient.dtype != dtype:
                continue
            bucket.append(gradient)
            if sum(each.numel() for each in bucket) >= _BUCKET:
                yield bucket
                bucket = []
        if bucket:
            yield bucket
