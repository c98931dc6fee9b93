"""Several processes take the same steps and write the same results and files as one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file

from finetune.cli import main
from finetune.out_of_memory import oom_message
from finetune.runs.explanations import read_explanations
from finetune.runs.run_folder import RunFolder
from finetune.runs.series import read_series
from tests.support import plain_steps
from tests.support.command_line import commands_with
from tests.support.finished_runs import SCRATCH, recipe
from tests.support.forked import forked, free_port
from tests.support.helpers import FLOAT32, HANG_SECONDS, TRAINED, assert_equal_up_to_rounding
from tests.support.processes import Done, check_steps, process_environment


@pytest.fixture(scope="module")
def steps_of_one(bert_without_dropout: Path) -> dict[str, plain_steps.Measurements]:
    accelerator = Accelerator(cpu=True)
    return {
        name: plain_steps.train_and_compare(bert_without_dropout, case, accelerator)
        for name, case in plain_steps.CASES.items()
    }


@pytest.mark.parametrize("name", plain_steps.CASES)
def test_micro_batches_give_the_gradient_of_one_batch(
    steps_of_one: dict[str, plain_steps.Measurements], name: str
) -> None:
    measured, case = steps_of_one[name], plain_steps.CASES[name]
    batches = -(-plain_steps.ROWS // case.batch_size)
    assert len(measured["losses"]) == plain_steps.EPOCHS * -(-batches // case.accumulation)
    assert case.clip is None or min(measured["norms"]) > 10 * case.clip  # otherwise clipping would have no effect
    check_steps(measured)


def test_two_processes_take_the_steps_of_one(
    steps_of_one: dict[str, plain_steps.Measurements], bert_without_dropout: Path, tmp_path: Path
) -> None:
    done = forked(["-m", "tests.support.plain_steps", bert_without_dropout, tmp_path], tmp_path, processes=2)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = (torch.load(tmp_path / f"2-{rank}.pt") for rank in (0, 1))
    assert first["processes"] == second["processes"] == 2  # otherwise the test compares one process with itself
    assert first["cases"].keys() == steps_of_one.keys()
    for name, expected in steps_of_one.items():
        actual, on_second = first["cases"][name], second["cases"][name]
        check_steps(actual)
        assert actual["rates"] == expected["rates"] == on_second["rates"]
        assert actual["losses"] == on_second["losses"]
        assert actual["losses"] == pytest.approx(expected["losses"], rel=FLOAT32)  # measured 2.6e-6 after two epochs
        assert actual["weights"].keys() == expected["weights"].keys()
        assert not actual["wrapped"]  # DistributedDataParallel would keep a second copy of every gradient
        assert actual["buffers"].keys() == expected["buffers"].keys() != set()
        assert all(torch.equal(buffer, expected["buffers"][key]) for key, buffer in actual["buffers"].items())
        for key, weight in actual["weights"].items():
            assert torch.equal(weight, on_second["weights"][key])
            torch.testing.assert_close(weight, expected["weights"][key], atol=TRAINED, rtol=0)  # measured 2.4e-7
    # If memory runs out in one process, both halve their micro-batches: bit-identical to running out in both.
    for by_case in (first["cases"], second["cases"]):
        everywhere, on_one = (by_case[f"memory runs out {where}"] for where in ("everywhere", "on the second process"))
        assert everywhere["rows at a time"] == on_one["rows at a time"] == 1
        assert everywhere["notes"] == on_one["notes"] == [oom_message(1, 2, 1)]
        assert all(torch.equal(weight, on_one["weights"][key]) for key, weight in everywhere["weights"].items())


# One start runs several commands, because importing the libraries takes most of the time. Each of two processes acts as
# a machine, with its own working directory and caches. Two things show what the second one writes: an audit hook prints
# each file that Python opens for writing, and the umask makes all its files readable by the owner only.
MACHINES = """
import os, signal, sys
from pathlib import Path
from accelerate import Accelerator
from finetune.pipeline import launch_checks
from finetune.cli import main
from finetune.heads import explain
from finetune.training.trainer import Trainer
shared = sys.argv[1]
rank = int(os.environ["RANK"])
os.umask((0o022, 0o077)[rank])
changes = {"open": os.O_WRONLY | os.O_RDWR | os.O_CREAT, "os.mkdir": 0, "os.rename": 0, "os.remove": 0, "os.rmdir": 0}
def watch(event, arguments):
    if event in changes and str(arguments[0]).startswith(shared) and (event != "open" or arguments[2] & changes[event]):
        print("changed", event, arguments[0], flush=True)
sys.addaudithook(watch)
launch_checks.DISK_SECONDS = 0.5
Accelerator.end_training = lambda self: None  # the next command uses the same process group
optimizer_step = Trainer.optimizer_step
def step_with_signal(trainer, *step):  # only once, and in one process
    if rank == 1 and trainer.state.step == 4:
        Trainer.optimizer_step = optimizer_step
        os.kill(os.getpid(), signal.SIGTERM)
    optimizer_step(trainer, *step)
Trainer.optimizer_step = step_with_signal
attention_of = explain.attention_of
def fail_once(*arguments):  # in the first explanations, and only in one process
    explain.attention_of = attention_of
    raise RuntimeError("no attention here")
if rank == 1:
    explain.attention_of = fail_once
Path("cache").mkdir(exist_ok=True)  # a data file that differs between the machines
Path("cache/rows.csv").write_text(("sentence", "text")[rank] + ",label\\n" + "the cat sat,0\\na dog sat,1\\n" * 4)
run = shared + "/runs/a"
stopped = "output_dir=" + shared + "/runs/stopped"
recipe = shared + "/recipe.yaml"
rows = ["data.train_file=cache/rows.csv", "data.validation_size=0.5"]
for name, *rest in (
    ["train", recipe, "output_dir=mine/run"],
    ["train", recipe, "output_dir=" + shared + "/runs/rows", *rows],
    ["train", recipe, "output_dir=" + shared + "/dry/run", "--dry-run"],
    ["train", recipe, stopped, "head_importance=null"],
    ["train", recipe, stopped, "head_importance=null", "checkpoint.resume_from_checkpoint=auto"],
    ["train", recipe, "output_dir=" + run],
    ["evaluate", run],
    ["heads", run, "head_importance.method=fisher"],
    ["prune", run, "--share", "0.5"],
    ["merge", run],
    ["report", run],
    ["publish", run, "--repo", "me/a", "--dry-run"],
    ["compare", run, run],
    ["train", recipe, "output_dir=" + shared + "/series", "head_importance=null", "--seeds", "2"],  # ends the group
):
    print("==", name, flush=True)
    print("code", main([name, *rest]), flush=True)
"""


def start_machines(folder: Path, script: Path, *arguments: str) -> list[Done]:
    """Run the script on two simulated machines with one process each, as in the README, and return both results."""
    port, machines = free_port(), []
    for rank in (0, 1):
        working_dir = folder / f"machine{rank}"
        working_dir.mkdir()
        command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "2"]
        command += ["--machine_rank", str(rank), "--num_processes", "2"]
        command += ["--main_process_ip", "127.0.0.1", "--main_process_port", str(port), str(script), *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        machines.append(
            subprocess.Popen(command, cwd=working_dir, env=process_environment(working_dir), text=True, **pipes)
        )
    try:
        return [Done(machine.args, 0, *machine.communicate(timeout=HANG_SECONDS)) for machine in machines]
    finally:
        for machine in machines:
            machine.terminate()  # it may still wait for the other; torchrun ends its processes


def codes(done: Done) -> dict[str, list[int]]:
    """Return the exit codes of each command, by name."""
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith(("== ", "code "))]
    names, values = ([words[1] for words in lines if words[0] == first] for first in ("==", "code"))
    result: dict[str, list[int]] = {}
    for name, value in zip(names, values, strict=True):
        result.setdefault(name, []).append(int(value))
    return result


def check_series(folder: Path, alone: Path, first: Done, second: Done) -> None:
    """Check that each process trained a run of the series, as a single process does."""
    for line in ("Seed 4 (1 of 2) on process ", "Seed 5 (2 of 2) on process "):  # whichever process is free
        assert (first.stdout + second.stdout).count(line) == 1
    assert "Series of 2 runs" in first.stdout
    assert "Series of 2 runs" not in second.stdout
    assert [member.status for member in read_series(folder).members] == ["finished", "finished"]
    member = folder / "seed-5"
    assert json.loads((member / "environment.json").read_text())["processes"] == 1
    assert main(["train", str(member / "recipe.yaml"), f"output_dir={alone}"]) == 0
    for name in ("model/model.safetensors", "predictions.parquet"):
        assert (alone / name).read_bytes() == (member / name).read_bytes()


def check_explanations(by_two: Path, by_one: Path) -> None:
    """Check that the explanations of two processes are those of one."""
    shutil.copytree(by_two, by_one)
    assert main(["heads", str(by_one), "head_importance.method=fisher"]) == 0
    first, second = (read_explanations(RunFolder(run)) for run in (by_two, by_one))
    assert first is not None
    assert second is not None
    assert [(row.split, row.row, row.tokens) for row in first.rows] == [
        (row.split, row.row, row.tokens) for row in second.rows
    ]
    assert sum(row.tokens is not None for row in first.rows) == 20
    for one, other in zip(first.rows, second.rows, strict=True):
        assert_equal_up_to_rounding(one.head_effects, other.head_effects)
        assert one.attention.keys() == other.attention.keys()
        if one.attributions is not None:
            assert_equal_up_to_rounding(one.attributions, np.array(other.attributions))


def test_two_machines_run_or_reject_every_command(tmp_path: Path) -> None:
    shared, script = tmp_path / "shared", tmp_path / "machines.py"
    shared.mkdir()
    content = recipe(
        SCRATCH, training={"num_train_epochs": 2, "use_cpu": False}, head_importance={"explained_rows": 20}
    )
    (shared / "recipe.yaml").write_text(yaml.safe_dump(content))
    script.write_text(MACHINES)
    first, second = start_machines(tmp_path, script, str(shared))
    printed = first.stdout + first.stderr + second.stdout + second.stderr
    expected = {
        "train": [2, 2, 0, 143, 0, 0, 0],
        "evaluate": [0],
        "heads": [0],
        **{key: [2] for key in ("prune", "merge", "report", "publish", "compare")},
    }
    assert expected.keys() == commands_with("run") | {"train"}
    assert codes(first) == codes(second) == expected, printed
    assert first.stdout.count("2 processes on 2 machines, cpu") == 8
    # An error in one process ends all processes with the same message.
    missing = "has no column 'sentence'"
    assert missing in second.stderr
    assert [line for line in first.stderr.splitlines() if missing in line and line.endswith("(on process 1)")]
    for machine in (first, second):  # each machine prints the message
        assert "is not the same folder for all processes (not visible on: " in machine.stderr
        assert "output_dir must be on a shared disk" in machine.stderr
        for name in ("prune", "merge", "report", "publish", "compare"):
            assert f"error: {name} runs in one process, and the launcher started 2; run it without" in machine.stderr
    # torch's launcher on one machine logs a traceback if that on the other, which has the store, ends first.
    assert not [line for line in printed.splitlines() if "Traceback" in line and "elastic/agent/server" not in line]
    assert "Dry run passed" in first.stdout
    assert "These scores are identical, to the last digit, to the previous ones in the folder." in first.stdout
    # Rejected commands and dry runs leave no files, and the second machine wrote only its own caches.
    assert {path.name for path in shared.iterdir()} == {"recipe.yaml", "runs", "series"}
    assert [[path.name for path in (tmp_path / f"machine{rank}").iterdir()] for rank in (0, 1)] == [
        ["cache"],
        ["cache"],
    ]
    run, stopped = shared / "runs" / "a", shared / "runs" / "stopped"
    # A signal to one process stops all after the same step, and the resumed run ends with the same weights.
    for machine in (first, second):
        assert f"stopped by SIGTERM after step 5 of 12, saved in {stopped / 'checkpoints'}; to resume" in machine.stderr
    assert f"Resuming from {stopped / 'checkpoints' / 'step-000005'} at step 5 of 12." in " ".join(first.stdout.split())
    weights, expected_weights = (load_file(folder / "model" / "model.safetensors") for folder in (stopped, run))
    assert weights.keys() == expected_weights.keys()
    assert all(torch.equal(weight, expected_weights[name]) for name, weight in weights.items())
    assert json.loads((run / "environment.json").read_text())["processes"] == 2
    written = list((shared / "runs").rglob("*"))
    assert len(written) > 12
    assert "changed open" in first.stdout
    assert not [line for line in second.stdout.splitlines() if "changed" in line and f"{shared}/series" not in line]
    check_series(shared / "series", tmp_path / "alone", first, second)
    # A failure in one process loses only the explanations; otherwise each process explains its share of the rows.
    assert "could not be explained: RuntimeError: no attention here (on process 1)" in " ".join(first.stdout.split())
    check_explanations(run, tmp_path / "by one process")
    owner_only = {path.name for path in written if not path.stat().st_mode & 0o044}
    assert owner_only <= {
        "model.safetensors",
        "weights.safetensors",
    }  # safetensors makes its files readable by the owner only
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in history if "eval_loss" in entry] == [6, 12]  # each line once
