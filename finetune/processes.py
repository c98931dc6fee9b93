"""What the processes of a run must agree on, step by step.

P processes
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.distributed import ProcessGroup, all_reduce, broadcast, get_backend, new_group
from torch.distributed import ReduceOp as Reduce

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


@torch.no_grad()
def start_equal(model: nn.Module, accelerator: Accelerator) -> None:
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
