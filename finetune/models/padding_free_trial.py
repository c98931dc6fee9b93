"""Whether, and in which form, a model computes only real tokens with the same results (padding_free.py).

It is tried out on the model, not derived from its type: logits, states and gradients of a few random rows must be
those of a padded batch. A model that mixes neighboring tokens outside of attention, for example, is recognized by its
results.

    B rows, S tokens
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from finetune.errors import ModelError
from finetune.models.architectures import family_of
from finetune.models.padding_free import Form, PaddingFree
from finetune.models.precision import uses_flash_attention
from finetune.models.speedups import first_token_only

_LENGTHS = (7, 4, 1)  # tokens of the rows


def try_padding_free(
    base: PreTrainedModel, device: torch.device, *, first: int = 0, left: bool = False
) -> tuple[PaddingFree | None, str]:
    """Return how the model computes only real tokens, or None and the reason why it cannot.

    A few random rows with padding must have the same logits, the same states of real tokens, and the same gradients of
    all trained parameters as in a padded batch. The tolerance is 1e-4 of the largest number for float32 weights
    (measured over all families: 1e-5) and 5e-2 for lower precision. The model must be on `device`.
    """
    if base.base_model is base:
        return None, "it has no encoder of its own"
    if uses_flash_attention(base):
        return None, "flash_attention_2 removes padding in attention itself"
    if not_packed := family_of(base.config).why_not_packed(base.config):
        return None, not_packed
    lowest_bits = min(torch.finfo(p.dtype).bits for p in base.parameters() if p.is_floating_point())
    tolerance, training, reason = (1e-4 if lowest_bits >= 32 else 5e-2), base.training, ""
    padded_attention = base.config._attn_implementation != "sdpa"
    base.eval()
    try:
        with first_token_only(base) as first_only, torch.autocast(device.type, enabled=False):
            trial = _Trial(base, _random_rows(base, device, left=left), first_only)
            expected = trial.outcome()
            for keep_all in (False, True) if first_only else (False,):
                result = PaddingFree(base, Form(padded_attention, keep_all), first=first, left=left)
                failure = _why_not_exact(result, trial, expected, tolerance)
                if not failure:
                    if device.type == "cuda" and not padded_attention:
                        result.form = _with_flash(result, trial, expected)
                    return result, ""
                reason = reason or failure
    finally:
        base.train(training)
    return None, reason


def _why_not_exact(padding_free: PaddingFree, trial: _Trial, expected: list[Tensor], tolerance: float) -> str:
    """Return why the outcome of packed rows is not the expected one, or "" if it is."""
    try:
        with padding_free.in_use():
            difference = _difference(trial.outcome(), expected)
    except (ArithmeticError, AttributeError, LookupError, ModelError, RuntimeError, TypeError, ValueError) as error:
        return f"its layers cannot compute packed rows ({' '.join(str(error).split())[:160]})"
    if not difference <= tolerance:
        return f"its logits or gradients differ by {difference:.1g}"
    return "" if padding_free.packed_calls else "its layers are not called as modules"


def _random_rows(base: PreTrainedModel, device: torch.device, *, left: bool) -> dict[str, Tensor]:
    lengths = torch.tensor(_LENGTHS)[:, None]
    longest = max(_LENGTHS)
    shape, positions = (len(lengths), longest), torch.arange(longest)
    ids = torch.randint(base.config.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    mask = (positions >= longest - lengths if left else positions < lengths).long()
    padding = getattr(base.config, "pad_token_id", None) or 0
    return {"input_ids": torch.where(mask == 1, ids, padding).to(device), "attention_mask": mask.to(device)}


@dataclass(frozen=True)
class _Trial:
    """Rows to try a model on.

    Attributes:
        first_only: whether only the states of the first token of each row have a meaning in the last layer.
    """

    base: PreTrainedModel
    inputs: Mapping[str, Tensor]
    first_only: bool

    def outcome(self) -> list[Tensor]:
        """Return the logits, the states of real tokens, and the gradients of the trained parameters."""
        base, states = self.base, list[Tensor]()
        handle = base.base_model.register_forward_hook(lambda module, args, output: states.append(output[0]))
        # The class's forward, because Accelerate may have wrapped the instance's in autocast.
        forward = partial(type(base).forward, base, **self.inputs)
        parameters = [p for p in base.parameters() if p.requires_grad]
        with torch.enable_grad():
            try:
                logits = forward().logits
            finally:
                handle.remove()
            tokens = 1 if self.first_only else states[0].shape[1]
            real = states[0][:, :tokens] * self.inputs["attention_mask"][:, :tokens, None]
            # With a head of zeros the logits say nothing about the layers, so the states count too.
            generator = torch.Generator().manual_seed(1)
            weighted = [part * torch.randn(part.shape, generator=generator).to(part) for part in (logits, real)]
            gradients = torch.autograd.grad(weighted[0].sum() + weighted[1].sum(), parameters, allow_unused=True)
        return [logits.detach(), real.detach(), *(torch.zeros(1) if g is None else g for g in gradients)]


def _difference(actual: list[Tensor], expected: list[Tensor]) -> float:
    """Return the largest difference of two outcomes: of logits, of states, and of gradients, each of the largest."""
    largest, kinds = [0.0] * 3, [0, 1, *[2] * (len(expected) - 2)]
    differences = [0.0] * 3
    for kind, one, other in zip(kinds, actual, expected, strict=True):
        if one.shape != other.shape:
            return float("inf")
        largest[kind] = max(largest[kind], float(other.abs().max()))
        differences[kind] = max(differences[kind], float((one - other).abs().max().nan_to_num(torch.inf)))
    return max(d / max(value, 1e-12) for d, value in zip(differences, largest, strict=True))


def _with_flash(padding_free: PaddingFree, trial: _Trial, expected: list[Tensor]) -> Form:
    """Return the form with the flash kernel, if this GPU has it and its results are equal up to rounding to float16."""
    plain = padding_free.form
    padding_free.form = replace(plain, flash=True)
    try:
        with padding_free.in_use(), torch.autocast("cuda", torch.float16):
            difference = _difference(trial.outcome(), expected)
    except RuntimeError:  # the GPU or the build of torch does not have the kernel
        return plain
    return padding_free.form if difference <= 5e-2 else plain
