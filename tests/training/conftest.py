from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from finetune.models.classifier import Classifier
from finetune.models.lora import Lora
from tests.support.helpers import tiny_classifier


@pytest.fixture
def build(tiny_bert: Path) -> Callable[..., Classifier]:
    def make(lora: Lora | None = None) -> Classifier:
        torch.manual_seed(0)
        return tiny_classifier(tiny_bert, lora=lora)

    return make
