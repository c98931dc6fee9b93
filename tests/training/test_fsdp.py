"""FSDP 2 with two processes gives the same results as one process with the full model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from finetune.errors import TrainingError
from finetune.pipeline.train import train
from finetune.recipe.loader import load_recipe
from finetune.recipe.training_section import TrainingSection
from finetune.training.fsdp import fsdp_plugin
from tests.support import ROOT
from tests.support.forked import forked
from tests.support.helpers import FLOAT32, HANG_SECONDS, TRAINED
from tests.support.killing import bits, differences, write_recipe
from tests.support.processes import Done, check_steps, process_environment

STEPS = ("values", "LoRA, clipped, class weights")  # the first: all weights, and a step with one row

# The runs share one start, because importing the libraries takes most of the time; the last one is started without a
# launcher, with the environment variables that this one got from it. In the run "killed" both processes
# are killed after a checkpoint later than the best step; if the run exists already, it is resumed.
SCRIPT = """
import json, os, signal, sys
from pathlib import Path
from accelerate import Accelerator
from finetune.cli import main
from finetune.training.trainer import Trainer
from tests.support import plain_steps
folder, checkpoint, steps, *runs = sys.argv[1:]
Accelerator.end_training = lambda self: None  # the next run uses the same process group
save, last = Trainer.save, []
launcher = {name: value for name, value in os.environ.items() if name.startswith(("ACCELERATE_", "FSDP_"))}
Path(folder, "launcher.json").write_text(json.dumps(launcher))
def write_line(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # one call, because both processes write
def spy(trainer, *rest):
    save(trainer, *rest)
    write_line("share", plain_steps.share(trainer.stepper.model.module))
    if last and trainer.state.step == 6:
        os.kill(os.getpid(), signal.SIGKILL)
Trainer.save = spy
changes = {"open": os.O_WRONLY | os.O_RDWR | os.O_CREAT, "os.mkdir": 0, "os.rename": 0, "os.remove": 0, "os.rmdir": 0}
def watch(event, arguments):
    if event in changes and str(arguments[0]).startswith(folder) and (event != "open" or arguments[2] & changes[event]):
        write_line("changed by", os.environ["RANK"], event, arguments[0])
if steps != "-":
    plain_steps.main(Path(checkpoint), Path(folder), steps.split("|"))
sys.addaudithook(watch)
for name in runs:
    run, recipe = f"{folder}/{name}", name.replace("killed", "lora")
    if name == "killed" and not os.path.exists(run):
        last.append(name)
    resume = "checkpoint.resume_from_checkpoint=auto"
    write_line("code", main(["train", f"{folder}/recipes-{recipe}/recipe.yaml", f"output_dir={run}", resume]))
"""


def start_two(folder: Path, *arguments: object) -> Done:
    """Start the script with accelerate launch and the config file of the guide."""
    guide = (ROOT / "finetune" / "docs" / "distributed.md").read_text()
    match = re.search(r"^```yaml\n(.*\ndistributed_type: FSDP\n(?:.+\n)+)```", guide, re.MULTILINE)
    assert match
    script, config = folder / "script.py", folder / "fsdp.yaml"
    script.write_text(SCRIPT)
    config.write_text(yaml.safe_dump(yaml.safe_load(match[1])))
    launcher = ["-m", "accelerate.commands.launch", "--config_file", config, "--num_processes", 2]
    command = [sys.executable, *launcher, "--main_process_port", 0, script, folder, *arguments]  # 0: any free port
    return subprocess.run(
        list(map(str, command)), env=process_environment(folder.with_name("caches")), capture_output=True, text=True,
        check=False, timeout=HANG_SECONDS,
    )  # fmt: skip


@pytest.fixture(scope="module")
def started(bert_without_dropout: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """Folder and output of two processes: optimizer steps, a full and a LoRA run, and a LoRA run that is killed."""
    folder = tmp_path_factory.mktemp("sharded")
    for name in ("full", "lora"):
        recipe = write_recipe(
            folder / f"recipes-{name}", bert_without_dropout, lora=name == "lora", processes=2, epochs=2
        )
        text = recipe.read_text().replace("lora_dropout: 0.1", "lora_dropout: 0.0")
        # A large epsilon, as in plain_steps.py, so that weights can be compared.
        options = "ema_decay: 0.5" if name == "lora" else "layerwise_lr_decay: 0.9"
        changes = f"learning_rate: 0.1\n  adam_epsilon: 0.1\n  {options}"
        recipe.write_text(text.replace("learning_rate: 0.01", changes))
    return folder, start_two(folder, bert_without_dropout, "|".join(STEPS), "full", "lora", "killed")


def test_sharded_steps_equal_steps_on_one_batch(started: tuple[Path, Done]) -> None:
    folder, done = started
    first, second = (torch.load(folder / f"2-{rank}.pt")["cases"] for rank in (0, 1))
    assert tuple(first) == STEPS, done.stdout + done.stderr
    for name, case in first.items():
        assert 0.4 < case["share"] < 0.6  # the model is sharded
        assert case["share"] + second[name]["share"] == pytest.approx(1)
        check_steps(case)  # measured 2.3e-6 of the gradient, 2.6e-6 of the loss
        assert case["losses"] == second[name]["losses"]
        assert all(torch.equal(weight, second[name]["weights"][key]) for key, weight in case["weights"].items())


def entries(run: Path) -> list[dict[str, float]]:
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return [{key: value for key, value in entry.items() if key != "samples_per_second"} for entry in history]


@pytest.mark.parametrize(("name", "best_step"), [("full", 4), ("lora", 8)])
def test_a_sharded_run_equals_that_of_one_process(started: tuple[Path, Done], name: str, best_step: int) -> None:
    folder, done = started
    sharded, single_process = folder / name, folder / "one" / name
    assert done.stdout.count("code 0\n") == 4, done.stdout + done.stderr  # two runs; the third was killed
    assert "2 processes, cpu, model sharded with FSDP 2" in done.stdout
    one_process = [f"output_dir={single_process}", "training.per_device_train_batch_size=2"]
    train(load_recipe(folder / f"recipes-{name}" / "recipe.yaml", one_process))
    assert len(entries(single_process)) == 6
    for sharded_entry, expected_entry in zip(entries(sharded), entries(single_process), strict=True):
        assert sharded_entry == pytest.approx(expected_entry, rel=FLOAT32)  # measured 1.4e-6
        assert sharded_entry.get("learning_rate") == expected_entry.get("learning_rate")
    result, expected = (json.loads((run / "training.json").read_text()) for run in (sharded, single_process))
    assert result["best_step"] == expected["best_step"] == best_step
    assert result["total_parameters"] == expected["total_parameters"]
    scores, expected_scores = (
        json.loads((run / "scores.json").read_text())["validation"] for run in (sharded, single_process)
    )
    assert scores["metrics"] == expected_scores["metrics"]
    assert scores["loss"] == pytest.approx(result["best_value"], rel=FLOAT32)  # the best weights were saved
    (file,) = (single_process / "model").glob("*.safetensors")
    weights = load_file(sharded / "model" / file.name)
    for key, weight in load_file(file).items():
        torch.testing.assert_close(weights[key], weight, atol=TRAINED, rtol=0)  # measured 4.8e-7


def test_a_killed_sharded_run_resumes_to_the_same_bits(started: tuple[Path, Done]) -> None:
    folder, done = started
    shares = [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("share ")]
    assert len(shares) == 2 * (4 + 4 + 3)  # checkpoints of two full runs and of the killed one
    assert all(0.4 < share < 0.6 for share in shares)
    assert not (folder / "killed" / "model").exists()
    launcher = json.loads((folder / "launcher.json").read_text())
    resumed = forked([folder / "script.py", folder, "-", "-", "killed"], folder, processes=2, **launcher)
    assert "2 processes, cpu, model sharded with FSDP 2" in resumed.stdout
    assert resumed.stdout.count("code 0\n") == 2, resumed.stdout + resumed.stderr
    assert "step-000006 at step 6 of 8" in " ".join(resumed.stdout.split())
    assert differences(bits(folder / "lora"), bits(folder / "killed")) == []
    assert "changed by 0" in done.stdout
    assert "changed by 1" not in done.stdout + resumed.stdout


@pytest.mark.parametrize(
    ("variables", "training", "message"),
    [
        (
            {"FSDP_VERSION": "1"},
            {},
            "requests FSDP 1, but only FSDP 2 is supported; set fsdp_version: 2 under fsdp_config",
        ),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, {}, "not supported with FSDP: fsdp_offload_params: true; change this"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, {}, "FSDP: fsdp_activation_checkpointing: true; change this"),
        ({"FSDP_IGNORED_MODULES": ".*"}, {}, "FSDP: fsdp_ignored_modules; change this, or start without FSDP"),
        ({}, {"torch_compile": True}, "FSDP: training.torch_compile: true; change this"),
        ({}, {"padding_free": True}, "FSDP: training.padding_free: true; change this"),
        ({}, {"mixed_precision": "fp16"}, "FSDP: training.mixed_precision: fp16; change this"),
        ({}, {"mixed_precision": "int8"}, "FSDP: training.mixed_precision: int8; change this"),
        ({"FSDP_AUTO_WRAP_POLICY": "X"}, {}, "rejects its FSDP settings: .*policy: X.*; correct its config file"),
    ],
)
def test_unsupported_fsdp_settings_are_rejected(
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    training: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")  # the plugin sets it; monkeypatch restores it
    for key, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", **variables}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(TrainingError, match=message):
        fsdp_plugin(TrainingSection(**training))
