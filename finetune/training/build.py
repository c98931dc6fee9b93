"""Build a `Trainer`: its model, optimizer, scheduler and loss."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from finetune.data.sampler import Step, plan_epoch, plan_paired_epoch, share_pairs
from finetune.data.tokenization import EncodedSplit
from finetune.distributed import broadcast_weights
from finetune.models.classification_head import output_layer
from finetune.models.classifier import Classifier
from finetune.models.encoder_parts import check_separate_layers, depths_from_top
from finetune.models.gradient_checkpointing import check_gradient_checkpointing
from finetune.models.speedups import sped_up
from finetune.models.target_scaling import StandardizedOutput, standardize_output
from finetune.recipe.training_section import TrainingSection
from finetune.training.averaging import WeightAverage
from finetune.training.distillation import Distillation
from finetune.training.embedding_subset import EmbeddingSubset, make_embedding_subset
from finetune.training.fsdp import is_sharded, prepare_model
from finetune.training.label_weights import loss_options
from finetune.training.lr_schedule import make_scheduler
from finetune.training.objective import Objective
from finetune.training.optimizer import build_optimizer
from finetune.training.padding_free_setting import choose_padding_free
from finetune.training.resume_check import TARGET_SCALING
from finetune.training.schedule import Plan
from finetune.training.step import Stepper
from finetune.training.trainer import Trainer
from finetune.training.training_model import TrainingModel


@dataclass(frozen=True)
class Hyperparameters:
    """What the optimizer steps depend on.

    Attributes:
        training: the recipe's section `training`.
        seed: the recipe's seed.
        loraplus_lr_ratio: the recipe's `peft.loraplus_lr_ratio`; None: one learning rate for all.
        standardize_targets: whether a regression trains on standardized targets; False for a run that resumes from a
            checkpoint of an earlier version, which did not.
        distillation: from a teacher; None: only the labels are learned.
    """

    training: TrainingSection
    seed: int
    loraplus_lr_ratio: float | None = None
    standardize_targets: bool = True
    distillation: Distillation | None = None


def build_trainer(
    classifier: Classifier,
    split: EncodedSplit,
    plan: Plan,
    hyperparameters: Hyperparameters,
    accelerator: Accelerator,
    run_fingerprint: Mapping[str, Any] | None = None,
) -> Trainer:
    """Return a trainer at step 0.

    Args:
        plan: number of steps, and when to log, evaluate and save.
        run_fingerprint: what a resumed run must have in common with this one, in addition to the plan.

    Raises:
        TrainingError: the weights of the labels name an unknown label, or Accelerate cannot shard this model.
        ModelError: the model does not support gradient checkpointing, rates by layer, or `padding_free`.
    """
    training, seed = hyperparameters.training, hyperparameters.seed
    if training.gradient_checkpointing:
        check_gradient_checkpointing(classifier.base)
    standardized = standardize_output(classifier, split.labels) if hyperparameters.standardize_targets else None
    module, embeddings = classifier.model, None
    if is_sharded(accelerator):
        module = _copy_for_sharding(classifier, accelerator)
    else:
        broadcast_weights(classifier.model, accelerator)
        embeddings = _embedding_subset(classifier, split, accelerator)
    parameters = _trainable_parameters(module, embeddings)
    depths = _depths(classifier) if training.layerwise_lr_decay else None
    optimizer = build_optimizer(parameters, training, hyperparameters.loraplus_lr_ratio, depths)
    scheduler = make_scheduler(optimizer, training, plan)
    module, prepared_optimizer = prepare_model(module, optimizer, classifier.base, accelerator)
    trained = [p for group in prepared_optimizer.param_groups for p in group["params"]]
    padding_free, lines = choose_padding_free(classifier, training, accelerator)
    average = None if training.ema_decay is None else WeightAverage(trained, training.ema_decay)
    stepper = Stepper(
        TrainingModel(
            classifier.model,
            module,
            embeddings,
            accelerator.device,
            compiled=training.torch_compile,
            checkpointed=training.gradient_checkpointing,
            average=average,
            padding_free=padding_free,
        ),
        prepared_optimizer,
        scheduler,
        _objective(classifier, module, split, hyperparameters, accelerator.device),
        accelerator,
        training,
        batch_size=plan.batch_size // accelerator.num_processes,
        loss_unit=1.0 if standardized is None else standardized.scaling.deviation**2,
    )
    fingerprint = {**(run_fingerprint or {}), **plan.fingerprint(len(split), accelerator)}
    fingerprint |= _model_fingerprint(embeddings, standardized)
    torch.manual_seed(seed + accelerator.process_index)  # a different seed per process, so that dropout masks differ
    plan_rows = partial(_plan_rows, split, plan, hyperparameters, accelerator.num_processes)
    return Trainer(classifier, split, plan, plan_rows, accelerator, stepper, fingerprint, standardized, messages=lines)


def _embedding_subset(classifier: Classifier, split: EncodedSplit, accelerator: Accelerator) -> EmbeddingSubset | None:
    """Return the token embeddings that are trained instead of the full table, None if the table is trained."""
    padding = classifier.tokenizer.pad_token_id
    return make_embedding_subset(classifier.base, split, padding, accelerator.device)


def _model_fingerprint(embeddings: EmbeddingSubset | None, standardized: StandardizedOutput | None) -> dict[str, Any]:
    """Return what the run fingerprint says about the trained embeddings and the standardized targets."""
    scaling = {} if standardized is None else {TARGET_SCALING: asdict(standardized.scaling)}
    return {"trained words": len(embeddings.ids) if embeddings else None, **scaling}


def _objective(
    classifier: Classifier,
    module: nn.Module,
    split: EncodedSplit,
    hyperparameters: Hyperparameters,
    device: torch.device,
) -> Objective:
    """Return the training objective.

    Raises:
        TrainingError: the weights of the labels name an unknown label.
    """
    training = hyperparameters.training
    options = loss_options(training, torch.as_tensor(split.labels), classifier.label_names, device)
    return Objective(
        classifier.problem_type,
        options,
        training.rdrop_alpha,
        training.contrastive_weight,
        training.contrastive_temperature,
        output_layer(module, len(classifier.label_names)) if training.contrastive_weight else None,
        hyperparameters.distillation,
    )


def _plan_rows(
    split: EncodedSplit, plan: Plan, hyperparameters: Hyperparameters, processes: int, epoch: int
) -> list[Step]:
    """Return the rows of each step of an epoch."""
    training, seed = hyperparameters.training, hyperparameters.seed
    if not training.contrastive_weight:
        return plan_epoch(
            split.lengths,
            batch_size=plan.batch_size,
            accumulation=plan.accumulation,
            strategy=training.train_sampling_strategy,
            seed=seed,
            epoch=epoch,
        )
    steps = plan_paired_epoch(
        split.lengths,
        np.asarray(split.labels),
        batch_size=plan.batch_size,
        accumulation=plan.accumulation,
        seed=seed,
        epoch=epoch,
    )
    return [[share_pairs(batch, processes) for batch in step] for step in steps]


def _depths(classifier: Classifier) -> dict[str, int]:
    """Return the depth of each parameter from the top of the model, by name; see `depths_from_top`.

    Raises:
        ModelError: the layers of the model share weights.
    """
    check_separate_layers(classifier.base, "training.layerwise_lr_decay", "set")
    depths = depths_from_top(classifier.base)
    return {name: depths.get(id(parameter), 0) for name, parameter in classifier.model.named_parameters()}


def _copy_for_sharding(classifier: Classifier, accelerator: Accelerator) -> nn.Module:
    """Return a copy of the classifier's model on the CPU, to be sharded and trained, with the training speed-ups."""
    classifier.model.to("cpu")
    with sped_up(classifier, accelerator):
        return copy.deepcopy(classifier.model)


def _trainable_parameters(module: nn.Module, embeddings: EmbeddingSubset | None) -> dict[str, nn.Parameter]:
    """Return the trainable parameters by name, with the embedding subset instead of the full table."""
    return {
        name: embeddings.rows if embeddings and parameter is embeddings.weight else parameter
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }
