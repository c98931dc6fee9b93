from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from finetune.report import explanation_data
from finetune.report.explanation_data import (
    explanation_elements,
    gap_text,
    label_effects,
    row_positions,
    shown_tokens,
)
from finetune.runs.explanations import Explanations, RowExplanation
from tests.report.test_head_data import unpacked
from tests.support.known_run import HOSTILE_TOKENS, known_explanations

PREDICTIONS = pa.table({"split": ["validation", *["test"] * 14], "row": [1, *range(1, 15)]})


def content(explanations: Explanations) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(unpacked(explanation_elements(explanations, PREDICTIONS), "row-explanations"))
    return parsed


def test_without_explanations_there_are_no_elements() -> None:
    assert explanation_elements(None, PREDICTIONS) == ""
    assert explanation_elements(replace(known_explanations(), rows=[]), PREDICTIONS) == ""


def test_a_row_refers_to_its_position_in_the_predictions() -> None:
    rows = known_explanations().rows
    assert row_positions(rows, PREDICTIONS) == list(range(1, 13))
    assert row_positions([replace(rows[0], split="train")], PREDICTIONS) == [None]
    assert row_positions(rows[:2], None) == [None, None]


def test_the_rows_that_need_a_head_most_and_those_that_it_hurts_most_come_first() -> None:
    data = content(known_explanations())
    # Head 0.10 has the effect row - 4; rows are named by their index, which is row - 1.
    assert data["extremes"]["0.10"] == [
        [[11, 8.0], [10, 7.0], [9, 6.0], [8, 5.0], [7, 4.0]],
        [[0, -3.0], [1, -2.0], [2, -1.0]],
    ]
    assert data["extremes"]["0.0"] == [[], []]
    assert len(data["extremes"]) == 23
    assert [row["index"] for row in data["explained"]] == [1, 2]
    assert data["explained"][0]["tokens"] == HOSTILE_TOKENS
    assert data["explained"][0]["effects"][0][10] == -4.0


def test_label_effects_are_means_with_the_interval_of_student_over_rows() -> None:
    values = np.array([1.0, 2.0, 4.0, 5.0, 6.0])
    effects = np.stack([values, np.full(5, np.nan)], axis=1)[:, None]  # the second head does not exist
    (entry,) = label_effects(effects, np.array([0, 0, 0, 1, 1]))["0.0"]  # two rows are too few
    low, high = stats.t.interval(0.95, 2, values[:3].mean(), stats.sem(values[:3]))
    assert entry == [0, pytest.approx((low + high) / 2, rel=1e-4), pytest.approx((high - low) / 2, rel=1e-4), 3]
    assert set(label_effects(effects, np.zeros(5))) == {"0.0"}


def test_effects_are_stored_to_a_127th_of_the_largest_and_missing_heads_as_zero() -> None:
    rows = known_explanations().rows
    packed = unpacked(explanation_elements(known_explanations(), PREDICTIONS), "row-effects")
    largest = np.frombuffer(packed[: 4 * len(rows)], "<f4")
    stored = np.frombuffer(packed[4 * len(rows) :], np.uint8).reshape(len(rows), 2, 12).astype(float)
    known = np.array([row.head_effects for row in rows], dtype=float)
    assert (stored[:, 1, 11] == 0).all()
    restored = (stored - 128) / 127 * largest[:, None, None]
    mask = ~np.isnan(known)
    error = np.abs(restored - known)[mask] / np.broadcast_to(largest[:, None, None], known.shape)[mask]
    assert error.max() <= 0.5 / 127 + 1e-6  # half a step


def test_attention_is_stored_in_percent_by_the_token_that_is_attended_to() -> None:
    packed = unpacked(explanation_elements(known_explanations(), PREDICTIONS), "row-attention")
    stored = np.frombuffer(packed, np.uint8).reshape(2, 6, 6)  # rows, to, from
    assert stored[0, 0].tolist() == [100, 39, 39, 39, 39, 39]
    assert stored[1, 3].tolist() == [0, 0, 0, 61, 0, 0]


def test_only_so_many_effects_are_in_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explanation_data, "MAX_EFFECTS", 5 * 24)
    data = content(known_explanations())
    assert data["withEffects"] == 5
    assert len(unpacked(explanation_elements(known_explanations(), PREDICTIONS), "row-effects")) == 5 * (4 + 24)
    assert data["extremes"]["0.10"][0][0] == [11, 8.0]  # of all rows


def test_tokens_are_shown_with_their_level_and_the_gap_in_words() -> None:
    row = known_explanations().rows[1]
    tokens = shown_tokens(row)
    assert [(token.text, token.level, token.continues) for token in tokens] == [
        ("[CLS]", None, False), ("</script>", 50, False), ("<img src=x onerror=alert(1)>", -100, True),
        ("\u202eabc", 25, False), ("\x00&amp;", 6, False), ("[SEP]", None, False),
    ]  # fmt: skip
    assert len(shown_tokens(row, limit=2)) == 2
    assert gap_text(row) == "score +1.500, baseline +1.750; the tokens sum to -0.188 of -0.250 (gap 0.062)"
    assert gap_text(RowExplanation("test", 1, "no", [[0.5]])) == ""


def test_a_copy_without_tokens_keeps_the_effects() -> None:
    rows = [row.without_tokens() for row in known_explanations().rows]
    elements = explanation_elements(replace(known_explanations(), rows=rows), PREDICTIONS)
    data = json.loads(unpacked(elements, "row-explanations"))
    assert all(row["tokens"] is None and row["attributions"] is None for row in data["explained"])
    assert data["explained"][0]["effects"][0][10] == -4.0
    assert unpacked(elements, "row-attention") == b""
    assert "abc" not in json.dumps(data)
