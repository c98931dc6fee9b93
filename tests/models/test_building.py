"""Classifiers built from a checkpoint or a config: new parameters, adapters, dtypes, errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification, BertModel

from finetune.errors import ModelError
from finetune.models.architectures import FAMILIES
from finetune.models.attention_sites import attention_sites
from finetune.models.building import Labels, new_classifier, pretrained_classifier
from finetune.models.loading import load_classifier
from finetune.models.lora import Lora
from finetune.models.pretrained import Source, load_tokenizer
from finetune.models.saving import save_classifier
from tests.support.helpers import ROLES, tiny_classifier

LORA = Lora(r=2, lora_alpha=4, lora_dropout=0.0, roles=ROLES)
LABELS = ("zeta", "alpha", "no", "mid", "beta")


@pytest.mark.parametrize("roles", [("query",), ("query", "value"), ROLES])
def test_lora_adapts_exactly_the_requested_projections(tiny_masked_lm: Path, roles: tuple[str, ...]) -> None:
    built = tiny_classifier(tiny_masked_lm, lora=Lora(2, 4, 0.0, roles))
    adapted = {name for name, m in built.base.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}
    assert adapted == {path for site in attention_sites(built.base) for path in site.paths(roles)}
    assert len(adapted) == 2 * len(roles)
    trained = {n for n, p in built.model.named_parameters() if p.requires_grad and "lora_" not in n}
    # A masked-LM checkpoint has no pooler, so the pooler is new, and is trained and saved in addition to the head.
    assert built.new_parameters == (
        "bert.pooler.dense.bias",
        "bert.pooler.dense.weight",
        "classifier.bias",
        "classifier.weight",
    )
    assert len(trained) == 4


def test_new_weights_depend_on_the_seed(tiny_bert: Path) -> None:
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        weights.append(tiny_classifier(tiny_bert).base.classifier.weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_trained_weights_are_float32_for_checkpoints_of_any_dtype(tiny_bert: Path, tmp_path: Path) -> None:
    BertModel.from_pretrained(tiny_bert, dtype=torch.bfloat16).save_pretrained(tmp_path)
    load_tokenizer(Source(str(tiny_bert))).save_pretrained(tmp_path)
    built = tiny_classifier(tmp_path)
    assert {p.dtype for p in built.model.parameters()} == {torch.float32}
    save_classifier(built, tmp_path / "model")
    assert {p.dtype for p in load_classifier(tmp_path / "model").model.parameters()} == {torch.float32}


def test_an_unknown_family_is_rejected_with_the_list_of_known_ones() -> None:
    model = BertForSequenceClassification(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    )
    model.config.model_type = "strange"
    with pytest.raises(
        ModelError, match=rf"'strange' is not supported; supported model types: {', '.join(sorted(FAMILIES))}$"
    ):
        attention_sites(model)


def test_an_encoder_without_some_of_its_weights_is_rejected(tiny_bert: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bert, tmp_path / "broken")
    config = json.loads((tiny_bert / "config.json").read_text())
    (tmp_path / "broken" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ModelError, match=r"has no weights for bert\.encoder\.layer\.2\.attention\.self\.query"):
        tiny_classifier(tmp_path / "broken")


def test_a_max_length_above_the_models_is_rejected(tiny_bert: Path) -> None:
    source = Source(str(tiny_bert))
    with pytest.raises(ModelError, match=r"data\.max_length is 33, but .* takes 32 tokens"):
        pretrained_classifier(
            source,
            load_tokenizer(source),
            Labels(("a", "b"), "single_label_classification"),
            max_length=33,
        )


@pytest.mark.parametrize(
    ("model_type", "overrides", "message"),
    [
        ("no_such_type", {}, "model.model_type 'no_such_type' is unknown"),
        ("bert", {"hidden": 3}, "a bert config has no hidden"),
        ("bert", {"hidden_size": 10, "num_attention_heads": 3}, "a bert cannot be built: .*multiple"),
    ],
)
def test_a_new_model_that_cannot_be_built_is_named(
    tiny_bert: Path, model_type: str, overrides: dict[str, int], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        new_classifier(
            model_type,
            overrides,
            load_tokenizer(Source(str(tiny_bert))),
            Labels(("a", "b"), "single_label_classification"),
            max_length=16,
        )


def test_pickled_weights_are_read_only_when_allowed(tiny_bert: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bert, tmp_path / "pickled")
    weights = tmp_path / "pickled" / "model.safetensors"
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    with pytest.raises(ModelError, match=r"safetensors.*model\.use_safetensors: false"):
        tiny_classifier(tmp_path / "pickled")
    source = Source(str(tmp_path / "pickled"), use_safetensors=False)
    built = pretrained_classifier(
        source,
        load_tokenizer(source),
        Labels(("no", "yes"), "single_label_classification"),
        max_length=16,
    )
    assert built.new_parameters == ("classifier.bias", "classifier.weight")


def test_an_adapter_is_rejected_as_a_checkpoint(tiny_bert: Path, tmp_path: Path) -> None:
    save_classifier(tiny_classifier(tiny_bert, lora=LORA), tmp_path)
    with pytest.raises(ModelError, match=r"is an adapter; write plain weights first with `finetune merge`"):
        tiny_classifier(tmp_path)
