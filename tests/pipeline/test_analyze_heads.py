from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import kendalltau

from finetune.cli import main
from finetune.pipeline.compare_heads import compare_heads
from finetune.runs.explanations import read_explanations
from finetune.runs.head_results import HeadAnalysis
from finetune.runs.json_files import read_json
from finetune.runs.run_folder import RunFolder
from tests.support.finished_runs import SCRATCH, contents, finished, recipe


@pytest.fixture(scope="module")
def other_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the small classifier with another seed."""
    return finished(tmp_path_factory.mktemp("other"), recipe(SCRATCH), "seed=5")


@pytest.fixture
def run(small_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_run, tmp_path / "a [1]" / "run"))


def analysis(run: Path) -> HeadAnalysis:
    return read_json(run / "heads.json", HeadAnalysis)


def test_a_run_is_analyzed_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(run)
    old = analysis(run)
    keys = ["method=[fisher, entropy]", "leave_one_out=true", "name_heads=true"]
    assert main(["heads", str(run), *(f"head_importance.{key}" for key in keys)]) == 0
    new = analysis(run)
    assert [scores.method for scores in new.methods] == ["fisher", "entropy"]
    assert new.methods[0].values == old.methods[1].values  # fisher was the second method before
    assert new.leave_one_out is not None
    assert len(new.leave_one_out.tests) == 8
    html = (run / "report.html").read_text()
    assert "Removing one head at a time" in html
    assert new.names is not None
    assert "Names of heads" in html
    assert "entropy" in html
    after = contents(run)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"README.md", "explanations.parquet", "heads.json", "report.html"}
    printed = capsys.readouterr().out
    assert "Head importance by fisher" in printed
    assert "Names of heads by tests on" in printed
    assert f"Report: {run / 'report.html'}" in printed


def test_a_run_without_an_analysis_gets_one(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text[: text.index("head_importance:")] + "head_importance: null\n")
    (run / "heads.json").unlink()
    assert main(["heads", str(run)]) == 2
    assert "has no head analysis; set a method, such as head_importance.method=gradient" in capsys.readouterr().err
    assert not (run / "heads.json").exists()
    assert main(["heads", str(run), "head_importance.method=gradient"]) == 0
    assert analysis(run).methods[0].method == "gradient"


def test_rows_are_explained_after_the_analysis(run: Path) -> None:
    predictions = pq.read_table(run / "predictions.parquet").to_pylist()
    explanations = read_explanations(RunFolder(run))
    assert explanations is not None
    by_row = {(row.split, row.row): row for row in explanations.rows}
    predicted = {(row["split"], row["row"]): row for row in predictions if row["split"] == "validation"}
    assert by_row.keys() == predicted.keys()
    assert [row.target for row in by_row.values()] == [predicted[key]["predicted"] for key in by_row]
    detailed = {key: row for key, row in by_row.items() if row.tokens is not None}
    assert len(detailed) == 3
    for key, row in detailed.items():
        assert row.tokens == predicted[key]["text"].split()
        assert row.score is not None
        assert 1 / (1 + np.exp(-row.score)) == pytest.approx(max(predicted[key]["probabilities"]), abs=1e-5)


def test_without_explained_rows_no_row_is_explained(run: Path) -> None:
    settings = [
        "head_importance.explained_rows=0",
        "head_importance.method=entropy",
        "head_importance.curve_split=null",
    ]
    assert main(["heads", str(run), *settings]) == 0
    assert read_explanations(RunFolder(run)) is None
    assert analysis(run).methods[0].method == "entropy"


def test_a_failed_explanation_does_not_lose_the_analysis(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no attention here")

    monkeypatch.setattr("finetune.heads.explain.attention_of", fail)
    assert main(["heads", str(run), "head_importance.method=entropy", "head_importance.curve_split=null"]) == 0
    warning = "Single rows could not be explained: RuntimeError: no attention here."
    assert analysis(run).warnings == [warning]
    assert warning in capsys.readouterr().out
    assert read_explanations(RunFolder(run)) is None  # those of the earlier analysis are removed


@pytest.mark.parametrize(
    ("changes", "printed"),
    [
        (["head_importance.method=[gradient, fishr]"], "given 'fishr'; must be .*did you mean 'fisher'"),
        (["head_importance.method=[{name: fisher, max_sample: 3}]"], "unknown key; did you mean 'max_samples'"),
        (
            ["head_importance.method={name: fisher, rows: 3}"],
            "unknown key; a method has name, max_samples, integration_",
        ),
        (["head_importance.max_cost=0"], "given 0; must be greater than 0"),
        (["head_importance.methode=gradient"], "head_importance.methode .*unknown key; did you mean 'method'"),
        (["=method"], "override '=method' does not have the form section.key=value"),
        (["task.label_names=[1, 0]"], "task cannot be changed: the run in .* was trained with it"),
        (["model.config_overrides.vocab_size=50"], "model.config_overrides cannot be changed"),
        (["seed=5"], "seed cannot be changed"),
        (["outputs.temperature=2"], "outputs cannot be changed in a finished run, since they are saved with the model"),
        (["head_importance.method=[gradient, gradient]"], "method is gradient, gradient; list each method once"),
        (["head_importance.split=nowhere"], "given 'nowhere'; must be"),
    ],
)
def test_a_wrong_override_changes_no_file(
    small_run: Path, capsys: pytest.CaptureFixture[str], changes: list[str], printed: str
) -> None:
    before = contents(small_run)
    assert main(["heads", str(small_run), *changes]) == 2
    output = capsys.readouterr()
    assert re.search(printed, output.err), output.err
    assert output.err.startswith("error: ")
    assert "Traceback" not in output.err
    assert output.out == ""
    assert contents(small_run) == before


def test_runs_of_different_seeds_are_compared(
    small_run: Path, other_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pair,) = compare_heads([small_run, other_run])
    first, second = (np.array(analysis(run).methods[0].values).ravel() for run in (small_run, other_run))
    assert pair.tau.value == pytest.approx(kendalltau(first, second).statistic)
    assert pair.tau.low is not None
    assert pair.tau.high is not None
    assert -1 <= pair.tau.low <= pair.tau.value <= pair.tau.high <= 1
    capsys.readouterr()
    assert main(["heads", str(small_run), str(other_run)]) == 0
    printed = capsys.readouterr().out
    assert "Kendall's tau between the runs' rankings by gradient, with 95 % intervals over heads" in printed
    assert f"{pair.tau.value:.2f} [{pair.tau.low:.2f}, {pair.tau.high:.2f}]" in printed


def test_runs_that_cannot_be_compared_are_rejected(
    small_run: Path, lora_run: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error_of(*runs: Path) -> str:
        assert main(["heads", *map(str, runs)]) == 2
        return capsys.readouterr().err

    assert "the runs have different numbers of layers or heads" in error_of(small_run, lora_run)
    assert "a run is named twice" in error_of(small_run, small_run)
    assert "nowhere is not a finished run (there is no such folder)" in error_of(small_run, run.parent / "nowhere")
    analysis_json = json.loads((run / "heads.json").read_text())
    analysis_json["methods"].reverse()
    (run / "heads.json").write_text(json.dumps(analysis_json))
    assert "the runs rank by fisher, gradient; analyze them with one method first" in error_of(small_run, run)


def test_several_runs_are_analyzed_again_and_compared(
    run: Path, other_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(other_run, tmp_path / "other"))
    before = contents(run)
    assert main(["heads", str(run), str(tmp_path / "nowhere"), "head_importance.method=entropy"]) == 2
    assert contents(run) == before
    capsys.readouterr()
    assert (
        main(["heads", str(run), str(other), "head_importance.method=entropy", "head_importance.curve_split=null"]) == 0
    )
    assert [scores.method for path in (run, other) for scores in analysis(path).methods] == ["entropy"] * 2
    assert "rankings by entropy" in capsys.readouterr().out


def test_a_ranking_without_test_rows_has_a_warning(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (run / "recipe.yaml").read_text()
    rows = text[text.index("  test_rows:") : text.index("  validation_size:")]
    (run / "recipe.yaml").write_text(text.replace(rows, "  test_rows: null\n"))
    assert main(["heads", str(run), "head_importance.curve_split=test"]) == 0
    assert "The ranking was not tested: there are no test rows" in capsys.readouterr().out
