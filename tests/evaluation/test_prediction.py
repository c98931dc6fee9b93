from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from finetune.evaluation.prediction import Predictions, predict, predictions_table, score, write_predictions
from finetune.models.classifier import Classifier
from tests.conftest import SENTENCES
from tests.support.helpers import assert_equal_up_to_rounding, encoded, tiny_classifier


@pytest.fixture
def classifier(tiny_bert: Path) -> Classifier:
    torch.manual_seed(0)
    return tiny_classifier(tiny_bert)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_rows_come_back_in_their_own_order(classifier: Classifier, accelerator: Accelerator, batch_size: int) -> None:
    split = encoded(classifier)
    found = predict(classifier, split, batch_size=batch_size, accelerator=accelerator)
    classifier.model.eval()
    with torch.no_grad():
        alone = [classifier.base(torch.tensor([ids])).logits[0] for ids in split.rows["input_ids"]]
    assert_equal_up_to_rounding(found.logits, torch.stack(alone))  # without padding
    expected = torch.nn.functional.cross_entropy(found.logits, torch.tensor(split.labels), reduction="none")
    torch.testing.assert_close(found.losses, expected)


@pytest.mark.parametrize("processes", [1, 2, 3, 5, 16])
def test_each_row_is_scored_once_by_any_number_of_processes(
    classifier: Classifier, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    # 13 rows in 4 batches: of 5 processes, one has nothing to do.
    split = encoded(classifier, [f"{SENTENCES[n % 6]} {'cat ' * (n % 4)}" for n in range(13)])
    whole = predict(classifier, split, batch_size=4, accelerator=accelerator)
    reports: list[Any] = []

    def rows_so_far() -> list[int]:
        return sorted(row for results, _ in reports for rows, *_ in results[0] for row in rows.tolist())

    def gather(report: list[Any]) -> list[Any]:
        """Return what the processes so far found, and nothing for the others, as if this one were the last."""
        reports.extend(report)
        if len(rows_so_far()) < 13:
            raise StopIteration
        return reports

    monkeypatch.setattr("finetune.distributed.gather_object", gather)
    for index in range(processes):
        stub = SimpleNamespace(
            device=accelerator.device,
            process_index=index,
            num_processes=processes,
            autocast=accelerator.autocast,
            mixed_precision="no",
        )
        with suppress(StopIteration):
            found = predict(classifier, split, batch_size=4, accelerator=stub)
    assert rows_so_far() == list(range(13))
    assert found.logits.equal(whole.logits)
    assert found.losses.equal(whole.losses)


def test_predicting_leaves_the_mode_as_it_was(classifier: Classifier, accelerator: Accelerator) -> None:
    for mode in (True, False):
        classifier.model.train(mode)
        predict(classifier, encoded(classifier), batch_size=4, accelerator=accelerator)
        assert classifier.model.training is mode


def made(logits: list[list[float]], labels: object, problem_type: str = "single_label_classification") -> Predictions:
    return Predictions(torch.tensor(logits), torch.ones(len(logits)), np.array(labels), problem_type)


def test_scores_of_known_predictions() -> None:
    found = made([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [0.0, 1.0]] * 5, [0, 1, 1, 1] * 5)
    scores = score(found, ["no", "yes"], ["accuracy", "f1_macro"], samples=200, seed=0)
    assert scores.rows == 20
    assert scores.confusion == [[5, 0], [5, 10]]
    assert list(scores.metrics) == ["accuracy", "f1_macro"]
    assert scores.metrics["accuracy"].value == 0.75
    assert scores.per_class[1].recall.value == pytest.approx(2 / 3)
    assert (scores.loss, scores.interval_note) == (1.0, "")


def test_other_problem_types_are_scored() -> None:
    sets = made([[2.0, -1.0], [-1.0, 2.0]] * 10, [[1, 0], [1, 1]] * 10, "multi_label_classification")
    scores = score(sets, ["a", "b"], ["f1_micro", "subset_accuracy"], samples=100, seed=0)
    assert (scores.metrics["subset_accuracy"].value, scores.confusion) == (0.5, None)
    values = made([[1.0], [2.0]] * 10, [1.0, 3.0] * 10, "regression")
    scores = score(values, ["value"], ["mean_absolute_error"], samples=100, seed=0)
    assert (scores.metrics["mean_absolute_error"].value, scores.per_class) == (0.5, [])


def test_predictions_lie_in_a_table(classifier: Classifier, accelerator: Accelerator, tmp_path: Path) -> None:
    split = encoded(classifier)
    found = predict(classifier, split, batch_size=4, accelerator=accelerator)
    path = tmp_path / "predictions.parquet"
    tables = [predictions_table(name, split, found, ["no", "yes"]) for name in ("validation", "test")]
    write_predictions(path, tables)
    rows = pq.read_table(path).to_pylist()
    assert [(row["split"], row["row"]) for row in rows[5:7]] == [("validation", 6), ("test", 1)]
    assert [row["text"] for row in rows[:6]] == SENTENCES
    for row in rows:
        assert sum(row["probabilities"]) == pytest.approx(1.0)
        assert row["predicted"] == ["no", "yes"][int(np.argmax(row["probabilities"]))]
        assert row["loss"] == pytest.approx(
            -np.log(row["probabilities"][["no", "yes"].index(row["label"])]), rel=1e-4, abs=1e-6
        )
    assert not list(tmp_path.glob(".*"))


def test_label_sets_are_named(classifier: Classifier) -> None:
    sets = made([[2.0, -1.0]] * 6, [[1, 1]] * 6, "multi_label_classification")
    rows = predictions_table("test", encoded(classifier), sets, ["a", "b"]).to_pylist()
    assert (rows[0]["label"], rows[0]["predicted"]) == (["a", "b"], ["a"])
    mixed = made(
        [[-2.0, -1.0], [2.0, 1.0], [-1.0, 2.0]] * 2, [[0, 0], [1, 1], [0, 1]] * 2, "multi_label_classification"
    )
    table = predictions_table("test", encoded(classifier), mixed, ["a", "b"])
    assert table["label"].to_pylist() == table["predicted"].to_pylist() == [[], ["a", "b"], ["b"]] * 2


def test_memory_that_runs_out_halves_the_scoring_batch(tiny_bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classifier, tried = tiny_classifier(tiny_bert), []
    split, accelerator = encoded(classifier), Accelerator(cpu=True)
    expected = predict(classifier, split, batch_size=5, accelerator=accelerator)

    def refuse(_: nn.Module, __: tuple[object, ...], inputs: dict[str, torch.Tensor]) -> None:
        tried.append(len(inputs["input_ids"]))
        if tried[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    classifier.model.register_forward_pre_hook(refuse, with_kwargs=True)
    found = predict(classifier, split, batch_size=5, accelerator=accelerator)
    assert tried == [5, 2, 2, 1, 1]
    assert_equal_up_to_rounding(found.logits, expected.logits)
    assert capsys.readouterr().err == "Out of memory in scoring: 2 rows at a time from here on.\n"
