"""Checkpoints of pruned models: those of transformers 4, wrong configs, adapters on a pruned base."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from huggingface_hub.errors import StrictDataclassClassValidationError
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, BertForSequenceClassification, BertModel

from finetune.errors import ModelError
from finetune.models.classifier import Classifier
from finetune.models.comparison import check_reload, logits_of
from finetune.models.head_pruning import prune_heads
from finetune.models.loading import load_classifier
from finetune.models.lora import Lora
from finetune.models.merging import merge_classifier
from finetune.models.neuron_pruning import prune_neurons
from finetune.models.pruned_config import pruned_heads
from finetune.models.saving import save_classifier
from finetune.runs.pruned_files import has_pruned_parts
from tests.support.families import build, save_checkpoint, train_three_steps
from tests.support.gated_heads import PRUNED, TEXTS, gated_logits
from tests.support.helpers import ROLES, assert_equal_up_to_rounding

CPU = torch.device("cpu")
ROUNDING = 1e-4  # well above measured rounding; pruned heads change logits by more than 2e-3


@pytest.fixture
def bert(tmp_path: Path) -> Classifier:
    result = build(save_checkpoint("bert", tmp_path / "bert"))
    return replace(result, model=result.model.eval())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a saved BERT without some heads, and without the neurons of a layer."""
    folder = tmp_path_factory.mktemp("saved")
    classifier = build(save_checkpoint("bert", folder / "bert"))
    prune_heads(classifier.base, PRUNED)
    prune_neurons(classifier.base, {1: list(range(32))})
    save_classifier(classifier, folder / "model")
    return folder / "model"


# Paths of a layer's projections in transformers 4: query, key, value, output.
V4 = {
    "bert": ("bert.encoder.layer.{}.attention.{}", ("self.query", "self.key", "self.value", "output.dense")),
    "distilbert": ("distilbert.transformer.layer.{}.attention.{}", ("q_lin", "k_lin", "v_lin", "out_lin")),
}


@pytest.fixture(params=sorted(V4))
def transformers_4(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Classifier, Path]:
    """Return an unpruned classifier and the folder that transformers 4 would write after pruning heads 1.0 and 1.2."""
    unpruned, folder = build(save_checkpoint(request.param, tmp_path / "unpruned")), tmp_path / "version-4"
    unpruned.base.save_pretrained(folder)
    unpruned.tokenizer.save_pretrained(folder)
    weights, rows = load_file(folder / "model.safetensors"), slice(8, 16)
    path, (*inner, output) = V4[request.param]
    for name in inner:
        for parameter in ("weight", "bias"):
            key = f"{path.format(1, name)}.{parameter}"
            weights[key] = weights[key][rows].contiguous()
    key = f"{path.format(1, output)}.weight"
    weights[key] = weights[key][:, rows].contiguous()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"pruned_heads": {"1": [2, 0]}, "transformers_version": "4.57.1"}
    (folder / "config.json").write_text(json.dumps(config))
    return replace(unpruned, model=unpruned.model.eval()), folder


def test_checkpoints_of_transformers_4_are_loaded(
    transformers_4: tuple[Classifier, Path], accelerator: Accelerator, tmp_path: Path
) -> None:
    unpruned, folder = transformers_4
    with pytest.raises(RuntimeError, match=r"size mismatch|mismatch"):
        AutoModelForSequenceClassification.from_pretrained(folder)
    classifier = build(folder)
    assert not classifier.new_parameters
    assert pruned_heads(classifier.base.config) == {1: [0, 2]}
    classifier.model.eval()
    assert_equal_up_to_rounding(logits_of(classifier, TEXTS, CPU), gated_logits(unpruned, {1: [0, 2]}))
    classifier.model.train()
    train_three_steps(classifier, accelerator)
    save_classifier(classifier, tmp_path / "trained")
    assert check_reload(classifier, load_classifier(tmp_path / "trained"), TEXTS, CPU) <= 1e-5


def test_sizes_that_do_not_match_the_config_are_rejected(transformers_4: tuple[Classifier, Path]) -> None:
    _, folder = transformers_4
    config = json.loads((folder / "config.json").read_text())
    for pruned in ({}, {"0": [1], "1": [0, 2]}, {"1": [0]}, {"1": [0, 1, 2]}):
        (folder / "config.json").write_text(json.dumps(config | {"pruned_heads": pruned}))
        with pytest.raises(ModelError, match=r"has no weights for .*, or its sizes differ from its config\.json"):
            build(folder)


def test_saved_classifiers_that_do_not_match_their_config_are_rejected(bert: Classifier, tmp_path: Path) -> None:
    prune_heads(bert.base, PRUNED)
    save_classifier(bert, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"pruned_heads": {"0": [1]}}))
    with pytest.raises(ModelError, match=r"has no weights for .*layer\.1.*, or its sizes differ from its config"):
        load_classifier(tmp_path / "model")
    path.write_text(json.dumps(config | {"intermediate_size": 16}))
    with pytest.raises(ModelError, match=r"has no weights for bert\.encoder.*, or its sizes differ from its config"):
        load_classifier(tmp_path / "model")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"feed_forward_sizes": {"0": -1}}, r"feed_forward_sizes \{'0': -1\}; sizes are whole numbers from 0"),
        ({"feed_forward_sizes": {"0": 33}}, "feed_forward_sizes 33 for layer 0, which has only 32 neurons"),
        ({"feed_forward_sizes": {"2": 4}}, "there is no layer 2; layers are 0 to 1"),
        ({"feed_forward_sizes": {"x": 4}}, r"feed_forward_sizes \{'x': 4\}; it must map numbers of layers to values"),
        ({"feed_forward_sizes": [4]}, r"feed_forward_sizes \[4\]; it must map numbers of layers to values"),
        ({"feed_forward_sizes": {"1": 4}}, r"has no weights for .*, or its sizes differ from its config"),
        ({"pruned_heads": {"0": [1, 1]}}, "with a head given twice; copy config.json from the run again"),
        ({"pruned_heads": {"0": ["1"]}}, "heads are lists of numbers: copy config.json from the run again"),
        ({"pruned_heads": {"0": [3]}}, "layer 0 has no head 3; its heads are 0 to 2"),
        ({"pruned_heads": {"7": [0]}}, "there is no layer 7; layers are 0 to 1"),
        ({"family_model_type": 5}, "has model_type pruned_classifier and family_model_type 5, which must be a model"),
        ({"finetune_pooling": "mean"}, "has model_type pruned_classifier and finetune_pooling 'mean'"),
    ],
)
def test_a_damaged_config_of_a_pruned_model_gives_one_error_message(
    saved: Path, entries: dict[str, object], message: str
) -> None:
    path = saved / "config.json"
    intact = path.read_text()
    path.write_text(json.dumps(json.loads(intact) | entries))
    with pytest.raises(ModelError, match=message):
        load_classifier(saved)
    path.write_text(intact)


def test_no_stock_class_loads_a_pruned_model_with_random_weights(saved: Path) -> None:
    for loader in (AutoModelForSequenceClassification, AutoModel, BertForSequenceClassification, BertModel):
        with pytest.raises((ValueError, StrictDataclassClassValidationError), match="pruned_classifier"):
            loader.from_pretrained(saved, ignore_mismatched_sizes=True)


def test_adapters_on_a_pruned_base(bert: Classifier, accelerator: Accelerator, tmp_path: Path) -> None:
    prune_heads(bert.base, {0: [1], 1: [0, 1, 2]})  # a layer without heads has no adapters
    prune_neurons(bert.base, {0: list(range(32)), 1: [3]})
    save_classifier(bert, tmp_path / "base")
    trained = build(tmp_path / "base", Lora(2, 4, 0.0, ROLES))
    train_three_steps(trained, accelerator)
    save_classifier(trained, tmp_path / "adapter")
    assert has_pruned_parts(tmp_path / "adapter")
    assert check_reload(trained, load_classifier(tmp_path / "adapter"), TEXTS, CPU) <= 1e-5
    assert merge_classifier(load_classifier(tmp_path / "adapter"), tmp_path / "merged", TEXTS) < ROUNDING
    assert has_pruned_parts(tmp_path / "merged")
    # The same adapter on the unpruned base, whose sizes fit its own config.json.
    shutil.rmtree(tmp_path / "base")
    shutil.copytree(tmp_path / "bert", tmp_path / "base")
    with pytest.raises(
        ModelError, match=r"the weights of '.*base' .* are not those that the adapter in .* was trained on"
    ):
        load_classifier(tmp_path / "adapter")
