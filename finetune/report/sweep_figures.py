"""The charts of a sweep, from the results of its trials."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from finetune.recipe.sweep_space import SweepObjective, SweepParameter
from finetune.report.charts import ChartOption
from finetune.runs.sweep_results import SweepResult, SweepTrial

_BEST = {"color": "var(--red)"}
_TRIAL = {"color": "var(--blue)", "opacity": 0.75}
_GRID = {"top": 16, "left": 8, "right": 20, "bottom": 34, "containLabel": True}


@dataclass(frozen=True)
class SweepChart:
    """A chart, its height in CSS pixels, and what it shows in words."""

    option: ChartOption
    height: int
    label: str


@dataclass(frozen=True)
class SweepFigure:
    """One or more charts under one title, with one sentence that explains them.

    Attributes:
        menu: the name in the menu of the page; "" for none.
    """

    key: str
    title: str
    explanation: str
    charts: list[SweepChart] = field(default_factory=list)
    menu: str = ""


def sweep_figures(result: SweepResult) -> list[SweepFigure]:
    """Return the figures of a sweep: history, importance, parallel coordinates, slices, and for two objectives a front.

    There are none without a complete trial.
    """
    complete = result.of_state("complete")
    if not complete:
        return []
    labels = short_names(result.parameters)
    varied = {
        labels[each.name]: each
        for each in result.parameters
        if all(each.name in trial.parameters for trial in complete)
    }
    figures = []
    if len(result.objectives) == 2:
        explanation = "Every complete trial. In red: trials that no other trial beats in both objectives."
        figures.append(SweepFigure("front", "Pareto front", explanation, [_front(result)], "Pareto front"))
    for index, objective in enumerate(result.objectives):
        figures += _figures_of(result, (index, objective), varied)
    return figures


def short_names(parameters: Sequence[SweepParameter]) -> dict[str, str]:
    """Return parameter name -> last part of the name, or the whole name if two have the same last part."""
    last = {each.name: each.name.rpartition(".")[2] for each in parameters}
    counts = Counter(last.values())
    return {name: short if counts[short] == 1 else name for name, short in last.items()}


def objective_text(objective: SweepObjective) -> str:
    """Return an objective in words, such as "validation accuracy" or "train seconds"."""
    name = objective.name.replace("_", " ")
    return name if objective.name in ("train_seconds", "parameters", "trainable_parameters") else f"validation {name}"


def _figures_of(
    result: SweepResult, numbered: tuple[int, SweepObjective], varied: dict[str, SweepParameter]
) -> Iterator[SweepFigure]:
    """Yield the figures of one objective."""
    index, objective = numbered
    name, first = objective_text(objective), index == 0
    suffix = f": {name}" if len(result.objectives) > 1 else ""
    better = "lower" if objective.direction == "minimize" else "higher"
    explanation = f"One point per complete trial; {better} is better. The line is the best value so far."
    yield SweepFigure(
        f"history-{index}", f"History{suffix}", explanation, [_history(result, objective)], "History" if first else ""
    )
    importance = result.importance.get(objective.name, {})
    if len(importance) > 1:  # a single parameter explains everything
        explanation = "Share of the variance of the objective over the trials that each parameter explains."
        labels = short_names(result.parameters)
        chart = _importance({labels.get(key, key): share for key, share in importance.items()})
        title = f"Importance of the parameters{suffix}"
        yield SweepFigure(f"importance-{index}", title, explanation, [chart], "Importance" if first else "")
    if not varied:
        return
    if len(result.of_state("complete")) > 1:
        explanation = "One line per complete trial, colored by the objective. Drag along an axis to select trials."
        chart = _parallel(result, objective, varied)
        yield SweepFigure(f"parallel-{index}", f"Parallel coordinates{suffix}", explanation, [chart])
    explanation = "The objective by the value of each parameter; a later trial is darker. In red: the best."
    charts = [_slice(result, objective, label, parameter) for label, parameter in varied.items()]
    yield SweepFigure(f"slice-{index}", f"Slices{suffix}", explanation, charts, "Slices" if first else "")


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _axis(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "value", "name": name, "nameLocation": "middle", "nameGap": 26, "scale": True} | more


def _trial_name(trial: SweepTrial, objective: SweepObjective) -> str:
    return f"trial {trial.number}: {_rounded(trial.values[objective.name])}"


def _front(result: SweepResult) -> SweepChart:
    """Return the trials by both objectives."""
    first, second = result.objectives
    points = [
        {
            "name": f"{_trial_name(trial, first)}, {_rounded(trial.values[second.name])}",
            "value": [_rounded(trial.values[first.name]), _rounded(trial.values[second.name])],
            "itemStyle": _BEST if trial.number in result.best else _TRIAL,
        }
        for trial in result.of_state("complete")
    ]
    option = {
        "tooltip": {"trigger": "item", "formatter": "{b}"},
        "grid": {**_GRID, "top": 34},
        "xAxis": _axis(objective_text(first)),
        "yAxis": _axis(objective_text(second), nameLocation="end", nameGap=12, nameTextStyle={"align": "left"}),
        "series": [{"type": "scatter", "symbolSize": 11, "data": points}],
    }
    names = f"{objective_text(first)} and {objective_text(second)}"
    return SweepChart(option, 400, f"{len(points)} trials by {names}; the table of trials has the values")


def _history(result: SweepResult, objective: SweepObjective) -> SweepChart:
    """Return the objective by the number of the trial, and the best so far."""
    trials = sorted(result.of_state("complete"), key=lambda trial: trial.number)
    choose = min if objective.direction == "minimize" else max
    best, line = trials[0].values[objective.name], []
    for trial in trials:
        best = choose(best, trial.values[objective.name])
        line.append([trial.number, _rounded(best)])
    points = [
        {"name": _trial_name(trial, objective), "value": [trial.number, _rounded(trial.values[objective.name])]}
        for trial in trials
    ]
    option = {
        "tooltip": {"trigger": "item", "formatter": "{b}"},
        "legend": {"top": 0, "left": 0, "data": ["trial", "best so far"]},
        "grid": {**_GRID, "top": 36},
        "xAxis": _axis("trial", scale=False, minInterval=1),
        "yAxis": _axis("", nameLocation="end"),
        "series": [
            {"type": "scatter", "name": "trial", "data": points, "symbolSize": 10, "itemStyle": _TRIAL},
            {
                "type": "line", "name": "best so far", "data": line, "step": "end", "symbol": "none", "silent": True,
                "itemStyle": _BEST, "lineStyle": {**_BEST, "width": 2},
            },
        ],
    }  # fmt: skip
    return SweepChart(option, 300, f"{objective_text(objective)} of {len(trials)} trials; the best is {line[-1][1]:g}")


def _importance(importance: dict[str, float]) -> SweepChart:
    """Return a bar per parameter, the most important one first."""
    rows = sorted(importance.items(), key=lambda item: -item[1])
    option = {
        "grid": {**_GRID, "right": 50, "bottom": 8},
        "xAxis": {"type": "value", "min": 0, "max": 1},
        "yAxis": {"type": "category", "inverse": True, "data": [name for name, _ in rows]},
        "series": [
            {
                "type": "bar", "barMaxWidth": 26, "data": [round(share, 4) for _, share in rows],
                "label": {"show": True, "position": "right", "color": "var(--ink)"},
                "itemStyle": {"color": "var(--blue)"},
            }
        ],
    }  # fmt: skip
    text = ", ".join(f"{name} {share:.2f}" for name, share in rows)
    return SweepChart(option, 60 + 40 * len(rows), f"Importance of the parameters: {text}")


def _scale(parameter: SweepParameter, trials: Sequence[SweepTrial]) -> dict[str, Any]:
    """Return the type of the axis of a parameter: categories, or numbers on a linear or a logarithmic scale."""
    values = [trial.parameters[parameter.name] for trial in trials]
    numbers = [value for value in values if isinstance(value, int | float)]
    if parameter.choices is not None or len(numbers) < len(values):
        choices = parameter.choices if parameter.choices is not None else values
        return {"type": "category", "data": list(dict.fromkeys(map(str, choices)))}
    return {"type": "log" if parameter.log and min(numbers) > 0 else "value", "scale": True}


def _setting(trial: SweepTrial, parameter: SweepParameter, axis: dict[str, Any]) -> Any:
    value = trial.parameters[parameter.name]
    return str(value) if axis["type"] == "category" else _rounded(value)


def _parallel(result: SweepResult, objective: SweepObjective, varied: dict[str, SweepParameter]) -> SweepChart:
    """Return one line per trial through its objective and its parameters."""
    trials = result.of_state("complete")
    axes = [_scale(parameter, trials) for parameter in varied.values()]
    values = [_rounded(trial.values[objective.name]) for trial in trials]
    data = [
        [value, *(_setting(trial, each, axis) for each, axis in zip(varied.values(), axes, strict=True))]
        for value, trial in zip(values, trials, strict=True)
    ]
    named = [("", {"name": objective_text(objective), "scale": True}), *zip(varied, axes, strict=True)]
    colors = ["var(--line)", "var(--blue)"]
    style = {
        "nameTextStyle": {"color": "var(--soft)"}, "axisLabel": {"color": "var(--soft)"},
        "nameTruncate": {"maxWidth": 150},
        "axisLine": {"lineStyle": {"color": "var(--soft)"}}, "nameGap": 14,
    }  # fmt: skip
    option = {
        "parallel": {"left": 80, "right": 110, "top": 44, "bottom": 24},
        "parallelAxis": [
            {"dim": number, **style, **({"name": name} if name else {}), **axis}
            for number, (name, axis) in enumerate(named)
        ],
        "visualMap": {
            "show": False, "dimension": 0, "min": min(values), "max": max(values),
            "inRange": {"color": colors if objective.direction == "maximize" else colors[::-1]},
        },
        "series": [{"type": "parallel", "data": data, "lineStyle": {"width": 2, "opacity": 0.85}}],
    }  # fmt: skip
    return SweepChart(option, 380, f"Parameters and {objective_text(objective)} of {len(trials)} trials")


def _slice(result: SweepResult, objective: SweepObjective, label: str, parameter: SweepParameter) -> SweepChart:
    """Return the objective by the value of one parameter."""
    trials = sorted(result.of_state("complete"), key=lambda trial: trial.number)
    axis = _scale(parameter, trials)
    points = [
        {
            "name": f"{_trial_name(trial, objective)}, {label} {_setting(trial, parameter, axis)}",
            "value": [_setting(trial, parameter, axis), _rounded(trial.values[objective.name])],
            "itemStyle": _BEST
            if trial.number in result.best
            else {"color": "var(--blue)", "opacity": round(0.3 + 0.6 * rank / max(len(trials) - 1, 1), 2)},
        }
        for rank, trial in enumerate(trials)
    ]
    option = {
        "tooltip": {"trigger": "item", "formatter": "{b}"},
        "grid": _GRID,
        "xAxis": _axis(label) | axis,
        "yAxis": {"type": "value", "scale": True},
        "series": [{"type": "scatter", "symbolSize": 10, "data": points}],
    }
    return SweepChart(option, 280, f"{objective_text(objective)} of {len(trials)} trials by {label}")
