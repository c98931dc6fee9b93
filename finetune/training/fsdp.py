"""Training with weights, gradients and optimiser state shared out among the processes: FSDP 2, through Accelerate.

What Accelerate shares out is a copy of the model. The classifier keeps its own, whole, in the memory of each process,
and takes the trained weights over whenever it is scored or saved: so scoring, checkpoints, saved models and head
analysis are those of one process. What it saves is memory for gradients and optimiser state; weights must fit whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from finetune.errors import TrainingError
from finetune.models.compilation import encoder_layers
from finetune.recipe import TrainingSection

# These call `forward` of their layers, past the hooks that put a layer together: all of it is put together at once.
_PAST_HOOKS = ("squeezebert",)


def fsdp_plugin(training: TrainingSection) -> FullyShardedDataParallelPlugin | None:
    """Return how the launcher asks to share the model out; None: it does not.

    Precision is that of autocast, as without FSDP, and not Accelerate's policy, under which norms and the sums of
    gradients would be rounded too. Every process reads the weights: Accelerate's loading on one process alone would
    leave the others without a whole model.

    Raises:
        TrainingError: it asks for FSDP 1, or for something that is not done here.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() != "true":
        return None
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise TrainingError(
            f"the launcher asks for FSDP {version}, but models are shared out by FSDP 2 alone here; set "
            "fsdp_version: 2 under fsdp_config in Accelerate's config file"
        )
    try:
        plugin = FullyShardedDataParallelPlugin(
            mixed_precision_policy=MixedPrecisionPolicy(), cpu_ram_efficient_loading=False
        )
    except (KeyError, ValueError) as error:
        raise TrainingError(f"Accelerate refuses its own FSDP settings: {error}; correct its config file") from error
    refused = {
        "fsdp_offload_params: true": isinstance(plugin.cpu_offload, CPUOffloadPolicy),
        "fsdp_activation_checkpointing: true": plugin.activation_checkpointing,  # weights would change their names
        "fsdp_ignored_modules": plugin.ignored_modules,  # each process would train its own
        "training.torch_compile: true": training.torch_compile,
        "training.mixed_precision: fp16": training.mixed_precision == "fp16",
    }
    asked = [setting for setting, found in refused.items() if found]
    if asked:
        raise TrainingError(f"not supported under FSDP here: {', '.join(asked)}; change this, or start without FSDP")
    return plugin


def shard_on_cpus(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin | None) -> None:
    """Let several CPU processes share the model out, too: Accelerate forgets about FSDP without a GPU."""
    if plugin is not None and accelerator.distributed_type == DistributedType.MULTI_CPU:
        accelerator.state.fsdp_plugin = plugin
        # Accelerate takes the kind over from the one to the other now and then.
        accelerator.state.distributed_type = PartialState().distributed_type = DistributedType.FSDP


def is_sharded(accelerator: Accelerator) -> bool:
    """Return whether models are shared out when they are prepared."""
    return bool(accelerator.is_fsdp2)


def prepared(
    model: nn.Module, optimizer: torch.optim.Optimizer, base: PreTrainedModel, accelerator: Accelerator
) -> tuple[nn.Module, Any]:
    """Return a model and its optimizer, prepared by Accelerate; under FSDP the model is sharded in place.

    Without FSDP the model is not put into DistributedDataParallel, whose buckets would hold every gradient once more:
    the loop averages gradients itself (`average_gradients`).

    Args:
        base: names the layers that are put together one by one, unless the launcher does. Accelerate's own guess holds
            embeddings twice where transformers calls them a unit, as in BERT, and fails.

    Raises:
        TrainingError: Accelerate cannot share out this model.
    """
    if not is_sharded(accelerator):
        # That is what `evaluation_mode` means to Accelerate; device and autocast are as in training.
        return accelerator.prepare_model(model, evaluation_mode=True), accelerator.prepare_optimizer(optimizer)
    dtypes = {name: p.dtype for name, p in model.named_parameters() if p.requires_grad}
    layers = [] if base.config.model_type in _PAST_HOOKS else encoder_layers(base)
    plugin, found = accelerator.state.fsdp_plugin, sorted({type(layer).__name__ for layer in layers})
    plugin.transformer_cls_names_to_wrap = plugin.transformer_cls_names_to_wrap or found
    try:
        model, optimizer = accelerator.prepare(model, optimizer)
    except (KeyError, TypeError, ValueError) as error:
        raise TrainingError(
            f"Accelerate cannot share this model out: {error}; correct fsdp_config in its config file"
        ) from error
    trained = dict(model.named_parameters())
    if any(trained[name].dtype != dtype for name, dtype in dtypes.items()):
        raise TrainingError(
            "under FSDP and mixed precision weights are trained in float32, and these are not; set model.dtype: "
            "float32, or training.mixed_precision: no"
        )
    # Accelerate does this to a model that is not shared out, and leaves it to the policy otherwise.
    model.forward = accelerator.autocast()(model.forward)
    return model, optimizer


@contextmanager
def up_to_date(own: nn.Module, trained: nn.Module) -> Iterator[nn.Module]:
    """Yield the classifier's own model with the weights as trained; all processes must enter together.

    Where the model is shared out they are gathered, and the whole model leaves the device again afterwards.
    """
    if not isinstance(trained, FSDPModule):
        yield own
        return
    held = dict(own.to("cpu").named_parameters())
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if parameter.requires_grad:
                held[name].copy_(whole_tensor(parameter))
    yield own
    own.to("cpu")


def scatter(whole: nn.Module, sharded: nn.Module) -> None:
    """Give a model that is shared out the trained weights of a whole one."""
    held = dict(whole.named_parameters())
    with torch.no_grad():
        for name, parameter in sharded.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(_share(held[name], parameter))


class WholeState:
    """An optimiser of a model that is shared out; its state goes in and out in whole tensors, as without FSDP."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimiser's groups; their parameters have the shapes of whole ones."""
        groups: list[dict[str, Any]] = self._optimizer.param_groups
        return groups

    def state_dict(self) -> dict[str, Any]:
        """Return the state, tensors on the CPU. All processes must call this together."""
        found = self._optimizer.state_dict()
        states = {
            index: {key: whole_tensor(value).cpu() for key, value in state.items()}
            for index, state in found["state"].items()
        }
        return {**found, "state": states}

    def load_state_dict(self, found: Mapping[str, Any]) -> None:
        """Take each process's share of a whole state."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        states = {
            index: {key: _share(value, parameters[index]) if value.dim() else value for key, value in state.items()}
            for index, state in found["state"].items()
        }
        self._optimizer.load_state_dict({**found, "state": states})


def whole_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor whole, if it is shared out; all processes must call this together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _share(tensor: Tensor, like: Tensor) -> Tensor:
    """Return this process's share of a whole tensor, cut as `like` is; nothing is sent."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.detach().to(like.device), like.device_mesh, like.placements, src_data_rank=None)
