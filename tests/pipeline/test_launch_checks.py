from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import DistributedType

from finetune.cli import main
from finetune.errors import TrainingError
from finetune.pipeline.launch_checks import check_environment, check_launch, check_shared_folder, describe_processes
from tests.support.finished_runs import SCRATCH, recipe


@pytest.mark.parametrize(
    ("variable", "name"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"),
        ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "a parallelism_config"),
    ],
)
def test_sharding_launchers_are_rejected(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, variable: str, name: str
) -> None:
    monkeypatch.setenv(variable, "true")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(SCRATCH)))
    assert main(["train", str(tmp_path / "recipe.yaml"), f"output_dir={tmp_path / 'run'}"]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: the launcher requests {name}, but every process needs the full model")
    assert "launch without it (accelerate launch --multi_gpu, or torchrun)" in printed.err
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def stub_accelerator(
    processes: int = 1, distributed_type: str = "NO", device: str = "cpu", accumulation: int = 1, is_fsdp2: bool = False
) -> Any:
    return SimpleNamespace(
        num_processes=processes, distributed_type=DistributedType(distributed_type), device=torch.device(device),
        gradient_accumulation_steps=accumulation,
        mixed_precision="no", is_fsdp2=is_fsdp2,
    )  # fmt: skip


@pytest.mark.parametrize("distributed_type", [distributed_type.value for distributed_type in DistributedType])
def test_only_data_parallelism_and_fsdp2_are_accepted(monkeypatch: pytest.MonkeyPatch, distributed_type: str) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if distributed_type in {"FSDP", "DEEPSPEED", "MEGATRON_LM", "XLA"}:
        with pytest.raises(TrainingError, match=f"requests {distributed_type}, but every process needs the full model"):
            check_launch(stub_accelerator(distributed_type=distributed_type))
    else:
        assert distributed_type == "NO" or distributed_type.startswith("MULTI_")
        check_launch(stub_accelerator(distributed_type=distributed_type))
    check_launch(stub_accelerator(distributed_type="FSDP", is_fsdp2=True))


def test_processes_without_a_process_group_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        TrainingError, match=r"started 2 processes \(WORLD_SIZE\).*write to the same folder; use torchrun"
    ):
        check_launch(stub_accelerator())
    check_launch(stub_accelerator(2, "MULTI_CPU"))


def test_accumulation_set_by_the_launcher_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(TrainingError, match=r"ACCELERATE_GRADIENT_ACCUMULATION_STEPS is 4; unset it, and set training"):
        check_launch(stub_accelerator(accumulation=4))


def test_processes_are_described(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACCELERATE_MIXED_PRECISION", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert describe_processes(stub_accelerator()) == "1 process, cpu"
    assert describe_processes(stub_accelerator(4, "MULTI_GPU", "cuda")) == "4 processes, cuda"
    assert describe_processes(stub_accelerator(4, "FSDP", "cuda")) == "4 processes, cuda, model sharded with FSDP 2"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert describe_processes(stub_accelerator(4, "MULTI_CPU")) == "4 processes on 2 machines, cpu"
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert describe_processes(stub_accelerator()) == "1 process, cpu"
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # the environment of `accelerate launch --cpu --num_processes 2`
    message = describe_processes(stub_accelerator())
    assert "was called for several processes and started one" in message
    assert "use accelerate launch --multi_gpu (not --cpu)" in message


def test_a_misspelled_switch_of_the_kernels_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "0", "1"):
        monkeypatch.setenv("FINETUNE_CPU_KERNELS", value)
        check_environment()
    monkeypatch.setenv("FINETUNE_CPU_KERNELS", "off")
    with pytest.raises(TrainingError, match=r"FINETUNE_CPU_KERNELS is 'off'; set 0, which .* or unset it"):
        check_environment()


def test_machines_without_a_process_group_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    monkeypatch.delenv("MASTER_PORT", raising=False)
    check_launch(stub_accelerator())  # MASTER_ADDR alone may come from the shell
    monkeypatch.setenv("MASTER_PORT", "29500")  # what `accelerate launch --num_machines 2` sets without --multi_gpu
    with pytest.raises(
        TrainingError, match=r"main address 10\.0\.0\.1 but started a single .* the same folder; .* --multi_gpu"
    ):
        check_launch(stub_accelerator())


def test_one_process_does_not_check_the_disk(accelerator: Accelerator, tmp_path: Path) -> None:
    check_shared_folder(tmp_path / "file" / "run", accelerator)
    assert list(tmp_path.iterdir()) == []
    check_environment()


def test_the_folder_of_another_run_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(objects: list[Any]) -> list[Any]:
        (tmp_path / "runs" / "other").mkdir()
        return objects

    monkeypatch.setattr("finetune.pipeline.launch_checks.broadcast_object_list", lambda objects: objects)
    monkeypatch.setattr("finetune.pipeline.launch_checks.gather_object", gather)
    check_shared_folder(tmp_path / "runs" / "a", SimpleNamespace(num_processes=2, is_main_process=True))
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["other"]


def test_different_precisions_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.pipeline.launch_checks.gather_object", lambda objects: [*objects, "bf16"])
    with pytest.raises(TrainingError, match=r"would train in bf16 and no, .* set one of them in training"):
        check_launch(stub_accelerator())
