"""A series of runs: equal to runs of its recipes, resumed, shared by processes, and what happens when a run fails."""

from __future__ import annotations

import html
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from finetune.cli import main
from finetune.errors import RecipeError, TrainingError, TrainingStopped
from finetune.pipeline.series import train_series
from finetune.pipeline.series_results import choose_run
from finetune.pipeline.train import train
from finetune.recipe.loader import load_recipe
from finetune.runs.locks import locked_file
from finetune.runs.run_folder import SeriesFolder
from finetune.runs.series import MemberResult, SeriesResult, read_series
from finetune.training.trainer import Trainer
from tests.support.finished_runs import SCRATCH, contents, recipe, rows

AUTO, OVERWRITE = "checkpoint.resume_from_checkpoint=auto", "overwrite_output_dir=true"
SEEDS = [3, 4, 5]
# Files that repeat a run, bit for bit.
RESULTS = ("model/model.safetensors", "predictions.parquet", "data.json", "scores.json")
QUICK = {"num_train_epochs": 2, "per_device_train_batch_size": 8}


def content(**sections: Any) -> dict[str, Any]:
    """Return a recipe of a series on rows of which some are held out and sampled."""
    data = {"train_rows": rows(48, 1), "validation_rows": None, "max_length": 16, "max_train_samples": 32}
    evaluation = {"metrics": ["accuracy", "roc_auc"]}
    defaults = {
        "training": QUICK,
        "evaluation": evaluation,
        "checkpoint": {"save_strategy": "epoch"},
        "head_importance": None,
    }
    layers = {**SCRATCH["config_overrides"], "num_hidden_layers": 1}
    result = recipe({**SCRATCH, "config_overrides": layers}, data=data)
    for name, keys in {**defaults, **sections}.items():
        result[name] = {**result[name], **keys} if isinstance(keys, dict) else keys
    return {**result, "seed": 9, "seeds": SEEDS}


def write(folder: Path, document: dict[str, Any]) -> Path:
    path = folder / "my.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def results_of(run: Path) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in RESULTS}


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("series")
    heads = {"method": "gradient", "random_orders": 1}
    assert main(["train", str(write(folder, content(head_importance=heads))), f"output_dir={folder / 'all'}"]) == 0
    return folder / "all"


def test_each_run_is_that_of_its_recipe(series: Path, tmp_path: Path) -> None:
    stored = yaml.safe_load((series / "seed-4" / "recipe.yaml").read_text())
    assert (stored["seed"], stored["seeds"], stored["data"]["split_seed"]) == (4, None, 9)
    again = tmp_path / "again"
    assert main(["train", str(series / "seed-4" / "recipe.yaml"), f"output_dir={again}"]) == 0
    assert results_of(again) == results_of(series / "seed-4")
    predictions = {seed: (series / f"seed-{seed}" / "predictions.parquet").read_bytes() for seed in SEEDS}
    assert len(set(predictions.values())) == len(SEEDS)
    assert len({(series / f"seed-{seed}" / "data.json").read_text() for seed in SEEDS}) == 1


def test_the_results_are_those_of_the_runs(series: Path) -> None:
    result = read_series(series)
    assert [member.seed for member in result.with_status("finished")] == SEEDS
    scores = {seed: json.loads((series / f"seed-{seed}" / "scores.json").read_text()) for seed in SEEDS}
    for split in ("validation", "test"):
        values = [scores[seed][split]["metrics"]["accuracy"]["value"] for seed in SEEDS]
        assert list(result.values(split, "accuracy").values()) == values
        statistics = result.splits[split]["accuracy"]
        assert statistics.mean.value == pytest.approx(sum(values) / 3)
        area = result.splits[split]["roc_auc"]
        assert area.mean.interval()
        assert area.standard_deviation == pytest.approx(np.std(list(result.values(split, "roc_auc").values()), ddof=1))
    best = min(
        SEEDS, key=lambda seed: (-result.values("validation", "accuracy")[seed], scores[seed]["validation"]["loss"])
    )
    assert result.chosen_seed == best
    folder = SeriesFolder(series)
    assert contents(folder.model) == contents(folder.member(best).model)
    assert result.heads is not None
    assert len(result.heads.pairs) == 3
    page, card = folder.report.read_text(), folder.card.read_text()
    assert 'href="seed-3/report.html"' in page
    assert result.interval_note in html.unescape(page)
    assert f"This is the run with seed {best} of a series of 3" in card
    assert "Kendall's tau between the gradient rankings of two seeds" in html.unescape(page)


def test_commands_on_a_series(
    series: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(series)
    for command in (["evaluate"], ["merge"], ["heads"], ["prune", "--share", "0.5"], ["publish", "--repo", "me/a"]):
        assert main([command[0], str(series), *command[1:]]) == 2
        assert (
            f"error: {series} is a series of 3 runs; name one of them, such as {series}/seed-3\n"
            in capsys.readouterr().err
        )
    assert contents(series) == before
    (tmp_path / "texts.csv").write_text("sentence\nthe cat sat\n")
    assert main(["predict", str(series), str(tmp_path / "texts.csv"), "--output", str(tmp_path / "out.csv")]) == 0
    assert (tmp_path / "out.csv").read_text().count("\n") == 2
    assert main(["report", str(series)]) == 0
    exported: list[Path] = []

    def export(trained: Any, *_: Any) -> Any:
        exported.append(trained.run.path)
        return SimpleNamespace(lines=list)

    monkeypatch.setattr("finetune.pipeline.export._export", export)
    assert main(["export", str(series), "--output", str(tmp_path / "onnx")]) == 0
    assert exported == [series / f"seed-{read_series(series).chosen_seed}"]
    assert contents(series) == before
    assert main(["report", str(series), "seed=3"]) == 2
    assert "is a series, and seed=3 changes the recipe of one run; name a run in it" in capsys.readouterr().err


def disk_is_full(*_: Any, **__: Any) -> None:
    raise TrainingError("cannot write seed-4") from OSError(28, "No space left on device")


def test_an_existing_folder_is_refused_or_resumed_without_loss(
    series: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, path = Path(shutil.copytree(series, tmp_path / "copy")), series.parent / "my.yaml"
    before = contents(copy)
    start = ["train", str(path), f"output_dir={copy}"]
    for overrides, message in (
        ([], "contains an earlier series; name another folder, resume the series"),
        (["seeds=null"], "contains a series of runs, which a run does not replace or resume"),
        ([AUTO, "seeds=[3,4]"], "seeds: 5 removed (more seeds can be added)"),
        ([AUTO, "training.learning_rate=0.5"], "training.learning_rate: was 0.01, now 0.5"),
        ([AUTO, "evaluation.metrics=[accuracy,f1_macro]"], 'evaluation.metrics: was ["accuracy", "roc_auc"], now'),
        ([AUTO, "data.test_rows=null"], "data.test_rows: its rows are not those of the runs that have finished"),
        ([OVERWRITE, "data.label_column=nothing"], "nothing"),
    ):
        assert main([*start, *overrides]) == 2
        assert message in capsys.readouterr().err
        assert contents(copy) == before
    assert main(["check", str(path), f"output_dir={copy}"]) == 2
    with locked_file(SeriesFolder(copy).lock(4), copy):
        assert main([*start, OVERWRITE]) == 2
        assert f"{copy} is being written by process" in capsys.readouterr().err
    # Finished runs stay as they are, a missing one is trained, and one is added.
    shutil.rmtree(copy / "seed-4")
    with monkeypatch.context() as patch:
        patch.setattr("finetune.pipeline.series.train", disk_is_full)
        assert main([*start, AUTO, "head_importance=null"]) == 2
    assert "error: cannot write seed-4" in capsys.readouterr().err
    assert [member.seed for member in read_series(copy).with_status("unfinished")] == [4]
    assert main([*start, AUTO, "head_importance=null", "seeds=[3,4,5,6]"]) == 0
    assert results_of(copy / "seed-4") == results_of(series / "seed-4")
    after = contents(copy)
    assert {name: text for name, text in after.items() if name.startswith("seed-3/")} == {
        name: text for name, text in before.items() if name.startswith("seed-3/")
    }
    assert [member.seed for member in read_series(copy).with_status("finished")] == [*SEEDS, 6]


def at_step(step: int, seed: int, action: Callable[[], None]) -> Callable[..., Any]:
    """Return an optimizer step that first calls `action` once, in the run of a seed."""
    optimizer_step, pending = Trainer.optimizer_step, [action]

    def stepping(trainer: Trainer, *args: Any) -> Any:
        if pending and trainer.state.step == step and trainer.run_fingerprint["seed"] == seed:
            pending.pop()()
        return optimizer_step(trainer, *args)

    return stepping


def fail() -> None:
    raise TrainingError("the loss is not finite")


def test_a_failed_and_an_interrupted_run_are_recorded_and_resumed_bit_for_bit(
    series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    start = ["train", str(series.parent / "my.yaml"), f"output_dir={run}", "head_importance=null"]
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "optimizer_step", at_step(1, 3, fail))
        patch.setattr(Trainer, "optimizer_step", at_step(5, 4, lambda: os.kill(os.getpid(), signal.SIGTERM)))
        assert main(start) == 143
    printed = capsys.readouterr()
    assert "to resume, start the same recipe with checkpoint.resume_from_checkpoint=auto" in printed.err
    assert "Seed 3 failed: the loss is not finite" in printed.out
    statuses = {member.seed: (member.status, member.error) for member in read_series(run).members}
    assert statuses == {3: ("failed", "the loss is not finite"), 4: ("unfinished", ""), 5: ("unfinished", "")}
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "optimizer_step", at_step(0, 5, fail))
        assert main([*start, AUTO]) == 2
    printed = capsys.readouterr()
    assert f"Resuming from {run / 'seed-4'}" in printed.out
    assert "Series of 2 of 3 runs; 1 failed" in printed.out
    assert "error: 1 of 3 runs failed:\n  seed 5: the loss is not finite\ncorrect this" in printed.err
    assert read_series(run).chosen_seed in (3, 4)
    assert "Seed 5 failed, so the results are those of 2 of 3 runs" in (run / "report.html").read_text()
    for seed in (3, 4):
        assert results_of(run / f"seed-{seed}") == results_of(series / f"seed-{seed}")


def test_the_caller_can_stop_a_series(series: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []

    def stop(seed: int, step: int, values: dict[str, float | None]) -> bool:
        calls.append((seed, step))
        return values.keys() == {"loss", "accuracy", "roc_auc"}

    overrides = [f"output_dir={tmp_path / 'run'}", "head_importance=null"]
    with pytest.raises(RecipeError, match=r"that of a series; call train_series\(recipe\), or set seeds: null"):
        train(load_recipe(series.parent / "my.yaml", overrides))
    with pytest.raises(TrainingStopped):
        train_series(load_recipe(series.parent / "my.yaml", overrides), on_evaluation=stop)
    assert calls == [(3, 4)]
    assert [member.status for member in read_series(tmp_path / "run").members] == ["unfinished"] * 3


def test_an_error_that_concerns_every_run_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, content())
    assert main(["train", str(path), f"output_dir={tmp_path / 'run'}", "data.label_column=nothing"]) == 2
    assert capsys.readouterr().err.count("error: ") == 1
    assert main(["train", str(path), f"output_dir={tmp_path / 'run'}", "--dry-run"]) == 0
    assert [file.name for file in tmp_path.iterdir()] == ["my.yaml"]
    assert main(["check", str(path)]) == 0
    assert "A series of 3 runs, with the seeds 3, 4, 5\n" in capsys.readouterr().out
    assert main(["train", str(path), "seeds=null", "--seeds", "1"]) == 2
    assert (
        "seeds (override): seeds must be at least 2 different numbers, got [9]; for one run" in capsys.readouterr().err
    )
    assert main(["train", str(path), "--seeds", "5000"]) == 2
    assert "--seeds is 5000; it is the number of runs, at most 1000" in capsys.readouterr().err


def test_a_run_that_another_process_trains_is_left_to_it(series: Path, tmp_path: Path) -> None:
    """While one process trains seed 4, another one trains the others and waits; then both have all results."""
    folder = tmp_path / "run"
    shutil.copytree(series, folder)
    stored = json.loads((folder / "series.json").read_text())
    for member in stored["members"]:
        if member["seed"] == 4:
            member["status"] = "unfinished"
    (folder / "series.json").write_text(json.dumps(stored))
    seen: list[SeriesResult] = []

    def finish_elsewhere() -> None:
        time.sleep(1.0)
        seen.append(read_series(folder))
        for member in stored["members"]:
            member["status"] = "finished"
        (folder / "series.json").write_text(json.dumps(stored))

    with locked_file(SeriesFolder(folder).lock(4), folder):
        thread = threading.Thread(target=finish_elsewhere)
        thread.start()
        assert main(["train", str(series.parent / "my.yaml"), f"output_dir={folder}", AUTO]) == 0
        thread.join()
    assert [member.status for member in seen[0].members] == ["finished", "unfinished", "finished"]
    assert results_of(folder / "seed-4") == results_of(series / "seed-4")


def test_the_run_of_a_series_is_chosen_by_its_loss_where_the_metric_is_undefined() -> None:
    runs = [
        MemberResult(seed, scores={"validation": {"roc_auc": None, "loss": loss}})
        for seed, loss in ((1, 0.5), (2, 0.4))
    ]
    seed, reason = choose_run(runs, "roc_auc")
    assert seed == 2
    assert reason.startswith("lowest validation loss, because roc_auc is undefined; ")
