"""The results of a sweep, from the trials in its storage, and its best recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from finetune.recipe.loader import dump_recipe
from finetune.recipe.sweep_loader import LoadedSweep
from finetune.runs.sweep_results import State, SweepFolder, SweepResult, SweepTrial, best_trials

METRICS, SECONDS, ERROR = "metrics", "seconds", "error"  # attributes of a trial
_STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "running",
}


def sweep_result(loaded: LoadedSweep, stored: Sequence[FrozenTrial]) -> SweepResult:
    """Return the results of the trials in the storage, without the importance of the parameters."""
    names = [objective.name for objective in loaded.objectives]
    trials = [_trial_result(trial, names) for trial in stored]
    return SweepResult(
        name=loaded.name,
        recipe=loaded.sweep.recipe,
        sampler=loaded.sweep.sampler,
        pruner=loaded.sweep.pruner,
        seeds=loaded.seeds(),
        planned=loaded.planned(),
        objectives=list(loaded.objectives),
        parameters=list(loaded.parameters),
        trials=trials,
        best=best_trials(trials, loaded.objectives),
    )


def _trial_result(trial: FrozenTrial, objectives: Sequence[str]) -> SweepTrial:
    return SweepTrial(
        number=trial.number,
        state=_STATES[trial.state],
        parameters=dict(trial.params),
        values=dict(zip(objectives, trial.values or (), strict=False)),  # a pruned trial has only the first
        metrics=trial.user_attrs.get(METRICS, {}),
        intermediate=dict(trial.intermediate_values),
        seconds=trial.user_attrs.get(SECONDS),
        error=trial.user_attrs.get(ERROR, ""),
    )


def best_recipe_text(loaded: LoadedSweep, results: SweepResult) -> str:
    """Return the best recipe as YAML, with a comment that says where it comes from."""
    best = results.trial(results.best[0])
    recipe = loaded.recipe(best.parameters, output_dir=str(SweepFolder(Path(loaded.sweep.output_dir)).best_run))
    scores = ", ".join(f"{name} {value:.6g}" for name, value in best.values.items())
    head = f"# Trial {best.number} of the sweep {loaded.name}, the best of {len(results.trials)}: {scores}"
    return f"{head}\n# on the validation rows, which chose it.\n{dump_recipe(recipe)}"
