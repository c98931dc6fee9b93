from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune.heads.pruning import heads_to_prune, pruned_classifier
from finetune.models.attention_sites import attention_sites
from finetune.models.loading import load_classifier
from finetune.pipeline.choose_heads import PATIENCE, STEP, gated_rows, max_heads_within
from finetune.runs.head_results import HeadAnalysis
from finetune.runs.json_files import read_json
from tests.support.finished_runs import HEADS, LAYERS, SCRATCH, finished, read_back, recipe, rows
from tests.support.helpers import FLOAT32
from tests.support.pruning import accuracy, prune_run


def test_keep_within_prunes_as_many_heads_as_validation_rows_allow(run: Path) -> None:
    pruning = prune_run(run, "--keep-within", "0.05")
    finished_run = read_back(run)
    classifier = finished_run.inputs.classifier
    order = read_json(run / "heads.json", HeadAnalysis).methods[0].order
    tried: list[dict[int, list[int]]] = []
    for step in range(1, round(1 / STEP)):
        heads = heads_to_prune(order, attention_sites(classifier.base), step * STEP)
        if heads and heads not in tried:
            tried.append(heads)
    assert len(tried) == LAYERS * HEADS - LAYERS
    # The scores of models that are pruned, not gated.
    scores = [accuracy(finished_run, pruned_classifier(classifier, heads), "validation") for heads in tried]
    chosen = tried.index({int(layer): heads for layer, heads in pruning.heads.items()})
    minimum = accuracy(finished_run, classifier, "validation") - 0.05 - 1e-9
    assert scores[chosen] >= minimum
    assert chosen + 1 < len(tried)
    assert all(score < minimum for score in scores[chosen + 1 : chosen + 1 + PATIENCE])
    assert pruning.scores_after["validation"]["accuracy"] == pytest.approx(scores[chosen])


def test_keep_within_tolerates_a_short_drop(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished_run = read_back(run)
    sample = gated_rows(finished_run, "validation")
    order = read_json(run / "heads.json", HeadAnalysis).methods[0].order
    for scores, num_removed in (([0.8, 0.5, 0.7, 0.5, 0.5, 0.5], 3), ([0.8, 0.5, 0.5, 0.5, 0.9], 1), ([0.69], 0)):
        remaining_scores = iter([0.8, *scores, *[0.0] * 9])
        monkeypatch.setattr(
            "finetune.pipeline.choose_heads.scorer",
            lambda sample, metric, remaining_scores=remaining_scores: lambda gates: next(remaining_scores),
        )
        removed, unpruned_score = max_heads_within(sample, order, "accuracy", 0.1)
        assert (sum(map(len, removed.values())), unpruned_score) == (num_removed, 0.8)


def test_test_rows_do_not_influence_the_choice(run: Path) -> None:
    original = prune_run(run, "--keep-within", "0.05")
    order = read_json(run / "heads.json", HeadAnalysis).methods[0].order
    by_test, _ = max_heads_within(gated_rows(read_back(run), "test"), order, "accuracy", 0.05)
    assert (
        sum(map(len, by_test.values())) > sum(map(len, original.heads.values())) > 0
    )  # the test rows would allow more
    shutil.rmtree(run / "pruned")
    content = yaml.safe_load((run / "recipe.yaml").read_text())
    content["data"]["test_rows"] = rows(40, 3, flipped=True)
    (run / "recipe.yaml").write_text(yaml.safe_dump(content))
    flipped = prune_run(run, "--keep-within", "0.05")
    assert flipped.scores_before["test"]["accuracy"] == pytest.approx(1 - original.scores_before["test"]["accuracy"])
    assert flipped.heads == original.heads


def test_a_ranking_on_test_rows_is_replaced_by_one_on_training_rows(run: Path) -> None:
    analysis = json.loads((run / "heads.json").read_text())
    for method in analysis["methods"]:
        method["split"] = "test"
        method["order"] = method["order"][::-1]  # the reversed order would remove the most important heads first
    (run / "heads.json").write_text(json.dumps(analysis))
    content = yaml.safe_load((run / "recipe.yaml").read_text())
    content["head_importance"]["split"] = "test"
    (run / "recipe.yaml").write_text(yaml.safe_dump(content))
    pruning = prune_run(run, "--share", "0.5")
    assert "gradient on 48 train rows" in pruning.chosen_by
    order = [tuple(head) for head in analysis["methods"][0]["order"][::-1]]
    sites = attention_sites(load_classifier(run / "model").base)
    assert pruning.heads == {str(layer): heads for layer, heads in sorted(heads_to_prune(order, sites, 0.5).items())}


def test_a_method_is_read_from_the_analysis_or_measured(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def measure(sample: Any, method: str, **_: Any) -> Any:
        measured.append(method)
        return read_json(run / "heads.json", HeadAnalysis).methods[1]

    monkeypatch.setattr("finetune.pipeline.choose_heads.measure_importance", measure)
    assert "fisher on 48 train rows" in prune_run(run, "--share", "0.3", "--method", "fisher").chosen_by
    assert measured == []
    shutil.rmtree(run / "pruned")
    prune_run(run, "--share", "0.3", "--method", "entropy")
    assert measured == ["entropy"]


def test_a_lower_error_metric_is_better(tmp_path: Path) -> None:
    regression_rows = [{**row, "label": float(len(str(row["sentence"])))} for row in rows(24, 1)]
    content = recipe(
        SCRATCH,
        task={"problem_type": "regression"},
        data={"train_rows": regression_rows, "validation_rows": regression_rows, "test_rows": None},
        evaluation={"metrics": ["mean_squared_error"]},
        training={"num_train_epochs": 1},
        head_importance={"method": "gradient", "random_orders": 0},
    )
    del content["task"]["label_names"]
    run = finished(tmp_path, content)
    curves = read_json(run / "heads.json", HeadAnalysis).truth
    assert curves is not None
    pruning = prune_run(run, "--keep-within", "1000")
    assert sum(map(len, pruning.heads.values())) == LAYERS * HEADS - LAYERS
    error = pruning.scores_before["validation"]["mean_squared_error"]
    assert f"within 1000 of {error:.4f}, by gradient" in pruning.chosen_by  # not the negated error
    assert error == pytest.approx(-curves.whole, rel=FLOAT32)
