"""Processes: started, refused, and together the same as one."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from accelerate.utils import DistributedType
from rich.console import Console
from safetensors.torch import load_file

from finetune.cli import main
from finetune.errors import TrainingError
from finetune.out_of_memory import oom_message
from finetune.pipeline.context import RunContext
from finetune.pipeline.launch_checks import check_environment, check_launch, check_shared_folder, describe_processes
from finetune.pipeline.session import hyperparameters, start_trackers, with_precision
from finetune.recipe import Recipe
from finetune.runs.run_folder import RunFolder
from tests.support import ROOT, plain_steps
from tests.support.finished_runs import SCRATCH, recipe
from tests.support.helpers import FLOAT32, HANG_SECONDS, TRAINED

LAUNCH = [sys.executable, "-m", "torch.distributed.run"]
Done = subprocess.CompletedProcess[str]


def own(folder: Path) -> dict[str, str]:
    """The environment of a process that has `folder` for its caches, and this project."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def steps_of_one(still_bert: Path) -> dict[str, plain_steps.Found]:
    accelerator = Accelerator(cpu=True)
    return {name: plain_steps.follow(still_bert, case, accelerator) for name, case in plain_steps.CASES.items()}


def check_steps(found: plain_steps.Found) -> None:
    """Every step's whole gradient and loss are those of one plain batch."""
    # Sums are added up in another order: measured 4.2e-6 of the largest element of the gradient, and 1.2e-6 of the
    # loss, for one, two and three processes. One row weighed wrong moves either by percents.
    assert max(found["distances"]) < FLOAT32
    assert found["losses"] == pytest.approx(found["plain_losses"], rel=FLOAT32)


@pytest.mark.parametrize("name", plain_steps.CASES)
def test_micro_batches_give_the_gradient_of_one_batch(steps_of_one: dict[str, plain_steps.Found], name: str) -> None:
    found, case = steps_of_one[name], plain_steps.CASES[name]
    batches = -(-plain_steps.ROWS // case.batch_size)
    assert len(found["losses"]) == plain_steps.EPOCHS * -(-batches // case.accumulation)
    assert case.clip is None or min(found["norms"]) > 10 * case.clip  # or clipping would be no part of it
    check_steps(found)


def test_two_processes_take_the_steps_of_one(
    steps_of_one: dict[str, plain_steps.Found], still_bert: Path, tmp_path: Path
) -> None:
    command = [
        *LAUNCH,
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "tests.support.plain_steps",
        still_bert,
        tmp_path,
    ]
    done = subprocess.run(
        list(map(str, command)), env=own(tmp_path), capture_output=True, text=True, check=False, timeout=HANG_SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = (torch.load(tmp_path / f"2-{rank}.pt") for rank in (0, 1))
    assert first["processes"] == second["processes"] == 2  # or nothing below would mean anything
    assert first["cases"].keys() == steps_of_one.keys()
    for name, one in steps_of_one.items():
        two, other = first["cases"][name], second["cases"][name]
        check_steps(two)
        assert two["rates"] == one["rates"] == other["rates"]
        assert two["losses"] == other["losses"]
        assert two["losses"] == pytest.approx(one["losses"], rel=FLOAT32)  # measured 2.6e-6 after two epochs
        assert two["weights"].keys() == one["weights"].keys()
        assert not two["wrapped"]  # DistributedDataParallel would hold every gradient twice
        assert two["buffers"].keys() == one["buffers"].keys() != set()
        assert all(torch.equal(buffer, one["buffers"][key]) for key, buffer in two["buffers"].items())
        for key, weight in two["weights"].items():
            assert torch.equal(weight, other["weights"][key])
            torch.testing.assert_close(weight, one["weights"][key], atol=TRAINED, rtol=0)  # measured 2.4e-7
    # Memory that runs out in one process halves the parts of both, as if it had run out in both: to the bit.
    for found in (first["cases"], second["cases"]):
        together, apart = (found[f"memory runs out {where}"] for where in ("everywhere", "on the second process"))
        assert together["rows at a time"] == apart["rows at a time"] == 1
        assert together["notes"] == apart["notes"] == [oom_message(1, 2, 1)]
        assert all(torch.equal(weight, apart["weights"][key]) for key, weight in together["weights"].items())


# Several commands in one start, as the libraries take most of the time. Each of two processes takes itself for a
# machine: it has its own folder to work in and its own caches. What the second writes is told twice: Python reports
# each file opened for writing, and a file that other code makes is for its owner alone to read.
MACHINES = """
import os, signal, sys
from pathlib import Path
from accelerate import Accelerator
from finetune.pipeline import launch_checks
from finetune.cli import main
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
Accelerator.end_training = lambda self: None  # the next command works with the same group
optimizer_step = Trainer.optimizer_step
def signalled(trainer, *step):  # only once, and in one process
    if rank == 1 and trainer.state.step == 4:
        Trainer.optimizer_step = optimizer_step
        os.kill(os.getpid(), signal.SIGTERM)
    optimizer_step(trainer, *step)
Trainer.optimizer_step = signalled
Path("cache").mkdir(exist_ok=True)  # a data file that is another on each machine, and wrong on the second
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
):
    print("==", name, flush=True)
    print("code", main([name, *rest]), flush=True)
"""


def free_port() -> int:
    """Return a port that is free, and below those that the system hands out unasked, as to tests beside this one."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", port))
            return port


def start_machines(folder: Path, script: Path, *arguments: str) -> list[Done]:
    """Start the script as two machines of one process each, as the README says; return both when they have ended."""
    port, machines = free_port(), []
    for rank in (0, 1):
        place = folder / f"machine{rank}"
        place.mkdir()
        command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "2"]
        command += ["--machine_rank", str(rank), "--num_processes", "2"]
        command += ["--main_process_ip", "127.0.0.1", "--main_process_port", str(port), str(script), *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        machines.append(subprocess.Popen(command, cwd=place, env=own(place), text=True, **pipes))
    try:
        return [Done(machine.args, 0, *machine.communicate(timeout=HANG_SECONDS)) for machine in machines]
    finally:
        for machine in machines:
            machine.terminate()  # one that waits for the other still runs; torchrun ends what it started


def codes(done: Done) -> dict[str, list[int]]:
    """What each command returned."""
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith(("== ", "code "))]
    names, values = ([words[1] for words in lines if words[0] == first] for first in ("==", "code"))
    found: dict[str, list[int]] = {}
    for name, value in zip(names, values, strict=True):
        found.setdefault(name, []).append(int(value))
    return found


def test_two_machines_run_every_command_or_refuse_it(tmp_path: Path) -> None:
    shared, script = tmp_path / "shared", tmp_path / "machines.py"
    shared.mkdir()
    content = recipe(SCRATCH, training={"num_train_epochs": 2, "use_cpu": False})
    (shared / "recipe.yaml").write_text(yaml.safe_dump(content))
    script.write_text(MACHINES)
    first, second = start_machines(tmp_path, script, str(shared))
    said = first.stdout + first.stderr + second.stdout + second.stderr
    expected = {"train": [2, 2, 0, 143, 0, 0], "evaluate": [0], "heads": [0], "prune": [2], "merge": [2], "report": [2]}
    assert codes(first) == codes(second) == expected, said
    assert first.stdout.count("2 processes on 2 machines, cpu") == 8
    # An error of one process ends all, by the same message.
    missing = "has no column 'sentence'"
    assert missing in second.stderr
    assert [line for line in first.stderr.splitlines() if missing in line and line.endswith("(on process 1)")]
    for machine in (first, second):  # each tells its own user
        assert "is not the same folder for all processes (not visible on: " in machine.stderr
        assert "output_dir must be on a shared disk" in machine.stderr
        for name in ("prune", "merge", "report"):
            assert f"error: {name} runs in one process, and the launcher started 2; run it without" in machine.stderr
    assert "Traceback" not in said
    assert "Dry run passed" in first.stdout
    assert "These scores are identical, to the last digit, to those in the folder before." in first.stdout
    # Nothing is left of what was refused or tried, and the second machine has caches of its own and wrote nothing else.
    assert {path.name for path in shared.iterdir()} == {"recipe.yaml", "runs"}
    assert [[path.name for path in (tmp_path / f"machine{rank}").iterdir()] for rank in (0, 1)] == [
        ["cache"],
        ["cache"],
    ]
    run, stopped = shared / "runs" / "a", shared / "runs" / "stopped"
    # A signal that one process hears stops all after the same step, and what goes on from there ends as if unbroken.
    for machine in (first, second):
        assert f"stopped by SIGTERM after step 5 of 12, saved in {stopped / 'checkpoints'}; to resume" in machine.stderr
    assert f"Resuming from {stopped / 'checkpoints' / 'step-000005'} at step 5 of 12." in " ".join(first.stdout.split())
    weights, expected_weights = (load_file(folder / "model" / "model.safetensors") for folder in (stopped, run))
    assert weights.keys() == expected_weights.keys()
    assert all(torch.equal(weight, expected_weights[name]) for name, weight in weights.items())
    assert json.loads((run / "environment.json").read_text())["processes"] == 2
    written = [path for path in shared.rglob("*") if path != shared / "recipe.yaml"]
    assert len(written) > 12
    assert "changed open" in first.stdout
    assert "changed" not in second.stdout
    closed = {path.name for path in written if not path.stat().st_mode & 0o044}
    assert closed <= {"model.safetensors", "weights.safetensors"}  # safetensors closes its files to others itself
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in history if "eval_loss" in entry] == [6, 12]  # each line once


@pytest.mark.parametrize(
    ("variable", "name"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"),
        ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "a parallelism_config"),
    ],
)
def test_a_model_in_shards_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, variable: str, name: str
) -> None:
    monkeypatch.setenv(variable, "true")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(SCRATCH)))
    assert main(["train", str(tmp_path / "recipe.yaml"), f"output_dir={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"error: the launcher requests {name}, but every process needs the full model")
    assert "launch without it (accelerate launch --multi_gpu, or torchrun)" in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def stub(
    processes: int = 1, kind: str = "NO", device: str = "cpu", accumulation: int = 1, is_fsdp2: bool = False
) -> Any:
    return SimpleNamespace(
        num_processes=processes, distributed_type=DistributedType(kind), device=torch.device(device),
        gradient_accumulation_steps=accumulation,
        mixed_precision="no", is_fsdp2=is_fsdp2,
    )  # fmt: skip


@pytest.mark.parametrize("kind", [kind.value for kind in DistributedType])
def test_only_whole_models_are_trained(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if kind in {"FSDP", "DEEPSPEED", "MEGATRON_LM", "XLA"}:
        with pytest.raises(TrainingError, match=f"requests {kind}, but every process needs the full model"):
            check_launch(stub(kind=kind))
    else:
        assert kind == "NO" or kind.startswith("MULTI_")
        check_launch(stub(kind=kind))
    check_launch(stub(kind="FSDP", is_fsdp2=True))


def test_processes_that_work_apart_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        TrainingError, match=r"started 2 processes \(WORLD_SIZE\).*write to the same folder; use torchrun"
    ):
        check_launch(stub())
    check_launch(stub(2, "MULTI_CPU"))


def test_accumulation_is_the_recipes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(TrainingError, match=r"ACCELERATE_GRADIENT_ACCUMULATION_STEPS is 4; unset it, and set training"):
        check_launch(stub(accumulation=4))


def test_the_processes_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACCELERATE_MIXED_PRECISION", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert describe_processes(stub()) == "1 process, cpu"
    assert describe_processes(stub(4, "MULTI_GPU", "cuda")) == "4 processes, cuda"
    assert describe_processes(stub(4, "FSDP", "cuda")) == "4 processes, cuda, model sharded with FSDP 2"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert describe_processes(stub(4, "MULTI_CPU")) == "4 processes on 2 machines, cpu"
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert describe_processes(stub()) == "1 process, cpu"
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # what `accelerate launch --cpu --num_processes 2` leaves
    told = describe_processes(stub())
    assert "was called for several processes and started one" in told
    assert "use accelerate launch --multi_gpu (not --cpu)" in told


def test_machines_that_work_apart_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    monkeypatch.delenv("MASTER_PORT", raising=False)
    check_launch(stub())  # the shell's own
    monkeypatch.setenv("MASTER_PORT", "29500")  # what `accelerate launch --num_machines 2` sets without --multi_gpu
    with pytest.raises(
        TrainingError, match=r"main address 10\.0\.0\.1 but started a single .* the same folder; .* --multi_gpu"
    ):
        check_launch(stub())


def test_one_process_tries_no_disk(accelerator: Accelerator, tmp_path: Path) -> None:
    check_shared_folder(tmp_path / "file" / "run", accelerator)
    assert list(tmp_path.iterdir()) == []
    check_environment()


def test_what_another_run_puts_beside_it_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(objects: list[Any]) -> list[Any]:
        (tmp_path / "runs" / "other").mkdir()
        return objects

    monkeypatch.setattr("finetune.pipeline.launch_checks.broadcast_object_list", lambda objects: objects)
    monkeypatch.setattr("finetune.pipeline.launch_checks.gather_object", gather)
    check_shared_folder(tmp_path / "runs" / "a", SimpleNamespace(num_processes=2, is_main_process=True))
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["other"]


def test_the_run_folder_says_what_auto_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.pipeline.session.device_precision", lambda use_cpu: "bf16" if use_cpu else "no")
    for training, expected in (
        ({"mixed_precision": "auto"}, "no"),
        ({"mixed_precision": "auto", "use_cpu": True}, "bf16"),
        ({"mixed_precision": "no", "use_cpu": True}, "no"),
    ):
        given = Recipe.model_validate({"output_dir": "x", **recipe(SCRATCH), "training": training})
        assert with_precision(given).training.mixed_precision == expected


def test_machines_that_would_train_in_different_precisions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.pipeline.launch_checks.gather_object", lambda found: [*found, "bf16"])
    with pytest.raises(TrainingError, match=r"would train in bf16 and no, .* set one of them in training"):
        check_launch(stub())


class Recorded(GeneralTracker):
    """A tracker that keeps what it is given."""

    name, requires_logging_directory = "recorded", False

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, Any] = {}
        self.logged: list[tuple[dict[str, Any], int | None]] = []

    @property
    def tracker(self) -> dict[str, Any]:
        return self.values

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.values.update(values)

    def log(self, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
        self.logged.append((values, step))


def given_recipe(**sections: Any) -> Recipe:
    return Recipe.model_validate({"output_dir": "x", **recipe(SCRATCH, **sections)})


def context(recipe: Recipe, folder: Path, accelerator: Any) -> RunContext:
    return RunContext(recipe, RunFolder(folder), accelerator, Console(quiet=True))


def test_a_tracker_is_given_every_value_of_the_recipe_but_its_rows() -> None:
    tracker, given = Recorded(), given_recipe(training={"learning_rate": 0.003, "class_weights": {"yes": 2.0}})
    accelerator = Accelerator(cpu=True, log_with=tracker)
    start_trackers(context(given, Path("runs/a"), accelerator))
    assert tracker.values == hyperparameters(given)
    assert {type(value) for value in tracker.values.values()} <= {bool, int, float, str}
    assert not any(key.endswith("_rows") for key in tracker.values)
    assert "train_rows" in given.data.model_dump()
    expected = {
        "seed": given.seed, "training.learning_rate": 0.003, "training.class_weights": '{"yes": 2.0}',
        "model.model_name_or_path": "null", "peft": "null", "evaluation.metrics": json.dumps(given.evaluation.metrics),
    }  # fmt: skip
    assert {key: tracker.values[key] for key in expected} == expected
    accelerator.log({"loss": 1.0}, step=3)
    assert tracker.logged == [({"loss": 1.0}, 3)]


@pytest.mark.parametrize(
    ("folder", "project"),
    [
        ("runs/sst2-lora", "sst2-lora"),
        ("runs/it's a run: 3/", "it-s-a-run-3"),
        ("/", "finetune"),
        ("x" * 200, "x" * 128),
    ],
)
def test_the_project_is_the_run_folder_in_letters_that_trackers_take(folder: str, project: str) -> None:
    names: list[str] = []
    tracker = SimpleNamespace(init_trackers=lambda name, config: names.append(name))
    start_trackers(context(given_recipe(), Path(folder), tracker))
    assert names == [project]


def test_tensorboard_takes_them(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=str(tmp_path))
    start_trackers(context(given_recipe(), tmp_path / "a run", accelerator))
    accelerator.log({"loss": 1.0}, step=1)
    accelerator.end_training()
    (written,) = tmp_path.rglob("hparams.yml")
    assert written.is_relative_to(tmp_path / "a-run")
    assert yaml.safe_load(written.read_text()) == hyperparameters(given_recipe())
    assert len(list(tmp_path.rglob("events*"))) == 2  # the run's, and its hyperparameters'
