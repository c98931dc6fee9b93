"""Which precision a device supports, the warning without it, and rounding tolerances."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from finetune.errors import ModelError, TrainingError
from finetune.models import precision
from finetune.models.precision import (
    avoid_cudnn_attention,
    bfloat16_warning,
    check_autocast,
    device_precision,
    multiply_in_int8,
    rounding_tolerance,
)
from finetune.pipeline.session import start, with_precision
from finetune.recipe.schema import Recipe
from finetune.runs.run_folder import RunFolder
from tests.support.families import random_model
from tests.support.finished_runs import SCRATCH, recipe


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
def test_auto_is_bf16_on_devices_with_bfloat16_instructions(
    monkeypatch: pytest.MonkeyPatch, use_cpu: bool, avx512: bool, amx: bool, gpu: bool | None, expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    for module in (torch.accelerator, torch.cuda):
        monkeypatch.setattr(module, "is_available", lambda: gpu is not None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu)
    assert device_precision(use_cpu=use_cpu) == expected


@pytest.mark.parametrize(
    ("mixed_precision", "dtype", "device", "supported", "expected"),
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
        ("bf16", "float32", "mps", False, None),  # its instructions are unknown
        ("no", "float32", "cpu", False, None),
        ("fp16", "float16", "cuda", False, None),
    ],
)  # fmt: skip
def test_bfloat16_without_hardware_support_gives_a_warning(
    monkeypatch: pytest.MonkeyPatch,
    mixed_precision: str,
    dtype: str,
    device: str,
    supported: bool,
    expected: str | None,
) -> None:
    def known(*, use_cpu: bool) -> str:
        assert use_cpu == (device == "cpu")
        return "bf16" if supported else "no"

    monkeypatch.setattr(precision, "device_precision", known)
    assert bfloat16_warning(mixed_precision, dtype, torch.device(device)) == expected


def test_a_run_prints_the_warning(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    AcceleratorState._reset_state()
    training = {"use_cpu": True, "num_threads": 1}
    printed = []
    for mixed_precision in ("bf16", "auto"):
        content = recipe(SCRATCH, training={**training, "mixed_precision": mixed_precision})
        run_recipe = Recipe.model_validate({"output_dir": "x", **content})
        start(with_precision(run_recipe), RunFolder(Path("x")))
        printed.append(" ".join(capsys.readouterr().out.split()))
        AcceleratorState._reset_state()
    Accelerator(cpu=True)
    assert "bf16 on a processor without bfloat16 instructions" in printed[0]
    assert "set training.mixed_precision: auto" in printed[0]
    assert "bfloat16" not in printed[1]


@pytest.mark.parametrize(
    ("dtypes", "autocast", "largest", "expected"),
    [
        (["float32"], None, 0.5, 1e-5),
        (["float32"], None, 20.0, 2e-4),
        (["float32", "bfloat16"], None, 20.0, 1.0),  # a float32 head on a bfloat16 model
        (["float16"], None, 1.0, 1e-2),
        (["float32"], torch.bfloat16, 1.0, 5e-2),
        (["float32"], torch.float16, 1.0, 1e-2),
        (["bfloat16"], torch.float16, 1.0, 5e-2),
    ],
)
def test_rounding_tolerance_depends_on_the_lowest_precision_and_the_largest_logit(
    dtypes: list[str], autocast: torch.dtype | None, largest: float, expected: float
) -> None:
    model = torch.nn.Sequential(*[torch.nn.Linear(1, 1, dtype=getattr(torch, dtype)) for dtype in dtypes])
    with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        assert rounding_tolerance(model, torch.tensor([[0.1, -largest]])) == pytest.approx(expected)


def test_cudnn_attention_is_switched_off() -> None:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        avoid_cudnn_attention()
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def test_int8_is_for_cpus_with_fast_products(monkeypatch: pytest.MonkeyPatch) -> None:
    AcceleratorState._reset_state(True)
    on_cpu = Accelerator(cpu=True)
    multiply_in_int8(on_cpu)
    assert on_cpu.mixed_precision == "int8"
    with on_cpu.autocast():
        assert not torch.is_autocast_enabled("cpu")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(TrainingError, match=r"need oneDNN, which this build .* set training.mixed_precision: no"):
        multiply_in_int8(on_cpu)
    monkeypatch.setattr(Accelerator, "device", torch.device("cuda"))
    with pytest.raises(TrainingError, match=r"for CPUs, and this process uses .* 'cuda'; set .*precision: auto"):
        multiply_in_int8(on_cpu)
    monkeypatch.undo()
    AcceleratorState._reset_state(True)
    Accelerator(cpu=True)  # whose state the accelerators of other tests share


@pytest.mark.parametrize("model_type", ["deberta", "xmod"])
def test_families_whose_code_fails_under_autocast_are_refused(model_type: str) -> None:
    model = random_model(model_type)
    check_autocast(model, "no")
    check_autocast(random_model("bert"), "bf16")
    with pytest.raises(
        ModelError, match=f"the precision is bf16, in which transformers cannot run a '{model_type}' model"
    ):
        check_autocast(model, "bf16")
    ids = torch.randint(5, 20, (2, 6))
    # Fails once transformers runs the family in bf16: then remove its row's `autocast=False`.
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(RuntimeError):
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
