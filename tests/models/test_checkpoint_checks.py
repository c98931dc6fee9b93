from __future__ import annotations

import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, BertConfig

from finetune.errors import ModelError
from finetune.models.architectures import FAMILIES
from finetune.models.building import Labels, new_classifier, pretrained_classifier
from finetune.models.checkpoint_checks import check_finite_weights, check_fits_in_memory
from finetune.models.checkpoint_config import max_input_length
from finetune.models.classifier import Classifier
from finetune.models.freezing import Freezing
from finetune.models.loading import load_classifier
from finetune.models.lora import Lora
from finetune.models.pretrained import Source, load_tokenizer
from finetune.models.saving import save_classifier
from tests.support.helpers import ROLES, tiny_classifier

LABELS = ("no", "yes")


def changed(checkpoint: Path, folder: Path, entries: dict[str, Any]) -> Path:
    """Copy a checkpoint and change entries of its config.json."""
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | entries))
    return folder


def build(folder: Path, **options: Any) -> Classifier:
    of_source = options.keys() & {"dtype", "use_safetensors", "allow_missing_weights"}
    source = Source(str(folder), **{key: options.pop(key) for key in of_source})
    return pretrained_classifier(
        source,
        load_tokenizer(source),
        Labels(LABELS, "single_label_classification"),
        max_length=options.pop("max_length", 16),
        **options,
    )


MISSING = r"bert\.encoder\.layer\.0\.intermediate\.dense\.weight and 5 more"
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "vocab_size": ({"vocab_size": 70}, r"has no weights for bert\.embeddings\.word_embeddings\.weight:"),
    "intermediate_size": ({"intermediate_size": 40}, rf"has no weights for {MISSING}: .*allow_missing_weights"),
    "positions": ({"max_position_embeddings": 40}, r"has no weights for bert\.embeddings\.position_embeddings"),
    "types": ({"type_vocab_size": 1}, r"has no weights for bert\.embeddings\.token_type_embeddings\.weight:"),
    "no types": ({"type_vocab_size": 0}, r"has no weights for bert\.embeddings\.token_type_embeddings\.weight:"),
    "no positions": ({"max_position_embeddings": 0}, r"has no weights for bert\.embeddings\.position_embeddings"),
    "more layers": ({"num_hidden_layers": 3}, r"has no weights for bert\.encoder\.layer\.2\.attention"),
    "hidden_size 0": ({"hidden_size": 0}, r"cannot load model '.*: ZeroDivisionError"),
    "hidden_size text": ({"hidden_size": "24"}, r"cannot load model '.*hidden_size.*expected int, got str"),
    "hidden_size huge": ({"hidden_size": 10**9}, r"hidden_size 1000000000, above 10000000; correct the entry"),
    "hidden_size large": ({"hidden_size": 3_000_000}, r"parameters by its config, more than fit in this machine's"),
    "layers huge": ({"num_hidden_layers": 10**6}, r"num_hidden_layers 1000000, above 1000; correct the entry"),
    "heads 0": ({"num_attention_heads": 0}, r"cannot load model '.*ZeroDivisionError"),
    "heads": ({"num_attention_heads": 5}, r"cannot load model '.*"),
    "heads -1": ({"num_attention_heads": -1}, r"'.*' has 2 layers of -1 heads by its config, but at least one layer"),
    "layers 0": ({"num_hidden_layers": 0}, r"'.*' has 0 layers by its config, but at least one layer"),
    "layers -1": ({"num_hidden_layers": -1}, r"'.*' has 0 layers by its config, but at least one layer"),
    "pad": ({"pad_token_id": 9999}, r"cannot load model '.*[Pp]adding_idx"),
    "labels": ({"id2label": {"0": "a", "7": "b"}}, r"id2label \{'0': 'a', '7': 'b'\}; it must map each id, "),
    "label list": ({"id2label": ["a", "b"]}, r"has id2label \['a', 'b'\]; it must map each id"),
    "many labels": ({"num_labels": 10**9}, r"num_labels 1000000000, above 10000000"),
    "t5": ({"model_type": "t5"}, r"model type 't5' is not supported; supported model types: albert, bert, "),
    "float8": ({"dtype": "float8"}, r"cannot load model '.*AttributeError: .*'float8'"),
    "kernels": ({"_attn_implementation": "somebody/kernel"}, r"has _attn_implementation 'somebody/kernel'; remove"),
    "pruned": ({"pruned_heads": "x"}, "the config has pruned_heads 'x'; it must map numbers of layers to values"),
    "quantized": ({"quantization_config": 3}, r"config\.json has quantization_config: .*choose the checkpoint in full"),
    "fp8": ({"quantization_config": {"quant_method": "fp8"}}, r"config\.json has quantization_config: .*or remove the"),
    "compressed": ({"compression_config": {"a": 1}}, r"config\.json has compression_config: training quantized"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_config_gives_one_error_message(case: str, tiny_masked_lm: Path, tmp_path: Path) -> None:
    entries, message = WRONG[case]
    with pytest.raises(ModelError, match=message):
        build(changed(tiny_masked_lm, tmp_path / "model", entries))


def with_changed_weights(checkpoint: Path, folder: Path, part: str, value: float | None = None) -> Path:
    """Copy a checkpoint without the weights whose names contain `part`, or with `value` as their first element."""
    shutil.copytree(checkpoint, folder)
    weights = load_file(folder / "model.safetensors")
    matched = [name for name in weights if part in name]
    assert matched
    for name in matched:
        if value is None:
            del weights[name]
        else:
            weights[name].view(-1)[0] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("part", "first"),
    [
        ("word_embeddings", r"bert\.embeddings\.word_embeddings\.weight:"),
        ("embeddings.LayerNorm", r"bert\.embeddings\.LayerNorm\.weight and 1 more:"),
        ("layer.1.output.dense.bias", r"bert\.encoder\.layer\.1\.output\.dense\.bias:"),
        ("layer.0.attention.self.key", r"bert\.encoder\.layer\.0\.attention\.self\.key\.weight and 1 more:"),
    ],
)
def test_missing_weights_of_the_encoder_are_named(part: str, first: str, tiny_bert: Path, tmp_path: Path) -> None:
    folder = with_changed_weights(tiny_bert, tmp_path / "model", part)
    with pytest.raises(ModelError, match=rf"model '{folder}' has no weights for {first} it is not a checkpoint"):
        build(folder)
    built = build(folder, allow_missing_weights=True)
    assert any(part in name for name in built.new_parameters)
    assert re.match(rf"The checkpoint has no weights for {first} initialized at random\.$", only_note(built))


def only_note(built: Classifier) -> str:
    (note,) = built.notes
    return note


def test_missing_weights_are_trained_and_saved_with_an_adapter_and_never_frozen(
    tiny_bert: Path, tmp_path: Path
) -> None:
    folder = with_changed_weights(tiny_bert, tmp_path / "model", "layer.1.output.dense")
    lora = Lora(r=2, lora_alpha=4, lora_dropout=0.0, roles=ROLES)
    adapted = build(folder, lora=lora, allow_missing_weights=True)
    trained = {name for name, p in adapted.model.named_parameters() if p.requires_grad and "lora_" not in name}
    assert any("layer.1.output.dense.modules_to_save" in name for name in trained)
    with pytest.raises(ModelError, match=r"has no weights for bert\.encoder\.layer\.1\.output.*, which is frozen"):
        build(folder, freezing=Freezing(layers=2), allow_missing_weights=True)


def test_a_note_names_layers_that_the_config_does_not_list(tiny_masked_lm: Path, tmp_path: Path) -> None:
    built = build(changed(tiny_masked_lm, tmp_path / "model", {"num_hidden_layers": 1}))
    (note,) = built.notes
    assert note.startswith("The checkpoint has weights for layers that its config.json does not list: ")
    assert "layer.1.attention" in note
    assert note.endswith(" and 15 more.")


def test_a_head_with_numbered_parts_is_not_a_layer(tiny_bert: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    weights = load_file(folder / "model.safetensors") | {"classifier.2.weight": torch.ones(2)}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert build(folder).notes == ()


@pytest.mark.parametrize("entry", [{"output_attentions": True}, {"output_hidden_states": True}, {"return_dict": False}])
def test_a_config_cannot_change_what_a_model_returns(entry: dict[str, bool], tiny_bert: Path, tmp_path: Path) -> None:
    built = build(changed(tiny_bert, tmp_path / "model", entry))
    assert sorted(built.model(torch.tensor([[1, 2]])).keys()) == ["logits"]
    save_classifier(built, tmp_path / "saved")
    reloaded = load_classifier(changed(tmp_path / "saved", tmp_path / "damaged", entry))
    assert sorted(reloaded.model(torch.tensor([[1, 2]])).keys()) == ["logits"]


def test_a_config_cannot_turn_on_gradient_checkpointing(tiny_bert: Path, tmp_path: Path) -> None:
    built = build(changed(tiny_bert, tmp_path / "model", {"gradient_checkpointing": True}))
    flags = [
        module.gradient_checkpointing for module in built.base.modules() if hasattr(module, "gradient_checkpointing")
    ]
    assert flags == [False] * len(flags)
    assert len(flags) > 2


def test_a_config_that_cannot_be_saved_is_rejected(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("not valid")

    monkeypatch.setattr(BertConfig, "save_pretrained", fail)
    with pytest.raises(ModelError, match=r"cannot load model .*: RuntimeError: not valid; give a hub id"):
        build(tiny_bert)


def test_the_pooler_and_another_head_may_be_missing(tiny_masked_lm: Path) -> None:
    built = tiny_classifier(tiny_masked_lm)
    assert built.new_parameters[0] == "bert.pooler.dense.bias"
    assert built.notes == ()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(value: float, tiny_bert: Path, tmp_path: Path) -> None:
    folder = with_changed_weights(tiny_bert, tmp_path / "model", "attention.self.query.weight", value)
    message = (
        r"has 1 values in bert\.encoder\.layer\.0\.attention\.self\.query\.weight that are not finite in float32, "
    )
    with pytest.raises(ModelError, match=message + "and 1 more weights have such values: its weights are damaged"):
        build(folder)


def test_finite_weights_whose_sum_is_not_are_accepted() -> None:
    weights = nn.ParameterList([torch.full((4,), 3e38)])
    assert not weights[0].sum().isfinite()
    check_finite_weights(weights, "large")


def test_a_weight_that_is_too_large_for_its_dtype_is_named(tiny_bert: Path, tmp_path: Path) -> None:
    folder = with_changed_weights(tiny_bert, tmp_path / "model", "layer.0.attention.self.query.weight", 1e30)
    lora = Lora(r=2, lora_alpha=4, lora_dropout=0.0, roles=ROLES)
    with pytest.raises(ModelError, match=r"not finite in float16: .*model\.dtype: float32"):
        build(folder, dtype="float16", lora=lora)


@pytest.mark.parametrize("kind", ["code", "cut", "garbage", "empty"])
def test_a_damaged_or_malicious_pickle_gives_one_error_message(kind: str, tiny_bert: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    file = folder / "pytorch_model.bin"
    torch.save(load_file(folder / "model.safetensors"), file)
    (folder / "model.safetensors").unlink()
    content = file.read_bytes()
    contents = {
        "code": pickle.dumps(MaliciousPickle(), protocol=2),
        "cut": content[: len(content) // 2],
        "garbage": b"\x00" * 500,
        "empty": b"",
    }
    file.write_bytes(contents[kind])
    with pytest.raises(
        ModelError, match="pickled weights file is damaged or contains objects other than tensors; download"
    ):
        build(folder, use_safetensors=False)


class MaliciousPickle:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("code of a pickle was run",))


def test_token_ids_without_an_embedding_are_rejected(tiny_bert: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    text = json.loads((folder / "tokenizer.json").read_text())
    text["model"]["vocab"]["beyond"] = size
    (folder / "tokenizer.json").write_text(json.dumps(text))
    message = rf"has ids up to {size} \('beyond'\), but the model has embeddings for ids 0 to {size - 1}; use the tok"
    for lora in (None, Lora(r=2, lora_alpha=4, lora_dropout=0.0, roles=ROLES)):
        with pytest.raises(ModelError, match=message):
            build(folder, lora=lora)


POSITIONS = {  # the number of usable positions of 20
    **dict.fromkeys(("roberta", "camembert", "xlm-roberta", "xlm-roberta-xl", "xmod", "roberta-prelayernorm"), 19),
    **dict.fromkeys(("data2vec-text", "ibert", "esm"), 19),
    "mpnet": 18,
}


@pytest.mark.parametrize("family", ["bert", "electra", "layoutlm", "nystromformer", "deberta-v2", *POSITIONS])
def test_the_largest_input_length_is_the_largest_that_runs(family: str) -> None:
    assert POSITIONS.keys() <= FAMILIES.keys()
    config = AutoConfig.for_model(
        family,
        **{"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "pad_token_id": 0},
        **{"intermediate_size": 8, "max_position_embeddings": 20, "mask_token_id": 3},
        **{"num_landmarks": 4, "segment_means_seq_len": 4, "languages": ["a"], "default_language": "a"},
    )
    limit = max_input_length(config)
    assert limit == POSITIONS.get(family, 20)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model(input_ids=torch.full((1, limit), 5))
    if family != "deberta-v2":  # its positions are relative and clamped
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, limit + 1), 5))


def test_a_model_larger_than_the_memory_is_rejected() -> None:
    check_fits_in_memory(1000, "small")
    with pytest.raises(ModelError, match=r"'large' has 1,000,000,000,000,000 parameters by its config, more than fit"):
        check_fits_in_memory(10**15, "large")


@pytest.mark.parametrize(
    ("model_type", "overrides", "message"),
    [
        ("roberta", {"max_position_embeddings": 16}, r"data\.max_length is 16, but 'roberta' takes 15 tokens"),
        ("mpnet", {"max_position_embeddings": 16}, r"data\.max_length is 16, but 'mpnet' takes 14 tokens"),
        ("bert", {"max_position_embeddings": 0}, r"'bert' takes 0 tokens .*; correct its config\.json, or model\."),
        ("bert", {"num_hidden_layers": 10**9}, r"model\.config_overrides has num_hidden_layers 1000000000, above 1000"),
        ("bert", {"hidden_size": 3_000_000}, r"'bert' has .* parameters by its config, more than fit"),
        ("bert", {"hidden_size": -24}, r"model\.config_overrides: a bert cannot be built: "),
        ("bert", {"hidden_act": "nothing"}, r"model\.config_overrides: a bert cannot be built: "),
    ],
)  # fmt: skip
def test_a_new_model_of_wrong_sizes_gives_one_error_message(
    model_type: str, overrides: dict[str, Any], message: str, tiny_bert: Path
) -> None:
    sizes = {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 1, "intermediate_size": 8, **overrides}
    with pytest.raises(ModelError, match=message):
        new_classifier(
            model_type,
            sizes,
            load_tokenizer(Source(str(tiny_bert))),
            Labels(LABELS, "single_label_classification"),
            max_length=16,
        )
