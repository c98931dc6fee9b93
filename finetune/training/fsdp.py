"""Training with sharded weights, gradients and optimizer state: FSDP 2, through Accelerate.

Accelerate shards a copy of the model. Each process also keeps the classifier's full model in CPU memory; the trained
weights are gathered into it whenever it is evaluated or saved. Evaluation, checkpoints, saved models and
head analysis are therefore the same as with one process. FSDP saves memory for gradients and optimizer state; the full
weights must fit into the memory of one device.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from finetune.distributed import average_gradients
from finetune.errors import TrainingError
from finetune.models.architectures import encoder_layers, family_of
from finetune.recipe.training_section import TrainingSection


def fsdp_plugin(training: TrainingSection) -> FullyShardedDataParallelPlugin | None:
    """Return the FSDP settings of the launcher, None if it does not use FSDP.

    Mixed precision uses autocast, as without FSDP: Accelerate's policy would also round norms and sums of gradients.
    Every process loads the weights: if only one did (`cpu_ram_efficient_loading`), the others would have no full model.

    Raises:
        TrainingError: the launcher requests FSDP 1 or an unsupported option.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() != "true":
        return None
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise TrainingError(
            f"the launcher requests FSDP {version}, but only FSDP 2 is supported; set fsdp_version: 2 under "
            "fsdp_config in Accelerate's config file"
        )
    try:
        plugin = FullyShardedDataParallelPlugin(
            mixed_precision_policy=MixedPrecisionPolicy(), cpu_ram_efficient_loading=False
        )
    except (KeyError, ValueError) as error:
        raise TrainingError(f"Accelerate rejects its FSDP settings: {error}; correct its config file") from error
    unsupported = {
        "fsdp_offload_params: true": isinstance(plugin.cpu_offload, CPUOffloadPolicy),
        "fsdp_activation_checkpointing: true": plugin.activation_checkpointing,  # it would rename the weights
        "fsdp_ignored_modules": plugin.ignored_modules,  # they would differ between processes
        "training.torch_compile: true": training.torch_compile,
        "training.padding_free: true": training.padding_free is True,
        **{f"training.mixed_precision: {name}": training.mixed_precision == name for name in ("fp16", "int8")},
    }
    in_use = [setting for setting, is_set in unsupported.items() if is_set]
    if in_use:
        raise TrainingError(f"not supported with FSDP: {', '.join(in_use)}; change this, or start without FSDP")
    return plugin


def shard_on_cpus(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin | None) -> None:
    """Enable FSDP for several CPU processes, for which Accelerate ignores the plugin."""
    if plugin is not None and accelerator.distributed_type == DistributedType.MULTI_CPU:
        accelerator.state.fsdp_plugin = plugin
        # Accelerate sometimes copies the type from one of these to the other.
        accelerator.state.distributed_type = PartialState().distributed_type = DistributedType.FSDP


def is_sharded(accelerator: Accelerator) -> bool:
    """Return whether Accelerate shards models."""
    return bool(accelerator.is_fsdp2)


def prepare_model(
    model: nn.Module, optimizer: torch.optim.Optimizer, base: PreTrainedModel, accelerator: Accelerator
) -> tuple[nn.Module, Any]:
    """Return a model and its optimizer, prepared by Accelerate; under FSDP the model is sharded in place.

    Without FSDP the model is not wrapped in DistributedDataParallel, whose buckets would hold a second copy of every
    gradient: gradients are averaged by `average_replicas`.

    Args:
        base: the model whose layers are gathered one by one, unless the launcher names layer classes. Accelerate's
            default contains the embeddings twice for models such as BERT, and fails.

    Raises:
        TrainingError: Accelerate cannot shard this model.
    """
    if not is_sharded(accelerator):
        # `evaluation_mode` only means no DistributedDataParallel; device and autocast are those of training.
        return accelerator.prepare_model(model, evaluation_mode=True), accelerator.prepare_optimizer(optimizer)
    dtypes = {name: p.dtype for name, p in model.named_parameters() if p.requires_grad}
    layers = [] if family_of(base.config).forward_bypasses_hooks else encoder_layers(base)
    plugin, layer_classes = accelerator.state.fsdp_plugin, sorted({type(layer).__name__ for layer in layers})
    plugin.transformer_cls_names_to_wrap = plugin.transformer_cls_names_to_wrap or layer_classes
    try:
        model, optimizer = accelerator.prepare(model, optimizer)
    except (KeyError, TypeError, ValueError) as error:
        raise TrainingError(
            f"Accelerate cannot shard this model: {error}; correct fsdp_config in its config file"
        ) from error
    trained = dict(model.named_parameters())
    if any(trained[name].dtype != dtype for name, dtype in dtypes.items()):
        raise TrainingError(
            "FSDP with mixed precision trains float32 weights, and these have another dtype; set model.dtype: float32, "
            "or training.mixed_precision: no"
        )
    # Without FSDP Accelerate adds autocast itself; with FSDP it relies on the mixed-precision policy.
    model.forward = accelerator.autocast()(model.forward)
    return model, optimizer


def average_replicas(parameters: Sequence[nn.Parameter], accelerator: Accelerator) -> None:
    """Average the gradients over the processes; under FSDP the backward pass has done so."""
    if accelerator.num_processes > 1 and not is_sharded(accelerator):
        average_gradients(parameters, accelerator.num_processes)


@contextmanager
def full_model(full: nn.Module, module: nn.Module) -> Iterator[nn.Module]:
    """Yield the model `full` with the weights of the trained `module`; all processes must enter together.

    Without FSDP both are the same module. Under FSDP the weights are gathered, and the full model returns to the CPU
    after the block.
    """
    if not isinstance(module, FSDPModule):
        yield full
        return
    parameters = dict(full.to("cpu").named_parameters())
    with torch.no_grad():
        for name, shard in module.named_parameters():
            if shard.requires_grad:
                parameters[name].copy_(full_tensor(shard))
    yield full
    full.to("cpu")


def load_shards(full: nn.Module, module: nn.Module) -> None:
    """Copy the trainable weights of the model `full` into the sharded `module`; without FSDP, do nothing."""
    if not isinstance(module, FSDPModule):
        return
    parameters = dict(full.named_parameters())
    with torch.no_grad():
        for name, shard in module.named_parameters():
            if shard.requires_grad:
                shard.copy_(shard_like(parameters[name], shard))


def full_state(optimizer: Any, accelerator: Accelerator) -> Any:
    """Return an object whose `state_dict` has full tensors: the optimizer itself, or under FSDP a wrapper of it."""
    return FullStateOptimizer(optimizer) if is_sharded(accelerator) else optimizer


class FullStateOptimizer:
    """An optimizer of a sharded model whose `state_dict` has full tensors, as without FSDP."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups; the `shape` of their parameters is that of the full tensors."""
        groups: list[dict[str, Any]] = self._optimizer.param_groups
        return groups

    def state_dict(self) -> dict[str, Any]:
        """Return the state with full tensors on the CPU; all processes must call this together."""
        sharded = self._optimizer.state_dict()
        states = {
            index: {key: full_tensor(value).cpu() for key, value in state.items()}
            for index, state in sharded["state"].items()
        }
        return {**sharded, "state": states}

    def load_state_dict(self, full: Mapping[str, Any]) -> None:
        """Load this process's shards from a state with full tensors."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        states = {
            index: {key: shard_like(value, parameters[index]) if value.dim() else value for key, value in state.items()}
            for index, state in full["state"].items()
        }
        self._optimizer.load_state_dict({**full, "state": states})


def full_tensor(tensor: Tensor) -> Tensor:
    """Return a sharded tensor in full, any other tensor unchanged; all processes must call this together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return this process's shard of a full tensor, sharded as `like`; the full tensor if `like` is not sharded."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.detach().to(like.device), like.device_mesh, like.placements, src_data_rank=None)
