from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from finetune.errors import DataError
from finetune.runs.head_names import NamedHead
from finetune.runs.head_results import HeadAnalysis, HeadScores, HeadTable
from finetune.runs.json_files import write_json
from finetune.runs.results import MetricValue, SplitScores
from finetune.runs.run_files import existing_run, read_heads, read_history, read_recipe, read_scores, truncate_history
from finetune.runs.run_folder import RunFolder
from tests.support.known_run import full_analysis


def test_a_path_without_a_run_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, reason in (("file", "it is a file"), ("nowhere", "there is no such folder"), ("", "no recipe.yaml")):
        with pytest.raises(DataError, match=rf"is not a finished run \({reason}\); name the folder that `train` wrote"):
            existing_run(tmp_path / name)
    (tmp_path / "recipe.yaml").touch()
    assert existing_run(tmp_path).path == tmp_path


def test_an_incomplete_last_line_of_the_history_is_ignored(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.history.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": null}\n{"step": 3, "lo')
    assert read_history(folder) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": None}]


@pytest.mark.parametrize(("line", "reason"), [('{"loss": 1}', "line 2 has no step"), ('{"step": "x"}', "line 2: ")])
def test_an_invalid_line_of_the_history_is_damage(tmp_path: Path, line: str, reason: str) -> None:
    folder = RunFolder(tmp_path)
    folder.history.write_text(f'{{"step": 1}}\n{line}\n')
    with pytest.raises(DataError, match=rf"history\.jsonl is damaged or of another version \({reason}"):
        read_history(folder)


def test_the_history_after_a_step_is_removed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.history.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n')
    truncate_history(folder, 2)
    assert folder.history.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_scores_of_different_metrics_or_shapes_are_damage(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    one, other = (SplitScores(3, 0.1, {name: MetricValue(0.5)}) for name in ("accuracy", "f1_macro"))
    write_json(folder.scores, {"validation": one, "test": other})
    with pytest.raises(DataError, match="the metrics of test differ from those of the first split"):
        read_scores(folder)
    write_json(folder.scores, {"test": SplitScores(3, 0.1, {}, [], [[1]])})
    with pytest.raises(DataError, match="the confusion matrix of test is not 0 by 0"):
        read_scores(folder)


@pytest.mark.parametrize(
    ("values", "order", "reason"),
    [
        ([[1.0, 2.0], [3.0]], [], "the values are not a layers-by-heads table"),
        ([[1.0, 2.0]], [(0, 0), (0, 0)], "the order does not contain each head exactly once"),
        ([[1.0, 2.0]], [(0, 0), (0, 1), (0, 2)], "the order contains a head that the table does not have"),
    ],
)
def test_an_inconsistent_head_analysis_is_damage(
    tmp_path: Path, values: HeadTable, order: list[tuple[int, int]], reason: str
) -> None:
    folder = RunFolder(tmp_path)
    write_json(folder.heads, HeadAnalysis([HeadScores("gradient", "E|g|", "test", 9, values, values, order)]))
    with pytest.raises(DataError, match=reason):
        read_heads(folder)
    write_json(folder.heads, HeadAnalysis([]))
    with pytest.raises(DataError, match="methods: the list is empty"):
        read_heads(folder)


@pytest.mark.parametrize(
    ("named", "reason"),
    [
        (NamedHead(0, 0, "useless", 0.01, 0.0), "names: 'useless' is not one of essential, redundant, harmful, unused"),
        (
            NamedHead(0, 0, "redundant", 0.01, 0.0, (0, 5), 0.1),
            "with layer 0, head 5: the table does not have",
        ),
    ],
)
def test_a_wrong_name_of_a_head_is_damage(tmp_path: Path, named: NamedHead, reason: str) -> None:
    folder, analysis = RunFolder(tmp_path), full_analysis(1)
    assert analysis.names is not None
    table: HeadTable = [[0.1, 0.2]]
    scores = HeadScores("gradient", "E|g|", "test", 9, table, table, [(0, 0), (0, 1)])
    tables = dict.fromkeys(("effects", "effect_errors", "changes", "context_changes"), table)
    write_json(folder.heads, HeadAnalysis([scores], names=replace(analysis.names, named=[named], **tables)))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=reason):
        read_heads(folder)
    write_json(folder.heads, HeadAnalysis([scores], names=analysis.names))
    with pytest.raises(DataError, match="names: effects has another shape than the scores"):
        read_heads(folder)


def test_keys_that_did_not_exist_when_a_run_was_trained_are_off(tmp_path: Path) -> None:
    content: dict[str, dict[str, object]] = {
        "model": {"model_name_or_path": "x"}, "data": {"train_file": "x.csv", "validation_file": "y.csv"},
        "evaluation": {"eval_steps": 3},
    }  # fmt: skip
    folder = RunFolder(tmp_path)
    folder.recipe.write_text(yaml.safe_dump(content | {"output_dir": "x"}))
    recipe = read_recipe(folder, read_data=False)
    assert (recipe.model.pooling, recipe.model.classifier_init) == ("head", "random")
    assert (recipe.data.label_name_rows, recipe.data.validation_size) == (False, None)
    assert recipe.data.group_equal_texts is False  # so that the same rows are held out again
    assert (recipe.evaluation.best_model_tolerance, recipe.evaluation.early_stopping_patience) == (0, None)
    assert recipe.evaluation.eval_steps == 3
    content["data"] |= {"label_name_rows": True, "group_equal_texts": True}
    content["model"]["pooling"] = "mean"
    folder.recipe.write_text(yaml.safe_dump(content | {"output_dir": "x"}))
    recipe = read_recipe(folder, ["evaluation.best_model_tolerance=0.5"], read_data=False)
    assert (recipe.data.label_name_rows, recipe.model.pooling) == (True, "mean")
    assert recipe.data.group_equal_texts is True
    assert recipe.evaluation.best_model_tolerance == 0.5
