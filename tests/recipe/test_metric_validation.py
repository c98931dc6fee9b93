"""Names of metrics in a recipe: tables, patterns, paths, names on the hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from finetune.errors import RecipeError
from finetune.recipe.loader import load_recipe
from finetune.recipe.metric_validation import metric_loading_problems, metric_problems
from finetune.recipe.validation import Problem

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


def _all(document: dict[str, Any]) -> list[Problem]:
    found = list(metric_problems(document))
    return found or list(metric_loading_problems(document))


def problems(metrics: list[str], best: str | None = None, problem_type: str = SINGLE) -> list[str]:
    evaluation = {"metrics": metrics, "metric_for_best_model": best}
    document = {"task": {"problem_type": problem_type}, "evaluation": evaluation}
    return [f"{'.'.join(map(str, problem.location))}: {problem.text}" for problem in _all(document)]


@pytest.mark.parametrize(
    ("problem_type", "metrics", "best"),
    [
        (SINGLE, ["accuracy", "roc_auc_ovr", "top_3_accuracy", "f0.5_macro"], "log_loss"),
        (MULTI, ["f1_micro", "average_precision", "f2_samples"], "hamming_loss"),
        (REGRESSION, ["r2", "root_mean_squared_error"], "median_absolute_error"),
        (SINGLE, ["log_loss"], "loss"),
    ],
)
def test_known_names(problem_type: str, metrics: list[str], best: str) -> None:
    assert problems(metrics, best, problem_type) == []


@pytest.mark.parametrize(
    ("metrics", "problem_type", "message"),
    [
        (["f1"], SINGLE, "choose the mean over classes that you mean: f1_macro, f1_micro, f1_weighted;"),
        (["precision_score"], MULTI, "precision_macro, precision_micro, precision_weighted, precision_samples;"),
        (["neg_log_loss"], SINGLE, "did you mean 'log_loss'?"),
        (["auroc"], SINGLE, "did you mean 'roc_auc'?"),
        (["rmse"], REGRESSION, "did you mean 'root_mean_squared_error'?"),
        (["top_k_accuracy"], SINGLE, "write the number of labels into the name, such as top_3_accuracy"),
        (["ballanced_accuracy"], SINGLE, "did you mean 'balanced_accuracy'?"),
        (["roc_auc"], REGRESSION, "regression has mean_squared_error,"),
        (
            ["rouge"],
            SINGLE,
            "downloads are turned off (HF_HUB_OFFLINE); without network .* has accuracy, .*evaluate.Metric",
        ),
        (["some-user/metric"], SINGLE, "downloads are turned off"),
        (["./cost.py"], SINGLE, "there is no file './cost.py' .*; correct the path"),
    ],
)
def test_other_names_have_a_hint(
    monkeypatch: pytest.MonkeyPatch, metrics: list[str], problem_type: str, message: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (problem,) = problems(metrics, None, problem_type)
    assert problem.startswith("evaluation.metrics.0: ")
    pattern = re.escape(message).replace(r"\.\*", ".*")
    assert re.search(pattern, problem), problem


def test_a_name_on_the_hub_is_valid_with_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    assert problems(["rouge", "some-user/metric"], "rouge") == []
    assert "did you mean 'accuracy'?" in problems(["acuracy"])[0]


def test_paths(tmp_path: Path) -> None:
    file, folder = tmp_path / "cost_error.py", tmp_path / "metric"
    file.write_text("")
    folder.mkdir()
    (problem,) = problems([str(folder)])
    assert f"the folder '{folder}' has no metric.py" in problem
    (folder / "metric.py").write_text("")
    assert problems([str(file), str(folder)], "cost_error") == []
    assert problems([str(folder)], "metric_largest") == []  # one of several values
    assert "must be one of accuracy," in problems([str(folder)], "cost_error")[0]
    (folder / "cost_error.py").write_text("")
    assert "would both be reported as 'cost_error'" in problems([str(file), str(folder / "cost_error.py")])[0]
    (tmp_path / "accuracy.py").write_text("")
    assert "would be reported as 'accuracy', which is another metric" in problems([str(tmp_path / "accuracy.py")])[0]


def test_paths_are_absolute_and_a_finished_run_does_not_need_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cost_error.py").write_text("")
    content = "output_dir: x\nmodel: {model_name_or_path: x}\ndata: {train_rows: [{a: b, label: c}]}\n"
    (tmp_path / "r.yaml").write_text(
        content + "evaluation: {metrics: [./cost_error.py, roc_auc], metric_for_best_model: cost_error}\n"
    )
    recipe = load_recipe(tmp_path / "r.yaml")
    assert recipe.evaluation.metrics == [str(tmp_path / "cost_error.py"), "roc_auc"]
    assert recipe.metric_names() == ("cost_error", "roc_auc")
    assert recipe.loaded_metrics() == {"cost_error": str(tmp_path / "cost_error.py")}
    assert recipe.toolkit_metrics() == ("accuracy",)
    trusted = recipe.without_loaded_metrics()
    assert (trusted.metric_names(), trusted.best_metric()) == (("roc_auc",), "roc_auc")
    (tmp_path / "cost_error.py").unlink()
    assert load_recipe(tmp_path / "r.yaml", read_data=False).best_metric() == "cost_error"
    with pytest.raises(RecipeError, match=r"evaluation.metrics.0 .*there is no file './cost_error.py'"):
        load_recipe(tmp_path / "r.yaml")
