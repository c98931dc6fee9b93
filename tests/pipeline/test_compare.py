"""The command `compare` and `report --compare` on runs with known predictions."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from finetune.cli import main
from finetune.pipeline.changed_rows import changed_rows
from finetune.pipeline.compare_runs import compare_runs
from finetune.runs.comparison import RunsComparison
from finetune.runs.json_files import read_json
from tests.support.compared_runs import analysis, rows, write_run, write_series
from tests.support.finished_runs import contents

LABELS = ["no", "yes"] * 20


def predicted(*wrong: int) -> dict[str, pa.Table]:
    """Return a test split in which the rows with these indices are wrong."""
    other = {"no": "yes", "yes": "no"}
    return {"test": rows(LABELS, [other[name] if index in wrong else name for index, name in enumerate(LABELS)])}


def test_runs_are_compared_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write_run(tmp_path / "first", predicted(0, 1, 2, 3, 4, 5), heads=analysis([[1.0, 2.0, 3.0, 4.0]]))
    second = write_run(tmp_path / "second", predicted(9), seed=2, heads=analysis([[1.0, 3.0, 2.0, 4.0]]))
    third = write_run(tmp_path / "third", predicted(0, 1, 2), heads=analysis([[1.0, 2.0, 3.0, 4.0]], method="y"))
    before = contents(first) | contents(second)
    output = tmp_path / "new" / "out"
    assert main(["compare", str(first), str(second), "--output", str(output), str(third)]) == 0
    printed = capsys.readouterr().out
    assert "+0.1250" in printed
    assert "6 rows gained, 1 lost; McNemar's exact test of right and wrong rows: p = 0.12" in printed
    assert f"Comparison: {output / 'comparison.html'}" in printed
    result = read_json(output / "comparison.json", RunsComparison)
    assert [run.name for run in result.runs] == ["first", "second", "third"]
    accuracy = result.pairs[0].splits["test"].metrics["accuracy"]
    assert (accuracy.first, accuracy.second, accuracy.difference.value) == (0.85, 0.975, pytest.approx(0.125))
    tests = [pair.splits["test"].test for pair in result.pairs]
    # p-values of 1 and 6, and of 0 and 3 changed rows, by hand. Holm: the smaller one times two.
    assert [test.p_value for test in tests if test] == [pytest.approx(16 / 128), pytest.approx(2 / 8)]
    assert [test.p_holm for test in tests if test] == [pytest.approx(0.25), pytest.approx(0.25)]
    assert result.pairs[0].head_agreement is not None
    assert result.pairs[0].head_agreement.value == pytest.approx(2 / 3)  # five of six pairs in order
    assert "different methods" in result.pairs[1].head_note
    assert result.recipe == {"seed": ["1", "2", "1"]}
    assert "2 comparisons with first: the p-values of each split are corrected for 2 comparisons (Holm)" in printed
    assert "The validation rows selected" not in printed  # they were not compared
    with (output / "changed_rows.csv").open(encoding="utf-8", newline="") as file:
        changed = list(csv.DictReader(file))
    assert [(row["run"], row["row"], row["change"]) for row in changed if row["run"] == "second"] == [
        *(("second", str(number), "gained") for number in range(1, 7)), ("second", "10", "lost"),
    ]  # fmt: skip
    row = {"text": "text 10", "label": "yes", "first_predicted": "yes", "predicted": "no"}
    assert changed[6] | row | {"first_right": "1.0", "right": "0.0"} == changed[6]
    assert contents(first) | contents(second) == before
    assert main(["compare", str(first), str(second), "--output", str(output)]) == 2
    assert "out already exists and is not empty; name another folder with --output" in capsys.readouterr().err


def test_a_series_is_compared_with_a_run_over_its_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", predicted(0, 1, 2, 3), heads=analysis([[1.0, 2.0, 3.0]]))
    seeds = {1: predicted(0, 7), 2: predicted(0, 1, 8), 3: predicted(1, 9)}
    series = write_series(tmp_path / "series", seeds, [4, 5], heads=analysis([[1.0, 2.0, 3.0]]))
    (pair,) = compare_runs([run, series]).comparison.pairs
    accuracy = pair.splits["test"].metrics["accuracy"]
    assert accuracy.second == pytest.approx(1 - 7 / 3 / 40)
    assert pair.splits["test"].test is not None
    assert pair.splits["test"].test.name == "t-test over seeds and rows"
    assert pair.head_agreement is not None
    assert (pair.head_agreement.value, pair.head_note) == (1, "mean of 3 pairs of seeds")
    # Two of three seeds are right in rows 3 and 4, one in rows 1 and 2.
    assert (pair.splits["test"].gained, pair.splits["test"].lost) == (2, 0)
    assert main(["compare", str(run), str(series)]) == 0
    printed = capsys.readouterr().out
    assert "One seed: run." in printed
    assert "series: the seeds 4, 5 are not finished, and not compared." in printed
    assert "Nothing was written; --output FOLDER writes a page, the results as JSON and 2 changed rows." in printed
    assert "1, 2, 3" in printed


def test_metrics_of_sklearn_and_loaded_ones_are_compared(tmp_path: Path) -> None:
    metrics = {"metrics": ["roc_auc", "./cost_error.py", "accuracy"], "bootstrap_samples": 100}
    paths = [write_run(tmp_path / name, predicted(0, 1), evaluation=metrics) for name in "ab"]
    for path, cost in zip(paths, (0.5, 0.3), strict=True):
        scores = json.loads((path / "scores.json").read_text())
        scores["test"]["metrics"] = {"cost_error": {"value": cost, "low": 0.1, "high": 0.6}}
        (path / "scores.json").write_text(json.dumps(scores))
    (pair,) = compare_runs(paths).comparison.pairs
    compared = pair.splits["test"].metrics
    assert list(compared) == ["roc_auc", "accuracy", "cost_error"]
    assert (compared["roc_auc"].first, compared["roc_auc"].difference.value) == (0.5, 0)  # all probabilities are equal
    cost = compared["cost_error"]
    assert (cost.first, cost.second, cost.difference.low) == (0.5, 0.3, None)
    assert cost.difference.value == pytest.approx(-0.2)


def test_multi_label_and_regression(tmp_path: Path) -> None:
    sets: Any = [["a", "b"], [], ["b"], ["a"]] * 5
    other: Any = [["b", "a"], ["a"], ["b"], []] * 5
    paths = [tmp_path / name for name in "abcd"]
    options = {"problem_type": "multi_label_classification", "names": ["a", "b"]}
    write_run(paths[0], {"validation": rows(sets, other)}, **options)
    write_run(paths[1], {"validation": rows(sets, sets)}, **options)
    compared = compare_runs(paths[:2])
    result = compared.comparison.pairs[0].splits["validation"]
    assert (result.metrics["subset_accuracy"].difference.value, result.gained) == (0.5, 10)
    assert (compared.changed[0].label, compared.changed[0].first_predicted) == ("none", "a")
    assert any("validation rows selected the checkpoint of a, b" in note for note in compared.comparison.notes)
    values = [float(value) for value in range(20)]
    write_run(paths[2], {"test": rows(values, [value + 1 for value in values])}, problem_type="regression")
    write_run(paths[3], {"test": rows(values, values)}, problem_type="regression")
    assert main(["compare", str(paths[2]), str(paths[3]), "--output", str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"comparison.html", "comparison.json"}
    document = json.loads((tmp_path / "out" / "comparison.json").read_text())
    difference = document["pairs"][0]["splits"]["test"]["metrics"]["mean_absolute_error"]["difference"]
    assert difference == {"value": -1.0, "low": None, "high": None, "note": ""}  # the same for every row


def test_a_split_with_other_rows_is_skipped_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = rows(LABELS, LABELS), rows(LABELS[:30], LABELS[:30], first=21)
    runs = [
        write_run(tmp_path / "a", {"validation": one, "test": one}),
        write_run(tmp_path / "b", {"validation": two, "test": one}),
    ]
    assert main(["compare", *map(str, runs)]) == 0
    counts = "rows only in a: 20, only in b: 10, in both with another label: 0"
    assert f"b: validation was not compared: {counts}." in capsys.readouterr().out
    write_run(tmp_path / "c", {"validation": two})
    assert main(["compare", str(runs[0]), str(tmp_path / "c")]) == 2
    printed = capsys.readouterr()
    counts = counts.replace("in b:", "in c:")
    assert f"error: a and c were scored on different rows (validation: {counts}); score them" in printed.err
    assert printed.out == ""
    seeds = write_series(tmp_path / "s", {1: {"test": one}, 2: {"test": two}})
    assert main(["compare", str(runs[0]), str(seeds)]) == 2
    assert "only in s: 10" in capsys.readouterr().err


def test_runs_that_cannot_be_compared_are_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(write_run(tmp_path / "run", predicted(0)))
    other = str(write_run(tmp_path / "other", {"validation": rows(LABELS, LABELS)}))
    values = [0.5] * 12
    regression = str(write_run(tmp_path / "r", {"test": rows(values, values)}, problem_type="regression"))
    labels = str(write_run(tmp_path / "l", {"test": rows(["x"] * 9, ["x"] * 9)}, names=["no", "x"]))
    twice = str(write_run(tmp_path / "t", {"test": pa.concat_tables([*predicted().values()] * 2)}))
    unknown = str(write_run(tmp_path / "u", {"test": rows(LABELS, ["?"] * 40)}))
    cases = {
        (run,): "compare needs at least two runs or series, and got",
        (run, f"{run}/."): "a run is named twice; name each run once",
        (run, str(tmp_path)): "is not a finished run (no recipe.yaml)",
        (run, other): "different splits: run on test, other on validation; score them on the same rows with",
        (run, regression): "r is a regression, and run a single_label_classification; compare runs of the same",
        (run, labels): "run and l have different labels (only one of them has x, yes); compare runs with",
        (run, twice): "predictions.parquet is damaged or of another version (a test row occurs twice)",
        (run, unknown): "(column predicted has the unknown label '?')",
        (run, other, "training.seed=1"): "compare reads finished runs as they are, and got training.seed=1",
    }
    for arguments, message in cases.items():
        assert main(["compare", *arguments, "--output", str(tmp_path / "out")]) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith("error: ")
        assert message in printed.err
        assert printed.out == ""
    assert not (tmp_path / "out").exists()


def test_report_writes_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "a", predicted(0, 1)), write_run(tmp_path / "b", predicted(0))
    assert main(["report", "a", "--compare", "b"]) == 0
    assert capsys.readouterr().out == f"Comparison: {tmp_path / 'comparison.html'}\n"
    assert main(["report", "--compare", "a", "b", "--output", "page.html"]) == 0
    assert (tmp_path / "page.html").read_bytes() == (tmp_path / "comparison.html").read_bytes()
    for arguments, message in {
        ("--compare", "a", "b", "--output", "page.txt"): "the name of a page must end in .html",
        ("--compare", "a", "b", "--output", "nowhere/page.html"): "there is no folder",
        ("--compare", "a"): "compare needs at least two runs",
        ("--compare", "a", "b", "seed=1"): "report --compare reads finished runs as they are, and got seed=1",
        ("a", "b"): "several runs and --output need --compare",
        ("a", "--output", "x.html"): "several runs and --output need --compare",
    }.items():
        assert main(["report", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "comparison.html", "page.html"]


def test_the_prediction_of_a_series_is_the_most_frequent_one() -> None:
    models = [np.array([1]), np.array([0]), np.array([0])]
    table = rows(["no"], ["no"]).append_column("split", pa.array(["test"]))
    (row,) = changed_rows("b", table, ([np.array([1])], models), np.array([0]), ["no", "yes"])
    assert (row.predicted, row.first_predicted, row.change) == ("no", "yes", "gained")
    assert row.right == pytest.approx(2 / 3)
