"""The rows to which the linear probe of a run is fitted."""

from __future__ import annotations

from pathlib import Path

import pytest
from accelerate import Accelerator

from finetune.pipeline import linear_probe
from finetune.pipeline.linear_probe import probe_rows
from tests.support.helpers import encoded, tiny_classifier


def test_the_rows_of_the_probe_are_drawn_by_the_seed(
    tiny_bert: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = encoded(tiny_classifier(tiny_bert))
    assert probe_rows(split, 2, 1) is split
    monkeypatch.setattr(linear_probe, "MAX_PROBE_ROWS", 4)
    first, again, other = (probe_rows(split, 2, seed) for seed in (1, 1, 2))
    ids = [list(part.rows["input_ids"]) for part in (first, again, other)]
    assert ids[0] == ids[1] != ids[2]
    assert len(first) == 4
    assert [len(row) for row in ids[0]] == list(first.lengths)
    assert len(probe_rows(split, 5, 1)) == 5  # at least as many rows as classes
