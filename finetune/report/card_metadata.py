"""The front matter of the model card: what the hub reads to show, search and compare models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from finetune.recipe.hub_names import hub_id
from finetune.recipe.named_metrics import find_metric
from finetune.recipe.schema import Recipe
from finetune.report.run_record import RunRecord
from finetune.runs.pruned_files import has_pruned_parts
from finetune.runs.pruning_result import PruningResult

_TASK = "text-classification"
_OWN_MODEL_TYPE = "multi_head_classifier"  # of models/toy_classifier.py, which transformers does not know


@dataclass(frozen=True)
class CardSubject:
    """The model that a card describes.

    Attributes:
        name: the title of the card.
        location: what the examples give to a loader: a folder, relative to that of the card, or `repository`.
        has_adapter: whether the files are those of an adapter, which needs its base checkpoint.
        is_pruned: whether parts of the model, or of its base checkpoint, were removed; see `has_pruned_parts`.
        repository: the id on the hub under which the model is published; None: the model is in a run folder.
        languages, license: what the publisher says about the model.
        pruning: the result of pruning, if heads were removed from the model.
        heads_are_zeroed: whether the pruned model has its original size, with zeros for the removed heads.
    """

    name: str
    location: str
    has_adapter: bool
    repository: str | None = None
    languages: Sequence[str] = ()
    license: str | None = None
    pruning: PruningResult | None = None
    is_pruned: bool = False
    heads_are_zeroed: bool = False

    def opens_in_transformers(self, recipe: Recipe) -> bool:
        """Return whether transformers and peft can load the model without finetune."""
        if recipe.model.model_type == _OWN_MODEL_TYPE or (self.has_adapter and self.is_pooled(recipe)):
            return False
        return not self.is_pruned

    def is_pooled(self, recipe: Recipe) -> bool:
        """Return whether the classifier reads pooled states; transformers then needs the code next to the weights."""
        return recipe.model.pooling in ("cls", "mean")


def saved_subject(name: str, model: Path, recipe: Recipe) -> CardSubject:
    """Return the subject of the card of a run or a series, given the folder of its model."""
    return CardSubject(name, model.name, has_adapter=recipe.peft is not None, is_pruned=has_pruned_parts(model))


def front_matter(record: RunRecord, subject: CardSubject) -> str:
    """Return the front matter of a card as YAML."""
    recipe = record.recipe
    dataset = hub_id(recipe.data.dataset_name)
    results = list(_results(record))
    library = "peft" if subject.has_adapter else "transformers"
    data = ModelCardData(
        language=list(subject.languages) or None,
        license=subject.license,
        library_name=library if subject.opens_in_transformers(recipe) else "finetune",
        pipeline_tag=_TASK,
        base_model=hub_id(recipe.model.model_name_or_path),
        datasets=[dataset] if dataset else None,
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        tags=["finetune", recipe.task.problem_type.replace("_", "-"), *(["lora"] if subject.has_adapter else [])],
        eval_results=results or None,
        model_name=subject.name if results else None,
    )
    return str(data.to_yaml())


def _results(record: RunRecord) -> Iterator[EvalResult]:
    """Yield the value of every metric of every held-out split; undefined values are skipped."""
    recipe = record.recipe
    dataset = hub_id(recipe.data.dataset_name)
    for split, scores in record.scores.items():
        if split == "train":
            continue
        for name, metric in scores.metrics.items():
            if metric.value is not None:
                yield EvalResult(
                    task_type=_TASK,
                    task_name="Text Classification",
                    dataset_type=dataset or "unknown",
                    dataset_name=dataset or "local data",
                    dataset_config=recipe.data.dataset_config_name if dataset else None,
                    dataset_split=_split_name(recipe, split),
                    metric_type=_hub_name(name, recipe.task.problem_type),
                    metric_name=name.replace("_", " "),
                    metric_value=round(metric.value, 6),
                )


def _hub_name(name: str, problem_type: str) -> str:
    """Return the name of a metric on the hub; a loaded metric has its own name."""
    metric = find_metric(name, problem_type)
    return name if metric is None else metric.hub_name


def _split_name(recipe: Recipe, split: str) -> str:
    """Return a split's name in the dataset on the hub, or its name in the run if it has none there."""
    data = recipe.data
    if not hub_id(data.dataset_name) or (split == "validation" and data.validation_size):
        return split
    return {"validation": data.validation_split, "test": data.test_split}.get(split) or split
