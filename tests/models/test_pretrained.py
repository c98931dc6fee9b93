"""Checkpoints: their location, config, labels and tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from transformers import AutoConfig

from finetune.data.rows import RawSplit
from finetune.data.tokenization import encode_split
from finetune.errors import ModelError
from finetune.models import toy_classifier
from finetune.models.pretrained import Source, checkpoint_labels, load_config, load_tokenizer
from finetune.models.saving import save_classifier
from finetune.runs.results import SplitSummary
from tests.support.helpers import tiny_classifier


@pytest.mark.parametrize(
    "family", ["bert", "roberta", "xlm-roberta", "deberta-v2", "electra", "albert", "rembert", "mpnet"]
)
def test_a_checkpoint_without_tokenizer_files_is_rejected(family: str, tmp_path: Path) -> None:
    toy_classifier.register()
    AutoConfig.for_model(family).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"has only special tokens: its vocabulary file \(tokenizer\.json, .*put it"):
        load_tokenizer(Source(str(tmp_path)))


@pytest.mark.parametrize("family", ["modernbert", "eurobert", "esm", "multi_head_classifier"])
def test_a_family_without_an_empty_tokenizer_is_rejected_too(family: str, tmp_path: Path) -> None:
    toy_classifier.register()
    AutoConfig.for_model(family).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="cannot load model"):
        load_tokenizer(Source(str(tmp_path)))


class PanicException(BaseException):
    pass


def test_a_panic_of_the_tokenizers_library_gives_one_error_message(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def panic(*args: object, **kwargs: object) -> None:
        raise PanicException("no entry found for key")

    monkeypatch.setattr("finetune.models.pretrained.AutoTokenizer.from_pretrained", panic)
    with pytest.raises(ModelError, match=r"cannot load model .*: PanicException: no entry found for key; give"):
        load_tokenizer(Source(str(tiny_bert)))


def test_a_config_keeps_its_number_of_labels(tiny_bert: Path) -> None:
    assert load_config(Source(str(tiny_bert))).num_labels == 2


@pytest.mark.parametrize(
    ("texts", "share"),
    [(["the cat sat", "the dog"], 0.0), (["the zebra sat", "zebra zebra"], 3 / 5), (["", "the"], 0.0)],
)
def test_the_fraction_of_unknown_tokens_is_counted(texts: list[str], share: float, tiny_bert: Path) -> None:
    raw = RawSplit(datasets.Dataset.from_dict({"sentence": texts}), "rows")
    split = encode_split(raw, np.zeros(2, dtype=np.int64), load_tokenizer(Source(str(tiny_bert))), ["sentence"], 16)
    assert split.unknown == pytest.approx(share)


def test_a_high_fraction_of_unknown_tokens_gives_a_warning() -> None:
    low, high = (SplitSummary(4, {}, 1.0, 1, 0.0, unknown_share=share) for share in (0.1, 0.256))
    assert low.notes("test") == []
    (note,) = high.notes("test")
    assert note.startswith("26% of the test tokens are unknown to the tokenizer")


LABELS = ("zeta", "alpha", "no", "mid", "beta")
WRONG_TOKENIZER_ENTRIES = [
    *[("model_max_length", value, "a positive number of tokens") for value in ({"a": 1}, "x", [], True, 0, -1)],
    *[
        ("model_input_names", value, "a list of names that starts with input_ids")
        for value in (["x"], [["input_ids"]], [], ["input_ids", 1])
    ],
]


@pytest.mark.parametrize(("key", "value", "rule"), WRONG_TOKENIZER_ENTRIES)
def test_a_wrong_entry_of_the_tokenizer_config_gives_one_error_message(
    key: str, value: object, rule: str, tiny_bert: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(ModelError, match=rf"has {key} .*, which must be {rule}; correct it in tokenizer_config\.json"):
        load_tokenizer(Source(str(folder)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "package:no_such_package/model",
            r"package 'no_such_package' is not installed; run `pip install no-such-package`",
        ),
        ("package:finetune/nowhere", r"package 'finetune' has no folder 'nowhere'"),
        ("nobody/nothing", r"cannot load model 'nobody/nothing' \(revision main\)"),
    ],
)
def test_a_missing_model_is_named(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_tokenizer(Source(name))


def test_code_of_a_checkpoint_is_run_only_when_allowed(tiny_bert: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bert, tmp_path / "coded")
    config = json.loads((tiny_bert / "config.json").read_text())
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.OwnModel"}
    (tmp_path / "coded" / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": classes}))
    (tmp_path / "coded" / "own.py").write_text("raise SystemExit('this code must not run')\n")
    with pytest.raises(ModelError, match=r"model\.trust_remote_code: true"):
        checkpoint_labels(Source(str(tmp_path / "coded")))


def test_the_labels_of_a_fine_tuned_checkpoint_are_read(tiny_bert: Path, tmp_path: Path) -> None:
    assert checkpoint_labels(Source(str(tiny_bert))) is None
    save_classifier(tiny_classifier(tiny_bert, labels=LABELS), tmp_path)
    assert checkpoint_labels(Source(str(tmp_path))) == list(LABELS)
