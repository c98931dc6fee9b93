from __future__ import annotations

from finetune.report.training_charts import training_charts

HISTORY: list[dict[str, int | float | None]] = [
    {"step": 5, "loss": 0.7, "learning_rate": 0.01, "grad_norm": 2.0, "samples_per_second": 30.0},
    {"step": 5, "eval_loss": 0.6, "eval_accuracy": 0.5, "eval_f1_macro": None},
    {"step": 9, "loss": 0.4, "learning_rate": 0.0, "grad_norm": None, "samples_per_second": 31.0},
    {"step": 9, "eval_loss": 0.5, "eval_accuracy": 0.75, "eval_f1_macro": None},
]


def test_there_is_a_chart_of_everything_that_was_logged() -> None:
    charts = {chart.title: chart for chart in training_charts(HISTORY, best_step=9)}
    assert list(charts) == [
        "Loss",
        "Validation metrics",
        "Learning rate",
        "Gradient norm before clipping",
        "Rows per second",
    ]
    loss = charts["Loss"].option["series"]
    assert [(line["name"], line["data"]) for line in loss] == [
        ("training", [[5.0, 0.7], [9.0, 0.4]]),
        ("validation", [[5.0, 0.6], [9.0, 0.5]]),
    ]
    assert loss[0]["markLine"]["data"] == [{"xAxis": 9}]
    assert charts["Loss"].label == "Loss by optimizer step: training from 0.7 to 0.4; validation from 0.6 to 0.5"
    assert [line["name"] for line in charts["Validation metrics"].option["series"]] == ["accuracy"]
    assert charts["Gradient norm before clipping"].option["series"][0]["data"] == [[5.0, 2.0]]
    assert "markLine" not in charts["Learning rate"].option["series"][0]


def test_a_single_value_is_visible() -> None:
    (chart,) = training_charts([{"step": 3, "eval_loss": 0.5}], best_step=None)
    assert chart.option["series"][0]["showSymbol"]
    assert (chart.option["yAxis"]["min"], chart.option["yAxis"]["max"]) == (0.47, 0.53)


def test_without_a_log_there_is_no_chart() -> None:
    assert training_charts([], best_step=None) == []
