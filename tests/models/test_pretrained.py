from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from finetune.data.rows import RawSplit
from finetune.data.tokenization import encode_split
from finetune.errors import ModelError
from finetune.heads.pruning import pruned_classifier, write_zeroed
from finetune.models import toy_classifier
from finetune.models.building import pretrained_classifier
from finetune.models.comparison import check_reload
from finetune.models.loading import load_classifier
from finetune.models.lora import Lora
from finetune.models.merging import merge_classifier
from finetune.models.pretrained import Source, load_config, load_tokenizer
from finetune.models.saving import save_classifier
from finetune.runs.results import SplitSummary
from tests.support.helpers import ROLES, tiny_classifier

LORA = Lora(r=2, lora_alpha=4, lora_dropout=0.0, roles=ROLES)
TEXTS = [("the cat sat",), ("a dog chased the mat on the floor",)]


@pytest.mark.parametrize(
    "family", ["bert", "roberta", "xlm-roberta", "deberta-v2", "electra", "albert", "rembert", "mpnet"]
)
def test_a_checkpoint_without_tokenizer_files_is_refused(family: str, tmp_path: Path) -> None:
    toy_classifier.register()
    AutoConfig.for_model(family).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"has only special tokens: its vocabulary file \(tokenizer\.json, .*put it"):
        load_tokenizer(Source(str(tmp_path)))


@pytest.mark.parametrize("family", ["modernbert", "eurobert", "esm", "multi_head_classifier"])
def test_and_so_it_is_where_transformers_makes_none(family: str, tmp_path: Path) -> None:
    toy_classifier.register()
    AutoConfig.for_model(family).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="cannot load model"):
        load_tokenizer(Source(str(tmp_path)))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
@pytest.mark.parametrize("content", [None, b"", b"[]", b"{", b"null", b"\xff\xfe", b'"text"', b"[" * 50_000])
def test_a_damaged_model_folder_of_a_run_is_one_message(
    name: str, content: bytes | None, tiny_bert: Path, tmp_path: Path
) -> None:
    save_classifier(tiny_classifier(tiny_bert), tmp_path)
    if content is None and name == "tokenizer_config.json":
        pytest.skip("the vocabulary and the family's own special tokens are enough")
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=str(tmp_path)):
        load_classifier(tmp_path)


class PanicException(BaseException):
    pass


def test_a_panic_of_the_tokenizers_library_is_one_message(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def panic(*args: object, **kwargs: object) -> None:
        raise PanicException("no entry found for key")

    monkeypatch.setattr("finetune.models.pretrained.AutoTokenizer.from_pretrained", panic)
    with pytest.raises(ModelError, match=r"cannot load model .*: PanicException: no entry found for key; give"):
        load_tokenizer(Source(str(tiny_bert)))


SOURCE = {"name": "x", "revision": "main", "dtype": "float32", "attn_implementation": None}


@pytest.mark.parametrize(
    "about",
    [
        [],
        None,
        "text",
        {},
        {"max_length": 16},
        {"max_length": 0, "source": None},
        {"max_length": True, "source": None},
        {"max_length": "16", "source": SOURCE},
        {"max_length": 16, "source": []},
        {"max_length": 16, "source": {**SOURCE, "name": 3}},
        {"max_length": 16, "source": {**SOURCE, "dtype": "float8"}},
        {"max_length": 16, "source": {**SOURCE, "dtype": ["float32"]}},
        {"max_length": 16, "source": {**SOURCE, "attn_implementation": "somebody/kernel"}},
        {"max_length": 16, "source": SOURCE, "base_checksum": 3},
    ],
)
def test_a_wrong_classifier_json_is_one_message(about: object, tiny_bert: Path, tmp_path: Path) -> None:
    save_classifier(tiny_classifier(tiny_bert), tmp_path)
    (tmp_path / "classifier.json").write_text(json.dumps(about))
    with pytest.raises(ModelError, match=r"contains no saved classifier \(.*\); name the model folder of a run"):
        load_classifier(tmp_path)


def test_an_adapter_of_an_earlier_version_is_refused_with_the_repair(tiny_bert: Path, tmp_path: Path) -> None:
    save_classifier(tiny_classifier(tiny_bert, lora=LORA), tmp_path)
    about = json.loads((tmp_path / "classifier.json").read_text())
    (tmp_path / "classifier.json").write_text(json.dumps({**about, "changed_base": ["bert.encoder"]}))
    with pytest.raises(ModelError, match=r"earlier version of finetune .*; train again, or merge it with that version"):
        load_classifier(tmp_path)


def test_what_is_written_says_nothing_of_trust(tiny_bert: Path, tmp_path: Path) -> None:
    save_classifier(tiny_classifier(tiny_bert), tmp_path)
    about = json.loads((tmp_path / "classifier.json").read_text())
    assert sorted(about["source"]) == ["attn_implementation", "dtype", "name", "revision"]
    source = load_classifier(tmp_path, trust_remote_code=True, use_safetensors=False).source
    assert source is not None
    assert (source.trust_remote_code, source.use_safetensors) == (True, False)
    assert load_classifier(tmp_path).source == Source(str(tiny_bert))


@pytest.mark.parametrize("part", ["word_embeddings.weight", "layer.1.output.LayerNorm.bias", "pooler.dense.bias"])
def test_an_adapter_on_another_base_is_refused(part: str, tiny_bert: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_bert, tmp_path / "base"))
    adapted = tiny_classifier(base, lora=LORA)
    save_classifier(adapted, tmp_path / "adapter")
    assert check_reload(adapted, load_classifier(tmp_path / "adapter"), TEXTS, torch.device("cpu")) <= 1e-6
    weights = load_file(base / "model.safetensors")
    (name,) = (name for name in weights if name.endswith(part))
    weights[name].view(-1)[-1] += 1e-3
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    message = rf"the weights of '{base}' .* are not those that the adapter in .*adapter was trained on .*train the ada"
    with pytest.raises(ModelError, match=message):
        load_classifier(tmp_path / "adapter")


def test_an_adapter_without_its_safetensors_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    save_classifier(tiny_classifier(tiny_bert, lora=LORA), tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))  # which peft would read instead
    weights.unlink()
    with pytest.raises(ModelError, match=r"an adapter without adapter_model\.safetensors"):
        load_classifier(tmp_path)


def test_pickled_weights_are_saved_and_read_back_as_safetensors(tiny_bert: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_bert, tmp_path / "base"))
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    source = Source(str(base), use_safetensors=False)
    for lora in (None, LORA):
        found = pretrained_classifier(
            source, load_tokenizer(source), label_names=("no", "yes"), problem_type="single_label_classification",
            max_length=16, lora=lora,
        )  # fmt: skip
        folder = tmp_path / f"{lora is None}"
        save_classifier(found, folder)
        assert list(folder.glob("*.safetensors"))
        again = load_classifier(folder, use_safetensors=False)
        assert check_reload(found, again, TEXTS, torch.device("cpu")) <= 1e-6
        if lora is None:
            load_classifier(folder)  # nothing pickled is left
        else:
            with pytest.raises(ModelError, match=r"model\.use_safetensors: false"):
                load_classifier(folder)
        small = pruned_classifier(again, {0: [1]})
        assert write_zeroed(small, tmp_path / f"zeroed {lora is None}", TEXTS) < 1e-4
        assert merge_classifier(again, tmp_path / f"merged {lora is None}", TEXTS) < 1e-4


def test_a_config_is_read_with_its_own_labels(tiny_bert: Path) -> None:
    assert load_config(Source(str(tiny_bert))).num_labels == 2


@pytest.mark.parametrize(
    ("texts", "share"),
    [(["the cat sat", "the dog"], 0.0), (["the zebra sat", "zebra zebra"], 3 / 5), (["", "the"], 0.0)],
)
def test_the_share_of_unknown_tokens_is_counted(texts: list[str], share: float, tiny_bert: Path) -> None:
    raw = RawSplit(datasets.Dataset.from_dict({"sentence": texts}), "rows")
    split = encode_split(raw, np.zeros(2, dtype=np.int64), load_tokenizer(Source(str(tiny_bert))), ["sentence"], 16)
    assert split.unknown == pytest.approx(share)


def test_a_high_share_of_unknown_tokens_is_a_warning() -> None:
    low, high = (SplitSummary(4, {}, 1.0, 1, 0.0, unknown_share=share) for share in (0.1, 0.256))
    assert low.notes("test") == []
    (note,) = high.notes("test")
    assert note.startswith("26% of the test tokens are unknown to the tokenizer")


@pytest.mark.parametrize("limit", [{"a": 1}, "x", [], True, 0, -1])
def test_a_longest_input_that_counts_no_tokens_is_one_message(tiny_bert: Path, tmp_path: Path, limit: object) -> None:
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": limit}))
    with pytest.raises(
        ModelError,
        match=r"model_max_length .*, which must be a positive number of tokens; correct it in",
    ):
        load_tokenizer(Source(str(folder)))


@pytest.mark.parametrize("names", [["x"], [["input_ids"]], [], ["input_ids", 1]])
def test_inputs_that_are_no_token_ids_are_one_message(tiny_bert: Path, tmp_path: Path, names: object) -> None:
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"model_input_names": names}))
    with pytest.raises(ModelError, match=r"model_input_names .* must be a list of names that starts with input_ids"):
        load_tokenizer(Source(str(folder)))


@pytest.mark.parametrize(
    ("change", "odd"),
    [
        (lambda held: held.pop(next(key for key in held if "0.attention.self.query.lora_B" in key)), "query.lora_B"),
        (lambda held: held.update({"base_model.model.bert.encoder.layer.9.lora_A.weight": torch.ones(2)}), "layer.9"),
    ],
    ids=["missing", "unknown"],
)
def test_an_adapter_with_other_weights_than_its_config_says_is_refused(
    change: Callable[[dict[str, torch.Tensor]], object], odd: str, tiny_bert: Path, tmp_path: Path
) -> None:
    save_classifier(tiny_classifier(tiny_bert, lora=LORA), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    held = load_file(file)
    change(held)
    save_file(held, file, {"format": "pt"})
    with pytest.raises(
        ModelError, match=rf"belong to different adapters: they differ in .*{odd}.*; copy both from one"
    ):
        load_classifier(tmp_path)


def test_a_head_that_neither_adapter_nor_base_holds_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    save_classifier(tiny_classifier(tiny_bert, lora=LORA), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"modules_to_save": None}))
    about = json.loads((tmp_path / "classifier.json").read_text())
    (tmp_path / "classifier.json").write_text(json.dumps(about | {"base_checksum": None}))
    with pytest.raises(ModelError, match=r"neither the adapter in .* nor '.*' has classifier\.\w+; name another run"):
        load_classifier(tmp_path)
