"""Faster training and scoring with the same results.

`sped_up` combines three context managers: one computes only the first token in the last layer where the classification
head reads no other, one casts frozen weights once instead of in every forward pass, one lets an accelerator make masks
without the CPU. `training_kernels` adds faster kernels on CPUs.

    B batch, S tokens, E hidden size
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from finetune.models.adapted import is_adapted
from finetune.models.architectures import FAMILIES
from finetune.models.classifier import Classifier
from finetune.models.cpu_kernels import CpuKernels
from finetune.models.int8_products import int8_products
from finetune.models.packing import current_packing
from finetune.models.pooling import pooling_of
from finetune.models.precision import INT8
from finetune.models.target_scaling import float32_predictions

_AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def sped_up(classifier: Classifier, accelerator: Accelerator) -> Iterator[None]:
    """Inside the context the classifier skips computations that affect no result; it is restored afterwards.

    A regression predicts in float32, also under autocast. If the accelerator's precision is int8, linear layers
    multiply in int8 (`int8_products`); for scoring, call this without gradients.
    """
    with (
        first_token_only(classifier.base),
        frozen_weights_cast(classifier.model, accelerator),
        float32_predictions(classifier),
        masks_without_reads(accelerator.device),
        int8_products(classifier.base) if accelerator.mixed_precision == INT8 else nullcontext(),
    ):
        yield


@contextmanager
def masks_without_reads(device: torch.device) -> Iterator[None]:
    """Inside the context transformers does not read from an accelerator whether a batch has padding.

    It reads this in every forward pass to leave out a mask that is true everywhere, and so waits until the accelerator
    has computed the batches before. Here the mask is always made; results are the same up to rounding. On a CPU, where
    nothing waits, nothing is changed.
    """
    original = {} if device.type == "cpu" else {name: ALL_MASK_ATTENTION_FUNCTIONS[name] for name in ("sdpa", "eager")}
    try:
        for name, mask_of in original.items():
            ALL_MASK_ATTENTION_FUNCTIONS[name] = partial(_always_made, mask_of)
        yield
    finally:
        for name, mask_of in original.items():
            ALL_MASK_ATTENTION_FUNCTIONS[name] = mask_of


def _always_made(mask_of: Callable[..., Tensor | None], *args: Any, **kwargs: Any) -> Tensor | None:
    """Return the mask that a function of transformers makes, also if it is true everywhere."""
    return mask_of(*args, **{**kwargs, "allow_is_bidirectional_skip": False})


def training_kernels(device: torch.device, *, compiled: bool) -> AbstractContextManager[object]:
    """Return the context for training's forward passes; compiled layers have kernels of their own."""
    return CpuKernels() if device.type == "cpu" and not compiled else nullcontext()


@contextmanager
def first_token_only(base: PreTrainedModel) -> Iterator[bool]:
    """Inside the context the last layer computes only the first token after attention; yield whether it does.

    After the last attention, tokens no longer affect one another, so a head that reads only the first token needs no
    other. The gradients are the same: those of the unread tokens are zero. Whether a model allows this is tested on
    random rows with padding, not derived from its type: if a head averages all tokens, or a layer is shared, the other
    tokens have gradients, and all tokens are computed. Hidden states that are requested in addition to logits lack the
    other tokens of the last layer.
    """
    if pooling_of(base.config) == "mean":  # reads all tokens, so the test's three forward passes are not needed
        yield False
        return
    compiled = any(module._compiled_call_impl is not None for module in base.modules())  # would ignore new hooks
    module = None if compiled else _after_last_attention(base)
    hooks = () if module is None else module._forward_pre_hooks.values()
    already_active = any(isinstance(hook, _KeepFirstToken) for hook in hooks)
    if module is None or already_active or not _reads_first_token(base, module):
        yield already_active
        return
    with _pre_hook(module, _KeepFirstToken(base)):
        yield True


def _after_last_attention(base: PreTrainedModel) -> nn.Module | None:
    family = FAMILIES[base.config.model_type]
    name = family.after_attention_path(base.config)
    layer = family.layer_path(base.config, family.num_layers(base.config) - 1)
    return dict(base.base_model.named_modules()).get(f"{layer}.{name}") if name else None


class _KeepFirstToken:
    """A forward pre-hook that keeps the first token of each row."""

    def __init__(self, base: PreTrainedModel) -> None:
        self.base = base

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return every (B, S, E) as (B, 1, E), and (K, B, S, E) where head ablation runs K copies of a batch.

        Packed states (1, T, E) become (1, B, E), except where the layer needs all of them (`Packing.keep_all`).
        """
        packing = current_packing(self.base)
        if packing is not None and packing.keep_all:
            return args
        keep = slice(1) if packing is None else packing.bounds[:-1]
        return tuple(arg[..., keep, :] if isinstance(arg, Tensor) and arg.dim() in (3, 4) else arg for arg in args)


def _reads_first_token(base: PreTrainedModel, module: nn.Module) -> bool:
    """Return whether the logits are the same without the other tokens, and have no gradient with respect to them."""
    training, device = base.training, next(base.parameters()).device
    ids = torch.randint(base.config.vocab_size, (2, 7), generator=torch.Generator().manual_seed(0))
    attention_mask = torch.ones_like(ids)
    attention_mask[1, 5:] = 0
    inputs = {"input_ids": ids.to(device), "attention_mask": attention_mask.to(device)}
    leaves: list[Tensor] = []

    def record_leaves(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        detached = [arg.detach().requires_grad_() if isinstance(arg, Tensor) else arg for arg in args]
        leaves.extend(arg for arg in detached if isinstance(arg, Tensor) and arg.dim() == 3 and arg.numel())
        return tuple(detached)

    # The class's forward, because Accelerate may have wrapped the instance's in autocast, whose rounding would hide
    # small gradients.
    forward = partial(type(base).forward, base, **inputs)
    base.eval()
    try:
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            with _pre_hook(module, record_leaves):
                full = forward().logits
            with _pre_hook(module, _KeepFirstToken(base)):
                reduced = forward().logits
            # Random weights, since gradients of single logits may cancel in a plain sum.
            weights = torch.randn(full.shape, generator=torch.Generator().manual_seed(1)).to(full)
            gradients = torch.autograd.grad((full * weights).sum(), leaves, allow_unused=True) if leaves else ()
    except (IndexError, RuntimeError, TypeError, ValueError):  # shapes that do not match with one token only
        return False
    finally:
        base.train(training)
    # With a head of zeros no token has a gradient, which shows nothing: the first token must have one.
    only_first = [g is not None and bool(g[:, :1].any()) and not g[:, 1:].any() for g in gradients]
    return bool(only_first) and all(only_first) and torch.allclose(full.float(), reduced.float(), rtol=0.03, atol=0.03)


@contextmanager
def _pre_hook(module: nn.Module, hook: Any) -> Iterator[None]:
    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def frozen_weights_cast(model: nn.Module, accelerator: Accelerator) -> Iterator[None]:
    """Inside the context frozen weights of linear layers have the dtype to which autocast would cast them.

    Autocast casts a trained weight once per pass, but a frozen weight in every call, such as the base under adapters.
    Results are bit-identical, and the original weights are restored.
    peft would cast the input of adapters to float32, and autocast would cast it back; this is turned off too.

    Under DoRA, which computes with the weights directly, nothing is changed.
    """
    dtype = _AUTOCAST_DTYPES.get(accelerator.mixed_precision)
    names = [name for name, _ in model.named_parameters()]
    if dtype is None or any("lora_magnitude_vector" in name for name in names):
        yield
        return
    others = {id(p) for m in model.modules() if not isinstance(m, nn.Linear) for p in m.parameters(recurse=False)}
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    frozen = {
        id(p): p for m in linear for p in m.parameters(recurse=False) if not p.requires_grad and id(p) not in others
    }
    original = [(p, p.data) for p in frozen.values() if p.dtype == torch.float32]
    try:
        for parameter, weight in original:
            parameter.data = weight.to(dtype)
        with _adapter_inputs_uncast(model):
            yield
    finally:
        for parameter, weight in original:
            parameter.data = weight


def _adapter_inputs_uncast(model: nn.Module) -> AbstractContextManager[None]:
    """Return the context in which peft does not cast the inputs of adapters, if there are any."""
    if not is_adapted(model):
        return nullcontext()
    from peft.helpers import disable_input_dtype_casting  # peft takes a quarter of a second, and few models need it

    return disable_input_dtype_casting(model)
