from __future__ import annotations

import io

from rich.console import Console

from finetune.head_results import HeadAnalysis, HeadScores
from finetune.progress import TrainingProgress
from finetune.results import MetricValue, SplitScores, SplitSummary
from finetune.terminal import show_data, show_heads, show_scores


def terminal(width: int = 100) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, width=width, highlight=False), text


def test_data_is_shown_by_split() -> None:
    console, text = terminal(200)
    counts = {f"label{n}": n for n in range(12)}
    show_data(
        console, {"train": SplitSummary(9, counts, 5.5, 8, 0.5), "test": SplitSummary(2, {}, 5, 8, 0, 2)}, "rows.csv", 8
    )
    shown = text.getvalue()
    assert "rows.csv" in shown
    assert "50.0%" in shown
    assert "4 more" in shown
    assert "All 2 test rows are training rows too" in shown


def test_scores_are_shown_with_intervals() -> None:
    console, text = terminal()
    scores = {
        "test": SplitScores(
            20, 0.25, {"accuracy": MetricValue(0.5, 0.4, 0.6), "f1_macro": MetricValue(0.3)}, interval_note="few"
        )
    }
    show_scores(console, scores, {"test": SplitSummary(20, {}, 1, 1, 0)})
    assert "0.500 [0.400, 0.600]" in text.getvalue()
    assert "0.300 │" in text.getvalue()
    assert "test: few." in text.getvalue()
    console, text = terminal()
    show_scores(console, {}, {})
    assert text.getvalue() == ""


def test_heads_are_shown_in_percent_of_the_highest() -> None:
    console, text = terminal()
    heads = HeadScores(
        "gradient", "E|g|", "test", 9, [[0.5, 0.25], [0.1, None]], [[0.01, 0.02], [0.03, None]],
        [(0, 1), (0, 0), (1, 0)],
    )  # fmt: skip
    show_heads(console, HeadAnalysis([heads], warnings=["a [/b] warning"]))
    lines = text.getvalue().splitlines()
    assert lines[0] == "Head importance by gradient (E|g|) on 9 test rows; 100 is the highest, 0.5, and 0 is 0"
    assert lines[2].split() == ["0", "100", "50"]
    assert lines[3].split() == ["1", "20"]
    assert lines[4].endswith("1.0 0.1 ± 0.03, 0.0 0.5 ± 0.01, 0.1 0.25 ± 0.02")  # in the reverse of the order
    assert lines[5] == "a [/b] warning"
    console, text = terminal()
    alone = HeadScores("gradient", "E|g|", "test", 1, [[0.0]], [[None]], [(0, 0)])
    show_heads(console, HeadAnalysis([alone]))  # all zero: nothing divided by it
    assert "0.0 0" in text.getvalue()


def test_progress_prints_evaluations_and_keeps_quiet_when_told() -> None:
    console, text = terminal()
    silence = io.StringIO()
    for chosen in (console, Console(file=silence, quiet=True)):
        with TrainingProgress(chosen) as progress:
            progress.start(4, 0)
            progress.advance()
            progress.logged({"loss": 0.5, "samples_per_second": 12.0})
            progress.evaluated({"step": 1, "epoch": 0.25, "eval_loss": 0.5}, best=True)
    assert "step 1, epoch 0.25:  loss 0.5000  best" in text.getvalue()
    assert silence.getvalue() == ""


def test_names_that_look_like_markup_are_text() -> None:
    console, text = terminal(200)
    show_data(console, {"train": SplitSummary(1, {"[/pos]": 1}, 1, 1, 0)}, "dir [v2]/rows.csv", 8)
    assert "[/pos] 1" in text.getvalue()
    assert "dir [v2]/rows.csv" in text.getvalue()
