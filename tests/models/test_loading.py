"""Saved classifiers load unchanged; damaged or mismatched folders are errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedModel

from finetune.errors import ModelError
from finetune.heads.pruning import pruned_classifier, write_zeroed
from finetune.models.building import Labels, pretrained_classifier
from finetune.models.classifier import Classifier
from finetune.models.comparison import check_reload, logits_of
from finetune.models.loading import load_classifier
from finetune.models.lora import Lora
from finetune.models.merging import merge_classifier
from finetune.models.outputs import OutputRules
from finetune.models.pretrained import Source, load_tokenizer
from finetune.models.saving import save_classifier
from tests.support.forked import forked
from tests.support.helpers import ROLES, assert_equal_up_to_rounding, tiny_classifier

LORA = Lora(r=2, lora_alpha=4, lora_dropout=0.0, roles=ROLES)
TEXTS = [("the cat sat",), ("a dog chased the mat on the floor",)]
CPU = torch.device("cpu")
LABELS = ("zeta", "alpha", "no", "mid", "beta")


def change_weights(classifier: Classifier) -> None:
    """Change every trained weight, as training would."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in classifier.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("checkpoint", ["tiny_bert", "tiny_masked_lm"])
def test_a_trained_model_is_the_same_after_reloading(
    checkpoint: str, lora: Lora | None, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    trained = tiny_classifier(request.getfixturevalue(checkpoint), lora=lora, labels=LABELS)
    change_weights(trained)
    save_classifier(trained, tmp_path / "model")
    folder = tmp_path / "elsewhere" / "moved"
    shutil.move(tmp_path / "model", folder)
    torch.manual_seed(99)
    reloaded = load_classifier(folder)
    assert check_reload(trained, reloaded, TEXTS, CPU) <= 1e-6
    assert (reloaded.label_names, reloaded.problem_type) == (list(LABELS), "single_label_classification")
    assert (reloaded.max_length, reloaded.tokenizer.get_vocab()) == (16, trained.tokenizer.get_vocab())
    assert isinstance(reloaded.model, peft.PeftModel) == (lora is not None)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_weights_and_tokenizer_are_read_once(
    lora: Lora | None, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_classifier(tiny_classifier(tiny_bert, lora=lora, labels=LABELS), tmp_path)
    calls = []
    for owner in (PreTrainedModel, AutoTokenizer):
        read = vars(owner)["from_pretrained"].__func__

        def counted(cls, *args, owner=owner, read=read, **kwargs):
            calls.append(owner.__name__)
            return read(cls, *args, **kwargs)

        monkeypatch.setattr(owner, "from_pretrained", classmethod(counted))
    load_classifier(tmp_path)
    assert sorted(calls) == ["AutoTokenizer", "PreTrainedModel"]


def test_a_fresh_process_gives_the_same_logits(tiny_masked_lm: Path, tmp_path: Path) -> None:
    trained = tiny_classifier(tiny_masked_lm, lora=LORA, labels=LABELS)
    change_weights(trained)
    save_classifier(trained, tmp_path)
    program = tmp_path / "program.py"
    program.write_text(
        "import json, torch, pathlib\n"
        "from finetune.models.comparison import logits_of\n"
        "from finetune.models.loading import load_classifier\n"
        f"built = load_classifier(pathlib.Path({str(tmp_path)!r}))\n"
        f"print(json.dumps(logits_of(built, {TEXTS!r}, torch.device('cpu')).tolist()))"
    )
    done = forked([program], tmp_path)
    assert done.returncode == 0, done.stderr
    actual = torch.tensor(json.loads(done.stdout.splitlines()[-1]))
    assert_equal_up_to_rounding(actual, logits_of(trained, TEXTS, CPU))  # the same weights at another memory address


def test_a_checkpoint_with_another_head_gets_a_new_one(tiny_bert: Path, tmp_path: Path) -> None:
    first = tiny_classifier(tiny_bert, labels=LABELS)
    save_classifier(first, tmp_path)
    second = tiny_classifier(tmp_path, labels=("a", "b"))
    assert second.new_parameters == ("classifier.bias", "classifier.weight")
    assert torch.equal(second.base.bert.pooler.dense.weight, first.base.bert.pooler.dense.weight)
    adapted = tiny_classifier(tmp_path, labels=("a", "b"), lora=LORA)
    save_classifier(adapted, tmp_path / "adapter")
    assert check_reload(adapted, load_classifier(tmp_path / "adapter"), TEXTS, CPU) <= 1e-6


def test_a_folder_without_a_classifier_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="contains no saved classifier"):
        load_classifier(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
@pytest.mark.parametrize("content", [None, b"", b"[]", b"{", b"null", b"\xff\xfe", b'"text"', b"[" * 50_000])
def test_a_damaged_model_folder_of_a_run_gives_one_error_message(
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


SOURCE = {"name": "x", "revision": "main", "dtype": "float32", "attn_implementation": None}


@pytest.mark.parametrize(
    "classifier_json",
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
        {"max_length": 16, "source": SOURCE, "text_columns": "sentence"},
        {"max_length": 16, "source": SOURCE, "text_columns": ["a", "b", "c"]},
        {"max_length": 16, "source": SOURCE, "thresholds": 0.5},
        {"max_length": 16, "source": SOURCE, "thresholds": ["0.5", "0.5"]},
        {"max_length": 16, "source": SOURCE, "temperature": None},
    ],
)
def test_a_wrong_classifier_json_gives_one_error_message(
    classifier_json: object, tiny_bert: Path, tmp_path: Path
) -> None:
    save_classifier(tiny_classifier(tiny_bert), tmp_path)
    (tmp_path / "classifier.json").write_text(json.dumps(classifier_json))
    with pytest.raises(ModelError, match=r"contains no saved classifier \(.*\); name the model folder of a run"):
        load_classifier(tmp_path)


def test_columns_thresholds_and_temperature_are_saved(tiny_bert: Path, tmp_path: Path) -> None:
    classifier = tiny_classifier(tiny_bert)
    classifier.base.config.problem_type = "multi_label_classification"
    options = {"text_columns": ("question", "answer"), "thresholds": (0.25, 1.0), "temperature": 1.5}
    save_classifier(replace(classifier, **options), tmp_path)  # type: ignore[arg-type]
    loaded = load_classifier(tmp_path)
    assert {name: getattr(loaded, name) for name in options} == options
    assert loaded.rules == OutputRules(("no", "yes"), "multi_label_classification", (0.25, 1.0), 1.5)


def test_a_model_of_an_earlier_version_has_the_default_rules(tiny_bert: Path, tmp_path: Path) -> None:
    save_classifier(tiny_classifier(tiny_bert), tmp_path)
    classifier_json = json.loads((tmp_path / "classifier.json").read_text())
    old = {name: classifier_json[name] for name in ("max_length", "source", "base_checksum")}
    (tmp_path / "classifier.json").write_text(json.dumps(old))
    loaded = load_classifier(tmp_path)
    assert loaded.text_columns == ()
    assert loaded.rules == OutputRules(("no", "yes"), "single_label_classification")


def test_thresholds_that_do_not_fit_the_labels_are_rejected(tiny_bert: Path, tmp_path: Path) -> None:
    save_classifier(tiny_classifier(tiny_bert), tmp_path)
    classifier_json = json.loads((tmp_path / "classifier.json").read_text())
    (tmp_path / "classifier.json").write_text(json.dumps(classifier_json | {"thresholds": [0.5]}))
    with pytest.raises(ModelError, match="there must be one from 0 to 1, or none, for each of its 2 labels"):
        load_classifier(tmp_path)


def test_an_adapter_of_an_earlier_version_is_rejected_with_a_fix(tiny_bert: Path, tmp_path: Path) -> None:
    save_classifier(tiny_classifier(tiny_bert, lora=LORA), tmp_path)
    classifier_json = json.loads((tmp_path / "classifier.json").read_text())
    (tmp_path / "classifier.json").write_text(json.dumps({**classifier_json, "changed_base": ["bert.encoder"]}))
    with pytest.raises(ModelError, match=r"earlier version of finetune .*; train again, or merge it with that version"):
        load_classifier(tmp_path)


def test_trust_settings_are_not_saved(tiny_bert: Path, tmp_path: Path) -> None:
    save_classifier(tiny_classifier(tiny_bert), tmp_path)
    classifier_json = json.loads((tmp_path / "classifier.json").read_text())
    assert sorted(classifier_json["source"]) == ["attn_implementation", "dtype", "name", "revision"]
    source = load_classifier(tmp_path, trust_remote_code=True, use_safetensors=False).source
    assert source is not None
    assert (source.trust_remote_code, source.use_safetensors) == (True, False)
    assert load_classifier(tmp_path).source == Source(str(tiny_bert))


@pytest.mark.parametrize("part", ["word_embeddings.weight", "layer.1.output.LayerNorm.bias", "pooler.dense.bias"])
def test_an_adapter_on_another_base_is_rejected(part: str, tiny_bert: Path, tmp_path: Path) -> None:
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


def test_an_adapter_without_its_safetensors_is_rejected(tiny_bert: Path, tmp_path: Path) -> None:
    save_classifier(tiny_classifier(tiny_bert, lora=LORA), tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))  # peft would read this file instead
    weights.unlink()
    with pytest.raises(ModelError, match=r"an adapter without adapter_model\.safetensors"):
        load_classifier(tmp_path)


def test_pickled_weights_are_saved_and_loaded_as_safetensors(tiny_bert: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_bert, tmp_path / "base"))
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    source = Source(str(base), use_safetensors=False)
    for lora in (None, LORA):
        built = pretrained_classifier(
            source, load_tokenizer(source), Labels(("no", "yes"), "single_label_classification"),
            max_length=16, lora=lora,
        )  # fmt: skip
        folder = tmp_path / f"{lora is None}"
        save_classifier(built, folder)
        assert list(folder.glob("*.safetensors"))
        reloaded = load_classifier(folder, use_safetensors=False)
        assert check_reload(built, reloaded, TEXTS, torch.device("cpu")) <= 1e-6
        if lora is None:
            load_classifier(folder)  # no pickled file is needed
        else:
            with pytest.raises(ModelError, match=r"model\.use_safetensors: false"):
                load_classifier(folder)
        small = pruned_classifier(reloaded, {0: [1]})
        assert write_zeroed(small, tmp_path / f"zeroed {lora is None}", TEXTS) < 1e-4
        assert merge_classifier(reloaded, tmp_path / f"merged {lora is None}", TEXTS) < 1e-4


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (
            lambda weights: weights.pop(next(key for key in weights if "0.attention.self.query.lora_B" in key)),
            "query.lora_B",
        ),
        (
            lambda weights: weights.update({"base_model.model.bert.encoder.layer.9.lora_A.weight": torch.ones(2)}),
            "layer.9",
        ),
    ],
    ids=["missing", "unknown"],
)
def test_an_adapter_whose_weights_do_not_match_its_config_is_rejected(
    change: Callable[[dict[str, torch.Tensor]], object], name: str, tiny_bert: Path, tmp_path: Path
) -> None:
    save_classifier(tiny_classifier(tiny_bert, lora=LORA), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(
        ModelError, match=rf"belong to different adapters: they differ in .*{name}.*; copy both from one"
    ):
        load_classifier(tmp_path)


def test_a_head_in_neither_adapter_nor_base_is_rejected(tiny_bert: Path, tmp_path: Path) -> None:
    save_classifier(tiny_classifier(tiny_bert, lora=LORA), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"modules_to_save": None}))
    classifier_json = json.loads((tmp_path / "classifier.json").read_text())
    (tmp_path / "classifier.json").write_text(
        json.dumps(classifier_json | {"base_checksum": None, "trained_modules": []})
    )
    with pytest.raises(ModelError, match=r"neither the adapter in .* nor '.*' has classifier\.\w+; name another run"):
        load_classifier(tmp_path)
