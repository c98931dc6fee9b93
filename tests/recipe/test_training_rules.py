"""Options of training that need several keys: finetune/recipe/training_rules.py."""

from __future__ import annotations

import jsonschema
import pytest
import yaml

from finetune.errors import RecipeError
from finetune.recipe.json_schema import recipe_schema
from finetune.recipe.loader import load_recipe
from tests.support.recipes import MINIMAL, WriteRecipe

SCHEMA = jsonschema.Draft202012Validator(recipe_schema())
WRONG = {
    "ema_decay: 1.0": r"ema_decay .*given 1.0; must be less than 1",
    "rdrop_alpha: -1": r"rdrop_alpha .*given -1; must be greater than or equal to 0",
    "label_smoothing_factor: 1": r"label_smoothing_factor .*given 1; must be less than 1",
    "focal_gamma: -1": r"focal_gamma .*given -1; must be greater than or equal to 0",
    "contrastive_weight: -1": r"contrastive_weight .*given -1; must be greater than or equal to 0",
    "contrastive_temperature: 0": r"contrastive_temperature .*given 0; must be greater than 0",
    "layerwise_lr_decay: 0": r"layerwise_lr_decay .*given 0; must be greater than 0",
    "layerwise_lr_decay: 1.1": r"layerwise_lr_decay .*given 1.1; must be less than or equal to 1",
    "reinit_layers: -1": r"reinit_layers .*given -1; must be greater than or equal to 0",
    "lr_scheduler_type: reduce_lr_on_plateau": r"lr_scheduler_type .*must be 'linear', 'cosine'",
    "lr_scheduler_type: polynomal": r"lr_scheduler_type .*did you mean 'polynomial'",
    "lr_scheduler_kwargs: 3": r"lr_scheduler_kwargs .*given 3; must be a mapping",
    "lr_scheduler_kwargs: {power: 2}": r"lr_scheduler_kwargs.power .*linear has no parameters; remove it",
    "lr_scheduler_type: cosine, lr_scheduler_kwargs: {num_cycle: 2}": r"num_cycle .*cosine has num_cycles; did you",
    "lr_scheduler_type: cosine_with_restarts, lr_scheduler_kwargs: {num_cycles: 1.5}": r"given 1.5; must be a whole n",
    "lr_scheduler_type: warmup_stable_decay, lr_scheduler_kwargs: {decay_type: sqrt}": r"one of linear, cosine, 1-sqrt",
    "lr_scheduler_type: warmup_stable_decay, lr_scheduler_kwargs: {num_decay_steps: 1.5}": r"must be a whole number of",
    "lr_scheduler_type: cosine_with_min_lr": r"lr_scheduler_kwargs.*needs min_lr \(a learning rate\) or min_lr_rate",
    "lr_scheduler_type: cosine_with_min_lr, learning_rate: 0.1, lr_scheduler_kwargs: {min_lr: 0.2}": r"min_lr is 0.2; "
    r"it must be below training.learning_rate, 0.1",
    "lr_scheduler_type: polynomial, learning_rate: 0.1, lr_scheduler_kwargs: {lr_end: 0.1}": r"lr_end is 0.1; it must",
    "learning_rate: 0": r"has a mistake:\n  training.learning_rate .*given 0; must be greater than 0",
    "gradient_checkpointing: 1": r"gradient_checkpointing .*given 1; must be true or false",
}
WRONG_WITH = {
    ("gradient_checkpointing: true, torch_compile: true",): r"cannot be used with torch_compile: true; remove one",
    (
        "reinit_layers: 2",
        "peft: {}",
    ): r"reinit_layers .*LoRA would not train them; remove this key, or the peft section",
    (
        "contrastive_weight: 0.1",
        "task: {problem_type: regression}",
    ): r"contrastive_weight .* only to single_label_class",
    ("focal_gamma: 2.0", "task: {problem_type: regression}"): r"focal_gamma .*needs labels.*remove it",
    ("focal_gamma: 2.0, label_smoothing_factor: 0.1",): r"focal_gamma .*with label_smoothing_factor.*remove one",
    ("pos_weight: balanced",): r"pos_weight .*only to multi_label_classification; use class_weights",
    ("pos_weight: balanced", "task: {problem_type: regression}"): r"pos_weight .*only to multi_label_cl.*; remove it",
    (
        "class_weights: balanced",
        "task: {problem_type: multi_label_classification}",
    ): r"class_weights .*only to single_label_classification; use pos_weight",
    (
        "contrastive_weight: 0.1, train_sampling_strategy: sequential",
    ): r"sequential with contrastive_weight.*remove one",
    ("contrastive_weight: 0.1, per_device_train_batch_size: 1",): r"batch_size .*is 1, but contrastive.*at least 4",
    (
        "label_smoothing_factor: 0.1",
        "task: {problem_type: regression}",
    ): r"label_smoothing.* only to single_label_class",
}


@pytest.mark.parametrize(("text", "message"), WRONG.items())
def test_a_value_out_of_range_is_reported(write_recipe: WriteRecipe, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(write_recipe(f"{MINIMAL}training: {{{text}}}\n"))


@pytest.mark.parametrize(("texts", "message"), WRONG_WITH.items(), ids=["; ".join(texts) for texts in WRONG_WITH])
def test_a_combination_without_meaning_is_reported(
    write_recipe: WriteRecipe, texts: tuple[str, ...], message: str
) -> None:
    option, *others = texts
    training = f"training: {{{option}}}\n"
    text = MINIMAL + "".join(f"{other}\n" for other in others)
    text += "" if "training:" in text else training
    with pytest.raises(RecipeError, match=message):
        load_recipe(write_recipe(text))
    assert not SCHEMA.is_valid(yaml.safe_load(text))
