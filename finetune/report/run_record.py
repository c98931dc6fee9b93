"""All results of a finished run, read from its folder and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from finetune.recipe.schema import Recipe
from finetune.report.row_columns import LENGTH, text_lengths
from finetune.runs.baselines import BaselineComparison
from finetune.runs.data_quality import DataQuality
from finetune.runs.explanations import Explanations, read_explanations
from finetune.runs.head_results import HeadAnalysis
from finetune.runs.json_files import read_json
from finetune.runs.label_errors import LabelError, read_label_errors
from finetune.runs.outputs import FittedOutputs
from finetune.runs.predictions import PredictedRow, first_predictions, read_predictions, worst_predictions
from finetune.runs.results import Environment, HeadFailure, SplitScores, SplitSummary, TrainingResult
from finetune.runs.run_files import (
    read_baselines,
    read_fitted_outputs,
    read_heads,
    read_history,
    read_recipe,
    read_scores,
    read_summary,
)
from finetune.runs.run_folder import RunFolder

_EXAMPLES = 5  # rows with their predictions in the model card


@dataclass(frozen=True)
class RunRecord:
    """The results that the report and the model card show.

    Attributes:
        worst: wrongly predicted rows with the highest loss; None if no text of a row may be shown.
        examples: the first rows of the shown split; None if no text of a row may be shown.
        baselines: the comparison with baselines; None if there is none.
        predictions: the table of predictions.parquet, with the lengths of the texts instead of the texts if no text
            may be shown; None if no split was scored.
        quality: what is remarkable about the rows; None in runs of earlier versions.
        explanations: of single rows, without tokens if no text may be shown; None if there are none.
        fitted_outputs: what was fitted to the validation rows after training; None if nothing was.
        label_errors: rows whose label is probably wrong, without texts if no text may be shown; None if the labels were
            not checked.
    """

    recipe: Recipe
    environment: Environment
    data: dict[str, SplitSummary]
    history: list[dict[str, int | float | None]]
    training: TrainingResult
    scores: dict[str, SplitScores]
    heads: HeadAnalysis | None
    head_note: str
    worst: list[PredictedRow] | None
    examples: list[PredictedRow] | None
    baselines: BaselineComparison | None = None
    predictions: pa.Table | None = None
    explanations: Explanations | None = None
    quality: DataQuality | None = None
    fitted_outputs: FittedOutputs | None = None
    label_errors: list[LabelError] | None = None

    def shown_split(self) -> str | None:
        """Return the split whose scores are shown in detail: test if it was scored, else validation, else None."""
        return _shown_split(self.scores)

    def notes(self) -> list[str]:
        """Return the notes on the model, on the course of training, and on the rows of every split."""
        return [
            *self.training.notes,
            *self.training.warnings,
            *(note for split, summary in self.data.items() for note in summary.notes(split)),
        ]

    def without_texts(self) -> RunRecord:
        """Return the record without any text of a row."""
        explanations = self.explanations and replace(
            self.explanations, rows=[row.without_tokens() for row in self.explanations.rows]
        )
        errors = self.label_errors and [replace(error, texts=()) for error in self.label_errors]
        return replace(
            self,
            worst=None,
            examples=None,
            predictions=_without_texts(self.predictions),
            explanations=explanations,
            label_errors=errors,
            quality=self.quality and self.quality.without_texts(),
        )

    def thresholds(self) -> dict[str, float] | None:
        """Return the thresholds of the model by label name; None if it has none."""
        fitted = self.fitted_outputs.thresholds if self.fitted_outputs else None
        return fitted.values if fitted is not None and fitted.used else None

    def label_names(self) -> list[str]:
        """Return the names of the labels in the order of the probabilities; none in regression."""
        shown = self.shown_split()
        return [row.label for row in self.scores[shown].per_class] if shown else []


def read_record(
    folder: RunFolder, overrides: Sequence[str] = (), *, worst: int = 10, before_scoring: bool = False
) -> RunRecord:
    """Return all results in a run folder, checked.

    Args:
        overrides: changes to the recipe, as `section.key=value`.
        worst: maximum number of wrong predictions.
        before_scoring: whether scores and predictions may be missing because they are about to be written.

    Raises:
        DataError: the run is not finished, or one of its files is damaged.
        RecipeError: its recipe cannot be read.
    """
    recipe = read_recipe(folder, overrides, read_data=False)
    scores = {} if before_scoring and not folder.scores.exists() else read_scores(folder)
    heads = read_heads(folder) if folder.heads.exists() else None
    shown = _shown_split(scores)
    no_predictions = shown is None or (before_scoring and not folder.predictions.exists())
    return RunRecord(
        recipe=recipe,
        environment=read_json(folder.environment, Environment),
        data=read_summary(folder),
        history=read_history(folder),
        training=read_json(folder.training, TrainingResult),
        scores=scores,
        heads=heads,
        head_note=_head_note(folder, recipe, analyzed=heads is not None),
        worst=[] if no_predictions else worst_predictions(folder, worst),
        examples=[] if no_predictions or shown is None else first_predictions(folder, shown, _EXAMPLES),
        baselines=read_baselines(folder),
        predictions=None if no_predictions else read_predictions(folder),
        explanations=read_explanations(folder),
        quality=read_json(folder.data_quality, DataQuality) if folder.data_quality.exists() else None,
        fitted_outputs=read_fitted_outputs(folder),
        label_errors=read_label_errors(folder),
    )


def _without_texts(predictions: pa.Table | None) -> pa.Table | None:
    if predictions is None or LENGTH in predictions.column_names:
        return predictions
    texts = [name for name in ("text", "text_1") if name in predictions.column_names]
    return predictions.append_column(LENGTH, pa.array(text_lengths(predictions))).drop_columns(texts)


def _shown_split(scores: Mapping[str, SplitScores]) -> str | None:
    return next((split for split in ("test", "validation") if split in scores), None)


def _head_note(folder: RunFolder, recipe: Recipe, *, analyzed: bool) -> str:
    """Return a note if the head analysis failed or is missing, or ""."""
    if folder.heads_failure.exists():
        earlier = "; the results below are from an earlier analysis" if analyzed else ""
        return f"The head analysis failed: {read_json(folder.heads_failure, HeadFailure).reason}{earlier}."
    if recipe.head_importance is not None and not analyzed:
        return "The heads have not been analyzed. Run `finetune heads RUN` to analyze them."
    return ""
