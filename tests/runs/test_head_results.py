from __future__ import annotations

from finetune.runs.head_results import HeadScores


def test_heads_without_a_value_are_not_ranked() -> None:
    heads = HeadScores(
        "gradient", "", "test", 1, [[1.0, 3.0], [2.0, None]], [[None, None], [None, None]], [(0, 0), (1, 0), (0, 1)]
    )
    assert [(cell.layer, cell.head) for cell in heads.sorted_by_value()] == [(0, 1), (1, 0), (0, 0)]
