from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from finetune.demo.opened_model import open_model
from finetune.errors import DataError
from finetune.heads.pruning import pruned_classifier
from finetune.models.saving import save_classifier
from finetune.pipeline.load_classifier import load_classifier
from finetune.runs.json_files import write_json
from finetune.runs.pruning_result import PruningResult
from finetune.runs.results import ModelCost
from finetune.runs.run_files import read_heads
from finetune.runs.run_folder import RunFolder
from finetune.runs.series import MemberResult, SeriesResult
from tests.support.finished_runs import HEADS, LAYERS


def test_a_run_and_its_model_folder_have_rankings_and_examples(small_run: Path) -> None:
    for path, name in ((small_run, "run"), (small_run / "model", "run/model")):
        opened = open_model(path)
        assert (opened.name, opened.num_heads, opened.no_rankings) == (name, [HEADS] * LAYERS, "")
        methods = read_heads(RunFolder(small_run)).methods
        assert [(each.method, each.order) for each in opened.rankings] == [
            (each.method, each.order) for each in methods
        ]
        assert len(opened.examples) >= 8
        assert {len(row.texts) for row in opened.examples} == {1}
        assert not opened.reads_pairs
        assert not any(parameter.requires_grad for parameter in opened.classifier.model.parameters())


def test_a_model_outside_a_run_or_without_an_analysis_says_why_there_is_no_ranking(
    small_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(small_run / "model", tmp_path / "alone")
    opened = open_model(tmp_path / "alone")
    assert (opened.name, opened.rankings, opened.examples) == ("alone", [], [])
    assert opened.no_rankings == "the model is not in a run folder"
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    (run / "heads.json").unlink()
    (run / "predictions.parquet").unlink()
    opened = open_model(run)
    assert (opened.no_rankings, opened.examples) == ("run has no heads.json; `finetune heads` writes it", [])
    (run / "heads.json").write_text("[1]")
    with pytest.raises(DataError, match=r"heads\.json is damaged"):
        open_model(run)


def test_a_series_has_the_rankings_of_the_run_whose_model_it_has(small_run: Path, tmp_path: Path) -> None:
    series = tmp_path / "series"
    shutil.copytree(small_run, series / "seed-4")
    shutil.copytree(small_run / "model", series / "model")
    members = [MemberResult(3, "failed"), MemberResult(4, "finished")]
    write_json(series / "series.json", SeriesResult("accuracy", members, chosen_seed=4))
    for path, name in ((series, "series"), (series / "model", "series/model"), (series / "seed-4", "seed-4")):
        opened = open_model(path)
        assert (opened.name, opened.no_rankings) == (name, "")
        assert opened.rankings[0].order == read_heads(RunFolder(small_run)).methods[0].order


def test_the_ranking_of_a_pruned_model_is_that_of_its_run_in_new_numbers(small_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    removed = {0: [1], 1: [0, 3]}
    save_classifier(pruned_classifier(load_classifier(run), removed), run / "pruned" / "model")
    assert open_model(run / "pruned").no_rankings == (
        "the heads.json of run is of a model with other heads; run `finetune heads` again"
    )
    cost = ModelCost(1, 1, 1.0)
    heads = {str(layer): numbers for layer, numbers in removed.items()}
    result = PruningResult("by name", heads, 0.4, 0.0, {}, {}, 0, None, cost, cost)
    write_json(run / "pruned" / "pruning.json", result)
    original = read_heads(RunFolder(run)).methods[0].order
    kept = {(0, 0): (0, 0), (0, 2): (0, 1), (0, 3): (0, 2), (1, 1): (1, 0), (1, 2): (1, 1)}
    for path in (run / "pruned", run / "pruned" / "model"):
        opened = open_model(path)
        assert opened.num_heads == [3, 2]
        assert opened.rankings[0].order == [kept[head] for head in original if head in kept]
