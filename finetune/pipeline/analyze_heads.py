"""The command `heads` for one run, and the head analysis in `train` and `evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.markup import escape

from finetune.distributed import on_main_process
from finetune.errors import DataError, FinetuneError
from finetune.heads import analysis
from finetune.heads.expected_costs import expected_costs
from finetune.heads.explain_rows import explain_rows
from finetune.models.classifier import Classifier
from finetune.out_of_memory import report_out_of_memory
from finetune.pipeline.context import RunContext, RunInputs
from finetune.pipeline.finished_run import open_run
from finetune.pipeline.training_cost import training_cost_of_run
from finetune.progress import stage
from finetune.report import write_report
from finetune.report.terminal import print_heads
from finetune.runs.explanations import Explanations, write_explanations
from finetune.runs.head_results import HeadAnalysis
from finetune.runs.json_files import write_json
from finetune.runs.results import SplitScores, SplitSummary
from finetune.runs.run_files import read_scores
from finetune.runs.run_folder import RunFolder


@report_out_of_memory()
def analyze_heads(path: str | Path, overrides: Sequence[str] = ()) -> HeadAnalysis:
    """Analyze the heads of a finished run again, write its files and the report again, and return the analysis.

    Args:
        overrides: to the run's recipe, as `section.key=value`.

    Raises:
        FinetuneError: the folder contains no finished run, one of its files is damaged, or an override is wrong.
    """
    with open_run(Path(path), overrides) as run:
        context = run.context
        scores = read_scores(context.folder) if context.folder.scores.is_file() else {}
        result = analyze(context, run.inputs, scores)
        if result is None:
            raise DataError(
                f"the recipe of {path} has no head analysis; set a method, such as head_importance.method=gradient"
            )
        result, explanations = explain(context, run.inputs, result)

        def write() -> None:
            write_heads(context.folder, result, explanations)
            write_report(context.folder)

        with stage("writing the report"):
            on_main_process(context.accelerator, write)
        print_heads(context.console, result)
        context.print_line(f"Report: {escape(str(context.folder.report))}")
    return result


def analyze(context: RunContext, inputs: RunInputs, scores: Mapping[str, SplitScores]) -> HeadAnalysis | None:
    """Return the analysis that the recipe's `head_importance` describes, or None without that section.

    Args:
        scores: those of the classifier, by split, for a warning if it has not learned the task.
    """
    recipe = context.recipe
    if recipe.head_importance is None:
        return None
    classifier, splits, settings = inputs.classifier, inputs.splits, _settings(context, inputs.classifier)
    with stage("analyzing heads"):
        for line in expected_costs(classifier, splits, recipe.head_importance, settings, context.accelerator):
            context.print_line(escape(line))
        result = analysis.analyze_heads(classifier, splits, recipe.head_importance, settings, context.accelerator)
    truth = result.truth
    overlap = _overlap_warning(truth.split, inputs.summary[truth.split]) if truth else ""
    added = [warning for warning in (untrained_warning(scores), overlap) if warning]
    return replace(result, warnings=[*result.warnings, *added])


def _settings(context: RunContext, classifier: Classifier) -> analysis.AnalysisSettings:
    recipe = context.recipe
    return analysis.AnalysisSettings(
        metric=recipe.toolkit_metrics()[0],
        batch_size=recipe.evaluation.per_device_eval_batch_size,
        seed=recipe.seed,
        training=training_cost_of_run(context, classifier),
    )


def explain(context: RunContext, inputs: RunInputs, result: HeadAnalysis) -> tuple[HeadAnalysis, Explanations | None]:
    """Return the analysis, and the explanations of single rows; without them, the analysis may have a warning.

    A failure never loses the analysis. All processes return the same: whatever fails on one process raises an error on
    all of them at the same point (`gather_results`).
    """
    section = context.recipe.head_importance
    if section is None or section.explained_rows == 0:
        return result, None
    settings = _settings(context, inputs.classifier)
    try:
        with report_out_of_memory(), stage("explaining rows"):
            return result, explain_rows(
                inputs.classifier, inputs.splits, section, settings, result.methods[0].order, context.accelerator
            )
    except Exception as error:  # every type, as in a failed analysis
        warning = f"Single rows could not be explained: {describe_error(error)}."
        return replace(result, warnings=[*result.warnings, warning]), None


def untrained_warning(scores: Mapping[str, SplitScores]) -> str:
    """Return a warning if on no scored split the classifier is clearly better than a constant prediction, or ""."""
    verdicts = {split: result.above_constant for split, result in scores.items() if result.above_constant is not None}
    if not verdicts or any(verdicts.values()):
        return ""
    return (
        f"This ranking describes a model that has not learned the task: on the {' and '.join(verdicts)} rows it is not "
        "clearly better than one constant prediction. Train a better model before you use the ranking."
    )


def _overlap_warning(split: str, summary: SplitSummary) -> str:
    """Return a warning if rows of the pruning curves were also trained on, or ""."""
    if split == "train":
        return "The ranking was tested on training rows, which the model was fitted to; test it on other rows."
    if summary.rows_also_in_train:
        return (
            f"{summary.rows_also_in_train} of {summary.rows} {split} rows are also training rows: their scores "
            "measure memorization, not generalization, of the ranking and of the classifier."
        )
    return ""


def write_heads(folder: RunFolder, result: HeadAnalysis, explanations: Explanations | None) -> None:
    """Write the analysis and the explanations of single rows, and remove what an earlier analysis left."""
    write_json(folder.heads, result)
    if explanations is None:
        folder.explanations.unlink(missing_ok=True)
    else:
        write_explanations(folder, explanations)
    folder.heads_failure.unlink(missing_ok=True)


def describe_error(error: Exception) -> str:
    """Return an error's message, with its class unless it is a FinetuneError, which says what to do."""
    text = str(error).strip() or "no reason given"
    return text if isinstance(error, FinetuneError) else f"{type(error).__name__}: {text}"
