"""Whether a model or a layer has adapters, and the names of their files, without importing peft if there are none."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeGuard

from torch import nn

if TYPE_CHECKING:
    import peft
    from peft.tuners.tuners_utils import BaseTunerLayer
    from typing_extensions import TypeIs

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def is_adapted(model: nn.Module) -> TypeIs[peft.PeftModel]:
    """Return whether a model is a `peft.PeftModel`.

    Its class exists only once peft is imported. While another thread imports it, the module lacks the class.
    """
    peft_class = getattr(sys.modules.get("peft"), "PeftModel", None)
    return peft_class is not None and isinstance(model, peft_class)


def is_adapter_layer(module: nn.Module) -> TypeGuard[BaseTunerLayer]:
    """Return whether a module is a layer of peft with adapters."""
    layer_class = getattr(sys.modules.get("peft.tuners.tuners_utils"), "BaseTunerLayer", None)
    return layer_class is not None and isinstance(module, layer_class)
