"""The keys of the recipe's sections `training`, `checkpoint` and `logging`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from finetune.recipe.lr_schedules import Schedule
from finetune.recipe.section import Auto, Count, Section, Strategy, default_strategy

# Characters that every tracker accepts in a name, at most as many as wandb accepts.
TrackerName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$")]


class TrainingSection(Section):
    """How the weights are trained."""

    num_train_epochs: Count | Auto | None = Field(
        "auto",
        description="Number of passes over the training rows; auto or null gives as many as max_steps needs, "
        "otherwise 3, or more until there are 300 optimizer steps, and 10 per label with a random classification head.",
    )
    max_steps: Count | None = Field(None, description="Maximum number of optimizer steps; null sets no limit.")
    per_device_train_batch_size: Count | Auto = Field(
        "auto",
        description="Number of rows per device in one forward pass of training; auto gives 16, or fewer until an "
        "epoch has two optimizer steps.",
    )
    gradient_accumulation_steps: Count = Field(
        1, description="Number of forward and backward passes per optimizer step."
    )
    learning_rate: Annotated[float, Field(gt=0)] | Auto | None = Field(
        "auto",
        description="Peak learning rate; auto or null gives 0.04 / hidden size of the model, ten times as much with "
        "LoRA, rounded to one digit.",
    )
    layerwise_lr_decay: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="Factor of the learning rate from each layer to the one below, such as 0.9; the head has the full "
        "rate and the embeddings the lowest, and null gives all the same rate.",
    )
    reinit_layers: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Number of layers of the pretrained encoder, counted from the top, that are initialized at random "
        "before training; 0 keeps all.",
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.01, description="Weight decay of AdamW; biases and layer norms have none."
    )
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.9, description="Decay rate of AdamW's first moment (beta1), at least 0 and below 1."
    )
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.999, description="Decay rate of AdamW's second moment (beta2), at least 0 and below 1."
    )
    adam_epsilon: Annotated[float, Field(gt=0)] = Field(
        1e-8, description="Constant that AdamW adds to the denominator of its update (epsilon)."
    )
    lr_scheduler_type: Schedule = Field(
        "linear", description="Schedule of the learning rate after warmup; by default it falls linearly to 0."
    )
    lr_scheduler_kwargs: dict[str, int | float | str] = Field(
        {},
        description="Parameters of the schedule, such as {num_cycles: 3} for cosine_with_restarts; by default those of "
        "transformers.",
    )
    warmup_steps: Annotated[float, Field(ge=0)] | Auto = Field(
        "auto",
        description="Number of optimizer steps in which the learning rate rises to its peak; a number below 1 is a "
        "fraction of all steps, and auto gives 0.06.",
    )
    max_grad_norm: Annotated[float, Field(gt=0)] | None = Field(
        1.0, description="Norm to which gradients are clipped; null turns clipping off."
    )
    class_weights: Literal["balanced"] | dict[str, Annotated[float, Field(gt=0)]] | None = Field(
        None,
        description="Weight of each class in the loss, by label name; balanced weights by inverse frequency, and "
        "null gives every class the weight 1.",
    )
    pos_weight: Literal["balanced"] | dict[str, Annotated[float, Field(gt=0)]] | None = Field(
        None,
        description="Weight of the rows that have a label in its loss, by label name, for several labels per row; "
        "balanced is rows without the label / rows with it, and null gives every label the weight 1.",
    )
    focal_gamma: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="Exponent of the focal loss, which gives rows that are predicted well less weight; 0 is "
        "cross-entropy.",
    )
    label_smoothing_factor: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="Share of each target that is distributed evenly over all classes, at least 0 and below 1; 0 is no "
        "label smoothing.",
    )
    rdrop_alpha: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="Weight of the KL divergence between two passes of each row with different dropout (R-Drop); 0 is "
        "a single pass.",
    )
    contrastive_weight: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="Weight of a supervised contrastive loss between the rows of a batch, for many classes with few "
        "rows; 0 is none.",
    )
    contrastive_temperature: Annotated[float, Field(gt=0)] = Field(
        0.1, description="Temperature of the contrastive loss, by which similarities between -1 and 1 are divided."
    )
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="Decay of a moving average of the weights, such as 0.99, with which the model is evaluated and "
        "saved; null uses the weights themselves.",
    )
    train_sampling_strategy: Literal["group_by_length", "random", "sequential"] = Field(
        "group_by_length",
        description="Order of the training rows; group_by_length puts rows of similar length into a batch, which "
        "saves padding.",
    )
    freeze_embeddings: bool = Field(
        False,
        description="Whether the embeddings and their norm stay as they are in the checkpoint; by default they are "
        "trained.",
    )
    freeze_layers: Annotated[int, Field(ge=0)] = Field(
        0, description="Number of layers that are not trained, counted from the lowest; by default all are trained."
    )
    cache_frozen_layers: bool = Field(
        False,
        description="Whether the output of the frozen layers is computed once, without dropout, and then read from "
        "disk; by default it is computed in every step.",
    )
    padding_free: bool | Auto = Field(
        False,
        description="Whether layers compute only real tokens and no padding; auto does so if the model allows it, on a "
        "GPU, and on a CPU unless train_sampling_strategy is group_by_length.",
    )
    mixed_precision: Literal["no", "bf16", "fp16", "int8", "auto"] = Field(
        "no",
        description="Data type of matrix products; no is float32, auto is bf16 if the device supports it in hardware "
        "and otherwise no, and int8 is for CPUs without bf16.",
    )
    torch_compile: bool = Field(
        False, description="Whether the layers are compiled for training; on a CPU this is slower."
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Whether the layers are computed a second time in the backward pass, which saves memory and takes "
        "longer; by default their activations are kept.",
    )
    use_cpu: bool = Field(False, description="Whether to train on the CPU even if there is a GPU.")
    num_threads: Count | None = Field(
        None, description="Number of CPU threads per process; null divides all cores among the processes."
    )

    @model_validator(mode="after")
    def _check_warmup_steps(self) -> TrainingSection:
        steps = self.warmup_steps
        if steps != "auto" and steps >= 1 and steps != int(steps):
            raise ValueError(f"warmup_steps is {steps}; give a whole number, or a fraction below 1")
        return self


class CheckpointSection(Section):
    """When checkpoints are written, and from which one training resumes."""

    save_strategy: Strategy | None = Field(
        None,
        description="When a checkpoint is saved: after each epoch, every save_steps steps, or never (no); null is "
        "steps if save_steps is given, otherwise epoch, at most 10 times if num_train_epochs is auto.",
    )
    save_steps: Count = Field(
        500, description="Number of optimizer steps between two checkpoints, if save_strategy is steps."
    )
    save_total_limit: Count | None = Field(2, description="Number of newest checkpoints to keep; null keeps all.")
    resume_from_checkpoint: str | None = Field(
        None,
        description="Checkpoint folder to resume from, or auto for the newest checkpoint of the run; null starts "
        "from the beginning.",
    )

    @model_validator(mode="before")
    @classmethod
    def _default_strategy(cls, values: object) -> object:
        return default_strategy(values, "save")


class LoggingSection(Section):
    """How often progress is recorded, and which tracker receives it."""

    logging_steps: Count = Field(50, description="Number of optimizer steps between two log entries.")
    report_to: Literal["none", "tensorboard", "wandb", "mlflow", "trackio"] = Field(
        "none",
        description="Experiment tracker that also receives the recipe, the log entries and the final scores; by "
        "default none does.",
    )
    project: TrackerName = Field("finetune", description="Name of the project, or experiment, in the tracker.")
    run_name: TrackerName | None = Field(
        None, description="Name of the run in the tracker; null is the name of the run folder."
    )
