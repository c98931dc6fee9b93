"""LoRA: options, adding adapters to attention projections, rewriting and merging them."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune.errors import ModelError
from finetune.models.attention_sites import ROLES, AttentionSite, attention_sites


@dataclass(frozen=True)
class Lora:
    """Options of LoRA adapters (Hu et al. 2021).

    Attributes:
        r: rank.
        lora_alpha: numerator of the scale lora_alpha / r.
        lora_dropout: dropout probability of the adapters' inputs.
        roles: adapted projections: query, key, value, output.
        use_rslora: scale by lora_alpha / sqrt(r) instead (Kalajdzievski 2023).
        use_dora: adapt the direction of weights and also train the norms of their columns (Liu et al. 2024).
        init_lora_weights: True for zeros in B, or gaussian, orthogonal, olora, pissa (Meng et al. 2024).
        layers: numbers of the layers to adapt; None: all.
        rank_pattern: a different rank for a role ("query") or for a role in one layer ("3.query"); the scale follows.
    """

    r: int
    lora_alpha: float
    lora_dropout: float
    roles: Sequence[str]
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: bool | str = True
    layers: Sequence[int] | None = None
    rank_pattern: Mapping[str, int] = field(default_factory=dict)


NOTHING_TO_ADAPT = "the layers that would get adapters have no heads"


def add_lora(model: PreTrainedModel, lora: Lora, new: Sequence[str]) -> peft.PeftModel:
    """Return the model with adapters on exactly the requested projections.

    Modules with new parameters are trained and saved in full. A projection that is fused (several roles) or shared
    (several layers) is adapted once, and those of a layer without heads are skipped.

    Args:
        new: names of parameters that the checkpoint did not contain.

    Raises:
        ModelError: a layer or role does not exist, peft cannot adapt the projections, or it adapted others.
    """
    sites = adapted_sites(model, lora)
    targets = list(dict.fromkeys(path for site in sites for path in site.paths(lora.roles)))
    if not targets:
        raise ModelError(f"{NOTHING_TO_ADAPT}; remove the peft section to train all weights")
    with warnings.catch_warnings():
        # The warning is about converting such adapters with peft, which does not support it; `as_plain_lora` does.
        warnings.filterwarnings("ignore", message="Using Rank-Stabilized LoRA with rank_pattern", category=UserWarning)
        config = peft.LoraConfig(
            r=lora.r,
            lora_alpha=lora.lora_alpha,  # type: ignore[arg-type]  # accepts any number
            lora_dropout=lora.lora_dropout,
            use_rslora=lora.use_rslora,
            use_dora=lora.use_dora,
            init_lora_weights=lora.init_lora_weights,  # type: ignore[arg-type]  # one of peft's names
            rank_pattern=_ranks_by_path(sites, lora),
            target_modules=targets,
            modules_to_save=sorted({name.rpartition(".")[0] for name in new}) or None,
        )
    try:
        adapted = peft.PeftModel(model, config)
    except ValueError as error:
        message = " ".join(str(error).split())[:200]
        raise ModelError(f"peft cannot adapt {targets[0]} of a '{model.config.model_type}' model: {message}") from error
    config.init_lora_weights = True  # initialization is done and must not be repeated when the adapter is loaded
    paths = set(_lora_layers(adapted.get_base_model()))
    if paths != set(targets):
        raise ModelError(
            f"LoRA was added to other modules than requested: {sorted(paths ^ set(targets))}; please report"
        )
    frozen = [n for n, p in adapted.named_parameters() if not p.requires_grad and _plain_name(n) in new]
    if frozen:
        raise ModelError(f"these new parameters would stay random: {', '.join(frozen)}; please report this model")
    return adapted


def merge_adapters(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model with its adapters, if any, merged into the weights; `model` is modified.

    Raises:
        ModelError: peft cannot merge these adapters.
    """
    if isinstance(model, peft.PeftModel):
        try:
            model = model.merge_and_unload(safe_merge=True)
        except (ValueError, NotImplementedError) as error:
            raise ModelError(f"peft cannot merge these adapters: {error}; use the adapter as it is") from error
    assert isinstance(model, PreTrainedModel)
    return model


def fused_roles_note(model: PreTrainedModel, roles: Sequence[str]) -> str:
    """Return a note if adapting these roles also adapts others, because their projections are fused, or ""."""
    site = attention_sites(model)[0]
    others = [role for role in ROLES if role not in roles and getattr(site, role) in site.paths(roles)]
    if not others:
        return ""
    fused = [role for role in ROLES if getattr(site, role) == getattr(site, others[0])]
    return (
        f"{', '.join(fused)} are one fused projection in this model ({site.query.rpartition('.')[2]}): "
        f"adapting {', '.join(r for r in roles if r in fused)} adapts {', '.join(others)} too."
    )


@dataclass(frozen=True)
class InitialAdapter:
    """An adapter before training whose initialization (PiSSA, OLoRA) subtracted it from the weight under it.

    Attributes:
        a, b: the untrained factors, (r, in) and (out, r).
        weight: the checkpoint's weight before the subtraction, (out, in).
    """

    a: Tensor
    b: Tensor
    weight: Tensor


def initial_adapters(model: PreTrainedModel, before: Mapping[str, Tensor]) -> dict[str, InitialAdapter]:
    """Return, by path, the untrained adapters whose initialization changed the weights under them.

    Args:
        before: the checkpoint's weights by path, from `projection_weights`.
    """
    return {
        name: InitialAdapter(_factor(layer, "A").detach().clone(), _factor(layer, "B").detach().clone(), before[name])
        for name, layer in _lora_layers(model).items()
        if not _weight(layer.base_layer).equal(before[name])
    }


def as_plain_lora(model: peft.PeftModel, initial: Mapping[str, InitialAdapter]) -> None:
    """Rewrite trained adapters in place so that they apply to the checkpoint's own weights.

    With W the checkpoint's weight, s the scale, and A0, B0 the adapter before training, PiSSA and OLoRA train
    W - s B0 A0 + s B A. This equals W + s [B, -B0] [A; A0]: a plain adapter of twice the rank on the unchanged W,
    which every library that loads adapters can use. peft's `path_initial_model_for_weight_conversion` does the same
    conversion, but does not support rslora with different ranks per layer.

    Raises:
        ModelError: only some of the adapters were initialized in this way.
    """
    if not initial:
        return
    config: Any = model.peft_config["default"]
    layers = _lora_layers(model.get_base_model())
    if layers.keys() != initial.keys():
        raise ModelError(f"only {len(initial)} of {len(layers)} adapters can be rewritten; please report this model")
    # Keeps the scale, which is alpha / r or alpha / sqrt(r).
    alpha_factor = math.sqrt(2) if config.use_rslora else 2
    with torch.no_grad():
        for name, layer in layers.items():
            before, a, b = initial[name], _factor(layer, "A"), _factor(layer, "B")
            layer.lora_A["default"] = _linear(torch.cat([a, before.a.to(a)]), a.requires_grad)
            layer.lora_B["default"] = _linear(torch.cat([b, -before.b.to(b)], dim=1), b.requires_grad)
            layer.r["default"] *= 2
            layer.lora_alpha["default"] *= alpha_factor
            _weight(layer.base_layer).copy_(before.weight)
    config.r *= 2
    config.lora_alpha *= alpha_factor
    config.rank_pattern = {path: 2 * rank for path, rank in config.rank_pattern.items()}


def _lora_layers(model: nn.Module) -> dict[str, Any]:
    return {name: m for name, m in model.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}


def _factor(layer: Any, side: str) -> Tensor:
    weight: Tensor = getattr(layer, f"lora_{side}")["default"].weight
    return weight


def _linear(weight: Tensor, requires_grad: bool) -> nn.Linear:
    rows, columns = weight.shape
    linear = nn.Linear(columns, rows, bias=False, device=weight.device, dtype=weight.dtype)
    linear.weight = nn.Parameter(weight, requires_grad=requires_grad)
    return linear


def projection_weights(model: nn.Module, sites: Sequence[AttentionSite]) -> dict[str, Tensor]:
    """Return a copy of the attention projections' weights, by path."""
    paths = dict.fromkeys(path for site in sites for path in site.paths(ROLES))
    return {path: _weight(model.get_submodule(path)).detach().clone() for path in paths}


def _weight(projection: nn.Module) -> Tensor:
    weight = projection.weight
    assert isinstance(weight, Tensor)
    return weight


def adapted_sites(model: PreTrainedModel, lora: Lora) -> list[AttentionSite]:
    """Return the sites that get adapters: those with heads, in the chosen layers.

    Raises:
        ModelError: a chosen layer does not exist.
    """
    sites = attention_sites(model)
    unknown = sorted(set(lora.layers or ()) - {site.layer for site in sites})
    if unknown:
        raise ModelError(f"peft.layers_to_transform: there is no layer {unknown[0]}; layers are 0 to {len(sites) - 1}")
    return [site for site in sites if site.num_heads and (lora.layers is None or site.layer in lora.layers)]


def _ranks_by_path(sites: Sequence[AttentionSite], lora: Lora) -> dict[str, int]:
    """Return ranks by regular expression of the module path; a rank for one layer overrides that for the role."""
    ranks: dict[str, int] = {}
    for key, rank in sorted(lora.rank_pattern.items(), key=lambda item: "." in item[0]):
        layer, _, role = key.rpartition(".")
        matched = [site for site in sites if layer in ("", str(site.layer))]
        if role not in lora.roles or not matched:
            raise ModelError(
                f"peft.rank_pattern: '{key}' is not an adapted role; keys are roles ({', '.join(lora.roles)}) or "
                f"layer and role, such as {sites[0].layer}.{lora.roles[0]}"
            )
        ranks |= {re.escape(getattr(site, role)): rank for site in matched}
    return ranks


def _plain_name(name: str) -> str:
    """Return a parameter's name in the model before peft wrapped it; peft's untrained copies keep different names."""
    return name.removeprefix("base_model.model.").replace(".modules_to_save.default.", ".")
