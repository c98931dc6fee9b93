from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from finetune.cli import main
from finetune.heads.pruning import pruned_classifier
from finetune.heads.sublayers import HEADS, NEURONS
from finetune.models.attention_sites import attention_sites
from finetune.models.classifier import Classifier
from finetune.models.feed_forward_sites import feed_forward_sites
from finetune.models.loading import load_classifier
from finetune.pipeline.choose_sizes import choose_parts, fastest_within
from tests.support.finished_runs import contents, finished, read_back, recipe, rows
from tests.support.pruning import FIXED, PER_PART, accuracy, count_instead_of_timing, prune_run

LAYERS, NUM_HEADS, NUM_NEURONS = 2, 3, 32  # of the tiny BERT


def test_the_measured_speed_reaches_the_request(adapted_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count_instead_of_timing(monkeypatch, overhead=1.2)  # slower than the table predicts
    pruning = prune_run(adapted_run, "--speedup", "1.4")
    assert pruning.requested_speedup == 1.4
    assert 1.4 <= pruning.speedup() < 1.7
    assert "1.4 times the speed, heads and neurons by their effect on the logits of 48 train" in pruning.chosen_by
    pruned = load_classifier(adapted_run / "pruned" / "model")
    assert pruning.remaining_heads == [site.num_heads for site in attention_sites(pruned.base)]
    assert pruning.remaining_neurons == [site.num_neurons for site in feed_forward_sites(pruned.base)]
    assert sum(pruning.remaining_neurons) < LAYERS * NUM_NEURONS
    assert pruning.scores_after["test"]["accuracy"] == pytest.approx(accuracy(read_back(adapted_run), pruned, "test"))
    assert pruning.scores_cut is not None
    changes = {(item.first, item.second, item.split): item.value.value for item in pruning.differences}
    assert changes.keys() == {
        ("before", state, split) for state in ("cut", "after") for split in ("validation", "test")
    }
    before, after = (scores["test"]["accuracy"] for scores in (pruning.scores_before, pruning.scores_after))
    assert changes["before", "after", "test"] == pytest.approx((after or 0) - (before or 0))


def test_heads_only_keeps_all_neurons(adapted_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count_instead_of_timing(monkeypatch)
    pruning = prune_run(adapted_run, "--speedup", "1.1", "--heads-only")
    assert pruning.remaining_neurons == [NUM_NEURONS] * LAYERS
    assert sum(pruning.remaining_heads) < LAYERS * NUM_HEADS
    assert "times the speed, heads by" in pruning.chosen_by


@pytest.mark.parametrize("options", [["--speedup", "50"], ["--speedup", "3.5", "--heads-only"]])
def test_an_unreachable_speed_is_rejected_with_the_largest(
    adapted_run: Path, options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    count_instead_of_timing(monkeypatch)
    before = contents(adapted_run)
    assert main(["prune", str(adapted_run), *options]) == 2
    neurons = FIXED + LAYERS * NUM_NEURONS * PER_PART[NEURONS]
    whole = neurons + LAYERS * NUM_HEADS * PER_PART[HEADS]
    fastest = whole / (neurons if "--heads-only" in options else FIXED)
    expected = rf"speedup is [\d.]+; the largest that this model reaches is about {re.escape(f'{fastest:.2g}')}: choose"
    assert re.search(expected, capsys.readouterr().err)
    assert contents(adapted_run) == before


@pytest.mark.parametrize(("kind", "remains"), [(HEADS, NEURONS), (NEURONS, HEADS)])
def test_a_family_may_lose_only_heads_or_only_neurons(
    adapted_run: Path, kind: str, remains: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    count_instead_of_timing(monkeypatch)
    monkeypatch.setattr(f"finetune.pipeline.choose_sizes.why_{remains}_remain", lambda config: "they are shared")
    pruning = prune_run(adapted_run, "--speedup", "1.1")
    printed = " ".join(capsys.readouterr().out.split())
    assert f"Only {kind} are pruned. No {remains}, because they are shared." in printed
    assert f"times the speed, {kind} by" in pruning.chosen_by
    assert (sum(pruning.remaining_neurons) == LAYERS * NUM_NEURONS) == (kind == HEADS)
    assert (sum(pruning.remaining_heads) == LAYERS * NUM_HEADS) == (kind == NEURONS)


@pytest.mark.parametrize("limit", [1.5, 3.0, 16.0])
def test_the_fastest_model_within_the_tolerance_is_found(limit: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the search, whose models are their speeds."""
    monkeypatch.setattr("finetune.pipeline.choose_sizes._pruned", lambda search, kept: kept)
    monkeypatch.setattr("finetune.pipeline.choose_sizes._is_whole", lambda kept: False)
    latencies = SimpleNamespace(max_speedup=lambda: 16.0)
    search: Any = SimpleNamespace(classifier=1.0, latencies=latencies, kept_at=lambda speed: speed)
    kept, full_score = fastest_within(search, lambda speed: 0.8 if speed <= limit else 0.6, 0.1)
    assert full_score == 0.8
    assert kept == pytest.approx(limit, rel=0.05)  # six bisections
    exact, _ = fastest_within(search, lambda speed: 0.8 if speed == 1.0 else 0.7, 0.1)
    assert exact == pytest.approx(16.0, rel=0.05)  # 0.8 - 0.1 is above 0.7 in floating point
    nothing, _ = fastest_within(search, lambda speed: 0.8 if speed == 1.0 else 0.6, 0.1)
    assert nothing is None


def test_keep_within_is_chosen_by_validation_rows_and_not_by_test_rows(
    adapted_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count_instead_of_timing(monkeypatch)
    monkeypatch.setattr("finetune.pipeline.choose_sizes._BISECTIONS", 3)
    original = prune_run(adapted_run, "--keep-within", "0.05")
    finished_run = read_back(adapted_run)
    full_score = accuracy(finished_run, finished_run.inputs.classifier, "validation")
    assert (original.scores_after["validation"]["accuracy"] or 0) >= full_score - 0.05 - 1e-9
    assert original.speedup() > 1
    assert f"the fastest model with validation accuracy within 0.05 of {full_score:.4f}" in original.chosen_by
    shutil.rmtree(adapted_run / "pruned")
    content = yaml.safe_load((adapted_run / "recipe.yaml").read_text())
    content["data"]["test_rows"] = rows(40, 3, flipped=True)
    (adapted_run / "recipe.yaml").write_text(yaml.safe_dump(content))
    flipped = prune_run(adapted_run, "--keep-within", "0.05")
    before = [result.scores_before["test"]["accuracy"] or 0 for result in (original, flipped)]
    assert before[1] == pytest.approx(1 - before[0])
    assert (flipped.heads, flipped.remaining_neurons) == (original.heads, original.remaining_neurons)


def test_the_refit_brings_the_logits_nearer_to_those_of_the_full_model(
    adapted_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count_instead_of_timing(monkeypatch)
    finished_run = read_back(adapted_run)
    unpruned = pruned_classifier(finished_run.inputs.classifier, {})
    removal = choose_parts(finished_run, unpruned, {"speedup": 1.5})
    texts = [text for (text,) in finished_run.inputs.sample_texts(48)]

    def logits(classifier: Classifier) -> torch.Tensor:
        return torch.from_numpy(classifier.logits([texts], 64))

    full, cut = logits(unpruned), logits(pruned_classifier(unpruned, removal.heads, removal.neurons))
    assert (logits(removal.pruned) - full).square().mean() < 0.8 * (cut - full).square().mean()


def test_a_lower_error_metric_is_better(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    regression_rows = [{**row, "label": float(len(str(row["sentence"])))} for row in rows(24, 1)]
    content = recipe(
        {"model_name_or_path": str(tiny_bert)},
        task={"problem_type": "regression"},
        data={"train_rows": regression_rows, "validation_rows": regression_rows, "test_rows": None},
        evaluation={"metrics": ["mean_squared_error"]},
        training={"num_train_epochs": 1},
    )
    del content["task"]["label_names"]
    content["head_importance"] = None
    run = finished(tmp_path, content)
    count_instead_of_timing(monkeypatch)
    pruning = prune_run(run, "--keep-within", "1000", "--heal", "1")
    assert pruning.speedup() > 2
    error = pruning.scores_before["validation"]["mean_squared_error"]
    assert f"validation mean_squared_error within 1000 of {error:.4f}" in pruning.chosen_by  # not the negated error
    assert pruning.scores_healed is not None
    assert pruning.scores_control is not None
