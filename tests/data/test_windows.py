from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.data.batching import LocalBatch, load_batches, split_batch
from finetune.data.tokenization import EncodedSplit
from finetune.data.windows import WINDOW_COUNTS, num_rows, pool_windows, repeat_per_window, select_rows
from finetune.models.classifier import Classifier
from tests.support.windows import windowed

COUNTS = torch.tensor([2, 1, 3])


def test_windows_are_pooled_per_row_and_rows_repeated_per_window() -> None:
    values = torch.tensor([[1.0, 0.0], [3.0, -2.0], [5.0, 1.0], [0.0, 0.0], [3.0, 1.0], [6.0, 5.0]])
    assert pool_windows(values, COUNTS, "mean").tolist() == [[2.0, -1.0], [5.0, 1.0], [3.0, 2.0]]
    assert pool_windows(values, COUNTS, "max").tolist() == [[3.0, 0.0], [5.0, 1.0], [6.0, 5.0]]
    assert pool_windows(values, None, "mean") is values
    assert repeat_per_window(torch.tensor([7, 8, 9]), COUNTS).tolist() == [7, 7, 8, 9, 9, 9]


def test_nothing_is_read_from_a_device_if_the_counts_are_on_the_cpu() -> None:
    # Tensors on the device "meta" have no numbers, so a read is an error.
    assert pool_windows(torch.empty(6, 2, device="meta"), COUNTS, "mean").shape == (3, 2)
    assert repeat_per_window(torch.empty(3, 2, device="meta"), COUNTS).shape == (6, 2)


@pytest.mark.parametrize(
    ("rows", "windows"),
    [
        (slice(1, 3), [2, 3, 4, 5]),
        (slice(0, 1), [0, 1]),
        (torch.tensor([2, 0, 2]), [3, 4, 5, 0, 1, 3, 4, 5]),
    ],
)
def test_selected_rows_keep_their_windows(rows: slice | torch.Tensor, windows: list[int]) -> None:
    inputs = {"input_ids": torch.arange(6)[:, None], WINDOW_COUNTS: COUNTS}
    selected = select_rows(inputs, rows)
    assert selected["input_ids"][:, 0].tolist() == windows
    assert selected[WINDOW_COUNTS].tolist() == COUNTS[rows].tolist()
    assert num_rows(selected) == len(COUNTS[rows])


def batch_of(split: EncodedSplit, classifier: Classifier, rows: list[int]) -> LocalBatch:
    (batch,) = load_batches(split, [np.array(rows)], classifier.tokenizer, device=torch.device("cpu"))
    return batch


def test_a_batch_holds_the_windows_of_its_rows(tiny_bert: Path) -> None:
    classifier, split = windowed(tiny_bert)
    assert split.windows is not None
    assert split.windows.tolist() == [3, 1, 2, 1, 4]
    assert split.lengths.sum() > split.true_lengths.sum()  # windows share tokens
    assert split.truncated == 0
    assert split.select(np.array([4, 0])).windows == pytest.approx([4, 3])
    batch = batch_of(split, classifier, [4, 1, 0])
    assert batch.inputs[WINDOW_COUNTS].tolist() == [4, 1, 3]
    assert batch.inputs["input_ids"].shape == batch.inputs["attention_mask"].shape == (8, classifier.max_length)
    assert batch.inputs["attention_mask"].sum() == split.lengths[[4, 1, 0]].sum()
    assert batch.labels.tolist() == split.labels[[4, 1, 0]].tolist()
    assert WINDOW_COUNTS not in batch_of(split, classifier, [1, 3]).inputs
    parts = list(split_batch(batch, 2))
    assert [part.inputs[WINDOW_COUNTS].tolist() for part in parts] == [[4, 1], [3]]
    assert torch.equal(torch.cat([part.inputs["input_ids"] for part in parts]), batch.inputs["input_ids"])


def test_a_row_with_too_many_windows_counts_as_truncated(tiny_bert: Path) -> None:
    _, split = windowed(tiny_bert, max_windows=2)
    assert split.windows is not None
    assert split.windows.tolist() == [2, 1, 2, 1, 2]
    assert split.truncated == pytest.approx(2 / 5)
