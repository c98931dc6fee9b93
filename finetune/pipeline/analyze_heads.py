"""Study the heads: of a run as it ends, of a finished run again, and of several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from accelerate import Accelerator
from rich.console import Console
from rich.markup import escape

from finetune.distributed import on_main_process
from finetune.errors import DataError, FinetuneError, TrainingError
from finetune.heads.analysis import analyze_heads
from finetune.heads.ranking_statistics import kendall_tau
from finetune.out_of_memory import report_out_of_memory
from finetune.pipeline.finished_run import finished_folder, finished_recipe, open_run
from finetune.pipeline.prepare import Material
from finetune.recipe import Recipe
from finetune.report import read_record, write_report
from finetune.report.terminal import print_agreement, print_heads, print_line
from finetune.runs.head_results import HeadAnalysis, RankAgreement
from finetune.runs.json_files import write_json
from finetune.runs.run_files import existing_run, read_heads
from finetune.runs.run_folder import RunFolder

_FEW_ROWS = 8
_FEW_SECONDS = 2.0


def study_heads(recipe: Recipe, material: Material, accelerator: Accelerator) -> HeadAnalysis | None:
    """Return the analysis that the recipe asks for, or None."""
    asked = recipe.head_importance
    if asked is None:
        return None
    found = analyze_heads(
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


@report_out_of_memory()
def study_run(path: Path, overrides: Sequence[str]) -> HeadAnalysis:
    """Analyze the heads of a finished run again, and write `heads.json` and the report again.

    Args:
        overrides: to the run's recipe, as `section.key=value`.

    Raises:
        FinetuneError: the folder holds no finished run, one of its files is damaged, or an override is wrong.
    """
    with open_run(path, overrides) as run:
        found = study_heads(run.recipe, run.material, run.accelerator)
        if found is None:
            raise DataError(
                f"the recipe of {path} asks for no head analysis; give a method, as in head_importance.method=gradient"
            )

        def write() -> None:
            write_heads(run.folder, found)
            write_report(run.folder)

        on_main_process(run.accelerator, write)
        print_heads(run.console, found)
        print_line(run.console, f"Report: {escape(str(run.folder.report))}")
    return found


def write_heads(folder: RunFolder, analysis: HeadAnalysis) -> None:
    """Write the analysis, and forget that an earlier one failed."""
    write_json(folder.heads, analysis)
    folder.heads_failure.unlink(missing_ok=True)


def try_heads(recipe: Recipe, material: Material, accelerator: Accelerator) -> None:
    """Make the recipe's head analysis on a few rows, for a dry run.

    Raises:
        TrainingError: it fails.
    """
    asked = recipe.head_importance
    if asked is None:
        return
    few = {"max_samples": _FEW_ROWS, "curve_samples": _FEW_ROWS, "random_orders": 1, "max_seconds": _FEW_SECONDS}
    try:
        study_heads(recipe.model_copy(update={"head_importance": asked.model_copy(update=few)}), material, accelerator)
    except Exception as error:
        raise TrainingError(
            f"the head analysis fails: {describe(error)}; change head_importance, or set it to null"
        ) from error


def describe(error: Exception) -> str:
    """Return what an error says, with its class where it is not one that says what to do."""
    text = str(error).strip() or "no reason given"
    return text if isinstance(error, FinetuneError) else f"{type(error).__name__}: {text}"


def check_runs(paths: Sequence[Path], overrides: Sequence[str], *, analyze: bool) -> None:
    """Raise a FinetuneError unless each path is another run with intact files, before the first of them is analyzed.

    Args:
        analyze: whether the runs are to be analyzed, and not only compared.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise DataError("a run is named twice; name each once")
    for path in paths:
        folder = existing_run(path)
        if analyze:
            finished_recipe(finished_folder(path), overrides)
            read_record(folder, overrides)  # the report tells all of it
        elif folder.heads.is_file():
            read_heads(folder)


@report_out_of_memory()
def compare_runs(paths: Sequence[Path]) -> list[RankAgreement]:
    """Print and return how far the leading rankings of several runs agree: over seeds, over adapters, over data.

    Raises:
        DataError: a run has no analysis, or the runs rank by different methods or heads.
    """
    without = [str(path) for path in paths if not RunFolder(path).heads.is_file()]
    if without:
        raise DataError(
            f"{without[0]} has no analysis of heads; make one with `finetune heads RUN head_importance.method=gradient`"
        )
    found = {str(path): read_heads(RunFolder(path)).methods[0] for path in paths}
    methods = {scores.method for scores in found.values()}
    if len(methods) > 1:
        raise DataError(
            f"the runs rank by {', '.join(sorted(methods))}; analyze them by one method first "
            "(head_importance.method=gradient)"
        )
    if len({tuple(map(len, scores.values)) for scores in found.values()}) > 1:
        raise DataError("the runs have different numbers of layers or heads; compare runs of one model")
    pairs = [
        RankAgreement(first, second, kendall_tau(found[first].values, found[second].values))
        for first, second in combinations(found, 2)
    ]
    print_agreement(Console(highlight=False), methods.pop(), pairs)
    return pairs
