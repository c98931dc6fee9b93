"""Whether a model has adapters, and the names of their files, without importing peft for a model that has none."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    import peft
    from typing_extensions import TypeIs

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def is_adapted(model: nn.Module) -> TypeIs[peft.PeftModel]:
    """Return whether a model is a `peft.PeftModel`. Its class exists only once peft is imported."""
    peft_library = sys.modules.get("peft")
    return peft_library is not None and isinstance(model, peft_library.PeftModel)


def has_adapter_layers(model: nn.Module) -> bool:
    """Return whether any layer of a model has adapters, also if the model is not wrapped in a `peft.PeftModel`."""
    layers = sys.modules.get("peft.tuners.tuners_utils")
    return layers is not None and any(isinstance(module, layers.BaseTunerLayer) for module in model.modules())
