from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from finetune.models import precision
from finetune.models.classifier import Classifier
from finetune.models.lora import Lora
from finetune.models.precision import bfloat16_warning, device_precision, rounding_tolerance
from finetune.models.speedups import frozen_weights_cast
from finetune.pipeline.session import start, with_precision
from finetune.recipe import Recipe
from finetune.runs.run_folder import RunFolder
from tests.support.finished_runs import SCRATCH, recipe
from tests.support.helpers import ROLES, tiny_classifier

LORA = Lora(r=2, lora_alpha=4, lora_dropout=0.0, roles=ROLES)


@pytest.fixture
def bf16() -> Iterator[Accelerator]:
    AcceleratorState._reset_state()
    yield Accelerator(cpu=True, mixed_precision="bf16")
    AcceleratorState._reset_state()
    Accelerator(cpu=True)


@pytest.mark.parametrize(
    ("use_cpu", "avx512", "amx", "gpu", "expected"),
    [
        (False, False, False, None, "no"),
        (False, True, False, None, "bf16"),
        (False, False, True, None, "bf16"),
        (False, False, False, True, "bf16"),
        (False, True, True, False, "no"),
        (True, False, False, True, "no"),
        (True, True, False, False, "bf16"),
    ],
)
def test_auto_is_bf16_where_the_device_multiplies_in_it(
    monkeypatch: pytest.MonkeyPatch, use_cpu: bool, avx512: bool, amx: bool, gpu: bool | None, expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    for module in (torch.accelerator, torch.cuda):
        monkeypatch.setattr(module, "is_available", lambda: gpu is not None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu)
    assert device_precision(use_cpu=use_cpu) == expected


@pytest.mark.parametrize(
    ("mixed_precision", "dtype", "device", "can", "expected"),
    [
        (
            "bf16", "float32", "cpu", False,
            "training.mixed_precision: bf16 on a processor without bfloat16 instructions can take many times as long "
            "as float32; set training.mixed_precision: auto",
        ),
        (
            "bf16", "bfloat16", "cuda", False,
            "training.mixed_precision: bf16 and model.dtype: bfloat16 on a GPU without bfloat16 instructions can take "
            "many times as long as float32; set training.mixed_precision: auto and model.dtype: float32",
        ),
        (
            "no", "bfloat16", "cpu", False,
            "model.dtype: bfloat16 on a processor without bfloat16 instructions can take many times as long as "
            "float32; set model.dtype: float32",
        ),
        ("bf16", "bfloat16", "cpu", True, None),
        ("bf16", "float32", "cuda", True, None),
        ("bf16", "float32", "mps", False, None),  # nothing is known of its instructions
        ("no", "float32", "cpu", False, None),
        ("fp16", "float16", "cuda", False, None),
    ],
)  # fmt: skip
def test_bfloat16_without_its_instructions_is_warned_about(
    monkeypatch: pytest.MonkeyPatch, mixed_precision: str, dtype: str, device: str, can: bool, expected: str | None
) -> None:
    def known(*, use_cpu: bool) -> str:
        assert use_cpu == (device == "cpu")
        return "bf16" if can else "no"

    monkeypatch.setattr(precision, "device_precision", known)
    assert bfloat16_warning(mixed_precision, dtype, torch.device(device)) == expected


def test_a_run_prints_the_warning(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    AcceleratorState._reset_state()
    training = {"use_cpu": True, "num_threads": 1}
    told = []
    for mixed_precision in ("bf16", "auto"):
        content = recipe(SCRATCH, training={**training, "mixed_precision": mixed_precision})
        given = Recipe.model_validate({"output_dir": "x", **content})
        start(with_precision(given), RunFolder(Path("x")))
        told.append(" ".join(capsys.readouterr().out.split()))
        AcceleratorState._reset_state()
    Accelerator(cpu=True)
    assert "bf16 on a processor without bfloat16 instructions" in told[0]
    assert "set training.mixed_precision: auto" in told[0]
    assert "bfloat16" not in told[1]


def outcome(classifier: Classifier, accelerator: Accelerator) -> list[Tensor]:
    classifier.model.zero_grad()
    with accelerator.autocast():
        logits = classifier.model(input_ids=torch.tensor([[3, 4, 5], [6, 7, 8]])).logits
    logits.float().square().sum().backward()
    return [logits.detach(), *(p.grad.clone() for p in classifier.model.parameters() if p.grad is not None)]


def test_results_are_the_same_to_the_bit_and_weights_come_back(tiny_bert: Path, bf16: Accelerator) -> None:
    classifier = tiny_classifier(tiny_bert, lora=LORA)
    classifier.model.eval()
    for name, parameter in classifier.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    weights = {name: p.data for name, p in classifier.model.named_parameters()}
    expected = outcome(classifier, bf16)
    query = classifier.base.base_model.encoder.layer[0].attention.self.query
    with frozen_weights_cast(classifier.model, bf16):
        assert query.base_layer.weight.dtype == torch.bfloat16
        assert not query.cast_input_dtype_enabled
        trained = {p.dtype for p in classifier.model.parameters() if p.requires_grad}
        assert trained == {torch.float32}
        assert classifier.base.base_model.embeddings.word_embeddings.weight.dtype == torch.float32
        found = outcome(classifier, bf16)
    assert len(found) == len(expected) > 16
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))
    assert all(p.data.data_ptr() == weights[name].data_ptr() for name, p in classifier.model.named_parameters())
    assert query.cast_input_dtype_enabled


def test_weights_come_back_after_an_error(tiny_bert: Path, bf16: Accelerator) -> None:
    classifier = tiny_classifier(tiny_bert, lora=LORA)
    with pytest.raises(InterruptedError), frozen_weights_cast(classifier.model, bf16):
        raise InterruptedError
    assert {p.dtype for p in classifier.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("use_dora", [False, True])
def test_nothing_is_cast_where_it_would_change_something(
    tiny_bert: Path, accelerator: Accelerator, bf16: Accelerator, use_dora: bool
) -> None:
    adapters = Lora(r=2, lora_alpha=4, lora_dropout=0.0, roles=ROLES, use_dora=use_dora)
    classifier = tiny_classifier(tiny_bert, lora=adapters if use_dora else None)
    with frozen_weights_cast(classifier.model, bf16):  # DoRA, and a model without anything frozen
        assert {p.dtype for p in classifier.model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("dtypes", "autocast", "largest", "expected"),
    [
        (["float32"], None, 0.5, 1e-5),
        (["float32"], None, 20.0, 2e-4),
        (["float32", "bfloat16"], None, 20.0, 1.0),  # a head in float32 on a model in bfloat16
        (["float16"], None, 1.0, 1e-2),
        (["float32"], torch.bfloat16, 1.0, 5e-2),
        (["float32"], torch.float16, 1.0, 1e-2),
        (["bfloat16"], torch.float16, 1.0, 5e-2),
    ],
)
def test_rounding_goes_by_the_lowest_precision_and_the_largest_logit(
    dtypes: list[str], autocast: torch.dtype | None, largest: float, expected: float
) -> None:
    model = torch.nn.Sequential(*[torch.nn.Linear(1, 1, dtype=getattr(torch, dtype)) for dtype in dtypes])
    with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        assert rounding_tolerance(model, torch.tensor([[0.1, -largest]])) == pytest.approx(expected)
