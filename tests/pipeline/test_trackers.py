"""Each tracker library in its offline mode: what it stores is read back and compared with the files of the run."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import yaml
from accelerate import Accelerator
from accelerate.tracking import MLflowTracker
from rich.console import Console
from torch.utils import tensorboard

from finetune.cli import main
from finetune.pipeline.context import RunContext
from finetune.pipeline.tracker_libraries import how_to_open, write_hyperparameters
from finetune.pipeline.trackers import (
    finish_trackers,
    hyperparameters,
    log_entry,
    log_final_scores,
    log_final_training,
    run_name,
    start_trackers,
)
from finetune.recipe.schema import Recipe
from finetune.runs.run_files import read_recipe, read_scores
from finetune.runs.run_folder import RunFolder
from tests.support.finished_runs import SCRATCH, contents, recipe
from tests.support.trackers import Series, add_value, expected_values, wandb_records

# SQLAlchemy 2.1 warns about an option that mlflow 3.17 uses when it is imported.
MLFLOW = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")
CLOSED = "http://127.0.0.1:9"  # a port on which nothing listens


@pytest.fixture(scope="module", autouse=True)
def no_network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the libraries off the network and out of the user's folders."""
    connect = socket.socket.connect

    def connect_locally(self: socket.socket, address: Any) -> None:
        assert self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1"), address
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID", "WANDB_API_KEY", "WANDB_DIR"):
            patch.delenv(name, raising=False)
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_ERROR_REPORTING", "false")
        patch.setenv("WANDB_SILENT", "true")
        patch.setenv("NETRC", str(tmp_path_factory.getbasetemp() / "netrc"))
        for name in ("CACHE", "CONFIG", "DATA"):
            patch.setenv(f"WANDB_{name}_DIR", str(tmp_path_factory.mktemp("wandb")))
        patch.setattr(socket.socket, "connect", connect_locally)
        yield


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    """Stop the background process of wandb, which otherwise ends with this process, and check that none is left."""
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()
    assert not [child for child in psutil.Process().children(recursive=True) if "wandb" in child.name()]


def write_recipe(folder: Path) -> Path:
    """Write a recipe of 20 steps with four log entries, two evaluations and two checkpoints, and return its path."""
    content = recipe(SCRATCH)
    content["training"] |= {"max_steps": 20}
    content["evaluation"] |= {"baselines": None}
    content["checkpoint"] = {"save_strategy": "steps", "save_steps": 10}
    content |= {"logging": {"logging_steps": 5}, "head_importance": None}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    return folder / "recipe.yaml"


def train(folder: Path, *overrides: str) -> int:
    """Train in folder/run, and return the exit code."""
    return main(["train", str(write_recipe(folder)), f"output_dir={folder / 'run'}", *overrides])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with TensorBoard that was resumed from step 10, as if its process had been killed after an evaluation."""
    parent = tmp_path_factory.mktemp("tracked")
    folder = RunFolder(parent / "run")
    assert train(parent, "logging.report_to=tensorboard") == 0
    shutil.rmtree(folder.checkpoints / "step-000020")
    assert train(parent, "logging.report_to=tensorboard", "checkpoint.resume_from_checkpoint=auto") == 0
    return folder


def replay(finished: RunFolder, path: Path, library: str) -> RunContext:
    """Send a finished run's values to a tracker as `train` does, with a resume at step 10, and return the context."""
    folder = RunFolder(path / "run")
    folder.path.mkdir()
    shutil.copy(finished.training, folder.training)
    run_recipe = read_recipe(finished, [f"logging.report_to={library}"], read_data=False)
    entries = [json.loads(line) for line in finished.history.read_text().splitlines()]
    for resume_step in (None, 10):
        started = int(time.time())
        accelerator = Accelerator(cpu=True, log_with=library)
        context = RunContext(run_recipe, folder, accelerator, Console(quiet=True))
        start_trackers(context, ["validation", "test"], resume_step=resume_step)
        for entry in entries:
            if entry["step"] > (resume_step or 0):
                log_entry(context, entry)
        if resume_step is not None:
            log_final_training(context)
            log_final_scores(context, read_scores(finished))
        finish_trackers(context)
        assert accelerator.trackers == []
        while library == "wandb" and int(time.time()) == started:  # it names its folders by the second
            time.sleep(0.05)
    return context


def check(stored: Series, folder: RunFolder) -> None:
    """Check that the values are those of the run's files."""
    expected = expected_values(folder)
    assert {"epoch", "train/loss", "eval/accuracy", "final/test_accuracy_low", "final/flops_per_row"} <= {*expected}
    assert stored.keys() == expected.keys()
    for name, values in expected.items():
        assert stored[name] == pytest.approx(values, rel=1e-6), name  # TensorBoard stores float32


def test_tensorboard(finished: RunFolder) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    events = EventAccumulator(str(finished.trackers / "finetune" / "run"))
    events.Reload()
    stored: Series = {}
    for name in events.Tags()["scalars"]:
        entries = events.Scalars(name)
        if name != "epoch":  # two entries at one step have it
            assert len({entry.step for entry in entries}) == len(entries)  # those after the checkpoint were dropped
        for entry in entries:
            add_value(stored, name, entry.step, entry.value)
    check(stored, finished)
    content = HParamsPluginData.FromString(events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content)
    hparams = {
        key: getattr(value, str(value.WhichOneof("kind"))) for key, value in content.session_start_info.hparams.items()
    }
    assert hparams == hyperparameters(read_recipe(finished, read_data=False))
    content = HParamsPluginData.FromString(events.SummaryMetadata("_hparams_/experiment").plugin_data.content)
    columns = {info.name.tag for info in content.experiment.metric_infos}
    assert columns == {f"final/{split}_{metric}" for split in ("validation", "test") for metric in ("loss", "accuracy")}
    assert columns <= stored.keys()


@pytest.fixture(scope="module")
def mlflow_run(finished: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> RunContext:
    """A run of mlflow with the database in the run folder, which takes a second to create."""
    return replay(finished, tmp_path_factory.mktemp("mlflow"), "mlflow")


@MLFLOW
def test_mlflow(finished: RunFolder, mlflow_run: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    assert not mlflow.is_tracking_uri_set()  # the next run of this process has its own folder
    uri = f"sqlite:///{mlflow_run.folder.trackers / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("finetune")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    stored: Series = {}
    for name in run.data.metrics:
        for entry in client.get_metric_history(run.info.run_id, name):
            add_value(stored, name, entry.step, entry.value)
    check(stored, finished)
    assert run.data.params == {key: str(value) for key, value in hyperparameters(mlflow_run.recipe).items()}
    assert how_to_open(mlflow_run.folder, "mlflow").endswith(f"open it with `mlflow ui --backend-store-uri {uri}`")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:password@127.0.0.1:9")
    assert how_to_open(mlflow_run.folder, "mlflow") == ""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    # More parameters than mlflow takes at once, and one that is too long for it.
    long = "".join(map(str, range(2000)))
    with mlflow.start_run() as active:
        tracker = SimpleNamespace(name="mlflow", tracker=active)
        write_hyperparameters(tracker, {"long": long, **{f"key {number}": number for number in range(120)}}, [])
    parameters = mlflow.get_run(active.info.run_id).data.params
    assert len(parameters) == 121
    assert len(long) > 6000 >= len(parameters["long"]) > 5900
    assert (parameters["long"][:1000], parameters["long"][-1000:]) == (long[:1000], long[-1000:])


def test_trackio(finished: RunFolder, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["TRACKIO_DIR"] = str(tmp_path_factory.mktemp("trackio"))  # read once, when trackio is imported
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    context = replay(finished, tmp_path, "trackio")
    (run,) = trackio.Api().runs("finetune")
    assert run.name == "run"
    config = {key: value for key, value in (run.config or {}).items() if not key.startswith("_")}
    assert config == hyperparameters(context.recipe)
    stored: Series = {}
    for entry in SQLiteStorage.get_logs("finetune", "run", run_id=run.id):
        for name in entry.keys() - {"step", "timestamp"}:
            add_value(stored, name, entry["step"], entry[name])
    check(stored, finished)


def test_wandb(finished: RunFolder, tmp_path: Path) -> None:
    context = replay(finished, tmp_path, "wandb")
    sys.modules["wandb"].teardown()  # writes the rest of the files
    files = sorted(context.folder.trackers.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2  # `wandb sync` adds both to the same run
    stored: Series = {}
    for file in files:
        records = list(wandb_records(file))
        (run,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
        assert (run.project, run.display_name) == ("finetune", "run")
        assert run.run_id == json.loads((context.folder.trackers / "run.json").read_text())["run_id"]
        config = {item.key: json.loads(item.value_json) for item in run.config.update if item.key != "_wandb"}
        assert config == hyperparameters(context.recipe)
        assert [record.exit.exit_code for record in records if record.WhichOneof("record_type") == "exit"] == [0]
        for record in records:
            items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            for name in items.keys() - {"step"}:
                if not name.startswith("_"):
                    add_value(stored, name, int(items["step"]), items[name])
    check(stored, finished)


@pytest.mark.parametrize(
    ("library", "variables", "reason"),
    [
        pytest.param("mlflow", {"MLFLOW_TRACKING_URI": CLOSED}, r"MLFLOW_TRACKING_URI; without it", marks=MLFLOW),
        ("wandb", {"WANDB_MODE": "online", "WANDB_BASE_URL": CLOSED}, r"log in with `wandb login`, or set the"),
        ("trackio", {"TRACKIO_SERVER_URL": CLOSED}, r"write token.*TRACKIO_SERVER_URL and TRACKIO_SPACE_ID"),
        ("tensorboard", {}, r"No space left on device; check that the run folder can be written"),
    ],
)
def test_a_tracker_that_does_not_start_ends_the_run_before_training(
    finished: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], library: str, variables: dict[str, str], reason: str,
) -> None:  # fmt: skip
    def full_disk(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensorboard, "SummaryWriter", full_disk)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if library in ("mlflow", "wandb"):
        monkeypatch.setattr("finetune.pipeline.train.prepare", lambda *_, **__: pytest.fail("the rows are read"))
    assert train(tmp_path, f"logging.report_to={library}") == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: logging.report_to: {library} did not start: ")
    assert message.rstrip().endswith(", or set logging.report_to: none")
    assert len(message.splitlines()) == 1
    assert re.search(reason, message)
    assert not (tmp_path / "run").exists()
    # An earlier run in the folder is kept.
    shutil.copytree(finished.path, tmp_path / "run")
    before = contents(tmp_path / "run")
    assert train(tmp_path, f"logging.report_to={library}", "overwrite_output_dir=true") == 2
    assert contents(tmp_path / "run") == before


@MLFLOW
def test_a_tracker_that_fails_during_training_does_not_end_the_run(
    tmp_path: Path, mlflow_run: RunContext, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{mlflow_run.folder.trackers / 'mlflow.db'}")

    log, calls = MLflowTracker.log, []

    def fail_once(self: MLflowTracker, values: dict[str, float], step: int) -> None:
        calls.append(step)
        if len(calls) == 3:
            raise mlflow.MlflowException("the server\nhas failed")
        log(self, values, step)

    monkeypatch.setattr(MLflowTracker, "log", fail_once)
    assert train(tmp_path, "logging.report_to=mlflow", "logging.project=texts", "logging.run_name=my.run") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Tracker: mlflow, project texts, run my.run" in printed
    assert "mlflow failed and receives no more values: the server. The run continues; its folder has all" in printed
    assert len(calls) == 3
    assert RunFolder(tmp_path / "run").scores.is_file()
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("texts").experiment_id])
    assert (run.info.run_name, run.info.status) == ("my.run", "FAILED")
    assert "final/test_accuracy" not in run.data.metrics


def test_an_error_in_training_marks_the_run_as_failed(tmp_path: Path) -> None:
    assert train(tmp_path, "logging.report_to=wandb", "training.learning_rate=1e30") == 2
    (file,) = (tmp_path / "run").glob("trackers/wandb/offline-run-*/*.wandb")
    exits = [record.exit.exit_code for record in wandb_records(file) if record.WhichOneof("record_type") == "exit"]
    assert exits == [1]


def scratch_recipe(**sections: Any) -> Recipe:
    return Recipe.model_validate({"output_dir": "x", **recipe(SCRATCH, **sections)})


def test_the_hyperparameters_are_the_recipe_without_its_rows() -> None:
    run_recipe = scratch_recipe(
        training={"learning_rate": 0.003, "class_weights": {"yes": 2.0}}, checkpoint={"resume_from_checkpoint": "auto"}
    )
    values = hyperparameters(run_recipe)
    assert {type(value) for value in values.values()} <= {bool, int, float, str}
    rows = {f"data.{split}_rows" for split in ("train", "validation", "test")}
    assert rows <= {f"data.{key}" for key in run_recipe.data.model_dump()}
    assert not rows & values.keys()
    expected = {
        "seed": run_recipe.seed, "training.learning_rate": 0.003, "training.class_weights": '{"yes": 2.0}',
        "model.model_name_or_path": "null", "peft": "null", "checkpoint.resume_from_checkpoint": "null",
        "data.label_name_rows": "auto", "evaluation.score_training_rows": False,
        "evaluation.metrics": json.dumps(run_recipe.evaluation.metrics),
    }  # fmt: skip
    assert {key: values[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("folder", "named", "name", "group"),
    [
        ("runs/sst2-lora", None, "sst2-lora", None),
        ("runs/sst2-lora", "first", "first", None),
        ("runs/it's a run: 3/", None, "it-s-a-run-3", None),
        ("/", None, "finetune", None),
        ("x" * 200, None, "x" * 128, None),
        ("runs/sst2/seed-3", None, "sst2-seed-3", "sst2"),
        ("runs/sst2/seed-3", "first", "first-seed-3", "first"),
        ("y" * 200 + "/seed-3", None, "y" * 121 + "-seed-3", "y" * 121),
        ("runs/heads/trials/0012", None, "heads-trial-0012", "heads"),
        ("runs/heads/trials/0012/seed-3", None, "heads-trial-0012-seed-3", "heads-trial-0012"),
        ("runs/2024", None, "2024", None),
    ],
)
def test_a_run_is_named_after_its_folder(folder: str, named: str | None, name: str, group: str | None) -> None:
    assert run_name(scratch_recipe(logging={"run_name": named}), Path(folder)) == (name, group)
