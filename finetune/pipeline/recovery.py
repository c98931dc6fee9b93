"""Recovery fine-tuning: train a pruned classifier by the recipe of its run, with the unpruned one as its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import peft
import torch

from finetune.errors import ModelError
from finetune.models.attention_sites import attention_sites
from finetune.models.classifier import Classifier
from finetune.models.freezing import Freezing, freeze, keep_float32, undo_keep_float32
from finetune.models.lora import NOTHING_TO_ADAPT, adapted_sites, add_lora, merge_adapters
from finetune.pipeline.build_model import lora_settings
from finetune.pipeline.finished_run import FinishedRun
from finetune.pipeline.prepare import frozen_layers_cached, layers_compiled
from finetune.recipe.schema import PeftSection
from finetune.training.auto_settings import RunSize, fill_in
from finetune.training.build import Hyperparameters, build_trainer
from finetune.training.distillation import distillation_from
from finetune.training.schedule import make_plan


def check_recoverable(run: FinishedRun, pruned: Classifier) -> None:
    """Raise ModelError if recovery fine-tuning would have no projections to adapt."""
    adapters = run.context.recipe.peft
    if adapters is not None and not adapted_sites(pruned.base, lora_settings(adapters)):
        raise ModelError(f"{NOTHING_TO_ADAPT}; prune less, or leave out --heal")


def recovery_finetune(
    run: FinishedRun, pruned: Classifier, epochs: int, teacher: Classifier | None = None
) -> Classifier:
    """Return the pruned classifier after `epochs` of training with the run's recipe.

    If the run trained adapters, new ones are trained, and merged at the end.

    Args:
        teacher: the classifier whose predictions are learned; None: the labels are.
    """
    training = {"num_train_epochs": epochs, "max_steps": None}
    recipe = run.context.recipe.model_copy(
        update={
            "training": run.context.recipe.training.model_copy(update=training),
            "evaluation": run.context.recipe.evaluation.model_copy(update={"eval_strategy": "no"}),
        }
    )
    model = run.inputs.classifier.model
    if isinstance(model, peft.PeftModel):
        fully_trained = tuple(model.peft_config["default"].modules_to_save or ())  # type: ignore[attr-defined]
        trained = _with_new_adapters(recipe.peft, pruned, fully_trained)
    else:
        trained, settings = pruned, recipe.training
        freeze(pruned.base, Freezing(settings.freeze_embeddings, settings.freeze_layers))
    rows, hidden_size = len(run.inputs.splits["train"]), pruned.base.config.hidden_size
    size = RunSize(rows, len(pruned.label_names), hidden_size, has_validation=False)
    recipe, _ = fill_in(recipe, size)
    plan = make_plan(recipe, rows=rows, processes=1)
    context = replace(run.context, recipe=recipe)
    context.print_line(f"{'Control' if teacher is None else 'Recovery'} fine-tuning: {plan.total_steps} steps.")
    with (
        nullcontext() if teacher is None else distillation_from(teacher, context.accelerator) as distillation,
        frozen_layers_cached(context, replace(run.inputs, classifier=trained)) as cached,
        layers_compiled(context, trained),
    ):
        trainer = build_trainer(
            trained,
            cached.splits["train"],
            replace(plan, save_every=None, patience=None),
            Hyperparameters(
                recipe.training,
                recipe.seed,
                recipe.peft.loraplus_lr_ratio if recipe.peft else None,
                distillation=distillation,
            ),
            context.accelerator,
        )
        trainer.fit(context.folder.checkpoints, print_line=context.print_line)  # the plan saves no checkpoint
    trainer.unwrap_model()
    recovered = replace(pruned, model=merge_adapters(trained.model).eval())
    undo_keep_float32(recovered.base, getattr(torch, pruned.source.dtype if pruned.source else "float32"))
    return recovered


def _with_new_adapters(adapters: PeftSection | None, pruned: Classifier, fully_trained: Sequence[str]) -> Classifier:
    """Return the pruned classifier with new adapters, and with the modules `fully_trained` trained in full."""
    assert adapters is not None
    lora = lora_settings(adapters)
    empty = {str(site.layer) for site in attention_sites(pruned.base) if not site.num_heads}
    ranks = {key: rank for key, rank in lora.rank_pattern.items() if key.rpartition(".")[0] not in empty}
    lora = replace(lora, init_lora_weights=True, rank_pattern=ranks)
    trained_in_full = [name for name, _ in pruned.base.named_parameters() if name.rpartition(".")[0] in fully_trained]
    keep_float32(pruned.base, fully_trained)
    return replace(pruned, model=add_lora(pruned.base, lora, trained_in_full))
