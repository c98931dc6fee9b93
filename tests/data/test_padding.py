"""Padded batches with numpy: finetune/data/padding.py. test_token_rows.py compares them with those of transformers."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.data.padding import Padding

VALUES = np.array([9, 9, 5, 6, 7, 9, 4], np.int32)
NAMES = ("input_ids", "token_type_ids", "attention_mask")


@pytest.mark.parametrize(
    ("left", "ids", "mask"),
    [
        (False, [[4, 0, 0], [5, 6, 7], [0, 0, 0]], [[1, 0, 0], [1, 1, 1], [0, 0, 0]]),
        (True, [[0, 0, 4], [5, 6, 7], [0, 0, 0]], [[0, 0, 1], [1, 1, 1], [0, 0, 0]]),
    ],
    ids=["right", "left"],
)
def test_padding_is_on_one_side(left: bool, ids: list[list[int]], mask: list[list[int]]) -> None:
    lengths, starts = np.array([1, 3, 0]), np.array([6, 2, 7])
    padding = Padding(NAMES, pad_type_id=3, left=left)
    inputs = padding.batch(lengths, (VALUES, starts), (VALUES.astype(np.int8), starts))
    assert inputs["input_ids"].tolist() == ids
    assert inputs["token_type_ids"].tolist() == np.where(mask, ids, 3).tolist()
    assert inputs["attention_mask"].tolist() == mask
    assert {values.dtype for values in inputs.values()} == {np.dtype(np.int64)}


def test_inputs_that_the_model_does_not_read_are_missing() -> None:
    values = (VALUES, np.array([2]))
    assert Padding(("input_ids",)).batch(np.array([2]), values, values).keys() == {"input_ids"}
    assert Padding(NAMES).batch(np.array([2]), values, None).keys() == {"input_ids", "attention_mask"}
