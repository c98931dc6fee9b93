"""The complete head analysis, on classifiers of each problem type."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator

from finetune.data.rows import RawSplit
from finetune.data.tokenization import EncodedSplit, encode_split
from finetune.heads.ablation import ablation
from finetune.heads.analysis import AnalysisSettings, analyze_heads, leave_one_out, separate_rows, untested, warnings
from finetune.heads.gated_forward import GatedRows
from finetune.models.building import Labels, pretrained_classifier
from finetune.models.classifier import Classifier
from finetune.models.head_pruning import prune_heads
from finetune.models.losses import decisions
from finetune.models.pretrained import Source, load_tokenizer
from finetune.recipe.evaluation_section import HeadImportanceSection
from finetune.runs.head_results import (
    HeadAnalysis,
    HeadScores,
    LeaveOneOut,
    PruningCurve,
    PruningCurves,
    RandomBand,
    TauValue,
)
from finetune.runs.json_files import read_json, write_json
from tests.support.forked import forked
from tests.support.helpers import encoded, in_float64, tiny_classifier
from tests.support.known_head import THE_HEAD, known_head

WORDS = ["the", "cat", "sat", "on", "mat", "dog", "chased", "floor", "is", "clean", "a", "now"]
METRIC = {
    "single_label_classification": "accuracy",
    "multi_label_classification": "subset_accuracy",
    "regression": "mean_squared_error",
}


def labels_of(problem_type: str, rows: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    if problem_type == "regression":
        return rng.normal(size=rows)
    if problem_type == "multi_label_classification":
        return rng.integers(0, 2, size=(rows, 3))
    return np.arange(rows) % 3


def case(tiny_bert: Path, problem_type: str, rows: int = 20) -> tuple[Classifier, EncodedSplit]:
    torch.manual_seed(0)
    source = Source(str(tiny_bert))
    classifier = pretrained_classifier(
        source,
        load_tokenizer(source),
        Labels(("value",) if problem_type == "regression" else ("a", "b", "c"), problem_type),
        max_length=16,
        lora=None,
    )
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, int(rng.integers(2, 9)))) for _ in range(rows)]
    raw = RawSplit(datasets.Dataset.from_dict({"sentence": texts}), "rows")
    labels = labels_of(problem_type, rows)
    return classifier, encode_split(raw, labels, classifier.tokenizer, ["sentence"], 16)


def section_with(**changes: object) -> HeadImportanceSection:
    methods = ["gradient", "integrated_gradients", "random"]
    return HeadImportanceSection(**{"method": methods, "leave_one_out": True, "random_orders": 2} | changes)  # type: ignore[arg-type]


def analyze(
    classifier: Classifier, splits: dict[str, EncodedSplit], section: HeadImportanceSection, metric: str = "accuracy"
) -> HeadAnalysis:
    accelerator = Accelerator(cpu=True)
    return analyze_heads(classifier, splits, section, AnalysisSettings(metric, batch_size=4, seed=3), accelerator)


@pytest.mark.parametrize("problem_type", METRIC)
def test_all_parts_for_each_problem_type(tiny_bert: Path, tmp_path: Path, problem_type: str) -> None:
    classifier, split = case(tiny_bert, problem_type)
    splits = {"train": split, "validation": split}
    result = analyze(classifier, splits, section_with(name_heads=True), METRIC[problem_type])
    assert [scores.method for scores in result.methods] == ["gradient", "integrated_gradients", "random"]
    assert [scores.rows for scores in result.methods] == [20, 20, 0]
    assert [len(scores.order) for scores in result.methods] == [6, 6, 6]
    assert result.truth is not None
    assert [curve.method for curve in result.truth.curves] == ["gradient", "integrated_gradients", "random"]
    assert (result.truth.metric, result.truth.split, result.truth.rows) == (METRIC[problem_type], "validation", 20)
    pairs = [("gradient", "integrated_gradients"), ("gradient", "random"), ("integrated_gradients", "random")]
    assert [(pair.first, pair.second) for pair in result.agreement] == pairs
    assert result.leave_one_out is not None
    assert len(result.leave_one_out.tests) == 6
    assert result.leave_one_out.rows == 20
    assert result.names is not None
    assert (result.names.rows, result.names.screening_rows, result.names.split) == (20, 20, "validation")
    assert sum("most heads stay undecided" in warning for warning in result.warnings) == 1
    assert result.changes is not None
    assert result.changes_agreement is not None
    write_json(tmp_path / "heads.json", result)
    assert read_json(tmp_path / "heads.json", HeadAnalysis) == result


@pytest.mark.parametrize("problem_type", METRIC)
def test_leave_one_out_counts_are_those_of_each_row(tiny_bert: Path, problem_type: str) -> None:
    classifier, split = case(tiny_bert, problem_type)
    sample = GatedRows(in_float64(classifier), split, "validation", np.arange(20), 4, Accelerator(cpu=True))
    result, logits = leave_one_out(sample, 0), ablation(sample, fast=False)
    assert len(result.tests) == 6
    measures = {"single_label_classification": "accuracy", "multi_label_classification": "subset_accuracy"}
    assert result.measure == measures.get(problem_type, "mean squared error")
    with_all_heads = decisions(torch.from_numpy(logits.full), problem_type).numpy()
    for test in result.tests:
        without = decisions(torch.from_numpy(logits.without[:, test.layer, test.head]), problem_type).numpy()
        if problem_type == "regression":
            before, after = ((values - split.labels) ** 2 for values in (with_all_heads, without))
            assert test.change == pytest.approx((after - before).mean(), rel=1e-4, abs=1e-7)
            continue
        before, after = ((ids == split.labels).reshape(20, -1).all(1) for ids in (with_all_heads, without))
        assert (test.lost, test.gained) == ((before & ~after).sum(), (~before & after).sum())
    assert sum(test.lost + test.gained for test in result.tests) > 0


@pytest.mark.parametrize("removed", [[1, 2], [0, 1, 2]])
def test_layers_with_different_numbers_of_heads(tiny_bert: Path, tmp_path: Path, removed: list[int]) -> None:
    classifier, split = case(tiny_bert, "single_label_classification")
    prune_heads(classifier.base, {0: removed})
    heads = [(0, head) for head in range(3 - len(removed))] + [(1, 0), (1, 1), (1, 2)]
    result = analyze(replace(classifier, source=None), {"train": split, "validation": split}, section_with())
    for scores in result.methods:
        assert sorted(scores.order) == heads
        assert scores.values[0].count(None) == len(removed)
    assert result.leave_one_out is not None
    assert [(test.layer, test.head) for test in result.leave_one_out.tests] == heads
    write_json(tmp_path / "heads.json", result)
    assert read_json(tmp_path / "heads.json", HeadAnalysis) == result


@pytest.mark.parametrize("max_samples", [None, 3, 100])
@pytest.mark.parametrize("rows", [2, 7, 40])
def test_rows_of_one_split_are_used_for_ranking_or_testing(max_samples: int | None, rows: int) -> None:
    split = known_head(rows).split
    section = section_with(split="validation", curve_split="validation", max_samples=max_samples, curve_samples=None)
    ranked, unseen = separate_rows({"validation": split}, section, seed=0)
    assert not set(ranked) & set(unseen)
    assert set(ranked) | set(unseen) == set(range(rows))
    assert len(ranked) == min(max_samples or rows, rows // 2)
    smaller_section = section.model_copy(update={"curve_samples": 1})
    ranked_again, single_unseen = separate_rows({"validation": split}, smaller_section, seed=0)
    assert (list(ranked_again), len(single_unseen)) == (list(ranked), 1)
    assert set(single_unseen) <= set(unseen)


def test_rows_are_sampled_from_each_of_two_splits() -> None:
    train, validation = known_head(30).split, known_head(12).split
    section = section_with(max_samples=10, curve_samples=5)
    ranked, unseen = separate_rows({"train": train, "validation": validation}, section, seed=0)
    assert (len(set(ranked)), len(set(unseen))) == (10, 5)
    assert max(ranked) > 11 >= max(unseen)
    ranked, unseen = separate_rows({"train": train}, section, seed=0)
    assert (len(ranked), len(unseen)) == (10, 0)


def test_the_analysis_identifies_the_known_head(tmp_path: Path) -> None:
    sample = known_head(64)
    section = section_with(split="validation", curve_split="validation")
    result = analyze(sample.classifier, {"validation": sample.split}, section)
    assert result.methods[0].order[-1] == THE_HEAD
    assert result.truth is not None
    assert result.truth.random is not None
    assert (result.methods[0].rows, result.truth.rows) == (32, 32)
    assert result.truth.curves[0].mean > result.truth.random.mean
    assert result.leave_one_out is not None
    (known,) = [test for test in result.leave_one_out.tests if test.lost]
    assert (known.layer, known.head, known.lost, known.gained) == (
        *THE_HEAD,
        7,
        0,
    )
    assert known.p_holm == pytest.approx(4 * 2 * 0.5**7)  # four heads, two-sided, seven changed rows
    assert result.changes is None  # it has no base checkpoint


def test_a_ranking_that_was_not_tested_gives_a_warning() -> None:
    sample = known_head(6)
    result = analyze(sample.classifier, {"train": sample.split}, section_with())
    assert (result.truth, result.leave_one_out) == (None, None)
    assert result.warnings[0] == (
        "The ranking was not tested: there are no validation rows, and leave-one-out was skipped; "
        "give some (such as data.validation_file)."
    )
    splits = {"train": sample.split, "test": sample.split}
    result = analyze(sample.classifier, splits, section_with(leave_one_out=False))
    assert result.warnings[0].endswith(
        "no validation rows; give some (such as data.validation_file), or name another split as "
        "head_importance.curve_split (test)."
    )
    section = section_with(split="train", curve_split="train")
    result = analyze(known_head(1).classifier, {"train": known_head(1).split}, section)
    assert result.warnings[0].startswith("The ranking was not tested: the only row of train ranks the heads")
    assert untested({"train"}, section_with(curve_split=None, leave_one_out=False), 0) == []
    assert untested({"train", "validation"}, section_with(), 5) == []


def test_warnings_about_the_ranking() -> None:
    scores = HeadScores("gradient", "", "train", 9, [], [], [], stability=TauValue(0.2, 0.1, 0.3))
    band = RandomBand(2, [0.7, 0.6], [0.6, 0.5], [0.8, 0.7], 0.65, 0.05, 0.7)

    def curves(*values: float) -> PruningCurves:
        curve = PruningCurve("gradient", list(values), float(np.mean(values)))
        return PruningCurves("accuracy", "validation", 9, 0.8, [0.1, 0.5], [curve], band)

    messages = warnings([scores], curves(0.7, 0.69), None)
    assert len(messages) == 2
    assert "keeps accuracy at 0.695 on average, no better than the best of 2 random orders (0.700)" in messages[0]
    assert "tau 0.20 [0.10, 0.30]): raise head_importance.max_samples" in messages[1]
    stable_scores = replace(scores, stability=TauValue(0.9, 0.8, 1.0))
    assert warnings([stable_scores], curves(0.79, 0.78), None) == []
    (message,) = warnings([stable_scores], curves(0.79, 0.82), LeaveOneOut("validation", 9, "accuracy", []))
    assert message.startswith("With 50% of the heads removed, accuracy is 0.820, above 0.800 with all")


SCRIPT = """
import sys
from pathlib import Path
import datasets
from accelerate import Accelerator
from finetune.heads.analysis import AnalysisSettings, analyze_heads
from finetune.recipe.evaluation_section import HeadImportanceSection
from finetune.runs.json_files import write_json
from tests.support.known_head import known_head
datasets.disable_progress_bars()
accelerator = Accelerator(cpu=True)
section = HeadImportanceSection(
    method=["gradient", "learned_order", "iterative_ablation_kl"], split="validation", curve_split="validation",
    leave_one_out=True, random_orders=1,
)
sample = known_head(48)
found = analyze_heads(
    sample.classifier, {"validation": sample.split}, section,
    AnalysisSettings("accuracy", batch_size=4, seed=3), accelerator,
)
write_json(Path(sys.argv[1]) / f"{accelerator.num_processes}-{accelerator.process_index}.json", found)
"""


def test_two_processes_give_the_same_analysis_as_one(tmp_path: Path) -> None:
    script = tmp_path / "analyze.py"
    script.write_text(SCRIPT)
    for processes in (1, 2):
        done = forked([script, tmp_path], tmp_path, processes)
        assert done.returncode == 0, done.stdout + done.stderr
    analyses = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1")]
    for analysis in analyses:
        for scores in analysis["methods"]:
            assert scores.pop("seconds") > 0
    single, first, second = analyses
    assert len(single["methods"]) == 3
    assert single == first == second  # the batches are the same, so the results are bit-identical


def test_a_missing_base_disables_only_the_weight_changes(tiny_bert: Path, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(tiny_bert, tmp_path / "base")
    classifier = tiny_classifier(checkpoint)
    shutil.rmtree(checkpoint)
    split = encoded(classifier)
    result = analyze_heads(
        classifier,
        {"train": split, "validation": split},
        HeadImportanceSection(method="gradient"),
        AnalysisSettings("accuracy", batch_size=6, seed=0),
        Accelerator(cpu=True),
    )
    assert result.changes is None
    assert result.changes_agreement is None
    assert result.truth is not None
    assert "How training changed the heads could not be measured: cannot load model" in result.warnings[-1]
