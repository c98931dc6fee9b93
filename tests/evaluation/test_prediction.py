"""Predicting every row of a split: finetune/evaluation/prediction.py."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from finetune.evaluation.prediction import predict
from finetune.models.classifier import Classifier
from tests.conftest import SENTENCES
from tests.support.helpers import assert_equal_up_to_rounding, encoded, tiny_classifier


@pytest.fixture
def classifier(tiny_bert: Path) -> Classifier:
    torch.manual_seed(0)
    return tiny_classifier(tiny_bert)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_predictions_have_the_order_of_the_rows(
    classifier: Classifier, accelerator: Accelerator, batch_size: int
) -> None:
    split = encoded(classifier)
    predictions = predict(classifier, split, batch_size=batch_size, accelerator=accelerator)
    classifier.model.eval()
    with torch.no_grad():
        unpadded = [classifier.base(torch.tensor([ids])).logits[0] for ids in split.rows["input_ids"]]
    assert_equal_up_to_rounding(predictions.logits, torch.stack(unpadded))
    expected = torch.nn.functional.cross_entropy(predictions.logits, torch.tensor(split.labels), reduction="none")
    torch.testing.assert_close(predictions.losses, expected)


@pytest.mark.parametrize("processes", [1, 2, 3, 5, 16])
def test_each_row_is_scored_once_by_any_number_of_processes(
    classifier: Classifier, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    # 13 rows in 4 batches: with 5 processes, one has nothing to do.
    split = encoded(classifier, [f"{SENTENCES[n % 6]} {'cat ' * (n % 4)}" for n in range(13)])
    reference = predict(classifier, split, batch_size=4, accelerator=accelerator)
    reports: list[Any] = []

    def rows_so_far() -> list[int]:
        return sorted(row for results, _ in reports for rows, *_ in results[0] for row in rows.tolist())

    def gather(report: list[Any]) -> list[Any]:
        """Return the results of all processes once the last one has reported."""
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
            predictions = predict(classifier, split, batch_size=4, accelerator=stub)
    assert rows_so_far() == list(range(13))
    assert predictions.logits.equal(reference.logits)
    assert predictions.losses.equal(reference.losses)


def test_predict_restores_the_training_mode(classifier: Classifier, accelerator: Accelerator) -> None:
    for mode in (True, False):
        classifier.model.train(mode)
        predict(classifier, encoded(classifier), batch_size=4, accelerator=accelerator)
        assert classifier.model.training is mode


def test_running_out_of_memory_halves_the_batch(tiny_bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classifier, batch_sizes = tiny_classifier(tiny_bert), []
    split, accelerator = encoded(classifier), Accelerator(cpu=True)
    expected = predict(classifier, split, batch_size=5, accelerator=accelerator)

    def fail_above_two_rows(_: nn.Module, __: tuple[object, ...], inputs: dict[str, torch.Tensor]) -> None:
        batch_sizes.append(len(inputs["input_ids"]))
        if batch_sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    classifier.model.register_forward_pre_hook(fail_above_two_rows, with_kwargs=True)
    predictions = predict(classifier, split, batch_size=5, accelerator=accelerator)
    assert batch_sizes == [5, 2, 2, 1, 1]
    assert_equal_up_to_rounding(predictions.logits, expected.logits)
    assert capsys.readouterr().err == "Out of memory in scoring: continuing with 2 rows at a time.\n"
