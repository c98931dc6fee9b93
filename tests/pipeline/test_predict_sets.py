"""Prediction sets, intervals and rows out of scope: `predict --coverage`, the Python function, the exported model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune.errors import DataError
from finetune.heads.pruning import pruned_classifier
from finetune.models.conformal import FILE, ConformalScores, read_conformal
from finetune.models.loading import load_classifier
from finetune.models.onnx_classifier import CONFIG_FILE
from finetune.models.outputs import OutputRules
from finetune.models.saving import save_classifier
from finetune.pipeline.export_folder import write_folder
from finetune.pipeline.prediction_columns import ColumnOptions, checked_rules, prediction_columns
from tests.support.helpers import tiny_classifier
from tests.support.predicting import Main, error, read_csv

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
SCORES = ConformalScores(((0.1, 0.4, 0.6), (0.2, 0.3, 0.7)), (0.5, 0.55, 0.6, 0.7, 0.8, 0.9))
SCOPE = np.array([[0.8], [0.56], [0.75]])  # log sum exp of each row of logits
LOGITS = np.log(np.array([[0.8, 0.2], [0.44, 0.56], [0.25, 0.75]])) + SCOPE


def test_a_run_saves_the_scores_of_its_validation_rows(small_run: Path) -> None:
    table = pq.read_table(small_run / "predictions.parquet").to_pylist()
    scores = read_conformal(small_run / "model", 2)
    assert scores is not None
    for label, values in enumerate(scores.errors):
        rows = [row for row in table if row["split"] == "validation" and row["label"] == str(label)]
        expected = sorted(1 - row["probabilities"][label] for row in rows)
        assert list(values) == pytest.approx(expected, rel=1e-4, abs=1e-6)  # six digits; stored as float32
        assert len(values) == 20
    record = json.loads((small_run / "outputs.json").read_text())
    assert record["conformal_rows"] == record["rows"] == 40
    assert record["temperature"] == 1.0
    assert record["temperature_fit"]["reason"] == "40 validation rows are too few (100 needed)"


def test_the_command_and_python_give_the_same_sets(small_run: Path, tmp_path: Path, ran: Main) -> None:
    rows = [row for row in pq.read_table(small_run / "predictions.parquet").to_pylist() if row["split"] == "test"]
    texts = [row["text"] for row in rows]
    pq.write_table(pa.table({"sentence": texts}), tmp_path / "rows.parquet")
    output = tmp_path / "out.parquet"
    options = ["--coverage", "0.7", "--coverage-per-class", "--in-scope", "0.8"]
    ran(small_run, tmp_path / "rows.parquet", *options, "--output", output)
    table = pq.read_table(output)
    assert table.column_names == ["sentence", "predicted", "probability", "labels", "in_scope", "answer"]
    classifier = load_classifier(small_run / "model")
    expected = classifier.predict(texts, coverage=0.7, coverage_per_class=True, in_scope=0.8)
    assert table["labels"].to_pylist() == [list(row.labels or ()) for row in expected]
    assert table["in_scope"].to_pylist() == [row.in_scope for row in expected]
    answers = [row.labels[0] if row.labels and len(row.labels) == 1 and row.in_scope else None for row in expected]
    assert table["answer"].to_pylist() == answers
    assert {answer is None for answer in answers} == {True, False}
    covered = np.mean([row["label"] in (found.labels or ()) for row, found in zip(rows, expected, strict=True)])
    assert covered > 0.5
    assert all(row.labels is row.in_scope is None for row in classifier.predict(texts[:2]))


def columns_of(rules: OutputRules, logits: np.ndarray = LOGITS, **options: object) -> dict[str, list[object]]:
    result: dict[str, list[object]] = prediction_columns(rules, logits, ColumnOptions(**options)).to_pydict()  # type: ignore[arg-type]
    return {name: values for name, values in result.items() if name not in ("predicted", "probability")}


def test_what_is_written_for_each_row() -> None:
    rules = OutputRules(("no", "yes"), SINGLE, conformal=SCORES)
    # 0.7 of 7 rows: the fifth score of (0.1, 0.2, 0.3, 0.4, 0.6, 0.7); the second row has both labels within it.
    assert columns_of(rules, coverage=0.7) == {
        "labels": [["no"], ["no", "yes"], ["yes"]],
        "answer": ["no", None, "yes"],
    }
    # 0.4 of 7 rows: the third score, 0.3: the second row has no label.
    assert columns_of(rules, coverage=0.4) == {"labels": [["no"], [], ["yes"]], "answer": ["no", None, "yes"]}
    # Per class, 0.5 of 4 rows: 0.4 for no, 0.3 for yes.
    per_class = columns_of(rules, np.log([[0.62, 0.38], [0.38, 0.62]]), coverage=0.5, coverage_per_class=True)
    assert per_class == {"labels": [["no"], []], "answer": ["no", None]}
    # 0.6 of 7 rows: five of the scores (0.5, 0.55, 0.6, 0.7, 0.8, 0.9) are at least 0.55, and so is the second row's.
    assert columns_of(rules, in_scope=0.6) == {"in_scope": [True, True, True], "answer": ["no", "yes", "yes"]}
    assert columns_of(rules, in_scope=0.4)["answer"] == ["no", None, "yes"]
    assert columns_of(rules, in_scope=0.1, coverage=0.7, prefix="x_") == {
        "x_predicted": ["no", "yes", "yes"],
        "x_probability": pytest.approx([0.8, 0.56, 0.75]),
        "x_labels": [["no"], ["no", "yes"], ["yes"]],
        "x_in_scope": [False, False, False],
        "x_answer": [None, None, None],
    }
    assert columns_of(rules) == {}


def test_a_regression_gets_an_interval() -> None:
    rules = OutputRules(("score",), REGRESSION, conformal=ConformalScores(((0.5, 1.0, 1.5, 2.0),)))
    assert columns_of(rules, np.array([[3.0]]), coverage=0.6) == {"low": [1.5], "high": [4.5]}
    (prediction,) = rules.predictions(np.array([[3.0]]), limits=rules.limits(0.8))
    assert (prediction.interval, prediction.labels) == ((1.0, 5.0), None)


@pytest.mark.parametrize(
    ("problem_type", "scores", "options", "message"),
    [
        (SINGLE, SCORES, {"coverage": 0.9}, "a coverage of 0.9 needs at least 9 validation rows, and the model has 6; "
                                            "set at most 0.857, or train with more validation rows"),
        (SINGLE, SCORES, {"coverage": 90.0}, "a coverage of 90 cannot be promised; it must be between 0 and 1"),
        (SINGLE, SCORES, {"in_scope": 0.9}, "a coverage of 0.9 needs at least 9 validation rows"),
        (SINGLE, SCORES, {"coverage": 0.8, "coverage_per_class": True}, "needs at least 4 validation rows with the "
                                                                        "label 'no', and the model has 3"),
        (SINGLE, SCORES, {"coverage_per_class": True}, "a coverage per class needs a coverage; set it"),
        (SINGLE, None, {"coverage": 0.9}, "the model has no scores of validation rows, which a coverage needs"),
        (SINGLE, None, {"in_scope": 0.9}, "the model has no scores of validation rows, which a coverage needs"),
        (MULTI, None, {"coverage": 0.9}, "this model predicts several labels per row; use the probabilities"),
        (REGRESSION, None, {"in_scope": 0.9}, "a coverage per class and in_scope are for labels"),
    ],
)  # fmt: skip
def test_a_coverage_that_cannot_be_promised_is_an_error(
    problem_type: str, scores: ConformalScores | None, options: dict[str, object], message: str
) -> None:
    rules = OutputRules(("no", "yes"), problem_type, conformal=scores)
    with pytest.raises(DataError) as caught:
        checked_rules(rules, ColumnOptions(**options))  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_the_command_reports_it_before_a_file_is_written(
    small_run: Path, texts: Path, tmp_path: Path, ran: Main
) -> None:
    output = tmp_path / "out.csv"
    message = error(ran(small_run, texts, "--coverage", "0.99", "--output", output, code=2))
    assert (
        "a coverage of 0.99 needs at least 99 validation rows, and the model has 40; set at most 0.975, or" in message
    )
    assert not output.exists()


def test_a_csv_file_has_an_empty_cell_where_there_is_no_answer(
    tiny_bert: Path, tmp_path: Path, texts: Path, ran: Main
) -> None:
    classifier = replace(
        tiny_classifier(tiny_bert),
        text_columns=("sentence",),
        conformal=ConformalScores(((0.0,) * 50, (0.0,) * 50), (-100.0,) * 100),
    )
    save_classifier(classifier, tmp_path / "model")
    rows = read_csv(ran(tmp_path / "model", texts, "--coverage", "0.9", "--in-scope", "0.9")[0])
    assert [(row["labels"], row["in_scope"], row["answer"]) for row in rows] == [("[]", "true", "")] * 2


def test_scores_move_with_the_model_but_not_to_a_pruned_one(tiny_bert: Path, tmp_path: Path) -> None:
    classifier = replace(tiny_classifier(tiny_bert), conformal=SCORES)
    save_classifier(classifier, tmp_path / "model")
    assert load_classifier(tmp_path / "model").rules.conformal == SCORES
    assert pruned_classifier(classifier, {0: [1]}).conformal is None
    (tmp_path / "model" / FILE).unlink()
    assert load_classifier(tmp_path / "model").conformal is None
    exported = tmp_path / "onnx"
    exported.mkdir()
    write_folder(classifier, exported)
    assert read_conformal(exported, 2) == SCORES
    assert "conformal" not in json.loads((exported / CONFIG_FILE).read_text())
