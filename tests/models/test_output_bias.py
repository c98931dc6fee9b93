from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.models.building import Labels, pretrained_classifier
from finetune.models.classifier import Classifier
from finetune.models.lora import Lora
from finetune.models.merging import merge_classifier
from finetune.models.output_bias import init_output_bias
from finetune.models.pretrained import Source, load_tokenizer
from finetune.pipeline.context import SharedWork
from finetune.pipeline.prepare import new_inputs
from finetune.recipe.schema import Recipe
from tests.support.helpers import ROLES, encoded

LORA = Lora(r=2, lora_alpha=4, lora_dropout=0.0, roles=ROLES)
LABELS = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 0], [1, 0, 0]])


def classifier(
    checkpoint: Path, lora: Lora | None = None, problem_type: str = "multi_label_classification"
) -> Classifier:
    source = Source(str(checkpoint))
    return pretrained_classifier(
        source,
        load_tokenizer(source),
        Labels(["value"] if problem_type == "regression" else ["a", "b", "c"], problem_type),
        max_length=16,
        lora=lora,
    )


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_multi_label_biases_start_at_the_label_frequencies(tiny_bert: Path, lora: Lora | None) -> None:
    built = classifier(tiny_bert, lora)
    before = {name: p.detach().clone() for name, p in built.model.named_parameters()}
    assert init_output_bias(built, LABELS)
    changed = {name for name, p in built.model.named_parameters() if not torch.equal(p, before[name])}
    assert len(changed) == 1
    with torch.no_grad():
        for module in built.base.modules():
            if isinstance(module, torch.nn.Linear) and module.out_features == 3:
                module.weight.zero_()
        texts = built.tokenizer(["the cat sat", "a dog"], padding=True, return_tensors="pt")
        shares = built.model.eval()(**texts).logits.sigmoid()
    # Frequencies are smoothed by half a row with and half a row without the label, so that none is 0 or 1.
    torch.testing.assert_close(shares, torch.tensor([[0.9, 0.3, 0.1]] * 2))


def test_a_head_from_the_checkpoint_is_unchanged(tiny_bert: Path, tmp_path: Path) -> None:
    merge_classifier(classifier(tiny_bert), tmp_path, [("the cat",)])
    reloaded = classifier(tmp_path)
    assert reloaded.new_parameters == ()
    before = reloaded.base.classifier.bias.detach().clone()
    assert not init_output_bias(reloaded, LABELS)
    assert torch.equal(reloaded.base.classifier.bias, before)


def test_a_regression_starts_at_the_mean(tiny_bert: Path) -> None:
    built = classifier(tiny_bert, LORA, "regression")
    assert init_output_bias(built, np.array([10.0, 20.0, 60.0]))
    with torch.no_grad():
        for module in built.base.modules():
            if isinstance(module, torch.nn.Linear) and module.out_features == 1:
                module.weight.zero_()
        texts = built.tokenizer(["the cat sat", "a dog"], padding=True, return_tensors="pt")
        assert built.model.eval()(**texts).logits.tolist() == [[30.0], [30.0]]


def test_a_single_label_bias_is_unchanged(tiny_bert: Path) -> None:
    built = classifier(tiny_bert, problem_type="single_label_classification")
    assert not init_output_bias(built, encoded(built).labels)
    assert built.base.classifier.bias.abs().max() == 0


@pytest.mark.parametrize("peft", [None, {"r": 2}], ids=["full", "lora"])
def test_runs_initialize_the_output_bias(tiny_bert: Path, peft: dict[str, int] | None) -> None:
    rows = [{"sentence": "the cat sat", "label": ["cat"]}, {"sentence": "a dog and a cat", "label": ["cat", "dog"]}]
    recipe = Recipe.model_validate(
        {
            "output_dir": "x", "model": {"model_name_or_path": str(tiny_bert)}, "peft": peft,
            "task": {"problem_type": "multi_label_classification", "label_names": ["cat", "dog"]},
            "data": {"train_rows": rows, "validation_rows": rows, "max_length": 16}, "head_importance": None,
        }
    )  # fmt: skip
    parameters = dict(new_inputs(recipe, SharedWork()).classifier.base.named_parameters())
    (bias,) = (
        p for name, p in parameters.items() if re.fullmatch(r"classifier\.(modules_to_save\.default\.)?bias", name)
    )
    assert bias.sigmoid().tolist() == pytest.approx([2.5 / 3, 1.5 / 3])
