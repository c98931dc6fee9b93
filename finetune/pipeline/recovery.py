"""Train a pruned classifier on, by the recipe of its run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import peft
import torch

from finetune.models.classifier import Classifier
from finetune.models.freezing import freeze, keep_float32, undo_keep_float32
from finetune.models.lora import add_lora, merge_adapters
from finetune.pipeline.finished_run import FinishedRun
from finetune.pipeline.prepare import frozen_layers_cached, layers_compiled, lora_of
from finetune.report.terminal import print_line
from finetune.training.build import Hyperparameters, build_trainer
from finetune.training.schedule import fill_in, make_plan


def heal(run: FinishedRun, pruned: Classifier, epochs: int) -> Classifier:
    """Return the pruned classifier after so many epochs by the recipe; adapters are new ones, merged at the end."""
    training = {"num_train_epochs": epochs, "max_steps": None}
    recipe = run.recipe.model_copy(
        update={
            "training": run.recipe.training.model_copy(update=training),
            "evaluation": run.recipe.evaluation.model_copy(update={"eval_strategy": "no"}),
        }
    )
    own = run.material.classifier.model
    if isinstance(own, peft.PeftModel):
        trained = _adapted(run, pruned, tuple(own.peft_config["default"].modules_to_save or ()))  # type: ignore[attr-defined]
    else:
        trained, settings = pruned, recipe.training
        freeze(pruned.base, freeze_embeddings=settings.freeze_embeddings, freeze_layers=settings.freeze_layers)
    plan = make_plan(recipe, rows=len(run.material.splits["train"]), processes=1)
    recipe, _ = fill_in(recipe, plan, pruned.base.config.hidden_size)
    print_line(run.console, f"Healing: {plan.total_steps} steps.")
    material = replace(run.material, classifier=trained)
    with (
        frozen_layers_cached(recipe, material, run.accelerator, tell=partial(print_line, run.console)) as cached,
        layers_compiled(recipe, trained, run.accelerator),
    ):
        trainer = build_trainer(
            trained,
            cached.splits["train"],
            replace(plan, save_every=None, patience=None),
            Hyperparameters(recipe.training, recipe.seed, recipe.peft.loraplus_lr_ratio if recipe.peft else None),
            run.accelerator,
        )
        trainer.fit(run.folder.checkpoints, print_line=partial(print_line, run.console))  # the plan saves no checkpoint
    trainer.unwrap_model()
    healed = replace(pruned, model=merge_adapters(trained.model).eval())
    undo_keep_float32(healed.base, getattr(torch, pruned.source.dtype if pruned.source else "float32"))
    return healed


def _adapted(run: FinishedRun, pruned: Classifier, whole: Sequence[str]) -> Classifier:
    """Return the pruned classifier with new adapters, and the modules `whole` to be trained besides, as in the run."""
    adapters, source = run.recipe.peft, pruned.source
    assert adapters is not None
    assert source is not None
    lora = replace(lora_of(adapters), init_lora_weights=True)
    new = [name for name, _ in pruned.base.named_parameters() if name.rpartition(".")[0] in whole]
    keep_float32(pruned.base, whole)
    adapted = add_lora(pruned.base, lora, new, location=source.location(), revision=source.revision)
    return replace(pruned, model=adapted)
