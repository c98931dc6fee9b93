from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from finetune.errors import ModelError
from finetune.models import onnx_export
from finetune.models.architectures import FAMILIES
from finetune.models.onnx_export import check_exportable, check_onnx_installed, quantize_to_int8, write_onnx
from tests.support.exported import batch, export_family
from tests.support.families import CONFIGS, random_model

# One family per kind of attention: plain; relative positions in buckets; fused projections with local attention and
# rotary positions; convolutions; our own. `make bench-export` exports every family.
FAMILIES_HERE = ("bert", "deberta-v2", "modernbert", "squeezebert", "multi_head_classifier")
# Relative to the largest logit; measured up to 9e-6 over all families.
TOLERANCE = 1e-4


@pytest.mark.parametrize("family", FAMILIES_HERE)
def test_an_exported_model_has_the_logits_of_pytorch_for_every_batch_size_and_length(
    family: str, tmp_path: Path
) -> None:
    difference, largest = export_family(family, tmp_path)
    assert largest > 0.001
    assert difference <= TOLERANCE * max(1.0, largest)


@pytest.mark.parametrize("family", ["bert", "mpnet"])  # MPNet's layers share one position bias, which a hook selects
def test_a_pruned_model_can_be_exported(family: str, tmp_path: Path) -> None:
    difference, largest = export_family(family, tmp_path, pruned=True)
    assert difference <= TOLERANCE * max(1.0, largest)
    # Two layers of six: the first has no feed-forward network, and the second no attention.
    assert quantize_to_int8(tmp_path / "model.onnx", tmp_path / "int8.onnx") == 4 + 2


def test_int8_is_close_and_covers_every_projection(tmp_path: Path) -> None:
    difference, largest = export_family("bert", tmp_path, int8=True)
    assert 0 < difference < 0.2 * largest  # measured 0.03
    count = quantize_to_int8(tmp_path / "model.onnx", tmp_path / "again.onnx")
    assert count == 2 * 6  # query, key, value, output and two feed-forward layers, in each of two layers


def test_int8_of_a_model_with_convolutions_is_refused(tmp_path: Path) -> None:
    write_onnx(random_model("squeezebert"), batch(3, 11), tmp_path / "model.onnx")
    with pytest.raises(ModelError, match=r"this model has \d of them and 12 convolutions; export it without"):
        quantize_to_int8(tmp_path / "model.onnx", tmp_path / "int8.onnx")


def _tokenizer(**changes: Any) -> Any:
    return SimpleNamespace(**{"is_fast": True, "model_input_names": ["input_ids", "attention_mask"], **changes})


def test_what_cannot_be_exported_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    bert, big_bird = random_model("bert"), random_model("big_bird", attention_type="block_sparse", block_size=8)
    check_exportable(bert, _tokenizer(), 64)
    check_exportable(big_bird, _tokenizer(), 88)  # full attention up to this length
    refused = [
        (big_bird, _tokenizer(), 89, "a 'big_bird' model cannot be exported to ONNX: above 88 tokens"),
        (bert, _tokenizer(is_fast=False), 64, "a 'bert' model with a SimpleNamespace .* no tokenizer.json"),
        (bert, _tokenizer(model_input_names=["input_ids", "bbox"]), 64, "its tokenizer also returns bbox"),
    ]
    for model, tokenizer, length, message in refused:
        with pytest.raises(ModelError, match=message):
            check_exportable(model, tokenizer, length)
    monkeypatch.setattr(onnx_export, "_MAX_BYTES", 1000)
    with pytest.raises(ModelError, match=r"an ONNX file holds at most 2.1 GB"):
        check_exportable(bert, _tokenizer(), 64)
    assert {name for name, family in FAMILIES.items() if family.not_exportable} == {"big_bird"}
    assert CONFIGS["big_bird"]["attention_type"] == "original_full"


def test_an_error_of_the_exporter_names_the_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no such operator\nsecond line")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(ModelError, match=r"a 'bert' model cannot be exported to ONNX: RuntimeError: no such operator$"):
        write_onnx(random_model("bert"), batch(3, 11), tmp_path / "model.onnx")


def test_a_missing_package_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    check_onnx_installed()
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"export needs onnx and onnxruntime; run `pip install 'finetune\[onnx\]'`"):
        check_onnx_installed()
