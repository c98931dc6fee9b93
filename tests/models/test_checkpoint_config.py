"""What config.json says, without loading the model: finetune/models/checkpoint_config.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune.errors import ModelError
from finetune.models.building import Labels, new_classifier, pretrained_classifier
from finetune.models.checkpoint_config import check_checkpoint, check_new_model, hidden_size
from finetune.models.pretrained import Source, load_tokenizer


def write(folder: Path, config: object, tokenizer: object = None) -> str:
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    if tokenizer is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return str(folder)


def test_the_limit_is_that_of_the_loaded_model(tiny_bert: Path) -> None:
    assert check_checkpoint(str(tiny_bert), "main", 32) is None
    with pytest.raises(ModelError, match=r"data\.max_length is 33, but .* takes 32 tokens") as from_check:
        check_checkpoint(str(tiny_bert), "main", 33)
    source = Source(str(tiny_bert))
    labels = Labels(("a", "b"), "single_label_classification")
    with pytest.raises(ModelError) as from_loading:
        pretrained_classifier(source, load_tokenizer(source), labels, max_length=33)
    assert str(from_check.value) == str(from_loading.value)


@pytest.mark.parametrize(
    ("config", "tokenizer", "limit"),
    [
        ({"model_type": "bert", "max_position_embeddings": 512}, None, 512),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, None, 512),
        ({"model_type": "mpnet", "max_position_embeddings": 514}, None, 512),
        ({"model_type": "bert", "max_position_embeddings": 512}, {"model_max_length": 128}, 512),
        ({"model_type": "bert"}, {"model_max_length": 64}, 64),
    ],
)
def test_the_limit_of_the_model_and_of_its_tokenizer(
    config: dict[str, object], tokenizer: object, limit: int, tmp_path: Path
) -> None:
    name = write(tmp_path, config, tokenizer)
    assert check_checkpoint(name, "main", limit) is None
    with pytest.raises(ModelError, match=rf"max_length is {limit + 1}, but .* takes {limit} tokens; lower"):
        check_checkpoint(name, "main", limit + 1)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": "deberta-v2", "max_position_embeddings": None},
        {"model_type": "bert", "max_position_embeddings": "many"},
        {"model_type": "their_own", "auto_map": {}, "max_position_embeddings": 8},
    ],
)
def test_a_config_without_a_known_limit_is_left_to_loading(config: dict[str, object], tmp_path: Path) -> None:
    assert check_checkpoint(write(tmp_path, config, {"model_max_length": True}), "main", 10_000) is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", r"config\.json cannot be read: Expecting"),
        ("[]", r"config\.json is not a JSON object"),
        ({"model_type": "gpt2"}, r"model type 'gpt2' is not supported"),
        ({"model_type": "bert", "num_hidden_layers": 5000}, r"config\.json has num_hidden_layers 5000, above 1000"),
        ({"model_type": "bert", "quantization_config": {}}, r"has quantization_config"),
    ],
)
def test_a_config_that_cannot_be_used_is_an_error(config: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        check_checkpoint(write(tmp_path, config), "main", 16)


@pytest.mark.parametrize(
    ("config", "expected"),
    [({"hidden_size": 8}, 8), ({"dim": 16}, 16), ({}, None), ({"hidden_size": "8"}, None), ({"hidden_size": 0}, None)],
)
def test_the_hidden_size_is_read_from_the_config(
    config: dict[str, object], expected: int | None, tmp_path: Path
) -> None:
    assert hidden_size(write(tmp_path, config), "main") == expected


def test_a_folder_without_a_full_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json; give a hub id"):
        check_checkpoint(str(tmp_path), "main", 16)
    (tmp_path / "adapter_config.json").touch()
    with pytest.raises(ModelError, match=r"is an adapter; write plain weights first with `finetune merge`"):
        check_checkpoint(str(tmp_path), "main", 16)


@pytest.mark.parametrize("name", ["two words", "a/b/c", "-a", "a--b", "~/nowhere", "line\nbreak"])
def test_a_name_that_no_model_can_have_is_an_error(name: str) -> None:
    with pytest.raises(ModelError, match=r"(?s)^cannot load model .* \(revision main\): .*; give a hub id"):
        check_checkpoint(name, "main", 16)


def test_a_model_on_the_hub_is_checked_if_it_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    note = "not checked: model 'some/model', because it is not in the cache of the hub"
    assert check_checkpoint("some/model", "main", 16) == note
    snapshot = tmp_path / "models--some--model" / "snapshots" / "abc"
    (snapshot.parents[1] / "refs").mkdir(parents=True)
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    snapshot.mkdir(parents=True)
    write(snapshot, {"model_type": "bert", "max_position_embeddings": 8})
    assert check_checkpoint("some/model", "main", 8) is None
    with pytest.raises(ModelError, match=r"but 'some/model' takes 8 tokens"):
        check_checkpoint("some/model", "main", 16)


@pytest.mark.parametrize(
    ("model_type", "overrides", "message"),
    [
        ("bert", {"max_position_embeddings": 16}, r"data\.max_length is 17, but 'bert' takes 16 tokens"),
        ("mpnet", {"max_position_embeddings": 16}, r"data\.max_length is 17, but 'mpnet' takes 14 tokens"),
        ("bert", {"num_hidden_layers": 5000}, r"model\.config_overrides has num_hidden_layers 5000, above 1000"),
        ("gpt2", {}, r"model type 'gpt2' is not supported"),
    ],
)
def test_a_new_model_that_cannot_be_built_is_an_error(
    model_type: str, overrides: dict[str, object], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        check_new_model(model_type, overrides, 17)


def test_the_message_for_a_new_model_is_that_of_training(tiny_bert: Path) -> None:
    overrides = {"max_position_embeddings": 8, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    check_new_model("bert", overrides, 8)
    labels = Labels(("a", "b"), "single_label_classification")
    with pytest.raises(ModelError) as from_training:
        new_classifier("bert", overrides, load_tokenizer(Source(str(tiny_bert))), labels, max_length=9)
    with pytest.raises(ModelError) as from_check:
        check_new_model("bert", overrides, 9)
    assert str(from_check.value) == str(from_training.value)
