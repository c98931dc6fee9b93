from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from finetune.cli import main
from finetune.errors import DataError
from finetune.heads.pruning import heads_to_prune, pruned_classifier
from finetune.models.attention_sites import attention_sites
from finetune.models.classifier import Classifier
from finetune.models.comparison import logits_of
from finetune.models.loading import load_classifier
from finetune.pipeline.prune import prune
from finetune.runs.head_results import HeadAnalysis
from finetune.runs.json_files import read_json
from finetune.runs.pruning_result import PruningResult
from tests.support.finished_runs import HEADS, LAYERS, SCRATCH, contents, finished, recipe
from tests.support.helpers import FLOAT32, assert_equal_up_to_rounding
from tests.support.pruning import prune_run

TEXTS = [("the cat sat on the mat",), ("a dog chased it now",), ("clean floor",)]
CPU = torch.device("cpu")


def without_columns(classifier: Classifier, heads: dict[str, list[int]]) -> Tensor:
    """Return the logits of the unpruned model, adapters merged, with the heads' output-projection columns set to 0."""
    model = pruned_classifier(classifier, {})
    num_zeroed = 0
    for site in attention_sites(model.base):
        weight = model.base.get_submodule(site.output).weight
        assert isinstance(weight, Tensor)
        width = weight.shape[1] // site.num_heads
        for head in heads.get(str(site.layer), []):
            weight.data[:, head * width : (head + 1) * width] = 0
            num_zeroed += 1
    assert num_zeroed == sum(map(len, heads.values())) > 0
    return logits_of(model, TEXTS, CPU)


def test_a_pruned_model_computes_the_same_as_the_gated_model(run: Path) -> None:
    before = contents(run)
    pruning = prune_run(run, "--share", "0.5")
    order = read_json(run / "heads.json", HeadAnalysis).methods[0].order
    expected = heads_to_prune(order, attention_sites(load_classifier(run / "model").base), 0.5)
    assert pruning.heads == {str(layer): heads for layer, heads in sorted(expected.items())}
    assert pruning.share == 0.5
    assert "a share of 0.5 by gradient on 48 train rows" in pruning.chosen_by
    pruned = load_classifier(run / "pruned" / "model")
    assert [site.num_heads for site in attention_sites(pruned.base)] == [
        HEADS - len(pruning.heads.get(str(layer), [])) for layer in range(LAYERS)
    ]
    expected_logits = without_columns(load_classifier(run / "model"), pruning.heads)
    assert_equal_up_to_rounding(logits_of(pruned, TEXTS, CPU), expected_logits)  # sums over fewer columns
    assert pruning.difference < FLOAT32 * float(expected_logits.abs().max())
    assert pruning.before.parameters > pruning.after.parameters
    assert pruning.before.model_bytes > pruning.after.model_bytes
    assert pruning.scores_before["test"]["accuracy"] == pytest.approx(
        json.loads(before["scores.json"])["test"]["metrics"]["accuracy"]["value"]
    )
    assert pruning.scores_after.keys() == {"validation", "test"}
    assert pruning.scores_healed is None
    assert {name: text for name, text in contents(run).items() if not name.startswith("pruned")} == before


def test_a_pruned_model_with_adapters_loads_in_finetune_and_in_transformers(adapted_run: Path) -> None:
    pruning = prune_run(adapted_run, "--heads", "0.1,1.0,1.2")
    assert pruning.heads == {"0": [1], "1": [0, 2]}
    assert pruning.chosen_by == "by name: 0.1, 1.0, 1.2"
    original = load_classifier(adapted_run / "model")
    assert isinstance(original.model, peft.PeftModel)
    expected = without_columns(original, pruning.heads)
    pruned = load_classifier(adapted_run / "pruned" / "model")
    assert type(pruned.model).__name__ == "BertForSequenceClassification"
    # The order of merging adapters and removing columns differs.
    assert_equal_up_to_rounding(logits_of(pruned, TEXTS, CPU), expected)
    zeroed = AutoModelForSequenceClassification.from_pretrained(adapted_run / "pruned" / "zeroed").eval()
    inputs = AutoTokenizer.from_pretrained(adapted_run / "pruned" / "zeroed")(
        [text for (text,) in TEXTS], padding=True, return_tensors="pt"
    )
    assert zeroed.config.num_attention_heads == 3
    assert not zeroed.bert.encoder.layer[0].attention.self.query.weight[8:16].any()
    assert_equal_up_to_rounding(zeroed(**inputs).logits, expected)


@pytest.mark.parametrize("choice", [{}, {"method": "gradient"}, {"share": 0.5, "keep_within": 0.1}])
def test_exactly_one_way_to_choose_heads_is_needed(small_run: Path, choice: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="give one of speedup, keep_within, share and heads"):
        prune(small_run, **choice)


def test_the_pruning_result_is_returned_and_saved(run: Path) -> None:
    pruning = prune(run, heads=[(1, 3)], output=run.parent / "new" / "folder")
    file = run.parent / "new" / "folder" / "pruning.json"
    assert read_json(file, PruningResult) == pruning
    content = json.loads(file.read_text())
    new = ("requested_speedup", "remaining_heads", "remaining_neurons", "scores_cut", "scores_control", "metric")
    old = {key: value for key, value in content.items() if key not in (*new, "differences")}  # of an earlier version
    assert len(old) == len(content) - len(new) - 1
    (run.parent / "old.json").write_text(json.dumps(old))
    assert read_json(run.parent / "old.json", PruningResult).removed_text() == "Removed 1 head (12%)"
    assert {path.name for path in (run.parent / "new" / "folder").iterdir()} == {"model", "zeroed", "pruning.json"}
    assert [path.name for path in (run.parent / "new").iterdir()] == ["folder"]


@pytest.mark.parametrize(
    ("options", "printed"),
    [
        (["--share", "0"], "share is 0; it must be above 0 and below 1, as a share of all heads"),
        (["--share", "1.5"], "share is 1.5; it must be above 0"),
        (["--share", "-0.1"], "share is -0.1; it must be above 0"),
        (["--share", "nan"], "share is nan; it must be above 0"),
        (["--keep-within", "nan"], "keep_within is nan; it must be a difference in score, 0 or more"),
        (["--keep-within", "-1"], "keep_within is -1; it must be a difference"),
        (["--share", "0.5", "--heal", "-1"], "heal is -1; it must be a number of epochs, 0 or more"),
        (["--share", "0.5", "--no-control"], "no_control leaves out the control .* give it with heal, or remove it"),
        (
            ["--share", "0.01"],
            "nothing to prune: a share of 0.01 by gradient on 48 train rows; increase",
        ),
        (["--heads", "9.9"], "there is no layer 9; layers are 0 to 1"),
        (["--heads", "1.9"], "layer 1 has no head 9; its heads are 0 to 3"),
        (["--heads", "0.2,1.1,0.2"], "heads names 0.2 twice; name each head once"),
        (["--share", "0.5", "--method", "gradeint"], "method is 'gradeint'; it must be one of gradient, .*did you"),
        (
            ["--heads", "0.1", "--method", "gradient"],
            "method ranks the heads from which share prunes; give it with share, or remove it",
        ),
        (["--speedup", "2", "--method", "gradient"], "method ranks the heads from which share prunes"),
        (["--share", "0.5", "--heads-only"], "heads_only restricts speedup and keep_within; .* so remove it"),
        (["--speedup", "1"], "speedup is 1; it must be above 1: 2 means twice as fast as before"),
        (["--speedup", "nan"], "speedup is nan; it must be above 1"),
        (["--speedup", "inf"], "speedup is inf; it must be above 1"),
    ],
)
def test_a_mistake_gives_one_error_message_and_nothing_is_written(
    small_run: Path, capsys: pytest.CaptureFixture[str], options: list[str], printed: str
) -> None:
    before = contents(small_run)
    assert main(["prune", str(small_run), *options]) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    assert output.out in ("", "1 process, cpu\n")
    assert re.search(printed, output.err), output.err
    assert contents(small_run) == before
    assert not (small_run / "pruned").exists()


@pytest.mark.parametrize("heads", ["x", "0", "0.1.2", "", "0.1,"])
def test_a_malformed_list_of_heads_is_a_usage_error(
    small_run: Path, capsys: pytest.CaptureFixture[str], heads: str
) -> None:
    with pytest.raises(SystemExit) as error:
        main(["prune", str(small_run), "--heads", heads])
    assert error.value.code == 2
    assert f"'{heads}' is not a list of heads; write layer.head, such as 0.3,2.7" in capsys.readouterr().err


def test_an_output_folder_with_files_is_rejected(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = contents(tmp_path)
    for taken in (tmp_path / "taken", tmp_path / "file", run):
        assert main(["prune", str(run), "--share", "0.5", "--output", str(taken)]) == 2
        assert f"{taken} already exists and is not empty; name another folder with --output" in capsys.readouterr().err
    assert main(["prune", str(run), "--share", "0.5", "--output", str(tmp_path / "file" / "below")]) == 2
    assert "cannot be written: Not a directory; name another folder" in capsys.readouterr().err
    assert contents(tmp_path) == before
    (tmp_path / "empty").mkdir()
    assert main(["prune", str(run), "--share", "0.5", "--output", str(tmp_path / "empty")]) == 0


def test_a_failure_while_writing_leaves_no_files(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> float:
        assert (run / ".pruned.tmp" / "model").is_dir()  # half of the files are written
        raise RuntimeError("no space")

    monkeypatch.setattr("finetune.pipeline.prune.write_zeroed", fail)
    before = contents(run)
    with pytest.raises(RuntimeError, match="no space"):
        main(["prune", str(run), "--share", "0.5"])
    assert contents(run) == before
    assert not list(run.glob("*pruned*")) + list(run.glob(".*"))


def test_a_folder_without_a_finished_run_is_rejected(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "training.json").unlink()
    for folder, reason in ((run, "no training.json"), (tmp_path / "nowhere", "there is no such folder")):
        assert main(["prune", str(folder), "--share", "0.5"]) == 2
        assert f"{folder} is not a finished run ({reason})" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()


def test_a_run_without_validation_rows_or_analysis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = recipe(
        SCRATCH,
        data={"validation_rows": None, "test_rows": None},
        evaluation={"eval_strategy": "no"},
        training={"num_train_epochs": 1},
    )
    content["head_importance"] = None
    run = finished(tmp_path, content)
    before = contents(run)
    assert main(["prune", str(run), "--keep-within", "0.1"]) == 2
    assert "keep_within needs validation rows, and the run has none; use speedup or share" in capsys.readouterr().err
    assert contents(run) == before
    pruning = prune_run(run, "--share", "0.5", "--method", "gradient")
    assert "a share of 0.5 by gradient on 48 train rows" in pruning.chosen_by
    assert pruning.scores_before == pruning.scores_after == {}


def test_a_family_without_removable_heads_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {
        "vocab_size": 40, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16,
        "max_position_embeddings": 32, "embedding_size": 16, "head_ratio": 2, "conv_kernel_size": 3,
    }  # fmt: skip
    content = recipe(
        {"model_type": "convbert", "config_overrides": sizes},
        training={"num_train_epochs": 1},
        head_importance={"method": "gradient", "random_orders": 0, "curve_split": None},
    )
    run = finished(tmp_path, content)
    before = contents(run)
    assert main(["prune", str(run), "--share", "0.5"]) == 2
    assert "heads of a 'convbert' model can be masked, but not pruned:" in capsys.readouterr().err
    assert contents(run) == before
