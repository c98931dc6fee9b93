from __future__ import annotations

from importlib import metadata
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

import finetune
from finetune.pipeline import environment
from finetune.pipeline.environment import describe_environment


def test_a_checkout_without_an_installed_package_is_described(
    monkeypatch: pytest.MonkeyPatch, accelerator: Accelerator
) -> None:
    def version(name: str) -> str:
        if name == "finetune":
            raise metadata.PackageNotFoundError(name)
        return metadata.version(name)

    monkeypatch.setattr(environment, "version", version)
    result = describe_environment(accelerator, 3)
    assert (result["finetune"], result["seed"], result["processes"]) == (finetune.__version__, 3, 1)
    assert str(result["device"]).startswith("cpu (")
    assert isinstance(result["packages"], dict)
    assert result["packages"]["torch"] == metadata.version("torch")


@pytest.mark.parametrize(("device_type", "expected"), [("cuda", "H100"), ("xpu", "H100"), ("mps", "mps (")])
def test_the_device_is_named(monkeypatch: pytest.MonkeyPatch, device_type: str, expected: str) -> None:
    monkeypatch.setattr(
        torch, "get_device_module", lambda device: SimpleNamespace(get_device_name=lambda device: "H100")
    )
    device = SimpleNamespace(device=torch.device(device_type), num_processes=1, mixed_precision="no")
    assert str(describe_environment(device, 0)["device"]).startswith(expected)  # type: ignore[arg-type]
