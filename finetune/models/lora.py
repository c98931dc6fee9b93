"""LoRA adapters on attention projections, by role, each where it was asked and nowhere else."""

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
from finetune.models.architectures import ROLES, AttentionSite, attention_sites


@dataclass(frozen=True)
class Lora:
    """LoRA (Hu et al. 2021): rank r, scale lora_alpha / r, on the projections of these roles.

    Attributes:
        use_rslora: scale lora_alpha / sqrt(r) (Kalajdzievski 2023).
        use_dora: adapt direction, and train the columns' norms besides (Liu et al. 2024).
        init_lora_weights: True for zeros in B, or gaussian, orthogonal, olora, pissa (Meng et al. 2024).
        layers: numbers of the layers to adapt; None: all.
        rank_pattern: another rank for a role ("query") or for one layer's role ("3.query"). The scale changes with it.
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


def add_lora(model: PreTrainedModel, lora: Lora, new: Sequence[str], *, location: str, revision: str) -> peft.PeftModel:
    """Return the model with adapters on exactly the asked projections; what is new is trained and saved whole.

    A projection that holds several roles (fused), or serves several layers (shared), is adapted once.

    Args:
        new: names of parameters that no checkpoint held.
        location, revision: where the base is from, as peft writes it down.

    Raises:
        ModelError: a layer or role does not exist, peft cannot adapt the projections, or it adapted others.
    """
    sites = _chosen_sites(attention_sites(model), lora)
    targets = list(dict.fromkeys(path for site in sites for path in site.paths(lora.roles)))
    with warnings.catch_warnings():
        # peft cannot rewrite such adapters with ranks of their own; `as_plain_lora` can.
        warnings.filterwarnings("ignore", message="Using Rank-Stabilized LoRA with rank_pattern", category=UserWarning)
        config = peft.LoraConfig(
            r=lora.r,
            lora_alpha=lora.lora_alpha,  # type: ignore[arg-type]  # any number serves
            lora_dropout=lora.lora_dropout,
            use_rslora=lora.use_rslora,
            use_dora=lora.use_dora,
            init_lora_weights=lora.init_lora_weights,  # type: ignore[arg-type]  # a name that peft knows
            rank_pattern=_ranks_by_path(sites, lora),
            target_modules=targets,
            modules_to_save=sorted({name.rpartition(".")[0] for name in new}) or None,
            base_model_name_or_path=location,
            revision=revision,
        )
    try:
        adapted = peft.PeftModel(model, config)
    except ValueError as error:
        said = " ".join(str(error).split())[:200]
        raise ModelError(f"peft cannot adapt {targets[0]} of a '{model.config.model_type}' model: {said}") from error
    config.init_lora_weights = True  # done: a reader of the adapter must not start over
    found = {name for name, m in adapted.get_base_model().named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}
    if found != set(targets):
        raise ModelError(f"LoRA reached {sorted(found ^ set(targets))} besides or not; please report this model")
    frozen = [n for n, p in adapted.named_parameters() if not p.requires_grad and _plain_name(n) in new]
    if frozen:
        raise ModelError(f"these new parameters would stay random: {', '.join(frozen)}; please report this model")
    return adapted


def merge_adapters(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model with adapters, if there are any, added to its weights; `model` is used up.

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


def shared_roles(model: PreTrainedModel, roles: Sequence[str]) -> str:
    """Return what adapting these roles adapts besides, because projections are fused, or ""."""
    site = attention_sites(model)[0]
    besides = [role for role in ROLES if role not in roles and getattr(site, role) in site.paths(roles)]
    if not besides:
        return ""
    held = [role for role in ROLES if getattr(site, role) == getattr(site, besides[0])]
    return (
        f"{', '.join(held)} are one fused projection here ({site.query.rpartition('.')[2]}): "
        f"adapting {', '.join(r for r in roles if r in held)} adapts {', '.join(besides)} too."
    )


@dataclass(frozen=True)
class InitialAdapter:
    """What an initialization (PiSSA, OLoRA) put into an adapter and took out of the weight under it.

    Attributes:
        a, b: (r, in) and (out, r), as they were before training.
        weight: (out, in), the checkpoint's own, before it was changed.
    """

    a: Tensor
    b: Tensor
    weight: Tensor


def initial_adapters(model: PreTrainedModel, before: Mapping[str, Tensor]) -> dict[str, InitialAdapter]:
    """Return, by path, the untrained adapters whose initialization changed the weights under them.

    Args:
        before: the checkpoint's weights, by path; see `projection_weights`.
    """
    return {
        name: InitialAdapter(_factor(layer, "A").detach().clone(), _factor(layer, "B").detach().clone(), before[name])
        for name, layer in _lora_layers(model).items()
        if not _weight(layer.base_layer).equal(before[name])
    }


def as_plain_lora(model: peft.PeftModel, initial: Mapping[str, InitialAdapter]) -> None:
    """Rewrite trained adapters, in place, so that they belong on the checkpoint's own weights.

    With W the checkpoint's weight, s the scale, and A0, B0 the adapter before training, PiSSA and OLoRA train
    W - s B0 A0 + s B A. The same is W + s [B, -B0] [A; A0]: a plain adapter of twice the rank on W as it is, which any
    reader of adapters can use. It is the conversion of peft's `path_initial_model_for_weight_conversion`, which refuses
    rslora with ranks by layer.

    Raises:
        ModelError: only some of the adapters were initialized so.
    """
    if not initial:
        return
    config: Any = model.peft_config["default"]
    layers = _lora_layers(model.get_base_model())
    if layers.keys() != initial.keys():
        raise ModelError(f"{len(layers)} adapters, {len(initial)} of them to be rewritten; please report this model")
    # The scale stays: it is alpha / r, or alpha / sqrt(r).
    more = math.sqrt(2) if config.use_rslora else 2
    with torch.no_grad():
        for name, layer in layers.items():
            first, a, b = initial[name], _factor(layer, "A"), _factor(layer, "B")
            layer.lora_A["default"] = _linear(torch.cat([a, first.a.to(a)]), a.requires_grad)
            layer.lora_B["default"] = _linear(torch.cat([b, -first.b.to(b)], dim=1), b.requires_grad)
            layer.r["default"] *= 2
            layer.lora_alpha["default"] *= more
            _weight(layer.base_layer).copy_(first.weight)
    config.r *= 2
    config.lora_alpha *= more
    config.rank_pattern = {path: 2 * rank for path, rank in config.rank_pattern.items()}


def _lora_layers(model: nn.Module) -> dict[str, Any]:
    return {name: m for name, m in model.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}


def _factor(layer: Any, side: str) -> Tensor:
    weight: Tensor = getattr(layer, f"lora_{side}")["default"].weight
    return weight


def _linear(weight: Tensor, trained: bool) -> nn.Linear:
    rows, columns = weight.shape
    linear = nn.Linear(columns, rows, bias=False, device=weight.device, dtype=weight.dtype)
    linear.weight = nn.Parameter(weight, requires_grad=trained)
    return linear


def projection_weights(model: nn.Module, sites: Sequence[AttentionSite]) -> dict[str, Tensor]:
    """Return a copy of the attention projections' weights, by path."""
    paths = dict.fromkeys(path for site in sites for path in site.paths(ROLES))
    return {path: _weight(model.get_submodule(path)).detach().clone() for path in paths}


def _weight(projection: nn.Module) -> Tensor:
    weight = projection.weight
    assert isinstance(weight, Tensor)
    return weight


def _chosen_sites(sites: Sequence[AttentionSite], lora: Lora) -> list[AttentionSite]:
    unknown = sorted(set(lora.layers or ()) - {site.layer for site in sites})
    if unknown:
        raise ModelError(f"peft.layers_to_transform: there is no layer {unknown[0]}; layers are 0 to {len(sites) - 1}")
    return [site for site in sites if lora.layers is None or site.layer in lora.layers]


def _ranks_by_path(sites: Sequence[AttentionSite], lora: Lora) -> dict[str, int]:
    """Return ranks by pattern of the module's path; a layer's own rank wins over the role's."""
    ranks: dict[str, int] = {}
    for key, rank in sorted(lora.rank_pattern.items(), key=lambda item: "." in item[0]):
        layer, _, role = key.rpartition(".")
        matched = [site for site in sites if layer in ("", str(site.layer))]
        if role not in lora.roles or not matched:
            raise ModelError(
                f"peft.rank_pattern: '{key}' is no adapted role; keys are roles ({', '.join(lora.roles)}) or "
                f"layer and role, such as {sites[0].layer}.{lora.roles[0]}"
            )
        ranks |= {re.escape(getattr(site, role)): rank for site in matched}
    return ranks


def _plain_name(name: str) -> str:
    """Return a parameter's name in the model before peft wrapped it; the copy that is not trained keeps another."""
    return name.removeprefix("base_model.model.").replace(".modules_to_save.default.", ".")
