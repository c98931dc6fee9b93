"""Mistakes in a recipe, and their messages: finetune/recipe/validation.py."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from finetune.cli import main
from finetune.errors import RecipeError
from finetune.recipe.loader import load_recipe
from finetune.recipe.metric_validation import metric_problems
from finetune.recipe.names import METRICS
from tests.support.recipes import MINIMAL, ROWS, WriteRecipe


def test_all_mistakes_are_reported_together(write_recipe: WriteRecipe) -> None:
    path = write_recipe(
        """\
seed: 1
model: {model_name_or_path: some/model}
data:
  train_file: nowhere.csv
training:
  learning_rat: 1e-3
  num_train_epochs: three
  warmup_ratio: 0.1
  weight_decay: 0.1
  weight_decay: 0.2
peft: {r: -1}
"""
    )
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    head, *lines = str(error.value).splitlines()
    assert head == f"{path} has 6 mistakes:"
    expected = {
        r"training.weight_decay (line 9)": "given again on line 10",
        r"data.train_file (line 4)": "there is no file 'nowhere.csv'",
        r"training.learning_rat (line 6)": "unknown key; did you mean 'learning_rate'?",
        r"training.num_train_epochs (line 7)": "given 'three'; must be a whole number",
        r"training.warmup_ratio (line 8)": "use training.warmup_steps",
        r"peft.r (line 11)": "given -1; must be greater than or equal to 1",
    }
    assert len(lines) == 6
    assert [line.split("(line ")[1].split(")")[0] for line in lines] == ["4", "6", "7", "8", "9", "11"]
    for location, text in expected.items():
        assert any(line.strip().startswith(location) and text in line for line in lines), (location, lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {model_name_or_path: a}\n", r"data: is missing"),
        (MINIMAL + "seeds: [3]\n", r"seeds .*must be at least 2 different numbers, got \[3\]; for one run, set seed"),
        (MINIMAL + "seeds: [3, 4, 3]\n", r"seeds .*must be at least 2 different numbers, got \[3, 4, 3\]"),
        (MINIMAL + "seeds: [3, -4]\n", r"seeds\.1 .*given -4; must be greater than or equal to 0"),
        (
            MINIMAL + "seeds: [3, 4]\ncheckpoint: {resume_from_checkpoint: .}\n",
            r"checkpoint\.resume_from_checkpoint .*names the checkpoint of one run, but seeds trains several; set auto",
        ),
        (MINIMAL + "training: {use_cpu: true, mixed_precision: fp16}\n", r"fp16 needs a GPU"),
        (MINIMAL + "training: {mixed_precision: int8, torch_compile: true}\n", r"compiled layers .* in int8; remove"),
        (
            MINIMAL.replace("model_name_or_path:", "dtype: bfloat16, model_name_or_path:")
            + "training: {mixed_precision: int8}\n",
            r"int8 copies are made of float32 weights; set model.dtype: float32",
        ),
        (
            MINIMAL.replace("validation_rows", "validation_size: null, test_rows"),
            r"data .*no validation rows to evaluate on; give data\.validation_file .*validation_size: auto, or set",
        ),
        (MINIMAL + "training: {learning_rate: aut}\n", r"given 'aut'; must be a number, or 'auto'; did you mean"),
        (MINIMAL + "training: {warmup_steps: null}\n", r"is empty \(null\), but must be a number, or 'auto'; give a v"),
        (MINIMAL + "training: {class_weights: equal}\n", r"given 'equal'; must be a mapping, or 'balanced'$"),
        (MINIMAL + "training: {learning_rate: .inf}\n", r"learning_rate .*finite"),
        (MINIMAL.replace("validation_rows:", "label_column: sentence, validation_rows:"), r"must differ, got sentence"),
        (MINIMAL.replace("validation_rows:", "validation_size: 0.1, validation_rows:"), r"validation_size holds out"),
        ("a: &x [*x]\n", r"an alias that contains itself"),
        ("a: !!float abc\n", r"line 1 is not valid YAML: the tag !!float does not fit"),
        (MINIMAL + "logging: {report_to: wandb.ai}\n", r"given 'wandb.ai'; must be"),
        (MINIMAL + "trainng: {}\n", r"trainng \(line 3\): unknown key; did you mean 'training'"),
        (MINIMAL + "learning_rate: 1\n", r"learning_rate .*belongs in training"),
        (MINIMAL + "training: {mixed_precision: bf17}\n", r"'bf17'; must be 'no', 'bf16', 'fp16', 'int8' or 'auto'"),
        (MINIMAL + "training: {warmup_steps: 1.5}\n", r"training .*warmup_steps is 1.5; give a whole number, or a f"),
        (MINIMAL + "training: {learning_rate: true}\n", r"training.learning_rate .*given true; must be a number"),
        (MINIMAL + "training:\n", r"training .*is empty \(null\), but must be a section of keys; give a value, or"),
        (MINIMAL + "task: {problem_type:}\n", r"is empty \(null\), but must be 'single_label_classification', "),
        (MINIMAL + "evaluation: {metrics: []}\n", r"metrics .*given \[\]; must have at least one item"),
        (
            MINIMAL.replace("train_rows", "label_columns: [a], train_rows")
            + "task: {problem_type: multi_label_classification}\n",
            r"label_columns .*given \['a'\]; must have at least 2 items",
        ),
        (MINIMAL + "training: 3\n", r"training .*must be a section of keys"),
        (MINIMAL + "peft: {target_modules: [query, dense]}\n", r"peft.target_modules.1 .*given 'dense'"),
        (MINIMAL + "evaluation: {metrics: [acuracy]}\n", r"metrics.0 .*did you mean 'accuracy'"),
        (MINIMAL + "evaluation: {metric_for_best_model: f1}\n", r"metric_for_best_model .*given 'f1'; must be one of"),
        (MINIMAL + "task: {label_names: [a, a]}\n", r"task .*at least two different names"),
        (MINIMAL + "task: {label_names: [a, b]}\ntraining: {class_weights: {c: 2.0}}\n", r"weights.c .*not a label"),
        (MINIMAL + "logging: {project: my texts}\n", r"project .*given 'my texts'; must be up to 128 letters, digits"),
        (MINIMAL + "logging: {run_name: -a}\n", r"run_name .*given '-a'; must be .* and not start with '\.' or '-'"),
        (MINIMAL.replace("some/model", "a, model_type: bert"), r"model .*model_name_or_path and model_type are both"),
        (MINIMAL + "peft: {}\ntraining: {freeze_layers: 2}\n", r"freeze_layers .*LoRA trains only its adapters"),
        (
            MINIMAL + "training: {freeze_layers: 2, cache_frozen_layers: true}\n",
            r"cache_frozen_layers .*needs freeze_embeddings: true and freeze_layers of at least 1",
        ),
        (
            MINIMAL + "training: {freeze_embeddings: true, cache_frozen_layers: true}\n",
            r"cache_frozen_layers .*needs freeze_embeddings: true and freeze_layers of at least 1",
        ),
        (MINIMAL + "peft: {}\ntraining: {cache_frozen_layers: true}\n", r"cache_frozen_layers .*LoRA adapts every"),
        (
            MINIMAL.replace("model_name_or_path: some/model", "model_type: bert")
            + "training: {freeze_embeddings: true, freeze_layers: 1, cache_frozen_layers: true}\n",
            r"cache_frozen_layers .*a new model has random weights",
        ),
        (MINIMAL + "peft: {rank_pattern: 3}\n", r"peft.rank_pattern .*given 3; must be a mapping"),
        (MINIMAL + "peft: {rank_pattern: by_importanc}\n", r"rank_pattern .*given 'by_importanc'; must be a mapping"),
        (MINIMAL + "peft: {rank_pattern: {query: 0}}\n", r"rank_pattern.query .*given 0; must be greater than or equ"),
        (MINIMAL + "peft: {init_lora_weights: zeros}\n", r"peft.init_lora_weights .*given 'zeros'"),
        ("model: {}\ndata: {}\n", r"model .*no source is given"),
        (
            MINIMAL + "task: {problem_type: regression}\nhead_importance: {method: iterative_ablation_accuracy}\n",
            r"head_importance.method .*ablation_accuracy needs classes, but problem_type is regression; use",
        ),
        (
            MINIMAL + "task: {problem_type: regression}\noutputs: {temperature: 2}\n",
            r"outputs.temperature .*needs labels, but problem_type is regression; remove it",
        ),
        (MINIMAL + "outputs: {temperature: 0}\n", r"outputs.temperature .*given 0; must be"),
        ("- a\n", r"has no sections"),
        ("a: [1\n", r"line 2 is not valid YAML"),
        ("a: !!python/object:os.system 1\n", r"line 1 is not valid YAML: the tag !!python/object:os.system"),
    ],
)  # fmt: skip
def test_a_mistake_is_reported_with_a_fix(write_recipe: WriteRecipe, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(write_recipe(text))


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_a_tracker_that_is_not_installed_is_reported(
    write_recipe: WriteRecipe, monkeypatch: pytest.MonkeyPatch, tracker: str
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == tracker else find_spec(name))
    path = write_recipe(MINIMAL + f"logging: {{report_to: {tracker}}}\n")
    with pytest.raises(RecipeError, match=rf"report_to .*'{tracker}' is not installed; run `pip install {tracker}`"):
        load_recipe(path)


def test_ranks_by_importance_were_removed(write_recipe: WriteRecipe, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_recipe(MINIMAL + "peft: {rank_pattern: by_importance}\n")
    assert main(["check", str(path)]) == 2
    head, line = capsys.readouterr().err.splitlines()
    assert head == f"error: {path} has a mistake:"
    assert line == (
        "  peft.rank_pattern (line 3): by_importance was removed because it was no better than a uniform rank; remove "
        "rank_pattern, or give a mapping such as {3.query: 16}. For a trained run, edit its recipe.yaml: the ranks are "
        "in model/adapter_config.json, under rank_pattern"
    )


def test_only_the_first_of_very_many_mistakes_are_listed(write_recipe: WriteRecipe) -> None:
    names = [f"learning_rat{number}" for number in range(3_000)]
    texts = [
        "training:\n" + "".join(f"  {name}: 1\n" for name in names),
        f"evaluation: {{metrics: [{', '.join(names)}]}}\n",
        f"task: {{label_names: [a, b]}}\ntraining: {{class_weights: {{{': 1.0, '.join(names)}: 1.0}}}}\n",
        "seed: 1\n" * 3_000,
    ]
    for text in texts:
        with pytest.raises(RecipeError) as error:
            load_recipe(write_recipe(MINIMAL + text))
        head, *lines = str(error.value).splitlines()
        assert head.endswith("has more than 50 mistakes; the first 50:")
        assert len(lines) == 50
        assert max(map(len, lines)) < 1000


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("output_dir", '"a\\0b"', "contains a NUL character"),
        ("output_dir", "x" * 300, "is too long for the file system"),
        ("output_dir", "~nosuchuser/x", "a user that does not exist"),
        ("output_dir", "''", "is empty; name a path"),
        ("output_dir", "loop", "symbolic links that point at each other"),
        ("output_dir", "file.csv", "is a file; name a folder"),
        ("output_dir", "file.csv/out", "cannot be created, because"),
        ("data.train_file", "~nosuchuser/x.csv", "a user that does not exist"),
        ("data.validation_file", "x" * 300 + ".csv", "is too long for the file system"),
        ("data.test_file", '"a\\0.csv"', "contains a NUL character"),
        ("data.train_file", "file.csv/x.csv", "there is no file 'file.csv/x.csv'"),
        ("data.dataset_name", "~nosuchuser/x", "a user that does not exist"),
        ("data.dataset_name", "./nowhere", "there is no folder './nowhere'"),
        ("model.model_name_or_path", "~nosuchuser/x", "a user that does not exist"),
        ("model.model_name_or_path", "x" * 300, "is too long for the file system"),
        ("model.model_name_or_path", "/nowhere/model", "there is no folder '/nowhere/model'"),
        ("checkpoint.resume_from_checkpoint", "x" * 300, "is too long for the file system"),
        ("checkpoint.resume_from_checkpoint", "nowhere", "there is no folder 'nowhere'"),
    ],
)
def test_unusable_paths_are_reported(
    write_recipe: WriteRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str, value: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    Path("file.csv").write_text("sentence,label\na,b\n")
    section, _, name = key.rpartition(".")
    line = f"{section}: {{{name}: {value}}}\n" if section else f"{name}: {value}\n"
    others = "" if section == "model" else "model: {model_name_or_path: some/model}\n"
    others += "" if section == "data" else f"data: {{train_rows: {ROWS}, validation_rows: {ROWS}}}\n"
    with pytest.raises(RecipeError, match=rf"{key} \(line 1\): .*{re.escape(reason)}"):
        load_recipe(write_recipe(line + others))
    with pytest.raises(RecipeError, match=rf"{key} \(override\): .*{re.escape(reason)}"):
        load_recipe(write_recipe(MINIMAL), [f"{key}={value}", "data.validation_rows=null", "data.validation_size=0.5"])


@pytest.mark.parametrize("problem_type", sorted(METRICS))
def test_metrics_are_checked_for_the_problem_type(problem_type: str) -> None:
    valid = {"task": {"problem_type": problem_type}, "evaluation": {"metrics": list(METRICS[problem_type])}}
    assert not list(metric_problems(valid))
    wrong = {"task": {"problem_type": problem_type}, "evaluation": {"metrics": ["no metric"]}}
    assert [problem.location for problem in metric_problems(wrong)] == [("evaluation", "metrics", 0)]
