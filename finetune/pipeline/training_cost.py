"""What the training of a run cost, from the files in its folder."""

from __future__ import annotations

from finetune.distributed import gather_results
from finetune.models.attention_sites import attention_sites
from finetune.models.classifier import Classifier
from finetune.pipeline.context import RunContext
from finetune.recipe.head_costs import TrainingCost, training_cost
from finetune.runs.json_files import read_json
from finetune.runs.results import Environment, TrainingResult
from finetune.runs.run_files import read_summary
from finetune.training.auto_settings import steps_per_epoch


def training_cost_of_run(context: RunContext, classifier: Classifier) -> TrainingCost | None:
    """Return what the training of the run cost, the same on all processes; None before it has written its files."""
    folder, recipe = context.folder, context.recipe
    training, num_layers = recipe.training, len(attention_sites(classifier.base))

    def read() -> TrainingCost | None:
        """Return the cost, as this process reads it from the files."""
        if not all(file.is_file() for file in (folder.training, folder.data, folder.environment)):
            return None
        rows, epochs = read_summary(folder)["train"].rows, 1.0
        if training.per_device_train_batch_size != "auto":  # it is never left to auto in the recipe of a run
            processes = read_json(folder.environment, Environment).processes
            epochs = read_json(folder.training, TrainingResult).steps / steps_per_epoch(recipe, rows, processes)
        return training_cost(
            rows,
            epochs,
            frozen_layers=min(training.freeze_layers, num_layers) / num_layers,
            cached=training.cache_frozen_layers,
        )

    return gather_results(context.accelerator, read)[0]
