"""The recipe: its top-level keys and the sections `model`, `task` and `peft`; other sections are in their own modules.

Keys are named as in `transformers.TrainingArguments` 5.x, `peft.LoraConfig` and the public `run_classification` script,
and grouped in sections. A default value is written only where the key is defined, and so is its description: one
sentence with the unit of a number and the meaning of the default.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from finetune.recipe.data_section import DataSection
from finetune.recipe.evaluation_section import EvaluationSection, HeadImportanceSection
from finetune.recipe.loaded_metrics import loaded_metrics, value_name
from finetune.recipe.named_metrics import find_metric
from finetune.recipe.names import METRICS, ProblemType, Role
from finetune.recipe.outputs_section import OutputsSection
from finetune.recipe.section import Count, Section, Seed, require_one_source
from finetune.recipe.training_section import CheckpointSection, LoggingSection, TrainingSection

MIN_SEEDS = 2  # of a series


class ModelSection(Section):
    """The encoder: a pretrained checkpoint (`model_name_or_path`), or a new model (`model_type`)."""

    model_name_or_path: str | None = Field(
        None,
        description="The pretrained checkpoint: a model id on the hub, a folder, or package:NAME/PATH for a folder "
        "in an installed Python package; null builds a new model of model_type.",
    )
    revision: str = Field(
        "main", description="Branch, tag or commit of the checkpoint on the hub; by default its main branch."
    )
    model_type: str | None = Field(
        None,
        description="The transformers model type of a new model with random weights, such as bert; null loads a "
        "checkpoint.",
    )
    config_overrides: dict[str, int | float | str | bool] = Field(
        {},
        description="Values for the config of the new model, such as hidden_size; other entries keep the defaults "
        "of the model type.",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Data type of the pretrained weights under LoRA; without LoRA they are always float32."
    )
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] | None = Field(
        None, description="Implementation of attention; null uses the default of transformers."
    )
    pooling: Literal["auto", "head", "cls", "mean"] = Field(
        "auto",
        description="What the classification head reads: the family's own head (head), the first token (cls), or the "
        "mean over tokens (mean); auto takes the pooling of a sentence-transformers checkpoint, otherwise head.",
    )
    classifier_init: Literal["auto", "random", "linear_probe"] = Field(
        "auto",
        description="How a new classification head starts: random, or as a linear model fitted to the pooled states of "
        "the training rows (linear_probe, for pooling cls and mean); auto takes linear_probe where it is possible.",
    )
    use_safetensors: bool = Field(
        True,
        description="Whether weights are read only from safetensors files; false also allows pickled weights, which"
        " can run code.",
    )
    trust_remote_code: bool = Field(
        False, description="Whether Python code that comes with the checkpoint may run; by default it may not."
    )
    allow_missing_weights: bool = Field(
        False,
        description="Whether encoder weights that the checkpoint does not have are initialized at random; by "
        "default they are an error.",
    )

    @model_validator(mode="after")
    def _check_source(self) -> ModelSection:
        require_one_source("model", self)
        if self.model_type and (self.dtype != "float32" or self.attn_implementation):
            raise ValueError("dtype and attn_implementation apply only to a pretrained model; remove them")
        return self


class TaskSection(Section):
    """What the classifier predicts."""

    problem_type: ProblemType = Field(
        "single_label_classification",
        description="What is predicted for each row: one label, a list of labels, or a number.",
    )
    label_names: list[str] | None = Field(
        None,
        description="Names of the labels in the order of the class ids, or a file with them (a JSON list, or a name per"
        " line); null takes the labels of the training rows, sorted.",
    )

    @model_validator(mode="after")
    def _check_label_names(self) -> TaskSection:
        if self.label_names is not None and self.problem_type == "regression":
            raise ValueError("label_names do not apply to regression; remove them")
        if self.label_names is not None and len(set(self.label_names)) < 2:
            raise ValueError(f"label_names must be at least two different names, got {self.label_names}")
        repeated = [name for name, count in Counter(self.label_names or []).items() if count > 1]
        if repeated:
            raise ValueError(
                f"label_names has {', '.join(map(repr, repeated[:5]))} more than once; give each name once"
            )
        return self


class PeftSection(Section):
    """LoRA adapters (Hu et al. 2021) on the attention projections."""

    peft_type: Literal["lora"] = Field("lora", description="The kind of adapter; only LoRA is supported.")
    r: Count = Field(8, description="Rank of the adapters.")
    lora_alpha: Annotated[float, Field(gt=0)] = Field(
        16, description="Scale of the adapters: their output is multiplied by lora_alpha / r."
    )
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.05, description="Dropout probability at the input of the adapters, at least 0 and below 1."
    )
    target_modules: Annotated[list[Role], Field(min_length=1)] = Field(
        ["query", "key", "value", "output"],
        description="Attention projections that get an adapter, in every layer; by default all four.",
    )
    use_rslora: bool = Field(
        False, description="Whether the scale is lora_alpha / sqrt(r) (rank-stabilized LoRA) instead of lora_alpha / r."
    )
    use_dora: bool = Field(
        False,
        description="Whether the magnitudes of the adapted weights are trained too (DoRA); by default they are not.",
    )
    init_lora_weights: Literal[True, "gaussian", "orthogonal", "olora", "pissa"] = Field(
        True, description="Initialization of the adapters; true is the default of peft."
    )
    layers_to_transform: list[Annotated[int, Field(ge=0)]] | None = Field(
        None, description="Numbers of the layers that get adapters, counted from 0; null adapts all layers."
    )
    rank_pattern: dict[str, Count] = Field(
        {},
        description="Ranks that differ from r, by projection or LAYER.PROJECTION, such as {3.query: 16}; by default"
        " none do.",
    )
    loraplus_lr_ratio: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="Learning rate of the adapters' matrix B divided by that of matrix A (LoRA+); null trains both "
        "at the same rate.",
    )

    @field_validator("init_lora_weights", mode="before")
    @classmethod
    def _reject_numbers(cls, value: object) -> object:
        if value == 1 and value is not True:  # equal for Python
            raise ValueError(f"given {value}; must be true, 'gaussian', 'orthogonal', 'olora' or 'pissa'")
        return value

    @field_validator("rank_pattern", mode="before")
    @classmethod
    def _reject_by_importance(cls, value: object) -> object:
        if value == "by_importance":
            raise ValueError(
                "by_importance was removed because it was no better than a uniform rank; remove rank_pattern, or give "
                "a mapping such as {3.query: 16}. For a trained run, edit its recipe.yaml: the ranks are in "
                "model/adapter_config.json, under rank_pattern"
            )
        return value


class Recipe(Section):
    """A complete recipe: one run, or one run per seed."""

    seed: Seed = Field(42, description="Seed of all random numbers.")
    seeds: list[Seed] | None = Field(
        None,
        description="Seeds of a series: one run per seed, all on the same rows, in one folder; null, the default, "
        "trains one run with seed.",
    )
    output_dir: str = Field(description="Folder of the run; by default runs/ and the name of the recipe file.")
    overwrite_output_dir: bool = Field(
        False, description="Whether an earlier run in the same folder is replaced; by default it is an error."
    )
    model: ModelSection = Field(description="The encoder: a pretrained checkpoint or a new model.")
    task: TaskSection = Field(TaskSection(), description="What the classifier predicts; by default one label per row.")
    data: DataSection = Field(description="Where the rows come from, and which columns are used.")
    peft: PeftSection | None = Field(None, description="LoRA adapters; null, the default, trains all weights.")
    training: TrainingSection = Field(
        TrainingSection(), description="How the weights are trained; every key has a default."
    )
    evaluation: EvaluationSection = Field(
        EvaluationSection(), description="When and how the classifier is evaluated; every key has a default."
    )
    outputs: OutputsSection = Field(
        OutputsSection(),
        description="How logits become probabilities and predicted labels; every key has a default.",
    )
    checkpoint: CheckpointSection = Field(
        CheckpointSection(),
        description="When checkpoints are saved, and whether training resumes from one; every key has a default.",
    )
    logging: LoggingSection = Field(
        LoggingSection(), description="How often progress is recorded; every key has a default."
    )
    head_importance: HeadImportanceSection | None = Field(
        HeadImportanceSection(), description="Analysis of the attention heads; null skips it."
    )

    @field_validator("seeds")
    @classmethod
    def _check_seeds(cls, seeds: list[int] | None) -> list[int] | None:
        if seeds is not None and len(set(seeds)) < max(MIN_SEEDS, len(seeds)):
            raise ValueError(
                f"seeds must be at least {MIN_SEEDS} different numbers, got {seeds}; for one run, set seed"
            )
        return seeds

    def rows_seed(self) -> int:
        """Return the seed of what depends on the rows alone: held-out rows, sampled rows, linear probe, baselines."""
        return self.seed if self.data.split_seed is None else self.data.split_seed

    def data_to_read(self) -> DataSection:
        """Return the data section without the values of `auto` that need no rows to be known."""
        known: dict[str, object] = {}
        if self.evaluation.eval_strategy == "no" and self.data.validation_size == "auto":
            known["validation_size"] = None
        if self.model.model_type and self.data.label_name_rows == "auto":
            known["label_name_rows"] = False  # names say something only to a pretrained encoder
        return self.data.model_copy(update=known)

    def metric_names(self) -> tuple[str, ...]:
        """Return the names of the metrics to report: those in the recipe, or those of the toolkit.

        A loaded metric has the name of its file. If it has several values, they are named after it, see `names_of`.
        """
        problem_type = self.task.problem_type
        names = self.metrics_to_report()
        return tuple(name if find_metric(name, problem_type) else value_name(name) for name in names)

    def without_loaded_metrics(self) -> Recipe:
        """Return the recipe without metrics that are loaded, whose code would run."""
        problem_type, evaluation = self.task.problem_type, self.evaluation
        known = [name for name in evaluation.metrics or () if find_metric(name, problem_type)]
        best = evaluation.metric_for_best_model
        keeps_best = best == "loss" or (best is not None and find_metric(best, problem_type) is not None)
        update = {"metrics": known or None, "metric_for_best_model": best if keeps_best else None}
        return self.model_copy(update={"evaluation": evaluation.model_copy(update=update)})

    def metrics_to_report(self) -> tuple[str, ...]:
        """Return the metrics to report as the recipe names them, or those of the toolkit."""
        return tuple(self.evaluation.metrics or METRICS[self.task.problem_type])

    def metrics_to_compute(self) -> tuple[str, ...]:
        """Return the metrics to report as the recipe names them, and the one that selects the best checkpoint."""
        names = self.metrics_to_report()
        best = self.evaluation.metric_for_best_model
        adds_best = best is not None and best not in names and find_metric(best, self.task.problem_type) is not None
        return (*names, best) if best is not None and adds_best else names

    def toolkit_metrics(self) -> tuple[str, ...]:
        """Return the metrics to report that the toolkit computes itself, or its first metric if there are none.

        The head analysis and the comparison of exported models use these.
        """
        own = METRICS[self.task.problem_type]
        return tuple(name for name in self.metric_names() if name in own) or (next(iter(own)),)

    def loaded_metrics(self) -> dict[str, str]:
        """Return the metrics that are loaded: name in results to path or name on the hub."""
        return loaded_metrics(self.evaluation.metrics or (), self.task.problem_type)

    def best_metric(self) -> str:
        """Return the metric, or `loss`, that selects the best checkpoint."""
        return self.evaluation.metric_for_best_model or self.metric_names()[0]
