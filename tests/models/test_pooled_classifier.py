"""A pooled classifier of every kind of family: its logits, saved and loaded, gated, pruned, merged, exported."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    BertModel,
    PreTrainedModel,
)

from finetune.errors import ModelError
from finetune.heads.ablation import FIRST_TOKEN, PREFIX, SHARED_ATTENTION, ablation
from finetune.heads.pruning import check_pruned, pruned_classifier, write_zeroed
from finetune.models.attention_sites import attention_sites
from finetune.models.building import Labels, new_classifier, pretrained_classifier
from finetune.models.classification_head import random_classifier
from finetune.models.classifier import Classifier
from finetune.models.comparison import check_reload, logits_of
from finetune.models.loading import load_classifier
from finetune.models.lora import Lora
from finetune.models.merging import merge_classifier
from finetune.models.pooled_classifier import pool, pooled_class
from finetune.models.pooling import pooling_of, set_pooling
from finetune.models.pretrained import Source, load_tokenizer
from finetune.models.saving import save_classifier
from finetune.models.speedups import first_token_only
from tests.support.exported import export_family
from tests.support.families import random_model, save_checkpoint
from tests.support.gated_heads import PRUNED, TEXTS, gated_logits
from tests.support.helpers import FLOAT32, ROLES, assert_equal_up_to_rounding, sample_of

CPU = torch.device("cpu")
SINGLE = "single_label_classification"
LABELS = ("a", "b", "c")
# A pooler in the encoder, one in the head, none; a head of two layers; layers that are shared; other names of sizes; an
# own initialization of the head; (B, C, S).
FAMILIES_HERE = ("albert", "bert", "deberta-v2", "distilbert", "layoutlm", "modernbert", "mpnet", "roberta",
                 "squeezebert", "xlm")  # fmt: skip


def pooled(
    checkpoint: Path, pooling: str = "mean", *, lora: Lora | None = None, labels: tuple[str, ...] = LABELS
) -> Classifier:
    """Return a classifier in evaluation mode with this pooling, on a saved checkpoint."""
    torch.manual_seed(2)
    source = Source(str(checkpoint), pooling=pooling)
    classifier = pretrained_classifier(source, load_tokenizer(source), Labels(labels, SINGLE), max_length=16, lora=lora)
    classifier.model.eval()
    return classifier


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint("bert", tmp_path_factory.mktemp("pooled") / "bert")


@pytest.mark.parametrize("family", FAMILIES_HERE)
def test_the_logits_of_every_family(family: str, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(family, tmp_path / "checkpoint")
    for pooling in ("cls", "mean"):
        classifier = pooled(checkpoint, pooling)
        assert classifier.new_parameters == ("pooled_classifier.bias", "pooled_classifier.weight")
        linear = classifier.base.pooled_classifier
        assert isinstance(linear, nn.Linear)
        assert not linear.bias.any()
        for text in ("the cat sat on the mat", "a dog"):
            inputs = classifier.tokenizer([text], return_tensors="pt")
            with torch.no_grad():
                states = classifier.base.base_model(**inputs)[0][0]  # (S, E)
            state = states[0] if pooling == "cls" else states.mean(0)
            expected = linear.weight @ state + linear.bias
            assert_equal_up_to_rounding(logits_of(classifier, [(text,)], CPU)[0], expected)
        save_classifier(classifier, tmp_path / pooling)
        check_reload(classifier, load_classifier(tmp_path / pooling), TEXTS[:1], CPU)
        heads = {0: [1]} if family != "albert" else {0: [1], 1: [1]}  # two layers that share their weights
        zeroed = replace(classifier, model=load_classifier(tmp_path / pooling).model)
        site = attention_sites(zeroed.base)[0]
        width = zeroed.base.get_submodule(site.output).weight.shape[1] // site.num_heads
        weight = zeroed.base.get_submodule(site.output).weight
        with torch.no_grad():
            weight[:, width : 2 * width] = 0
        gated = gated_logits(classifier, heads)
        assert_equal_up_to_rounding(logits_of(zeroed, TEXTS, CPU), gated)
        assert (gated - logits_of(classifier, TEXTS, CPU)).abs().max() > 10 * FLOAT32 * gated.abs().max()


def test_padding_is_not_pooled() -> None:
    states = torch.tensor([[[1.0], [3.0], [9.0]]])
    assert pool(states, torch.tensor([[1, 1, 0]]), "mean").tolist() == [[2.0]]
    assert pool(states, torch.tensor([[0, 1, 1]]), "mean").tolist() == [[6.0]]
    assert pool(states, torch.tensor([[0, 0, 0]]), "mean").tolist() == [[0.0]]
    assert pool(states, None, "mean").tolist() == [[pytest.approx(13 / 3)]]
    assert pool(states, torch.tensor([[1, 1, 0]]), "cls").tolist() == [[1.0]]
    assert pool(states.bfloat16(), torch.tensor([[1, 1, 0]]), "mean").dtype == torch.bfloat16


def test_only_a_classifier_of_the_first_token_skips_the_others(bert: Path) -> None:
    for pooling, expected in (("cls", True), ("mean", False)):
        with first_token_only(pooled(bert, pooling).base) as skips:
            assert skips == expected


def test_labels_are_not_ignored(bert: Path) -> None:
    classifier = pooled(bert)
    with pytest.raises(ValueError, match="computes no loss: call it without `labels`"):
        classifier.base(input_ids=torch.tensor([[1, 2]]), labels=torch.tensor([0]))


def test_fast_ablation_equals_gates(bert: Path) -> None:
    for pooling in ("cls", "mean"):
        sample = sample_of(pooled(bert, pooling, labels=("no", "yes")))
        fast, gated = ablation(sample), ablation(sample, fast=False)
        assert {PREFIX, SHARED_ATTENTION} <= fast.savings
        assert (FIRST_TOKEN in fast.savings) == (pooling == "cls")
        assert_equal_up_to_rounding(fast.without, gated.without)


def test_heads_are_pruned_and_zeroed(bert: Path, tmp_path: Path) -> None:
    classifier = pooled(bert)
    pruned = pruned_classifier(classifier, PRUNED)
    assert check_pruned(classifier, pruned, PRUNED, TEXTS) < 1e-5
    save_classifier(pruned, tmp_path / "pruned")
    loaded = load_classifier(tmp_path / "pruned")
    check_reload(pruned, loaded, TEXTS, CPU)
    assert pooling_of(loaded.base.config) == "mean"
    assert write_zeroed(pruned, tmp_path / "zeroed", TEXTS) < 1e-5


def test_adapters_are_saved_loaded_and_merged(bert: Path, tmp_path: Path) -> None:
    classifier = pooled(bert, lora=Lora(2, 4, 0.0, ROLES))
    with torch.no_grad():
        for parameter in classifier.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    expected = logits_of(classifier, TEXTS, CPU)
    save_classifier(classifier, tmp_path / "adapter")
    loaded = load_classifier(tmp_path / "adapter")
    check_reload(classifier, loaded, TEXTS, CPU)
    assert merge_classifier(loaded, tmp_path / "merged", TEXTS) < 1e-5
    merged = load_classifier(tmp_path / "merged")
    assert pooling_of(merged.base.config) == "mean"
    assert_equal_up_to_rounding(logits_of(merged, TEXTS, CPU), expected)
    info = tmp_path / "adapter" / "classifier.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"pooling": "max"}))
    with pytest.raises(ModelError, match="pooling max"):
        load_classifier(tmp_path / "adapter")


def test_training_continues_from_a_pooled_classifier(bert: Path, tmp_path: Path) -> None:
    first = pooled(bert)
    weight = first.base.pooled_classifier.weight
    nn.init.normal_(weight)
    save_classifier(first, tmp_path / "first")
    again = pooled(tmp_path / "first", "auto", labels=("c", "a", "b"))
    assert pooling_of(again.base.config) == "mean"
    assert not again.new_parameters
    assert again.base.pooled_classifier.weight.equal(weight[[2, 0, 1]])
    other = pooled(tmp_path / "first", "mean", labels=("x", "y", "z"))
    assert other.new_parameters == ("pooled_classifier.bias", "pooled_classifier.weight")
    assert not other.base.pooled_classifier.weight.equal(weight)
    stock = pooled(tmp_path / "first", "head")
    assert set(stock.new_parameters) >= {"classifier.weight", "bert.pooler.dense.weight"}
    assert pooling_of(stock.base.config) == "head"
    with pytest.raises(ModelError, match="was trained on pooling mean; set it to mean"):
        pooled(tmp_path / "first", "cls")


def test_a_new_model_can_be_pooled(bert: Path) -> None:
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 8}
    tokenizer = load_tokenizer(Source(str(bert)))
    built = new_classifier("bert", sizes, tokenizer, Labels(LABELS, SINGLE), max_length=8, pooling="mean")
    assert pooling_of(built.base.config) == "mean"
    assert logits_of(built, TEXTS, CPU).shape == (len(TEXTS), 3)
    with pytest.raises(ModelError, match="the own head of a 'multi_head_classifier' model"):
        new_classifier("multi_head_classifier", {}, tokenizer, Labels(LABELS, SINGLE), max_length=8, pooling="cls")


def test_the_first_token_of_rows_that_are_padded_on_the_left_is_refused(bert: Path, tmp_path: Path) -> None:
    shutil.copytree(bert, tmp_path / "left")
    file = tmp_path / "left" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"padding_side": "left"}))
    assert pooled(tmp_path / "left").tokenizer.padding_side == "left"
    with pytest.raises(ModelError, match="pads on the left, so the first token of a row can be padding"):
        pooled(tmp_path / "left", "cls")


def test_an_exported_model_has_the_same_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def random_pooled_model(family: str) -> PreTrainedModel:
        config = random_model(family).config
        set_pooling(config, "mean")
        return random_classifier(config)

    monkeypatch.setattr("tests.support.exported.random_model", random_pooled_model)
    difference, largest = export_family("bert", tmp_path)
    assert difference <= 1e-4 * max(1.0, largest)
    difference, largest = export_family("bert", tmp_path, int8=True)
    assert 0 < difference < 0.2 * largest


def test_stock_transformers_does_not_open_it(bert: Path, tmp_path: Path) -> None:
    save_classifier(pooled(bert), tmp_path / "model")
    for auto_class in (AutoConfig, AutoModelForSequenceClassification):
        with pytest.raises(ValueError, match="contains custom code which must be executed"):
            auto_class.from_pretrained(tmp_path / "model", trust_remote_code=False)
    for family_class in (BertForSequenceClassification, BertModel):
        with pytest.raises(
            StrictDataclassClassValidationError,
            match="pooled_classifier: load it with AutoModelForSequenceClassification",
        ):
            family_class.from_pretrained(tmp_path / "model")
    assert AutoTokenizer.from_pretrained(tmp_path / "model", trust_remote_code=False)("the cat")["input_ids"]
    entries = json.loads((tmp_path / "model" / "config.json").read_text())
    del entries["auto_map"]
    (tmp_path / "model" / "config.json").write_text(json.dumps(entries))
    with pytest.raises(ValueError, match="does not recognize this architecture"):
        AutoConfig.from_pretrained(tmp_path / "model")
    assert pooling_of(load_classifier(tmp_path / "model").base.config) == "mean"  # without the code next to it


def test_one_class_per_family(bert: Path) -> None:
    assert type(pooled(bert).base) is pooled_class(type(pooled(bert, "head").base))
