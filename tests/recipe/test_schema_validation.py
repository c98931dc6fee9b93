"""Hints for unknown keys and values: finetune/recipe/schema_validation.py."""

from __future__ import annotations

import pytest

from finetune.errors import RecipeError
from finetune.recipe.loader import load_recipe
from finetune.recipe.schema import Recipe
from finetune.recipe.schema_validation import FOREIGN_NAMES, NO_KEY
from tests.support.recipes import MINIMAL, WriteRecipe


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("training: {save_strategy: epoch}", "training.save_strategy (line 3): unknown key; it belongs in checkpoint"),
        ("training: {seed: 1}", "training.seed (line 3): unknown key; it belongs in the top level"),
        ("evaluation: {eval_batch_size: 1}", "unknown key; use evaluation.per_device_eval_batch_size"),
        ("training: {activation_checkpointing: true}", "unknown key; use training.gradient_checkpointing"),
        ("training: {optim: sgd}", "unknown key; there is no such setting: the optimizer is AdamW"),
        ("training: {save_totl_limit: 1}", "unknown key; did you mean 'checkpoint.save_total_limit'?"),
        ("training: {learning_rte: 1}", "unknown key; did you mean 'learning_rate'?"),
        ("training: {warmup: 1}", "unknown key; did you mean 'warmup_steps'?"),
        ("training: {deepspeed: a}", "training.deepspeed (line 3): unknown key"),
        ("training: {data_seed: 1}", "training.data_seed (line 3): unknown key"),
        ("training: {hub_strategy: a}", "training.hub_strategy (line 3): unknown key"),
        ("peft: {exclude_modules: a}", "peft.exclude_modules (line 3): unknown key"),
        ("'str': 1", "str (line 3): unknown key"),
        ('"\\e[1m[\\n": 1', r"\x1b[1m[\n (line 3): unknown key"),
        ("evaluation: {metrics: [f1]}", "choose the mean over classes that you mean: f1_macro, f1_micro, f1_weighted"),
        ("evaluation: {metrics: [precision]}", "precision, recall and F1 of each class are always in scores.json"),
        (
            "evaluation: {metric_for_best_model: eval_f1}",
            "given 'eval_f1'; must be one of accuracy, ",
        ),
        ("evaluation: {metric_for_best_model: eval_loss}", "did you mean 'loss'?"),
        ("evaluation: {metrics: [mcc]}", "did you mean 'matthews_correlation'?"),
        (
            "task: {problem_type: multi_label_classification}\nevaluation: {metrics: [accuracy]}",
            "did you mean 'subset_accuracy'?",
        ),
        ("task: {problem_type: regression}\nevaluation: {metrics: [mse]}", "did you mean 'mean_squared_error'?"),
    ],
)
def test_a_hint_points_to_the_right_section(write_recipe: WriteRecipe, text: str, hint: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(write_recipe(f"{MINIMAL}{text}\n"))
    _, line = str(error.value).splitlines()
    assert hint in line
    assert line.endswith(hint) or not hint.endswith("key")  # no hint where none is expected


def test_names_of_other_tools_get_a_hint(write_recipe: WriteRecipe) -> None:
    names = ("warmup_ratio", "group_by_length", "evaluation_strategy", "lora_r", "lora_rank", "epochs", "batch_size")
    names += ("lr", "base_model", "max_seq_length", "cutoff_len")
    assert set(names) <= set(FOREIGN_NAMES)
    path = write_recipe(MINIMAL + "training:\n" + "".join(f"  {name}: 1\n" for name in FOREIGN_NAMES))
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    lines = str(error.value).splitlines()[1:]
    assert len(lines) == len(FOREIGN_NAMES)
    for name, hint in FOREIGN_NAMES.items():
        assert sum(f"training.{name} (" in line and hint in line for line in lines) == 1


def test_hints_name_keys_that_exist() -> None:
    keys = {f"{name}.{key}" for name, field in Recipe.model_fields.items() for key in _fields(field.annotation)}
    suggested = [hint.split()[0].rstrip(":") for hint in FOREIGN_NAMES.values() if not hint.startswith(NO_KEY)]
    assert len(suggested) > 20
    assert set(suggested) <= keys


def _fields(annotation: object) -> list[str]:
    classes = [annotation, *getattr(annotation, "__args__", ())]
    return [key for kind in classes for key in getattr(kind, "model_fields", {})]
