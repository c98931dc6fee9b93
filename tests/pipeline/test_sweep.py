"""The sweep engine with a trial that takes no time, and one sweep of real runs."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.storages import InMemoryStorage

from finetune.errors import FinetuneError, TrainingError, TrainingStopped
from finetune.pipeline.sweep import sweep
from finetune.pipeline.train_stage import OnEvaluation
from finetune.recipe.schema import Recipe
from finetune.recipe.sweep_loader import LoadedSweep, load_sweep
from finetune.runs.sweep_results import SweepResult, read_sweep
from tests.support.recipes import MINIMAL

RATE, RANK = "training.learning_rate", "training.per_device_train_batch_size"
SPACE = {RATE: {"low": 1e-5, "high": 1e-1, "log": True}, RANK: [4, 8, 16]}


class Killed(BaseException):
    """The process was killed: nothing handles this."""


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep studies in memory, where they survive a killed sweep, one per folder; skip the importance of parameters."""
    storages: dict[Path, InMemoryStorage] = defaultdict(InMemoryStorage)
    monkeypatch.setattr("finetune.pipeline.sweep.open_storage", lambda url, file: nullcontext(storages[file]))
    monkeypatch.setattr("finetune.pipeline.sweep.importance", lambda *_: {})
    monkeypatch.setattr("finetune.pipeline.sweep.write_sweep_report", lambda _: None)


@pytest.fixture
def write_sweep(tmp_path: Path) -> Callable[..., LoadedSweep]:
    """Return a function that writes a sweep with these keys, and loads it."""
    (tmp_path / "base.yaml").write_text(MINIMAL)

    def write(**keys: Any) -> LoadedSweep:
        keys = {"recipe": "base.yaml", "output_dir": str(tmp_path / "out"), "space": SPACE} | keys
        (tmp_path / "lr.yaml").write_text(yaml.safe_dump({"sampler": "random", "trials": 8} | keys))
        return load_sweep(tmp_path / "lr.yaml")

    return write


def accuracy(loaded: Recipe) -> float:
    """Return a score that depends on the recipe alone: best at a learning rate of 1e-3 and a batch size of 8."""
    distance = abs(math.log10(loaded.training.learning_rate) + 3)  # type: ignore[arg-type]
    return 1 / (1 + distance + abs(loaded.training.per_device_train_batch_size - 8) / 8)


def fake(loaded: Recipe, on_evaluation: OnEvaluation) -> dict[str, float | None]:
    """Stand for a run with three evaluations."""
    for number in (1, 2, 3):
        if on_evaluation(10 * number, {"accuracy": accuracy(loaded) * number / 3, "loss": 1.0}):
            raise TrainingStopped("stopped")
    cost = float(loaded.training.per_device_train_batch_size)
    return {"accuracy": accuracy(loaded), "loss": 1.0, "train_seconds": cost, "parameters": 7.0}


def outcome(result: SweepResult) -> list[tuple[Any, ...]]:
    """Return what must not depend on whether the sweep was killed."""
    return [(trial.number, trial.state, trial.parameters, trial.values, trial.intermediate) for trial in result.trials]


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"sampler": "tpe", "trials": 14},
        {"pruner": "median", "trials": 16},
        {"pruner": "hyperband", "sampler": "tpe", "trials": 14},
        {"sampler": "grid", "trials": None, "space": {RATE: [1e-3, 1e-2], RANK: [4, 8]}},
    ],
    ids=["random", "tpe", "median", "hyperband", "grid"],
)
def test_a_sweep_that_is_killed_at_random_points_has_the_same_trials(
    keys: dict[str, Any], write_sweep: Callable[..., LoadedSweep], tmp_path: Path
) -> None:
    expected = sweep(write_sweep(**keys), run=fake)
    assert len(expected.trials) == expected.planned
    draw, runs, kills = random.Random(3), [], 0

    def killed(loaded: Recipe, on_evaluation: OnEvaluation) -> dict[str, float | None]:
        point = draw.randrange(8)

        def kill_at(this: int) -> None:
            if point == this:
                raise Killed

        def evaluate(step: int, values: dict[str, float | None]) -> bool:
            kill_at(step // 10)
            stop = on_evaluation(step, values)
            kill_at(step // 10 + 3)
            return stop

        runs.append(loaded.output_dir)
        kill_at(0)
        return fake(loaded, evaluate)

    loaded = write_sweep(**keys, output_dir=str(tmp_path / "killed"))
    while True:
        try:
            result = sweep(loaded, run=killed)
            break
        except Killed:
            kills += 1
    assert kills >= 4
    assert outcome(result) == outcome(expected)
    assert len(runs) == kills + len(result.trials)  # only trials that were killed ran again
    states = {trial.state for trial in result.trials}
    assert states == ({"complete", "pruned"} if "pruner" in keys else {"complete"})


def test_the_outcome_of_a_trial_is_read_if_only_the_storage_does_not_know_it(
    write_sweep: Callable[..., LoadedSweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, ran = write_sweep(trials=2), []

    def run(loaded: Recipe, on_evaluation: OnEvaluation) -> dict[str, float | None]:
        ran.append(loaded.output_dir)
        return fake(loaded, on_evaluation)

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("finetune.pipeline.sweep._Worker._tell", kill)
        with pytest.raises(Killed):
            sweep(loaded, run=run)
    assert [trial.state for trial in sweep(loaded, run=run).trials] == ["complete", "complete"]
    assert [Path(folder).name for folder in ran] == ["0000", "0001"]


def test_failed_trials_are_recorded_and_the_sweep_continues(write_sweep: Callable[..., LoadedSweep]) -> None:
    def run(loaded: Recipe, on_evaluation: OnEvaluation) -> dict[str, float | None]:
        if loaded.training.per_device_train_batch_size == 4:
            raise ValueError("no memory\nfor this")
        return {**fake(loaded, on_evaluation), "accuracy": None if accuracy(loaded) < 0.3 else accuracy(loaded)}

    result = sweep(write_sweep(trials=12), run=run)
    failed = result.of_state("failed")
    assert 0 < len(failed) < 12
    errors = {trial.error for trial in failed}
    assert errors == {
        "ValueError: no memory for this",
        "accuracy is undefined on the validation rows, so the trial cannot be compared",
    }
    assert result.trial(result.best[0]).values["accuracy"] == max(
        t.values["accuracy"] for t in result.of_state("complete")
    )


def test_a_sweep_stops_if_all_trials_fail_with_the_same_error(write_sweep: Callable[..., LoadedSweep]) -> None:
    def fail(loaded: Recipe, on_evaluation: OnEvaluation) -> dict[str, float | None]:
        raise FinetuneError("the disk of row 3 is gone")

    loaded = write_sweep(trials=20)
    with pytest.raises(TrainingError, match=r"all \d trials so far failed; the last with: the disk of row 3 is gone"):
        sweep(loaded, run=fail)
    assert 3 <= len(read_sweep(Path(loaded.sweep.output_dir)).of_state("failed")) < 9
    with pytest.raises(TrainingError, match=r"all 1 trials so far failed"):  # the only one
        sweep(write_sweep(trials=1, output_dir=f"{loaded.sweep.output_dir}2"), run=fail)


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), RuntimeError("basic_ios::clear: iostream error")],
    ids=["log", "torch.save"],
)
def test_a_full_disk_stops_the_sweep_and_the_trial_is_continued(
    error: Exception, write_sweep: Callable[..., LoadedSweep]
) -> None:
    def fail(loaded: Recipe, on_evaluation: OnEvaluation) -> dict[str, float | None]:
        on_evaluation(10, {"accuracy": accuracy(loaded) / 3, "loss": 1.0})
        raise error

    loaded = write_sweep(trials=2)
    with pytest.raises(TrainingError, match=r"cannot write .*trials/0000: .*; free disk space"):
        sweep(loaded, run=fail)
    assert [trial.state for trial in sweep(loaded, run=fake).trials] == ["complete", "complete"]


def test_a_sweep_is_not_continued_on_other_rows(write_sweep: Callable[..., LoadedSweep], tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("sentence,label\ngood,1\nbad,0\n")
    keys = {"overrides": {"data.train_rows": None, "data.train_file": str(file)}}
    sweep(write_sweep(**keys, trials=1), run=fake)
    assert len(sweep(write_sweep(**keys, trials=2), run=fake).trials) == 2
    file.write_text("sentence,label\ngood,1\nbad,1\n")
    with pytest.raises(TrainingError, match="was started with another content of its data files; restore it"):
        sweep(write_sweep(**keys, trials=3), run=fake)


def test_the_best_recipe_has_the_rows_of_its_trial_if_the_seed_varies(write_sweep: Callable[..., LoadedSweep]) -> None:
    loaded = write_sweep(sampler="grid", trials=None, space={"seed": [7, 8]})
    rows = [loaded.trial_recipe({"seed": seed}, Path("x")).rows_seed() for seed in (7, 8)]
    assert rows == [loaded.recipe({"seed": seed}).rows_seed() for seed in (7, 8)] == [7, 7]
    assert [loaded.recipe({"seed": seed}).data.split_seed for seed in (7, 8)] == [None, 7]


def test_a_stopped_process_releases_its_trial_and_an_earlier_version_has_fewer_keys(
    write_sweep: Callable[..., LoadedSweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(loaded: Recipe, on_evaluation: OnEvaluation) -> dict[str, float | None]:
        raise Killed

    released: list[int] = []
    monkeypatch.setattr("finetune.pipeline.sweep.Claims.release", lambda _, trial: released.append(trial.number))
    with pytest.raises(Killed):
        sweep(write_sweep(), run=stop)
    assert released == [0]
    monkeypatch.setattr("finetune.pipeline.sweep_study.definition", lambda _: {"space": "a"})
    loaded = write_sweep(trials=1, output_dir=f"{write_sweep().sweep.output_dir}2")
    sweep(loaded, run=fake)
    monkeypatch.setattr("finetune.pipeline.sweep_study.definition", lambda _: {"space": "a", "new": "b"})
    sweep(loaded, run=fake)


def test_a_grid_is_run_in_random_order(write_sweep: Callable[..., LoadedSweep]) -> None:
    rates = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
    result = sweep(write_sweep(sampler="grid", trials=None, space={RATE: rates, RANK: [4]}), run=fake)
    order = [trial.parameters[RATE] for trial in result.trials]
    assert order != rates
    assert set(order) == set(rates)
