"""The model card: front matter that the hub's own parser reads, and every part of the text."""

from __future__ import annotations

import ast
import json
import shlex
from collections.abc import Sequence
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from finetune.recipe.names import METRICS
from finetune.recipe.schema import Recipe
from finetune.report.card import escape_markdown, half_removed, render_card, significant_heads
from finetune.report.card_metadata import CardSubject
from finetune.report.run_record import RunRecord
from finetune.runs.head_results import (
    HeadAnalysis,
    HeadScores,
    HeadTest,
    LeaveOneOut,
    PruningCurve,
    PruningCurves,
    RandomBand,
)
from finetune.runs.predictions import PredictedRow
from finetune.runs.results import (
    ClassScores,
    Environment,
    MetricValue,
    SplitScores,
    SplitSummary,
    TrainingResult,
    TrainingSpeed,
)
from tests.support.baselines import COMPARISON

HEADS = HeadAnalysis(
    [HeadScores("gradient", "E|g|", "train", 40, [[0.5, 0.25]], [[0.1, None]], [(0, 1), (0, 0)])],
    PruningCurves(
        "accuracy", "validation", 30, 0.9, [0.1, 0.5, 0.9], [PruningCurve("gradient", [0.9, 0.8, 0.5], 0.7)],
        RandomBand(3, [0.8, 0.7, 0.5], [0.8, 0.6, 0.5], [0.9, 0.75, 0.5], 0.6, 0.1, 0.7),
    ),
    leave_one_out=LeaveOneOut(
        "validation", 30, "accuracy",
        [HeadTest(0, 0, -0.1, -0.2, -0.05, 5, 1, 0.001, 0.002), HeadTest(0, 1, 0.0, -0.1, 0.1, 1, 1, 1.0, 1.0)],
    ),
    warnings=["The ranking is unstable."],
)  # fmt: skip
ROWS = [PredictedRow("test", 1, "a | b\n<c>", "no", "no", 0.75, 0.1), PredictedRow("test", 2, "d", "no", "yes", 0.6, 2)]


def cell(value: float | None) -> MetricValue:
    return MetricValue(value) if value is None else MetricValue(value, value - 0.05, value + 0.05)


def record(problem_type: str = "single_label_classification", **sections: object) -> RunRecord:
    """Return the results of a run with known values; `sections` replace sections of its recipe."""
    recipe = Recipe.model_validate(
        {
            "output_dir": "/home/me/runs/a",
            "model": {"model_name_or_path": "google/bert", "revision": "v2"},
            "task": {"problem_type": problem_type},
            "data": {"dataset_name": "team/films", "dataset_config_name": "en", "test_split": "held_out"},
            **sections,
        }
    )
    metrics: dict[str, MetricValue] = {name: cell(0.875) for name in METRICS[problem_type]}
    classes = [ClassScores(name, cell(0.7), cell(0.8), cell(0.75), 20) for name in ("no", "yes")]
    history: Sequence[dict[str, int | float | None]] = [
        {"step": 5, "epoch": 0.5, "loss": 0.7},
        {"step": 10, "epoch": 1.0, "eval_loss": 0.6, "eval_accuracy": 0.8},
        {"step": 20, "epoch": 2.0, "eval_loss": 0.5, "eval_accuracy": None},
    ]
    speed = TrainingSpeed(12.3, 45.6, 1000.0, 0.05, 200.0, 900.0)
    counts = {"no": 10, "yes": 30}
    return RunRecord(
        recipe=recipe,
        environment=Environment(
            "2026-01-02T03:04:05+00:00", "1.0", {"torch": "2.13"}, "3.11", "NVIDIA X", 2, "bf16", 1
        ),
        data={"train": SplitSummary(1234, counts, 7.0, 12, 0.125), "test": SplitSummary(40, counts, 7.0, 12, 0.0, 3)},
        history=list(history),
        training=TrainingResult(20, 10, "accuracy", 0.8, "all epochs done", 1234, 56789, "float32", speed, ["A note."]),
        scores={"validation": SplitScores(30, 0.6, metrics, classes), "test": SplitScores(40, 0.4, metrics, classes)},
        heads=HEADS,
        head_note="",
        worst=ROWS[1:],
        examples=ROWS,
    )


def subject(**changes: object) -> CardSubject:
    return replace(CardSubject("films", "model", has_adapter=False), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("problem_type", METRICS)
def test_the_hub_reads_every_value_of_the_front_matter(problem_type: str) -> None:
    published = subject(repository="me/films", languages=("en", "de"), license="mit")
    data = ModelCard(render_card(record(problem_type), published)).data
    assert (data.base_model, data.datasets, data.library_name) == ("google/bert", ["team/films"], "transformers")
    assert (data.pipeline_tag, data.language, data.license) == ("text-classification", ["en", "de"], "mit")
    assert data.tags == ["finetune", problem_type.replace("_", "-")]
    assert data.model_name == "films"
    expected = [
        (split, metric.hub_name, name.replace("_", " "), 0.875)
        for split in ("validation", "held_out")
        for name, metric in METRICS[problem_type].items()
    ]
    results = data.eval_results
    assert results is not None
    assert [(r.dataset_split, r.metric_type, r.metric_name, r.metric_value) for r in results] == expected
    assert {(r.task_type, r.dataset_type, r.dataset_config) for r in results} == {
        ("text-classification", "team/films", "en")
    }
    assert set(data.metrics or ()) == {metric for _, metric, _, _ in expected}


def test_local_data_and_models_have_no_id_on_the_hub() -> None:
    local = record(
        model={"model_name_or_path": "/home/me/tiny"},
        data={"train_file": "/home/me/train.csv", "test_file": "C:\\data\\test.csv"},
        peft={"r": 4},
    )
    text = render_card(local, subject(has_adapter=True))
    data = ModelCard(text).data
    assert (data.base_model, data.datasets, data.library_name) == (None, None, "peft")
    assert {(r.dataset_type, r.dataset_split) for r in data.eval_results or ()} == {
        ("unknown", "validation"), ("unknown", "test"),
    }  # fmt: skip
    assert "trained from the local checkpoint `tiny`\nwith LoRA adapters of rank 4 on" in text
    assert "local files (`train.csv`, `test.csv`)" in text
    assert "/home/me" not in text


def test_undefined_values_are_left_out_of_the_front_matter() -> None:
    undefined = SplitScores(40, 0.4, {"accuracy": cell(None), "f1_macro": cell(0.5)})
    data = ModelCard(render_card(replace(record(), scores={"test": undefined}), subject())).data
    assert [(r.metric_name, r.metric_value) for r in data.eval_results or ()] == [("f1 macro", 0.5)]
    for scores in ({}, {"test": replace(undefined, metrics={"accuracy": cell(None)})}):
        data = ModelCard(render_card(replace(record(), scores=scores, examples=[]), subject())).data
        assert (data.eval_results, data.metrics) == (None, None)


def test_the_card_has_every_result() -> None:
    text = render_card(record(), subject())
    for expected in (
        "trained from [google/bert](https://huggingface.co/google/bert) (revision `v2`)\nwith all weights trained.",
        "Labels: `no`, `yes`.", "> A note.", "> 3 of 40 test rows are also training rows",
        "| metric | validation, 30 rows | test, 40 rows |",
        "| accuracy | 0.8750 [0.825, 0.925] | 0.8750 [0.825, 0.925] |",
        "| no | 20 | 0.700 [0.650, 0.750] | 0.800 [0.750, 0.850] | 0.750 [0.700, 0.800] |",
        "| a \\| b &lt;c> | no | no | 75.0 % |", "| d | no | yes | 60.0 % |",
        "The rows are the dataset [team/films](https://huggingface.co/datasets/team/films), configuration `en`.",
        "| train | 1,234 | 7 | 12 | 12.5 % | 0.0 % | – | no 10, yes 30 |",
        "| test | 40 | 7 | 12 | 0.0 % | 0.0 % | 3 | no 10, yes 30 |",
        "- `max_length`: 128", "1,234 of 56,789 parameters were trained, in float32",
        "| step | epoch | training loss | validation loss | validation accuracy |",
        "| **10** | 1.00 | 0.7000 | 0.6000 | 0.8000 |", "| 20 | 2.00 | – | 0.5000 | undefined |",
        "| 0.0 | 0.5 | 0.1 |", "| 0.1 | 0.25 | – |", "> The ranking is unstable.",
        "With 50 % of the heads removed, least important first, accuracy on 30 validation rows is 0.8000;\nwith "
        "all heads it is 0.9000, and in random orders 0.6000 to 0.7500.",
        "p below 0.05 after Holm's correction for 2 heads): 0.0 (-0.1000 [-0.2000, -0.0500]).",
        "- The validation rows also selected the saved weights, out of 2 evaluations",
        "NVIDIA X, 2 processes, mixed precision bf16",
        "Versions: finetune 1.0, Python 3.11, torch 2.13.",
    ):  # fmt: skip
        assert expected in text, expected
    assert "GPU: not tested" not in text
    assert "\n\n\n\n" not in text


def test_without_texts_the_card_has_no_examples() -> None:
    text = render_card(record().without_texts(), subject())
    assert "Examples" not in text
    assert "a \\| b" not in text


def test_a_run_without_scores_heads_and_history() -> None:
    bare = replace(record(), scores={}, heads=None, history=[], worst=[], examples=[])
    text = render_card(bare, subject())
    assert "There are no validation or test rows, so there are no scores." in text
    assert "## Attention heads" not in text
    assert "| step |" not in text


def test_a_card_with_undefined_heads_and_no_curve() -> None:
    assert half_removed(HeadAnalysis(HEADS.methods)) is None
    assert significant_heads(HeadAnalysis(HEADS.methods)) is None
    none_significant = replace(HEADS, leave_one_out=LeaveOneOut("test", 9, "accuracy", HEADS.leave_one_out.tests[1:]))  # type: ignore[union-attr]
    assert significant_heads(none_significant) == []
    text = render_card(replace(record(), heads=none_significant), subject())
    assert "No single head changes accuracy significantly when it is removed alone (1 heads tested" in text


def test_markdown_in_texts_has_no_effect() -> None:
    assert escape_markdown("a | *b*\n`c` [d](e) <f>") == r"a \| \*b\* \`c\` \[d\](e) &lt;f>"
    assert escape_markdown("x" * 400) == "x" * 300 + " ..."


def test_names_of_labels_and_columns_stay_as_they_are_in_the_examples() -> None:
    labels = {"\U0001f600 über": 1, "a `b`": 2, 'it\'s\n"c" <d>': 3}
    pairs = {"dataset_name": "a/b", "text_column": 'user\'s "text"', "text_pair_column": "zwölf"}
    adapter = record(peft={"r": 4}, data=pairs)
    adapter = replace(adapter, data={"train": replace(adapter.data["train"], label_counts=labels)})
    text = render_card(adapter, subject(has_adapter=True))
    assert 'Labels: `\U0001f600 über`, `` a `b` ``, `it\'s "c" <d>`.\n' in text
    (line,) = (line for line in text.splitlines() if line.startswith("labels = "))
    assert ast.literal_eval(line.removeprefix("labels = ")) == list(labels)
    (line,) = (line for line in text.splitlines() if line.startswith("printf "))
    assert list(json.loads(shlex.split(line)[2])) == ['user\'s "text"', "zwölf"]


def test_a_pruned_model_is_shown_beside_the_baselines_without_differences() -> None:
    after_pruning = COMPARISON.with_classifier({"test": {"accuracy": 0.25}})
    card = render_card(replace(record(), baselines=after_pruning), subject())
    rows = "| this classifier | 0.2500 | \n| most frequent label 'a' | 0.5000 | \n"
    assert f"| model | test accuracy | \n| --- | --- | \n{rows}" in card
    assert "not above 0.5" not in card
    assert "classifier minus baseline" not in card
