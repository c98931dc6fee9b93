"""The command `evaluate`: scores, predictions, head importance and report of a finished run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator
from rich.console import Console
from rich.markup import escape

from finetune.distributed import on_main_process
from finetune.errors import FinetuneError
from finetune.evaluation.prediction import predict
from finetune.evaluation.predictions_file import predictions_table, write_predictions
from finetune.evaluation.scores import score
from finetune.out_of_memory import report_out_of_memory
from finetune.pipeline.analyze_heads import describe, study_heads, write_heads
from finetune.pipeline.finished_run import finished_folder, open_run
from finetune.pipeline.prepare import Material
from finetune.recipe import Recipe
from finetune.report import read_record, write_report
from finetune.report.terminal import print_heads, print_line, print_scores
from finetune.runs.json_files import write_json
from finetune.runs.results import SplitScores
from finetune.runs.run_files import HeadFailure
from finetune.runs.run_folder import RunFolder


@report_out_of_memory()
def evaluate(path: Path, overrides: Sequence[str] = ()) -> RunFolder:
    """Score a finished run again from its folder: scores, predictions, head importance and report.

    Args:
        overrides: to the run's recipe, as `section.key=value`.

    Raises:
        FinetuneError: the folder holds no finished run, one of its files is damaged, or its data can no longer be
            read.
    """
    before = read_record(finished_folder(path), overrides, before_scoring=True).scores  # the report tells all of it
    with open_run(path, overrides) as run:
        scores = evaluate_stage(run.recipe, run.material, run.folder, run.accelerator, run.console)
        if before:
            equal = _figures(before) == _figures(scores)
            same = "the same, to the last digit, as" if equal else "[yellow]different from[/]"
            print_line(run.console, f"These scores are {same} those that the folder held before.")
    return run.folder


def _figures(scores: Mapping[str, SplitScores]) -> dict[str, SplitScores]:
    """Return scores without what is said of them, which another version may word in another way."""
    return {name: replace(found, interval_note="", warnings=[]) for name, found in scores.items()}


def evaluate_stage(
    recipe: Recipe, material: Material, folder: RunFolder, accelerator: Accelerator, console: Console
) -> dict[str, SplitScores]:
    """Score every split and write the report, then analyze the heads and add them; return the scores by split."""
    classifier, size = material.classifier, recipe.evaluation.per_device_eval_batch_size
    scores, tables = {}, []
    for name, split in material.scored().items():
        found = predict(classifier, split, batch_size=size, accelerator=accelerator)
        scores[name] = score(
            found,
            classifier.label_names,
            recipe.metric_names(),
            samples=recipe.evaluation.bootstrap_samples,
            seed=recipe.seed,
        )
        tables.append(predictions_table(name, split, found, classifier.label_names))

    def write() -> None:
        write_json(folder.scores, scores)
        if tables:
            write_predictions(folder.predictions, tables)
        write_report(folder)

    on_main_process(accelerator, write)
    print_scores(console, scores, material.summary)
    heads_stage(recipe, material, folder, accelerator, console)
    print_line(console, f"Report: {escape(str(folder.report))}")
    return scores


def heads_stage(
    recipe: Recipe, material: Material, folder: RunFolder, accelerator: Accelerator, console: Console
) -> None:
    """Add the head analysis to a report that is there without it; a failure becomes a warning in the report."""
    failure, heads = "", None
    try:
        with report_out_of_memory():
            heads = study_heads(recipe, material, accelerator)
    except Exception as error:  # whatever it is: training and scores are finished, and worth more
        if accelerator.num_processes > 1 and not isinstance(error, FinetuneError):
            raise  # the processes may no longer stand at the same place
        failure = describe(error)

    def write() -> None:
        if heads is not None:
            write_heads(folder, heads)
        elif failure:
            write_json(folder.heads_failure, HeadFailure(failure))
        else:
            return
        write_report(folder)

    on_main_process(accelerator, write)
    if heads is not None:
        print_heads(console, heads)
    elif failure:
        print_line(console, f"[yellow]The head analysis failed: {escape(failure)}. Scores and report are written.[/]")
