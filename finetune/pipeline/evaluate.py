"""The command `evaluate`: scores, predictions, head analysis and report of a finished run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.markup import escape

from finetune.data.tokenization import EncodedSplit
from finetune.distributed import gather_results, on_main_process
from finetune.errors import FinetuneError
from finetune.evaluation.baseline import without_constant_warning
from finetune.evaluation.baseline_comparison import is_below_a_baseline
from finetune.evaluation.confidence import confidence_scores
from finetune.evaluation.prediction import Predictions, predict
from finetune.evaluation.predictions_file import predictions_table, write_predictions
from finetune.evaluation.scores import score
from finetune.evaluation.thresholds import threshold_gain
from finetune.models.classifier import Classifier
from finetune.out_of_memory import report_out_of_memory
from finetune.pipeline.analyze_heads import analyze, describe_error, explain, write_heads
from finetune.pipeline.baselines import Baselines, compare_baselines, stored_or_fitted_baselines, untrained_encoder
from finetune.pipeline.context import RunContext, RunInputs
from finetune.pipeline.finished_run import finished_folder, open_run
from finetune.pipeline.fit_thresholds import compared_f1
from finetune.pipeline.label_errors import checks_labels, held_out_label_errors, stored_or_new_label_errors
from finetune.pipeline.trackers import log_final_scores
from finetune.progress import stage
from finetune.report import read_record, write_report
from finetune.report.terminal import print_baselines, print_classes, print_heads, print_scores
from finetune.runs.baselines import BaselineComparison
from finetune.runs.json_files import write_json
from finetune.runs.label_errors import LabelError, write_label_errors
from finetune.runs.results import HeadFailure, SplitScores


@report_out_of_memory()
def evaluate(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, SplitScores]:
    """Score a finished run again, and return the scores by split.

    Scores, predictions, head analysis and report are written again.

    Args:
        overrides: to the run's recipe, as `section.key=value`.

    Raises:
        FinetuneError: the folder contains no finished run, one of its files is damaged, or its data can no longer be
            read.
    """
    path = Path(path)
    # The report shows every file, so all of them are checked before scoring starts.
    previous = read_record(finished_folder(path), overrides, before_scoring=True).scores
    with open_run(path, overrides) as run:
        encoder = untrained_encoder(run.context, run.inputs)
        baselines = stored_or_fitted_baselines(run.context, run.inputs, encoder)
        label_errors = stored_or_new_label_errors(run.context, run.inputs, encoder)
        del encoder  # which the evaluation does not need
        scores = evaluate_stage(run.context, run.inputs, baselines, label_errors)
        if previous:
            again = {name: result for name, result in scores.items() if name in previous}  # a split can be new
            run.context.print_line(_comparison(previous, again))
    return scores


def _comparison(previous: Mapping[str, SplitScores], again: Mapping[str, SplitScores]) -> str:
    """Return the sentence that says whether the scores, and their intervals, are those of the folder."""
    is_identical = _values(previous) == _values(again)
    verdict = "identical, to the last digit, to" if is_identical else "[yellow]different from[/]"
    only = is_identical and _without_notes(previous) != _without_notes(again)
    return f"These scores are {verdict} the previous ones in the folder{'; only their intervals differ' * only}."


def _values(scores: Mapping[str, SplitScores]) -> dict[str, object]:
    """Return the scores without intervals and notes."""
    return {
        name: (
            split.rows,
            split.loss,
            {metric: value.value for metric, value in split.metrics.items()},
            split.confusion,
        )
        for name, split in scores.items()
    }


def _without_notes(scores: Mapping[str, SplitScores]) -> dict[str, SplitScores]:
    """Return scores without their notes, whose wording may differ between versions."""
    return {
        name: replace(
            split_scores,
            interval_note="",
            warnings=[],
            above_constant=None,
            confidence=None,
            threshold_gain=None,
            metrics={metric: replace(value, note="") for metric, value in split_scores.metrics.items()},
            per_class=[replace(row, average_precision=None) for row in split_scores.per_class],
        )
        for name, split_scores in scores.items()
    }


def evaluate_stage(
    context: RunContext, inputs: RunInputs, baselines: Baselines, label_errors: Sequence[LabelError]
) -> dict[str, SplitScores]:
    """Score every held-out split and write the report, then analyze the heads and add them; return the scores.

    Args:
        label_errors: the training rows whose label is probably wrong.
    """
    with stage("evaluating"):
        scores, comparison = _score_and_write(context, inputs, baselines, label_errors)
    print_scores(context.console, scores, inputs.summary)
    if shown := next((name for name in ("test", "validation") if name in scores), None):
        print_classes(context.console, shown, scores[shown])
        if gain := scores[shown].threshold_gain_text():
            context.print_line(f"{shown}: {gain}")
    log_final_scores(context, scores)
    if comparison is not None:
        print_baselines(context.console, comparison)
    _add_head_analysis(context, inputs, scores)
    context.print_line(f"Report: {escape(str(context.folder.report))}")
    return scores


def _score_and_write(
    context: RunContext, inputs: RunInputs, baselines: Baselines, label_errors: Sequence[LabelError]
) -> tuple[dict[str, SplitScores], BaselineComparison | None]:
    """Score every held-out split, compare with the baselines, and write the results and the report; return both."""
    recipe, folder, classifier = context.recipe, context.folder, inputs.classifier
    scores, predictions, tables, errors = {}, {}, [], list(label_errors)
    lists_errors = checks_labels(recipe, classifier)
    for name, split in inputs.held_out_splits().items():
        scores[name], predictions[name] = _score_split(context, classifier, split)
        confidence = confidence_scores(
            predictions[name],
            fitted=name == "validation",
            samples=recipe.evaluation.bootstrap_samples,
            seed=recipe.seed,
        )
        gain = None
        if name != "validation":  # whose rows tuned the thresholds
            gain = threshold_gain(predictions[name], metric=compared_f1(recipe))
        scores[name] = replace(scores[name], confidence=confidence, threshold_gain=gain)
        of_baselines = {baseline: fit.predictions[name] for baseline, fit in baselines.fitted.items()}
        tables.append(predictions_table(name, split, predictions[name], classifier.label_names, of_baselines))
        if lists_errors:
            errors += held_out_label_errors(name, split, predictions[name], classifier.label_names)
    comparison = compare_baselines(context, baselines, predictions, classifier.label_names)
    if comparison is not None:
        scores, comparison = _with_one_warning(scores, comparison)
    if recipe.evaluation.score_training_rows:
        scores["train"] = _training_scores(context, inputs)

    def write() -> None:
        """Write the results and the report on the main process."""
        write_json(folder.scores, scores)
        if comparison is None:
            folder.baselines.unlink(missing_ok=True)
        else:
            write_json(folder.baselines, comparison)
        if tables:
            write_predictions(folder.predictions, tables)
        if lists_errors:
            write_label_errors(folder.label_errors, errors, inputs.splits["train"].texts.num_columns)
        else:
            folder.label_errors.unlink(missing_ok=True)
        write_report(folder)

    on_main_process(context.accelerator, write)
    return scores, comparison


def _score_split(context: RunContext, classifier: Classifier, split: EncodedSplit) -> tuple[SplitScores, Predictions]:
    """Return the scores and the predictions of the classifier on one split.

    Every process returns the scores of the first one: whether an interval takes too long differs between processes.
    """
    recipe = context.recipe
    batch_size = recipe.evaluation.per_device_eval_batch_size
    predictions = predict(classifier, split, batch_size=batch_size, accelerator=context.accelerator)
    scores = score(
        predictions,
        classifier.label_names,
        recipe.metrics_to_report(),
        samples=recipe.evaluation.bootstrap_samples,
        seed=recipe.seed,
        best_metric=recipe.best_metric(),
    )
    return gather_results(context.accelerator, lambda: scores)[0], predictions


def _training_scores(context: RunContext, inputs: RunInputs) -> SplitScores:
    """Return the scores on the training rows, without warnings: they say nothing about other rows."""
    scores, _ = _score_split(context, inputs.classifier, inputs.splits["train"])
    return replace(scores, warnings=[], above_constant=None)


def _with_one_warning(
    scores: Mapping[str, SplitScores], comparison: BaselineComparison
) -> tuple[dict[str, SplitScores], BaselineComparison]:
    """Return both, without the less informative of the two warnings where a split has both.

    A classifier that is no better than a constant may have learned nothing, which says more than that another model is
    as good; but if a baseline is clearly better, the rows have something to learn.
    """
    left, compared = dict(scores), dict(comparison.splits)
    for name, result in comparison.splits.items():
        if scores[name].above_constant is False and not is_below_a_baseline(result, comparison.metric):
            compared[name] = replace(result, warning="")
        elif result.warning:
            left[name] = replace(scores[name], warnings=without_constant_warning(scores[name].warnings))
    return left, replace(comparison, splits=compared)


def _add_head_analysis(context: RunContext, inputs: RunInputs, scores: Mapping[str, SplitScores]) -> None:
    """Analyze the heads and add the result to the report; if this fails, the report shows a warning instead."""
    folder, failure, analysis, explanations = context.folder, "", None, None
    try:
        with report_out_of_memory():
            analysis = analyze(context, inputs, scores)
    except Exception as error:  # every type: a failed analysis must not end a run whose scores are complete
        if context.accelerator.num_processes > 1 and not isinstance(error, FinetuneError):
            raise  # the processes may have stopped at different points of the analysis
        failure = describe_error(error)
    if analysis is not None:
        analysis, explanations = explain(context, inputs, analysis)

    def write() -> None:
        if analysis is not None:
            write_heads(folder, analysis, explanations)
        elif failure:
            write_json(folder.heads_failure, HeadFailure(failure))
        else:
            return
        write_report(folder)

    with stage("writing the report"):
        on_main_process(context.accelerator, write)
    if analysis is not None:
        print_heads(context.console, analysis)
    elif failure:
        context.print_line(f"[yellow]The head analysis failed: {escape(failure)}. Scores and report are written.[/]")
