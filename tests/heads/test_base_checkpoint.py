"""The base checkpoint that weight changes are measured against: pruned heads, and models that cannot be compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from finetune.errors import ModelError
from finetune.heads.weight_changes import head_changes, load_base, matched_heads
from finetune.models.classifier import Classifier
from tests.models.test_head_gates import small
from tests.support.families import build, save_checkpoint, split_of
from tests.support.helpers import sample_of, tiny_classifier


def pruned(classifier: Classifier) -> Classifier:
    """Return the classifier with head 0 of layer 1 of its BERT removed by hand."""
    attention = classifier.base.bert.encoder.layer[1].attention
    for name in ("query", "key", "value"):
        old = getattr(attention.self, name)
        new = nn.Linear(24, 16)
        new.weight.data, new.bias.data = old.weight.data[8:].clone(), old.bias.data[8:].clone()
        setattr(attention.self, name, new)
    old = attention.output.dense
    attention.output.dense = nn.Linear(16, 24)
    attention.output.dense.weight.data, attention.output.dense.bias.data = old.weight.data[:, 8:].clone(), old.bias.data
    attention.self.num_attention_heads, attention.self.all_head_size = 2, 16
    classifier.base.config.pruned_heads = {1: [0]}
    return classifier


def test_the_remaining_heads_of_a_pruned_model_are_compared(tiny_bert: Path) -> None:
    classifier = pruned(tiny_classifier(tiny_bert))
    result = head_changes(sample_of(classifier, 3))
    assert result.output_value == [[0.0] * 3, [0.0, 0.0, None]]
    assert result.effect_errors == [[0.0] * 3, [0.0, 0.0, None]]
    with torch.no_grad():
        classifier.base.bert.encoder.layer[1].attention.self.value.weight[8:] *= 2  # head 2 of the base
    result = head_changes(sample_of(classifier, 3))
    assert result.output_value == [[0.0] * 3, [0.0, pytest.approx(1), None]]
    assert result.effect[1][1] > 0


@pytest.mark.parametrize(
    ("family", "reason"), [("squeezebert", "grouped convolutions"), ("convbert", "a convolution is mix")]
)
def test_heads_that_are_not_slices_are_rejected(family: str, reason: str, tmp_path: Path) -> None:
    classifier = build(save_checkpoint(family, tmp_path))
    with pytest.raises(
        ModelError, match=rf"heads of a '{family}' model cannot be compared .*{reason}.*importance can still be"
    ):
        head_changes(sample_of(classifier, 4, split=split_of(classifier)))


def test_a_model_without_a_base_checkpoint_is_rejected(tiny_bert: Path) -> None:
    with pytest.raises(ModelError, match="there is no base checkpoint to compare with; fine-tune a pretrained one"):
        head_changes(sample_of(small(tiny_bert)))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"attn_implementation": "somebody/kernel"}, "attn_implementation 'somebody/kernel'; remove the entry"),
        ({"vocab_size": 10**9}, "vocab_size 1000000000, above 10000000; correct the entry"),
    ],
)
def test_the_config_of_the_base_is_checked_before_it_is_built(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: dict[str, object], message: str
) -> None:
    base = Path(shutil.copytree(tiny_bert, tmp_path / "base"))
    classifier = tiny_classifier(base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | entry))
    monkeypatch.setattr(
        AutoModelForSequenceClassification, "from_pretrained", lambda *args, **kwargs: pytest.fail("built")
    )
    with pytest.raises(ModelError, match=message):
        load_base(classifier)


def test_a_head_that_the_base_does_not_have_is_reported(tiny_bert: Path) -> None:
    full, smaller = tiny_classifier(tiny_bert).base, pruned(tiny_classifier(tiny_bert)).base
    with pytest.raises(ModelError, match="head 0 of layer 1 is not in the base checkpoint"):
        matched_heads(full, smaller)
