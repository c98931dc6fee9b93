"""The command `check --data`, and `data_quality.json` of a run: what is remarkable about the rows of a recipe."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from finetune.data.loading import quiet_datasets
from finetune.data.quality import SplitTokens, data_quality, measure_tokens
from finetune.data.splits import LabeledSplits, long_text_of, read_labeled
from finetune.models.checkpoint_config import token_limit
from finetune.models.pretrained import checkpoint_labels, load_tokenizer, quiet_libraries
from finetune.pipeline.build_model import checkpoint_source, new_word_tokenizer
from finetune.pipeline.context import RunContext, RunInputs
from finetune.pipeline.prepare import labeled_rows
from finetune.recipe.schema import Recipe
from finetune.runs.data_quality import WARNING, DataQuality
from finetune.runs.json_files import write_json


def check_data(recipe: Recipe) -> DataQuality:
    """Return the findings about all rows that the recipe's run would use.

    Raises:
        DataError: a file, a row or a label is wrong; training would stop with the same message.
        ModelError: the tokenizer cannot be read.
    """
    quiet_libraries()
    quiet_datasets()
    model, task, data = recipe.model, recipe.task, recipe.data_to_read()
    labeled = read_labeled(
        data,
        task.problem_type,
        task.label_names,
        recipe.rows_seed(),
        suggested=checkpoint_labels(checkpoint_source(model)) if model.model_name_or_path else None,
    )
    tokenizer = recipe_tokenizer(recipe, labeled)
    tokens = {
        name: measure_tokens(raw, tokenizer, labeled.text_columns, data.max_length, long_text_of(data))
        for name, raw in labeled.raw.items()
    }
    return data_quality(labeled, tokens, tokenizer, data.max_length, length_limit(recipe), long_text_of(data))


def write_data_quality(context: RunContext, inputs: RunInputs) -> None:
    """Write `data_quality.json` into the folder of a run, and print the number of warnings.

    The runs of a series have the same rows, which are examined once.
    """

    def compute() -> DataQuality:
        """Return the findings about all rows."""
        recipe = context.recipe
        tokens = {
            name: SplitTokens(split.true_lengths, split.truncated, split.unknown)
            for name, split in inputs.splits.items()
        }
        labeled = labeled_rows(recipe, context.shared)
        tokenizer = inputs.classifier.tokenizer
        data = recipe.data
        return data_quality(labeled, tokens, tokenizer, data.max_length, length_limit(recipe), long_text_of(data))

    quality = context.shared.once("data quality", compute)
    write_json(context.folder.data_quality, quality)
    count = len(quality.with_level(WARNING))
    line = f"[yellow]{count} warning{'s' * (count > 1)} about the data: see Data quality in the report.[/]"
    for text in context.shared.first_time("warnings about the data", [line] if count else []):
        context.print_line(text)


def recipe_tokenizer(recipe: Recipe, labeled: LabeledSplits) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the recipe's checkpoint, or for a new model that of the words in the training rows."""
    if recipe.model.model_name_or_path is None:
        return new_word_tokenizer(recipe.model, labeled)
    return load_tokenizer(checkpoint_source(recipe.model))


def length_limit(recipe: Recipe) -> float:
    """Return the largest `data.max_length` that the recipe's model takes; infinity if none is known."""
    model = recipe.model
    if model.model_name_or_path is not None:
        return token_limit(model.model_name_or_path, model.revision)
    limit = model.config_overrides.get("max_position_embeddings")
    return limit if isinstance(limit, int) else float("inf")
