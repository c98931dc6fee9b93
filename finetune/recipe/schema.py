"""What a recipe may say: every key, its type, its bounds and its default.

Key names are those of `transformers.TrainingArguments` 5.x, `peft.LoraConfig` and the public
`run_classification` script, grouped in sections. A default lives here and nowhere else.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from finetune.recipe.names import METRICS, HeadMethod, ProblemType, Role, Split

# Ways to say where a section's subject comes from. A recipe names one way; an override that names
# another replaces the first (see reader.py).
SOURCES: dict[str, tuple[tuple[str, ...], ...]] = {
    "model": (("model_name_or_path", "revision"), ("model_type", "config_overrides")),
    "data": (
        ("dataset_name", "dataset_config_name"),
        ("train_file", "validation_file", "test_file"),
        ("train_rows", "validation_rows", "test_rows"),
    ),
}

Share = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Strategy = Annotated[
    Literal["epoch", "steps", "no"] | None,
    Field(description="null: steps where their number is given; else epoch, 10 times at most if epochs are not given"),
]


class Section(BaseModel):
    """A part of the recipe: immutable, strictly typed, closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


def one_source(section: str, given: Section) -> None:
    """Raise ValueError unless exactly one of the section's SOURCES leads."""
    named = [keys[0] for keys in SOURCES[section] if any(getattr(given, key) for key in keys if key != "revision")]
    leads = [keys[0] for keys in SOURCES[section]]
    if len(named) > 1:
        raise ValueError(f"{' and '.join(named)} are both given; name one source and remove the other")
    if not named or not getattr(given, named[0]):
        raise ValueError(f"no source is given; set one of {', '.join(leads)}")


def with_strategy(given: object, name: Literal["eval", "save"]) -> object:
    """Return a section in which a number of steps without a strategy has the strategy `steps`."""
    if isinstance(given, dict) and f"{name}_steps" in given and f"{name}_strategy" not in given:
        return {**given, f"{name}_strategy": "steps"}
    return given


class ModelSection(Section):
    """Which encoder: pretrained (`model_name_or_path`) or built from a config (`model_type`)."""

    model_name_or_path: str | None = Field(None, description="hub id, folder, or package:NAME/PATH")
    revision: str = "main"
    model_type: str | None = Field(None, description="from scratch: a model type that transformers' AutoConfig knows")
    config_overrides: dict[str, int | float | str | bool] = Field(default={}, description="config of a new model")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] | None = None
    use_safetensors: bool = Field(True, description="false: also load pickled weights, which can run code")
    trust_remote_code: bool = Field(False, description="true: run code that comes with the checkpoint")
    allow_missing_weights: bool = Field(
        False, description="true: draw at random what the checkpoint lacks of the encoder itself"
    )

    @model_validator(mode="after")
    def _one_source(self) -> ModelSection:
        one_source("model", self)
        if self.model_type and (self.dtype != "float32" or self.attn_implementation):
            raise ValueError("dtype and attn_implementation apply to a pretrained model; remove them")
        return self


class TaskSection(Section):
    """What is predicted."""

    problem_type: ProblemType = "single_label_classification"
    label_names: list[str] | None = Field(None, description="in the order of the ids; null: read from training rows")

    @model_validator(mode="after")
    def _distinct(self) -> TaskSection:
        if self.label_names is not None and self.problem_type == "regression":
            raise ValueError("label_names do not apply to regression; remove them")
        if self.label_names is not None and len(set(self.label_names)) < max(2, len(self.label_names)):
            raise ValueError(f"label_names must be at least two different names, got {self.label_names}")
        return self


class DataSection(Section):
    """Where rows come from and which columns matter."""

    dataset_name: str | None = Field(None, description="a data set on the hub, or a folder of data files")
    dataset_config_name: str | None = None
    train_split: str = "train"
    validation_split: str | None = "validation"
    test_split: str | None = None
    train_file: str | None = Field(None, description="csv, tsv, json, jsonl or parquet")
    validation_file: str | None = None
    test_file: str | None = None
    train_rows: list[dict[str, object]] | None = Field(None, description="rows written in the recipe itself")
    validation_rows: list[dict[str, object]] | None = None
    test_rows: list[dict[str, object]] | None = None
    validation_size: Share | None = Field(None, description="share of training rows to hold out for validation")
    text_column: str = "sentence"
    text_pair_column: str | None = None
    label_column: str = "label"
    drop_unlabeled: bool = Field(False, description="skip rows without a label: empty, or -1 that is no label name")
    max_length: Annotated[int, Field(ge=4)] = Field(128, description="tokens; longer rows are truncated")
    max_train_samples: Count | None = None
    max_eval_samples: Count | None = None

    @model_validator(mode="after")
    def _one_source(self) -> DataSection:
        one_source("data", self)
        columns = [c for c in (self.text_column, self.text_pair_column, self.label_column) if c]
        if len(set(columns)) < len(columns):
            raise ValueError(f"text and label columns must differ, got {', '.join(columns)}")
        if self.validation_size and (self.validation_file or self.validation_rows):
            raise ValueError("validation_size holds out training rows, but validation rows are given; remove one")
        return self

    def text_columns(self) -> list[str]:
        """Return the one or two columns that the model reads."""
        return [self.text_column, *([self.text_pair_column] if self.text_pair_column else [])]

    def local_files(self) -> dict[str, str]:
        """Return split name -> file, for the splits that are files."""
        files = {"train": self.train_file, "validation": self.validation_file, "test": self.test_file}
        return {split: file for split, file in files.items() if file}


class PeftSection(Section):
    """LoRA adapters (Hu et al. 2021) on the attention projections, by role."""

    peft_type: Literal["lora"] = "lora"
    r: Count = 8
    lora_alpha: Annotated[float, Field(gt=0)] = 16
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    target_modules: Annotated[list[Role], Field(min_length=1)] = ["query", "key", "value", "output"]
    use_rslora: bool = Field(False, description="scale by lora_alpha / sqrt(r)")
    use_dora: bool = Field(False, description="train the norms of the adapted columns besides")
    init_lora_weights: Literal[True, "gaussian", "orthogonal", "olora", "pissa"] = True
    layers_to_transform: list[Annotated[int, Field(ge=0)]] | None = Field(None, description="null: all layers")
    rank_pattern: dict[str, Count] = Field({}, description="other ranks, by role or LAYER.ROLE")
    loraplus_lr_ratio: Annotated[float, Field(gt=0)] | None = Field(None, description="LoRA+: rate of B over rate of A")

    @field_validator("rank_pattern", mode="before")
    @classmethod
    def _no_ranks_by_importance(cls, given: object) -> object:
        if given == "by_importance":
            raise ValueError(
                "by_importance was removed because it was no better than a uniform rank; remove rank_pattern, or give "
                "a mapping such as {3.query: 16}. For a trained run, edit its recipe.yaml: the ranks are in "
                "model/adapter_config.json, under rank_pattern"
            )
        return given


class TrainingSection(Section):
    """How the weights are fitted."""

    num_train_epochs: Count | None = Field(
        None,
        description="null: as many as max_steps takes; else 3, or more until there are 300 steps and 10 per label",
    )
    max_steps: Count | None = Field(None, description="optimizer steps; ends training before the epochs do")
    per_device_train_batch_size: Count = 16
    gradient_accumulation_steps: Count = 1
    learning_rate: Annotated[float, Field(gt=0)] | None = Field(
        None, description="null: 0.04 / the model's hidden size, ten times as much for LoRA, rounded to one digit"
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.01, description="not of biases and norms")
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_steps: Annotated[float, Field(ge=0)] = Field(0.06, description="below 1: a share of all steps")
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    class_weights: Literal["balanced"] | dict[str, Annotated[float, Field(gt=0)]] | None = None
    train_sampling_strategy: Literal["group_by_length", "random", "sequential"] = "group_by_length"
    freeze_embeddings: bool = Field(False, description="also their norm, and their projection to the hidden size")
    freeze_layers: Annotated[int, Field(ge=0)] = Field(0, description="lowest layers that are not trained")
    cache_frozen_layers: bool = Field(
        False, description="compute what is frozen once, without dropout, and read it from disk in every epoch"
    )
    mixed_precision: Literal["no", "bf16", "fp16", "auto"] = Field(
        "no", description="auto: bf16 where the device multiplies in it, else no"
    )
    torch_compile: bool = Field(False, description="compile the layers for training: measured slower on a CPU")
    use_cpu: bool = False
    num_threads: Count | None = Field(None, description="CPU threads a process; null: all cores, shared out")

    @model_validator(mode="after")
    def _whole_warmup(self) -> TrainingSection:
        if self.warmup_steps >= 1 and self.warmup_steps != int(self.warmup_steps):
            raise ValueError(f"warmup_steps is {self.warmup_steps}; a share lies below 1, a count is a whole number")
        return self


class EvaluationSection(Section):
    """When and by what the classifier is judged."""

    eval_strategy: Strategy = None
    eval_steps: Count = 500
    per_device_eval_batch_size: Count = 64
    metrics: Annotated[list[str], Field(min_length=1)] | None = Field(None, description="null: all of the problem type")
    metric_for_best_model: str | None = Field(None, description="one of metrics, or loss; null: the first metric")
    early_stopping_patience: Count | None = Field(None, description="evaluations without a better score")
    bootstrap_samples: Annotated[int, Field(ge=100)] = 2000

    @model_validator(mode="before")
    @classmethod
    def _strategy(cls, given: object) -> object:
        return with_strategy(given, "eval")


class CheckpointSection(Section):
    """What is written during training, and where to go on from."""

    save_strategy: Strategy = None
    save_steps: Count = 500
    save_total_limit: Count | None = 2
    resume_from_checkpoint: str | None = Field(None, description="a checkpoint folder, or auto for the newest")

    @model_validator(mode="before")
    @classmethod
    def _strategy(cls, given: object) -> object:
        return with_strategy(given, "save")


class LoggingSection(Section):
    """How often progress is recorded, and to whom else it is reported."""

    logging_steps: Count = 50
    report_to: Literal["none", "tensorboard", "wandb", "mlflow", "trackio"] = "none"


class HeadImportanceSection(Section):
    """Which attention heads the classifier needs, and how far to trust the answer."""

    method: HeadMethod | Annotated[list[HeadMethod], Field(min_length=1)] = Field(
        "learned_order", description="one or a list; the first ranks the heads"
    )
    split: Split = Field("train", description="whose rows rank the heads")
    max_samples: Count | None = Field(256, description="rows that rank the heads; null: all")
    max_seconds: Annotated[float, Field(gt=0)] | None = Field(
        None, description="time after which a method takes no further rows or steps"
    )
    integration_steps: Count = Field(8, description="passes over the rows along the path of integrated gradients")
    curve_split: Split | None = Field("validation", description="whose rows test the ranking; null: no test")
    curve_samples: Count | None = Field(300, description="rows that test the ranking; null: all")
    random_orders: Annotated[int, Field(ge=0)] = Field(3, description="random orders to compare with")
    leave_one_out: bool = Field(
        False, description="remove each head alone on the testing rows: effect and test; and undo its own change"
    )

    @model_validator(mode="after")
    def _distinct(self) -> HeadImportanceSection:
        if len(set(self.methods())) < len(self.methods()):
            raise ValueError(f"method names {', '.join(self.methods())}; name each once")
        if self.leave_one_out and self.curve_split is None:
            raise ValueError("leave_one_out works on the rows of curve_split, which is null; name a split")
        return self

    def methods(self) -> list[str]:
        """Return the methods, the one that ranks the heads first."""
        return list(self.method) if isinstance(self.method, list) else [self.method]


class Recipe(Section):
    """One run, whole."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    output_dir: str
    overwrite_output_dir: bool = Field(False, description="replace an earlier run in the same folder")
    model: ModelSection
    task: TaskSection = TaskSection()
    data: DataSection
    peft: PeftSection | None = None
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection = EvaluationSection()
    checkpoint: CheckpointSection = CheckpointSection()
    logging: LoggingSection = LoggingSection()
    head_importance: HeadImportanceSection | None = HeadImportanceSection()

    def metric_names(self) -> tuple[str, ...]:
        """Return the metrics to compute: those named, or all of the problem type."""
        return tuple(self.evaluation.metrics or METRICS[self.task.problem_type])

    def best_metric(self) -> str:
        """Return the metric that chooses the best checkpoint; `loss` is one too."""
        return self.evaluation.metric_for_best_model or self.metric_names()[0]
