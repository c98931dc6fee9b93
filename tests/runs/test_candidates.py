from __future__ import annotations

from pathlib import Path

import pytest

from finetune.errors import DataError
from finetune.runs.candidates import read_candidate, recipe_differences
from finetune.runs.json_files import write_json
from finetune.runs.series import MemberResult, SeriesResult
from tests.support.compared_runs import NAMES, analysis, rows, write_run, write_series

ROWS = {"test": rows(["no", "yes"], ["no", "no"])}


def test_a_run_is_read_with_its_cost_and_heads(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", ROWS, heads=analysis([[1.0, 2.0], [3.0, 4.0]]))
    candidate = read_candidate(run)
    summary = candidate.summary()
    assert (candidate.splits(), candidate.label_names(), candidate.is_series) == (["test"], list(NAMES), False)
    assert (summary.seeds, summary.train_seconds, summary.trainable_parameters) == ([1], 10.0, 1234)
    # Without half of the 4 heads the score is the same, without three it falls from 0.9 to 0.5.
    assert (summary.head_method, summary.heads, summary.heads_needed) == ("x", 4, 2)
    assert read_candidate(write_run(tmp_path / "b", ROWS)).summary().heads_needed is None


def test_a_series_is_its_finished_runs(tmp_path: Path) -> None:
    series = read_candidate(write_series(tmp_path / "s", {10: ROWS, 2: ROWS}, unfinished=[3, 4]))
    summary = series.summary()
    assert (summary.seeds, summary.train_seconds) == ([10, 2], 60.0)
    assert (series.is_series, series.unfinished) == (True, [3, 4])
    write_json(tmp_path / "s" / "series.json", SeriesResult("accuracy", [MemberResult(3)]))
    with pytest.raises(DataError, match="is a series without a finished run; start its recipe again"):
        read_candidate(tmp_path / "s")
    (tmp_path / "s" / "series.json").write_text("{}")
    with pytest.raises(DataError, match=r"series\.json is damaged"):
        read_candidate(tmp_path / "s")


def test_an_unfinished_run_is_one_message(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", ROWS)
    (run / "training.json").unlink()
    with pytest.raises(DataError, match=r"no training\.json in .*; a finished run has one"):
        read_candidate(run)
    with pytest.raises(DataError, match=r"nowhere is not a finished run \(there is no such folder\)"):
        read_candidate(tmp_path / "nowhere")


def test_the_differing_keys_of_recipes(tmp_path: Path) -> None:
    full = write_run(tmp_path / "a", ROWS, seed=7)
    lora = write_run(tmp_path / "b", ROWS, seed=7, peft={"r": 4}, training={"learning_rate": 0.5})
    series = write_series(tmp_path / "s", {1: ROWS, 2: ROWS})
    differences = recipe_differences([read_candidate(path) for path in (full, lora, series)])
    assert differences["seed"] == ["7", "7", "1, 2"]
    assert differences["data.split_seed"] == ["7", "7", "1"]  # null means the seed
    assert differences["peft.r"] == ["–", "4", "–"]
    assert differences["peft.target_modules"][1] == "[query, key, value, output]"
    assert differences["training.learning_rate"][1] == "0.5"
    assert "output_dir" not in differences
    assert "peft.use_dora" not in differences  # false, as in a run without adapters
    same_rows = write_run(tmp_path / "c", ROWS, seed=1)
    assert "data.split_seed" not in recipe_differences([read_candidate(path) for path in (same_rows, series)])
    assert recipe_differences([read_candidate(full), read_candidate(full)]) == {}
