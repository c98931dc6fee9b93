"""Whether a model has adapters, also while another thread imports peft."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
from torch import nn

from finetune.models.adapted import is_adapted, is_adapter_layer
from finetune.models.lora import Lora
from tests.support.helpers import ROLES, tiny_classifier


def test_a_model_with_adapters_and_its_layers_are_found(tiny_bert: Path) -> None:
    adapted = tiny_classifier(tiny_bert, lora=Lora(r=2, lora_alpha=4, lora_dropout=0.0, roles=ROLES))
    assert is_adapted(adapted.model)
    assert sum(map(is_adapter_layer, adapted.model.modules())) == 2 * len(ROLES)
    assert not is_adapted(adapted.base)


@pytest.mark.parametrize("imported", ["not", "in part"])
def test_no_model_has_adapters_before_peft_is_imported(imported: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that loads an adapter has entered peft in `sys.modules` before its classes exist."""
    for name in ("peft", "peft.tuners.tuners_utils"):
        if imported == "not":
            monkeypatch.delitem(sys.modules, name)
        else:
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
    model = nn.Linear(2, 2)
    assert not is_adapted(model)
    assert not is_adapter_layer(model)
