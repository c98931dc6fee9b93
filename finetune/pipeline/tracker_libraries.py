"""What differs between the tracker libraries: options, hyperparameters, the id of a run, and closing it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate.tracking import GeneralTracker

from finetune.errors import shorten
from finetune.runs.run_folder import RunFolder

_MAX_MLFLOW_VALUE = 5990  # characters of a parameter: mlflow accepts 6000, and `shorten` adds a few
_MAX_MLFLOW_BATCH = 100  # parameters per request that mlflow accepts
FIXES = {
    "tensorboard": "check that the run folder can be written",
    "wandb": "log in with `wandb login`, or set the environment variable WANDB_MODE=offline",
    "mlflow": "check the environment variable MLFLOW_TRACKING_URI; without it, mlflow writes to the run folder",
    "trackio": "check the environment variables TRACKIO_DIR, TRACKIO_SERVER_URL and TRACKIO_SPACE_ID",
}


Hyperparameters = dict[str, bool | int | float | str]


@dataclass(frozen=True)
class Start:
    """A tracker's run that is about to start.

    Attributes:
        earlier: the id of the tracker's run to continue, None for a new one.
        resume_step: the step of the checkpoint that is resumed, None for a new run.
    """

    name: str
    group: str | None
    folder: RunFolder
    values: Hyperparameters
    earlier: str | None
    resume_step: int | None


def check_reachable(library: str) -> None:
    """Raise the library's error if nobody is logged in to wandb, or if the mlflow server does not answer."""
    if library == "wandb":
        import wandb

        if (
            not (sys.stdin and sys.stdin.isatty()) and wandb.setup().settings.mode == "online"
        ):  # in a terminal, wandb asks for the key
            wandb.login()
    elif library == "mlflow":
        import mlflow

        _limit_mlflow_attempts()
        if mlflow.get_tracking_uri().startswith("http"):
            mlflow.MlflowClient().search_experiments(max_results=1)


def start_options(library: str, start: Start) -> dict[str, Any]:
    """Return the arguments with which Accelerate starts a library's tracker."""
    return _OPTIONS[library](start)


def write_hyperparameters(tracker: GeneralTracker, values: Hyperparameters, metrics: Sequence[str]) -> None:
    """Write what a tracker does not take as an option at its start.

    Args:
        metrics: the names of the final scores.
    """
    if tracker.name == "tensorboard":
        _write_tensorboard_table(tracker, values, metrics)
    elif tracker.name == "mlflow":
        _log_mlflow_parameters(values)
    elif tracker.name == "wandb":
        tracker.tracker.define_metric("*", step_metric="step")


def run_id(tracker: GeneralTracker) -> str:
    """Return the tracker's id of its run, "" for TensorBoard."""
    run = tracker.tracker
    return str(run.info.run_id if tracker.name == "mlflow" else getattr(run, "id", ""))


def how_to_open(folder: RunFolder, library: str) -> str:
    """Return the command that shows a run in the run folder; "" for another place, or if the library prints it."""
    if library == "tensorboard":
        return f"; open it with `tensorboard --logdir {folder.trackers}`"
    if library == "mlflow":
        import mlflow

        if mlflow.get_tracking_uri() == _local_mlflow(folder):  # another address may contain a password
            return f"; open it with `mlflow ui --backend-store-uri {_local_mlflow(folder)}`"
    return ""


def finish(tracker: GeneralTracker, folder: RunFolder, *, failed: bool) -> None:
    """Close one tracker."""
    if tracker.name == "wandb":
        tracker.tracker.finish(exit_code=int(failed))
    elif tracker.name == "mlflow":
        import mlflow

        mlflow.end_run("FAILED" if failed else "FINISHED")
        if mlflow.get_tracking_uri() == _local_mlflow(folder):  # set by `_mlflow_options`; the next run has its own
            mlflow.set_tracking_uri(None)
    elif tracker.name == "trackio":
        import trackio

        trackio.finish()  # unlike `tracker.finish`, not again when the process ends
    else:
        tracker.finish()


def _tensorboard_options(start: Start) -> dict[str, Any]:
    # Values after the checkpoint are written again, so TensorBoard drops those that it has.
    return {} if start.resume_step is None else {"purge_step": start.resume_step + 1}


def _wandb_options(start: Start) -> dict[str, Any]:
    options = {"name": start.name, "group": start.group, "config": start.values}
    options["dir"] = os.environ.get("WANDB_DIR", str(start.folder.trackers))
    return options if start.earlier is None else {**options, "id": start.earlier, "resume": "allow"}


def _mlflow_options(start: Start) -> dict[str, Any]:
    """Return mlflow's options. Its address and the number of its attempts have no option, but are set here."""
    import mlflow

    _limit_mlflow_attempts()
    options: dict[str, Any] = {"run_name": start.name, "run_id": start.earlier}
    if start.group is not None:
        options["tags"] = {"group": start.group}
    if not mlflow.is_tracking_uri_set():
        mlflow.set_tracking_uri(_local_mlflow(start.folder))
        options["logging_dir"] = (start.folder.trackers / "mlflow-artifacts").absolute().as_uri()
    return options


def _limit_mlflow_attempts() -> None:
    """Let mlflow give up after 3 attempts; its own 7 take four minutes."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")


def _trackio_options(start: Start) -> dict[str, Any]:
    resume = "never" if start.earlier is None else "allow"
    return {"name": start.name, "group": start.group, "config": start.values, "resume": resume}


_OPTIONS: dict[str, Callable[[Start], dict[str, Any]]] = {
    "tensorboard": _tensorboard_options,
    "wandb": _wandb_options,
    "mlflow": _mlflow_options,
    "trackio": _trackio_options,
}


def _local_mlflow(folder: RunFolder) -> str:
    """Return the address of the database in the run folder, where mlflow writes if the user sets no address."""
    return f"sqlite:///{(folder.trackers / 'mlflow.db').absolute()}"


def _write_tensorboard_table(tracker: GeneralTracker, values: Hyperparameters, metrics: Sequence[str]) -> None:
    """Write the hyperparameters, and the names of the metrics that TensorBoard shows beside them in its HPARAMS tab."""
    from torch.utils.tensorboard.summary import hparams

    experiment, session, _ = hparams(values, dict.fromkeys(metrics, 0.0))
    tracker.tracker.file_writer.add_summary(experiment)
    tracker.tracker.file_writer.add_summary(session)
    tracker.tracker.flush()


def _log_mlflow_parameters(values: Hyperparameters) -> None:
    """Send the parameters to mlflow, shortened to the length it accepts; it never changes those of a resumed run."""
    import mlflow

    run = mlflow.active_run()
    existing = mlflow.get_run(run.info.run_id).data.params
    new = [(key, shorten(str(value), _MAX_MLFLOW_VALUE)) for key, value in values.items() if key not in existing]
    for start in range(0, len(new), _MAX_MLFLOW_BATCH):
        mlflow.log_params(dict(new[start : start + _MAX_MLFLOW_BATCH]))
