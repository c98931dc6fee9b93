from __future__ import annotations

from finetune.report.training_log import HistoryEntry, LogLine, training_log


def test_a_line_per_evaluation_has_the_last_training_loss_before_it() -> None:
    history: list[HistoryEntry] = [
        {"step": 1, "epoch": 0.5, "loss": 0.9},
        {"step": 2, "epoch": 1.0, "loss": 0.8},
        {"step": 2, "epoch": 1.0, "eval_loss": 0.7, "eval_accuracy": 0.6},
        {"step": 4, "epoch": 2.0, "eval_loss": None, "eval_accuracy": 0.5},
    ]
    assert training_log(history, 2) == [
        LogLine(2, 1.0, 0.8, {"loss": 0.7, "accuracy": 0.6}, saved=True),
        LogLine(4, 2.0, None, {"loss": None, "accuracy": 0.5}),
    ]


def test_without_evaluations_there_is_a_line_per_logged_loss() -> None:
    history: list[HistoryEntry] = [{"step": 1, "loss": 0.9}, {"step": 2, "epoch": 1.0, "loss": 0.8}]
    assert training_log(history, None) == [LogLine(1, 0.0, 0.9, {}), LogLine(2, 1.0, 0.8, {})]
    assert training_log([], None) == []


def test_of_many_lines_the_first_the_last_and_the_saved_one_stay() -> None:
    history: list[HistoryEntry] = [{"step": step, "epoch": step, "eval_loss": 1.0} for step in range(1, 101)]
    steps = [line.step for line in training_log(history, 42)]
    assert len(steps) == 13
    assert {1, 42, 100} <= set(steps)
    assert steps == sorted(steps)
