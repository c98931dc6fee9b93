"""The figures of a sweep, drawn by Optuna's `visualization` from the results of its trials."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from finetune.recipe.sweep_space import SweepObjective, SweepParameter
from finetune.report.figures import figure_html
from finetune.runs.sweep_results import SweepResult, SweepTrial

if TYPE_CHECKING:
    import optuna

_PLOTS_PER_ROW = 3  # of the slice plot


@dataclass(frozen=True)
class SweepFigure:
    """A figure as HTML, with its title and one sentence that explains it."""

    key: str
    title: str
    explanation: str
    html: str


def sweep_figures(result: SweepResult) -> list[SweepFigure]:
    """Return the figures of a sweep: history, importance, parallel coordinates, slices, and for two objectives a front.

    There are none without a complete trial.
    """
    if not result.of_state("complete"):
        return []
    import optuna.visualization as draw  # slow to import

    figures = []
    with _quiet_optuna():
        study, labels = _study(result), short_names(result.parameters)
        complete = result.of_state("complete")
        varied = [labels[each.name] for each in result.parameters if _has_all_values(each, complete)]
        if len(result.objectives) == 2:
            figure = draw.plot_pareto_front(study, target_names=[objective_text(each) for each in result.objectives])
            explanation = "Every complete trial. In red: trials that no other trial beats in both objectives."
            figures.append(_figure("front", "Pareto front", explanation, figure, 420))
        for index, objective in enumerate(result.objectives):
            figures += _figures_of(result, study, (index, objective), varied)
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
    result: SweepResult, study: optuna.Study, numbered: tuple[int, SweepObjective], varied: list[str]
) -> Iterator[SweepFigure]:
    """Yield the figures of one objective."""
    import optuna.visualization as draw

    index, objective = numbered
    name = objective_text(objective)
    suffix = f": {name}" if len(result.objectives) > 1 else ""
    options: dict[str, Any] = {"target_name": name}
    if len(result.objectives) > 1:
        options["target"] = lambda trial: trial.values[index]
    history = draw.plot_optimization_history(study, **options)
    better = "lower" if objective.direction == "minimize" else "higher"
    yield _figure(f"history-{index}", f"History{suffix}", f"One point per complete trial; {better} is better.", history)
    importance = result.importance.get(objective.name, {})
    if len(importance) > 1:  # a single parameter explains everything
        explanation = "Share of the variance of the objective over the trials that each parameter explains."
        labels = short_names(result.parameters)
        figure = _importance_bars({labels.get(name, name): share for name, share in importance.items()})
        yield _figure(f"importance-{index}", f"Importance of the parameters{suffix}", explanation, figure)
    if not varied:
        return
    if len(result.of_state("complete")) > 1:
        parallel = draw.plot_parallel_coordinate(study, params=varied, **options)
        explanation = "One line per complete trial. Drag along an axis to select trials."
        yield _figure(f"parallel-{index}", f"Parallel coordinates{suffix}", explanation, parallel, 420)
    for start in range(0, len(varied), _PLOTS_PER_ROW):
        chunk = varied[start : start + _PLOTS_PER_ROW]
        slices = _without_quotes(draw.plot_slice(study, params=chunk, **options))
        explanation = "The objective by the value of each parameter; the color is the number of the trial."
        yield _figure(f"slice-{index}-{start}", f"Slice{suffix}", explanation, slices, 400)


def _importance_bars(importance: dict[str, float]) -> go.Figure:
    rows = sorted(importance.items(), key=lambda item: item[1])
    names, shares = [name for name, _ in rows], [share for _, share in rows]
    texts = [f"{share:.2f}" for share in shares]
    bars = go.Bar(x=shares, y=names, orientation="h", text=texts, textposition="outside", marker={"color": "#2563eb"})
    figure = go.Figure(bars)
    figure.update_yaxes(automargin=True)
    figure.update_xaxes(range=[0, 1.1])
    return figure


def _without_quotes(figure: go.Figure) -> go.Figure:
    """Remove the quotes that Optuna puts around text values on the axes of its slice plot."""

    def plain(values: Sequence[object]) -> list[object]:
        return [value.strip("'") if isinstance(value, str) else value for value in values]

    figure.for_each_trace(lambda trace: trace.update(x=plain(trace.x)))
    figure.for_each_xaxis(lambda axis: axis.update(categoryarray=plain(axis.categoryarray or ())))
    return figure


def _figure(key: str, title: str, explanation: str, figure: go.Figure, height: int = 320) -> SweepFigure:
    figure.update_layout(title=None, width=None)
    return SweepFigure(key, title, explanation, figure_html(figure, height))


def _has_all_values(parameter: SweepParameter, trials: list[SweepTrial]) -> bool:
    """Return whether a parameter has a value in every complete trial; Optuna cannot draw it otherwise."""
    return all(parameter.name in trial.parameters for trial in trials)


def _study(result: SweepResult) -> optuna.Study:
    """Return the sweep as an Optuna study in memory, so that the page needs no storage."""
    import optuna
    from optuna.trial import TrialState

    study = optuna.create_study(directions=[objective.direction for objective in result.objectives])
    labels = short_names(result.parameters)
    distributions = {labels[each.name]: _distribution(each, result) for each in result.parameters}
    known = {trial.number: trial for trial in result.trials}
    for number in range(max(known) + 1):
        trial = known.get(number)
        parameters = {labels[name]: value for name, value in trial.parameters.items()} if trial else {}
        states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED}
        state = states.get(trial.state, TrialState.FAIL) if trial else TrialState.FAIL
        study.add_trial(
            optuna.create_trial(
                state=state,
                values=[trial.values[each.name] for each in result.objectives]
                if trial and state.name == "COMPLETE"
                else None,
                params=parameters,
                distributions={name: distributions[name] for name in parameters},
                intermediate_values=dict(trial.intermediate) if trial and len(result.objectives) == 1 else {},
            )
        )
    return study


def _distribution(parameter: SweepParameter, result: SweepResult) -> optuna.distributions.BaseDistribution:
    """Return the distribution of a parameter; its choices are shown as text."""
    from optuna import distributions

    if parameter.choices is not None:
        return distributions.CategoricalDistribution(parameter.choices)
    low, high = parameter.low or 0.0, parameter.high or 0.0
    values = [trial.parameters[parameter.name] for trial in result.trials if parameter.name in trial.parameters]
    if values and all(isinstance(value, int) for value in values) and low == int(low) and high == int(high):
        return distributions.IntDistribution(int(low), int(high), log=parameter.log, step=int(parameter.step or 1))
    return distributions.FloatDistribution(low, high, log=parameter.log, step=parameter.step)


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Keep Optuna from logging in the block."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)
