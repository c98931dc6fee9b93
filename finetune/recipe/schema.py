"""Every key of a recipe, with type, bounds, default value and description; those of `data` are in data_section.py.

Keys are named as in `transformers.TrainingArguments` 5.x, `peft.LoraConfig` and the public `run_classification` script,
and grouped in sections. A default value is written only here.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from finetune.recipe.data_section import DataSection
from finetune.recipe.names import METRICS, HeadMethod, ProblemType, Role, Split
from finetune.recipe.section import Count, Section, Strategy, default_strategy, require_one_source


class ModelSection(Section):
    """The encoder: a pretrained checkpoint (`model_name_or_path`), or a new model (`model_type`)."""

    model_name_or_path: str | None = Field(
        None, description="pretrained checkpoint: model id on the hub, folder, or package:NAME/PATH in a Python package"
    )
    revision: str = Field("main", description="branch, tag or commit of the checkpoint on the hub")
    model_type: str | None = Field(None, description="new model with random weights: a model type of transformers")
    config_overrides: dict[str, int | float | str | bool] = Field(
        {}, description="values for the config of the new model, such as hidden_size"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="data type of the pretrained weights under LoRA; without LoRA weights are float32"
    )
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] | None = Field(
        None, description="attention implementation; null: the default of transformers"
    )
    use_safetensors: bool = Field(True, description="false: also load pickled weights, which can run code")
    trust_remote_code: bool = Field(False, description="true: run Python code that comes with the checkpoint")
    allow_missing_weights: bool = Field(
        False, description="true: initialize encoder weights that the checkpoint does not have at random"
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
        "single_label_classification", description="one label per row, a list of labels per row, or a number per row"
    )
    label_names: list[str] | None = Field(
        None, description="label names in the order of the class ids; null: the labels of the training rows, sorted"
    )

    @model_validator(mode="after")
    def _check_label_names(self) -> TaskSection:
        if self.label_names is not None and self.problem_type == "regression":
            raise ValueError("label_names do not apply to regression; remove them")
        if self.label_names is not None and len(set(self.label_names)) < max(2, len(self.label_names)):
            raise ValueError(f"label_names must be at least two different names, got {self.label_names}")
        return self


class PeftSection(Section):
    """LoRA adapters (Hu et al. 2021) on the attention projections."""

    peft_type: Literal["lora"] = Field("lora", description="kind of adapter")
    r: Count = Field(8, description="rank of the adapters")
    lora_alpha: Annotated[float, Field(gt=0)] = Field(16, description="adapters are scaled by lora_alpha / r")
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.05, description="dropout probability in the adapters")
    target_modules: Annotated[list[Role], Field(min_length=1)] = Field(
        ["query", "key", "value", "output"], description="projections to adapt, in every layer"
    )
    use_rslora: bool = Field(False, description="true: scale by lora_alpha / sqrt(r) (rank-stabilized LoRA)")
    use_dora: bool = Field(False, description="true: also train the magnitudes of the adapted weights (DoRA)")
    init_lora_weights: Literal[True, "gaussian", "orthogonal", "olora", "pissa"] = Field(
        True, description="initialization of the adapters; true: the default of peft"
    )
    layers_to_transform: list[Annotated[int, Field(ge=0)]] | None = Field(
        None, description="numbers of the layers to adapt, from 0; null: all layers"
    )
    rank_pattern: dict[str, Count] = Field(
        {}, description="ranks that differ from r, by projection or LAYER.PROJECTION, such as {3.query: 16}"
    )
    loraplus_lr_ratio: Annotated[float, Field(gt=0)] | None = Field(
        None, description="LoRA+: learning rate of matrix B divided by that of matrix A; null: the same rate"
    )

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


class TrainingSection(Section):
    """How the weights are trained."""

    num_train_epochs: Count | None = Field(
        None,
        description="passes over the training rows; null: as many as max_steps needs, else 3, or more to reach 300 "
        "optimizer steps and 10 per label",
    )
    max_steps: Count | None = Field(None, description="maximum number of optimizer steps; null: no limit")
    per_device_train_batch_size: Count = Field(16, description="rows per device and forward pass in training")
    gradient_accumulation_steps: Count = Field(1, description="forward and backward passes per optimizer step")
    learning_rate: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="peak learning rate; null: 0.04 / hidden size of the model, ten times as much with LoRA, rounded "
        "to one digit",
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.01, description="weight decay of AdamW; biases and layer norms have none"
    )
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="beta1 of AdamW")
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = Field(0.999, description="beta2 of AdamW")
    adam_epsilon: Annotated[float, Field(gt=0)] = Field(1e-8, description="epsilon of AdamW")
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "linear", description="learning-rate schedule"
    )
    warmup_steps: Annotated[float, Field(ge=0)] = Field(
        0.06, description="optimizer steps of linear warmup; below 1: fraction of all steps"
    )
    max_grad_norm: Annotated[float, Field(gt=0)] | None = Field(
        1.0, description="gradients are clipped to this norm; null: no clipping"
    )
    class_weights: Literal["balanced"] | dict[str, Annotated[float, Field(gt=0)]] | None = Field(
        None, description="weight of each class in the loss, by label name, or balanced; null: all 1"
    )
    train_sampling_strategy: Literal["group_by_length", "random", "sequential"] = Field(
        "group_by_length", description="order of the training rows; group_by_length: rows of similar length per batch"
    )
    freeze_embeddings: bool = Field(False, description="true: do not train the embeddings, nor their norm")
    freeze_layers: Annotated[int, Field(ge=0)] = Field(0, description="number of lowest layers that are not trained")
    cache_frozen_layers: bool = Field(
        False, description="true: compute the frozen layers once, without dropout, and read their output from disk"
    )
    mixed_precision: Literal["no", "bf16", "fp16", "auto"] = Field(
        "no", description="data type of matrix products; auto: bf16 if the device supports it in hardware, else no"
    )
    torch_compile: bool = Field(False, description="true: compile the layers for training (slower on a CPU)")
    use_cpu: bool = Field(False, description="true: train on the CPU even if there is a GPU")
    num_threads: Count | None = Field(
        None, description="CPU threads per process; null: all cores, divided among the processes"
    )

    @model_validator(mode="after")
    def _check_warmup_steps(self) -> TrainingSection:
        if self.warmup_steps >= 1 and self.warmup_steps != int(self.warmup_steps):
            raise ValueError(f"warmup_steps is {self.warmup_steps}; give a whole number, or a fraction below 1")
        return self


class EvaluationSection(Section):
    """When and how the classifier is evaluated."""

    eval_strategy: Strategy | None = Field(
        None,
        description="evaluate after each epoch, every eval_steps, or no; null: steps if eval_steps is given, else "
        "epoch, at most 10 times if num_train_epochs is null",
    )
    eval_steps: Count = Field(500, description="optimizer steps between two evaluations")
    per_device_eval_batch_size: Count = Field(64, description="rows per device and forward pass in evaluation")
    metrics: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="metrics to report; null: all metrics of the problem type"
    )
    metric_for_best_model: str | None = Field(
        None, description="metric that selects the best checkpoint, or loss; null: the first of metrics"
    )
    early_stopping_patience: Count | None = Field(
        None, description="stop after this many evaluations without improvement; null: never"
    )
    bootstrap_samples: Annotated[int, Field(ge=100)] = Field(
        2000, description="bootstrap resamples for the confidence intervals"
    )

    @model_validator(mode="before")
    @classmethod
    def _default_strategy(cls, values: object) -> object:
        return default_strategy(values, "eval")


class CheckpointSection(Section):
    """When checkpoints are written, and from which one training resumes."""

    save_strategy: Strategy | None = Field(
        None,
        description="save after each epoch, every save_steps, or no; null: steps if save_steps is given, else epoch, "
        "at most 10 times if num_train_epochs is null",
    )
    save_steps: Count = Field(500, description="optimizer steps between two checkpoints")
    save_total_limit: Count | None = Field(2, description="number of checkpoints to keep; null: all")
    resume_from_checkpoint: str | None = Field(
        None, description="checkpoint folder to resume from, or auto for the newest one of the run; null: none"
    )

    @model_validator(mode="before")
    @classmethod
    def _default_strategy(cls, values: object) -> object:
        return default_strategy(values, "save")


class LoggingSection(Section):
    """How often progress is recorded, and which tracker receives it."""

    logging_steps: Count = Field(50, description="optimizer steps between two log entries")
    report_to: Literal["none", "tensorboard", "wandb", "mlflow", "trackio"] = Field(
        "none", description="experiment tracker that also receives the log entries"
    )


class HeadImportanceSection(Section):
    """How the importance of the attention heads is measured and tested."""

    method: HeadMethod | Annotated[list[HeadMethod], Field(min_length=1)] = Field(
        "learned_order", description="one method, or a list of which the first one ranks the heads"
    )
    split: Split = Field("train", description="split whose rows are used to rank the heads")
    max_samples: Count | None = Field(256, description="number of rows used to rank the heads; null: all")
    max_seconds: Annotated[float, Field(gt=0)] | None = Field(
        None, description="seconds after which a method stops taking further rows or steps; null: no limit"
    )
    integration_steps: Count = Field(
        8, description="points on the path of the integrated-gradients methods: passes over the rows"
    )
    curve_split: Split | None = Field(
        "validation", description="split whose rows test the ranking (pruning curve); null: no test"
    )
    curve_samples: Count | None = Field(300, description="number of rows that test the ranking; null: all")
    random_orders: Annotated[int, Field(ge=0)] = Field(
        3, description="number of random pruning orders to compare the ranking with"
    )
    leave_one_out: bool = Field(
        False,
        description="true: also remove each head alone on the rows of curve_split, with a significance test, and undo "
        "each head's weight change alone",
    )

    @model_validator(mode="after")
    def _check_methods(self) -> HeadImportanceSection:
        if len(set(self.methods())) < len(self.methods()):
            raise ValueError(f"method is {', '.join(self.methods())}; list each method once")
        if self.leave_one_out and self.curve_split is None:
            raise ValueError("leave_one_out needs the rows of curve_split, which is null; name a split")
        return self

    def methods(self) -> list[str]:
        """Return the methods; the first one ranks the heads."""
        return list(self.method) if isinstance(self.method, list) else [self.method]


class Recipe(Section):
    """A complete recipe: one run."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(42, description="seed of all random numbers")
    output_dir: str = Field(description="folder of the run; default: runs/ and the name of the recipe file")
    overwrite_output_dir: bool = Field(False, description="true: replace an earlier run in the same folder")
    model: ModelSection = Field(description="the encoder")
    task: TaskSection = Field(TaskSection(), description="what is predicted")
    data: DataSection = Field(description="the rows")
    peft: PeftSection | None = Field(None, description="LoRA adapters; null: full fine-tuning")
    training: TrainingSection = Field(TrainingSection(), description="training")
    evaluation: EvaluationSection = Field(EvaluationSection(), description="evaluation")
    checkpoint: CheckpointSection = Field(CheckpointSection(), description="checkpoints")
    logging: LoggingSection = Field(LoggingSection(), description="logging")
    head_importance: HeadImportanceSection | None = Field(
        HeadImportanceSection(), description="analysis of the attention heads; null: none"
    )

    def metric_names(self) -> tuple[str, ...]:
        """Return the metrics to report: those in the recipe, or all of the problem type."""
        return tuple(self.evaluation.metrics or METRICS[self.task.problem_type])

    def best_metric(self) -> str:
        """Return the metric, or `loss`, that selects the best checkpoint."""
        return self.evaluation.metric_for_best_model or self.metric_names()[0]
