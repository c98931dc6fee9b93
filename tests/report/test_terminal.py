from __future__ import annotations

import io

import pytest
from rich.console import Console

from finetune.report.pruning_terminal import print_pruning
from finetune.report.terminal import (
    _score,
    evaluation_line,
    print_agreement,
    print_baselines,
    print_data,
    print_heads,
    print_line,
    print_names,
    print_scores,
)
from finetune.runs.baselines import BaselineComparison, BaselineInfo, BaselineScores, SplitComparison
from finetune.runs.head_results import (
    HeadAnalysis,
    HeadScores,
    PruningCurve,
    PruningCurves,
    RandomBand,
    RankAgreement,
    TauValue,
)
from finetune.runs.pruning_result import PruningResult
from finetune.runs.results import MetricValue, ModelCost, SplitScores, SplitSummary
from tests.support.known_run import full_analysis


def terminal(width: int = 100) -> tuple[Console, io.StringIO]:
    """Return a console and the buffer that receives its output."""
    buffer = io.StringIO()
    return Console(file=buffer, width=width, highlight=False), buffer


def test_data_are_shown_per_split() -> None:
    console, text = terminal(200)
    counts = {f"label{n}": n for n in range(12)}
    print_data(
        console, {"train": SplitSummary(9, counts, 5.5, 8, 0.5), "test": SplitSummary(2, {}, 5, 8, 0, 2)}, "rows.csv"
    )
    output = text.getvalue()
    assert "rows.csv" in output
    assert "50.0%" in output
    assert "4 more" in output
    assert "All 2 test rows are also training rows" in output


def test_scores_are_shown_with_intervals() -> None:
    console, text = terminal()
    scores = {
        "test": SplitScores(
            20,
            0.25,
            {"accuracy": MetricValue(0.5, 0.4, 0.6), "f1_macro": MetricValue(0.3), "pearson": MetricValue(None)},
            interval_note="few",
            warnings=["never predicted: [a]"],
        )
    }
    print_scores(console, scores, {"test": SplitSummary(20, {}, 1, 1, 0)})
    assert "0.500 [0.400, 0.600]" in text.getvalue()
    assert "0.300 │" in text.getvalue()
    assert "undefined │" in text.getvalue()
    assert "test: few." in text.getvalue()
    assert "test: never predicted: [a]." in text.getvalue()
    console, text = terminal()
    print_scores(console, {}, {})
    assert text.getvalue() == ""


def test_head_values_are_scaled_to_100() -> None:
    console, text = terminal()
    heads = HeadScores(
        "gradient", "E|g|", "test", 9, [[0.5, 0.25], [0.1, None]], [[0.01, 0.02], [0.03, None]],
        [(0, 1), (0, 0), (1, 0)],
    )  # fmt: skip
    print_heads(console, HeadAnalysis([heads], warnings=["a [/b] warning"]))
    lines = text.getvalue().splitlines()
    assert lines[0] == "Head importance by gradient (E|g|) on 9 test rows, scaled from 0 (0) to 100 (0.5)"
    assert lines[2].split() == ["0", "100", "50"]
    assert lines[3].split() == ["1", "20"]
    assert lines[4].endswith("1.0 0.1 ± 0.03, 0.0 0.5 ± 0.01, 0.1 0.25 ± 0.02")  # reverse order of removal
    assert lines[5] == "a [/b] warning"
    console, text = terminal()
    zero = HeadScores("gradient", "E|g|", "test", 1, [[0.0]], [[None]], [(0, 0)])
    print_heads(console, HeadAnalysis([zero]))  # all values are zero: no division by zero
    assert "0.0 0" in text.getvalue()


def test_names_of_heads_are_listed() -> None:
    console, text = terminal(200)
    names = full_analysis(1).names
    assert names is not None
    print_names(console, names)
    assert text.getvalue().splitlines() == [
        "Names of heads by tests on 40 test rows, false-discovery rate at most 5%: 1 essential, 2 redundant, "
        "1 harmful, 2 unused, 18 undecided",
        "  essential: 1.10",
        "  redundant: 0.1 with 1.10, 1.10 with 0.1",
        "  harmful: 1.0",
        "  unused: 0.0, 0.2",
        "  all 2 unused heads removed together: probability of the right label +0.0010, change of the output 0.0040",
    ]


def test_heads_that_do_not_fit_are_printed_in_a_second_table() -> None:
    console, text = terminal(45)
    heads = HeadScores("gradient", "", "test", 9, [[1.0] * 13], [[None] * 13], [(0, head) for head in range(13)])
    print_heads(console, HeadAnalysis([heads]))
    lines = [line.split() for line in text.getvalue().splitlines()[1:5]]
    assert lines[0] == ["layer", *map(str, range(10))]
    assert lines[2] == ["layer", "10", "11", "12"]
    assert lines[3] == ["0", "100", "100", "100"]


@pytest.mark.parametrize(("width", "scale"), [(12, 1.0), (16, 1.0), (12, -123456.0), (32, 1.0)])
def test_no_table_is_truncated_at_80_columns(width: int, scale: float) -> None:
    methods = ["iterative_integrated_gradients", "iterative_gradient_layer_norm", "iterative_ablation_accuracy"]
    heads = [(layer, head) for layer in range(12) for head in range(width)]
    table: list[list[float | None]] = [[0.5 + layer / 30 + head / 999 for head in range(width)] for layer in range(12)]
    shares = [tenth / 10 for tenth in range(1, 10)]
    scores = [scale * (1 - share) for share in shares]
    analysis = HeadAnalysis(
        [HeadScores(name, "E|g|", "train", 99, table, table, heads, 1.5, TauValue(0.5, 0.4, 0.6)) for name in methods],
        PruningCurves(
            "mean_squared_error", "validation", 99, scale, shares,
            [PruningCurve(name, scores, scale / 2, scale / 3) for name in methods],
            RandomBand(3, scores, scores, scores, scale / 2, 0.1, scale / 2),
        ),
        warnings=["one"],
    )  # fmt: skip
    metrics = {"loss": 0.5, "mean_squared_error": 123456.789, "matthews_correlation": -0.1234}
    scored = {"validation": metrics, "test": metrics}
    cost = ModelCost(109_483_778, 437_935_112, 123.4)
    pruning = PruningResult("named were 0.1", {"0": [1]}, 0.1, 0.0, scored, scored, 12, scored, cost, cost)
    values = {name: MetricValue(value, value - 0.1, value + 0.1) for name, value in metrics.items()}
    splits = {name: SplitScores(12345, 0.5, values) for name in ("validation", "test")}
    label = "a_label_name_that_is_longer_than_any_column_of_the_table_is_wide"
    summary = {name: SplitSummary(12345, {f"{label}_{n}": 99 for n in range(9)}, 5.5, 128, 0.5) for name in splits}
    console, text = terminal(80)
    print_data(console, summary, "rows.csv")
    print_scores(console, splits, summary)
    print_heads(console, analysis)
    print_pruning(console, pruning, "runs/toy/pruned")
    print_agreement(console, "gradient", [RankAgreement("runs/one", "runs/two", TauValue(0.5, 0.4, 0.6))])
    output = text.getvalue()
    assert "…" not in output
    assert f"{_score(scale / 3)}" in output  # the last column
    assert "Removed 1 head (10%). Chosen by: named were 0.1." in output
    assert "fine-tuned" in output
    assert "109,483,778" in output
    assert "runs/one, runs/two: 0.50 [0.40, 0.60]" in output
    tables = [line for line in output.splitlines() if line.startswith(("│", "┃", " ", "layer"))]
    assert len(tables) > 40
    assert max(map(len, tables)) <= 80


def test_pruning_without_scores_is_reported() -> None:
    console, text = terminal(80)
    cost = ModelCost(2, 20_000, 1.0)
    print_pruning(console, PruningResult("", {"0": [1, 2]}, 0.1, 0.0, {}, {}, 0, None, cost, cost), "[/x]")
    assert "There are no validation or test rows, so there are no scores." in text.getvalue()
    assert "0.02 to 0.02 MB" in text.getvalue()
    assert "[/x]/model" in text.getvalue()


def test_an_evaluation_is_one_line_and_a_quiet_console_prints_nothing() -> None:
    console, text = terminal()
    silence = io.StringIO()
    for selected_console in (console, Console(file=silence, quiet=True)):
        for best in (True, False):
            entry = {"step": 1, "epoch": 0.25, "eval_loss": 0.5, "eval_pearson": None}
            print_line(selected_console, evaluation_line(entry, best=best))
    line = "step 1, epoch 0.25:  loss 0.5000  pearson undefined"
    assert text.getvalue().splitlines() == [f"{line}  best", line]
    assert silence.getvalue() == ""


def test_names_that_look_like_markup_are_escaped() -> None:
    console, text = terminal(200)
    print_data(console, {"train": SplitSummary(1, {"[/pos]": 1}, 1, 1, 0)}, "dir [v2]/rows.csv")
    assert "[/pos] 1" in text.getvalue()
    assert "dir [v2]/rows.csv" in text.getvalue()


def test_baselines_are_shown_beside_the_classifier() -> None:
    console, text = terminal()
    scores = BaselineScores({"accuracy": 0.5}, {"accuracy": MetricValue(0.25, 0.125, 0.375)})
    comparison = BaselineComparison(
        "accuracy",
        {"majority": BaselineInfo("most frequent label '[a]'", 40)},
        {},
        1.5,
        {"test": SplitComparison(20, {"accuracy": 0.75}, {"majority": scores}, "not [clearly] above 0.5")},
    )
    print_baselines(console, comparison)
    output = text.getvalue()
    assert output.startswith("Baselines, and the difference classifier minus baseline with its 95 % interval")
    assert "┃ test (20 rows)            ┃ accuracy ┃            difference ┃" in output
    assert "│ this classifier           │    0.750 │                       │" in output
    assert "│ most frequent label '[a]' │    0.500 │ +0.250 [0.125, 0.375] │" in output
    assert output.endswith("test: not [clearly] above 0.5.\n")
