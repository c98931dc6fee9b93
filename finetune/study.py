"""Study the heads: of a run as it ends, of a finished run anew, and of several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from accelerate import Accelerator
from rich.console import Console
from rich.markup import escape

from finetune.errors import DataError
from finetune.finished import open_run
from finetune.head_results import Agreement, HeadAnalysis
from finetune.heads.agreement import kendall_tau
from finetune.heads.analysis import analyse_heads
from finetune.memory import memory_told
from finetune.preparation import Material
from finetune.recipe import Recipe
from finetune.report import write_report
from finetune.results import RunFolder, read_json, write_json
from finetune.session import finish
from finetune.terminal import say, show_agreement, show_heads


def study_heads(recipe: Recipe, material: Material, accelerator: Accelerator) -> HeadAnalysis | None:
    """Return the analysis that the recipe asks for, or None."""
    asked = recipe.head_importance
    if asked is None:
        return None
    found = analyse_heads(
        material.classifier,
        material.splits,
        asked,
        metric=recipe.metric_names()[0],
        batch_size=recipe.evaluation.per_device_eval_batch_size,
        seed=recipe.seed,
        accelerator=accelerator,
    )
    if found.truth is None:
        return found
    name = found.truth.split
    facts, told = material.summary[name], ""
    if name == "train":
        told = "The ranking is tested on training rows, which the weights were fitted to: test it on other rows."
    elif facts.rows_also_in_train:
        told = (
            f"{facts.rows_also_in_train} of {facts.rows} {name} rows are training rows too: scores on them show "
            "memory, of the ranking as of the classifier."
        )
    return replace(found, warnings=[*found.warnings, told]) if told else found


@memory_told()
def study_run(path: Path, changes: Sequence[str]) -> HeadAnalysis:
    """Analyse the heads of a finished run anew, and write `heads.json` and the report again.

    Args:
        changes: to the recipe's `head_importance`, as `key=value`.

    Raises:
        FinetuneError: the folder holds no finished run, or a change is wrong.
    """
    run = open_run(path, [f"head_importance.{change}" for change in changes])
    found = study_heads(run.recipe, run.material, run.accelerator)
    if found is None:
        raise DataError(f"the recipe of {path} asks for no head analysis; give a method, as in --set method=gradient")
    if run.accelerator.is_main_process:
        write_json(run.folder.heads, found)
        write_report(run.folder)
    show_heads(run.console, found)
    say(run.console, f"Report: {escape(str(run.folder.report))}")
    finish(run.accelerator)
    return found


def check_runs(paths: Sequence[Path]) -> None:
    """Raise DataError unless each path is another run, before the first of them is analysed."""
    if len({path.resolve() for path in paths}) < len(paths):
        raise DataError("a run is named twice; name each once")
    for path in paths:
        if not RunFolder(path).recipe.is_file():
            raise DataError(f"{path} holds no finished run (no recipe.yaml); name the folder that `train` wrote")


@memory_told()
def compare_runs(paths: Sequence[Path]) -> list[Agreement]:
    """Print and return how far the leading rankings of several runs agree: over seeds, over adapters, over data.

    Raises:
        DataError: a run has no analysis, or the runs rank by different methods or heads.
    """
    without = [str(path) for path in paths if not RunFolder(path).heads.is_file()]
    if without:
        raise DataError(
            f"{without[0]} has no analysis of heads; make one with `finetune heads RUN --set method=gradient`"
        )
    found = {str(path): read_json(RunFolder(path).heads, HeadAnalysis).methods[0] for path in paths}
    methods = {scores.method for scores in found.values()}
    if len(methods) > 1:
        raise DataError(
            f"the runs rank by {', '.join(sorted(methods))}; analyse them by one method first (--set method=)"
        )
    if len({tuple(map(len, scores.values)) for scores in found.values()}) > 1:
        raise DataError("the runs have different numbers of layers or heads; compare runs of one model")
    pairs = [
        Agreement(first, second, kendall_tau(found[first].values, found[second].values))
        for first, second in combinations(found, 2)
    ]
    show_agreement(Console(highlight=False), methods.pop(), pairs)
    return pairs
