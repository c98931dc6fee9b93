from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.head_bias import start_at_label_shares
from finetune.lora import Lora
from finetune.modeling import Classifier, pretrained_classifier
from finetune.saving import merge_classifier
from finetune.source import Source, load_tokenizer
from tests.helpers import ROLES, encoded

LORA = Lora(r=2, lora_alpha=4, lora_dropout=0.0, roles=ROLES)
LABELS = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 0], [1, 0, 0]])


def classifier(checkpoint: Path, lora: Lora | None = None) -> Classifier:
    source = Source(str(checkpoint))
    return pretrained_classifier(
        source,
        load_tokenizer(source),
        label_names=["a", "b", "c"],
        problem_type="multi_label_classification",
        max_length=16,
        lora=lora,
    )


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_a_new_head_starts_at_the_shares_of_the_labels(tiny_bert: Path, lora: Lora | None) -> None:
    built = classifier(tiny_bert, lora)
    before = {name: p.detach().clone() for name, p in built.model.named_parameters()}
    assert start_at_label_shares(built, LABELS)
    changed = {name for name, p in built.model.named_parameters() if not torch.equal(p, before[name])}
    assert len(changed) == 1
    with torch.no_grad():
        for module in built.base.modules():
            if isinstance(module, torch.nn.Linear) and module.out_features == 3:
                module.weight.zero_()
        texts = built.tokenizer(["the cat sat", "a dog"], padding=True, return_tensors="pt")
        shares = built.model.eval()(**texts).logits.sigmoid()
    # One half of a row with and one without is added, so that no share is 0 or 1.
    torch.testing.assert_close(shares, torch.tensor([[0.9, 0.3, 0.1]] * 2))


def test_a_head_of_the_checkpoint_stays_as_it_is(tiny_bert: Path, tmp_path: Path) -> None:
    merge_classifier(classifier(tiny_bert), tmp_path, [("the cat",)])
    again = classifier(tmp_path)
    assert again.new_parameters == ()
    before = again.base.classifier.bias.detach().clone()
    assert not start_at_label_shares(again, LABELS)
    assert torch.equal(again.base.classifier.bias, before)


def test_one_label_a_row_has_no_shares_to_start_at(tiny_bert: Path) -> None:
    built = classifier(tiny_bert)
    assert not start_at_label_shares(built, encoded(built).labels)
    assert built.base.classifier.bias.abs().max() == 0
