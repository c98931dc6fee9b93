"""The JSON schema for editors: finetune/recipe/json_schema.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings

from finetune.errors import FinetuneError, RecipeError
from finetune.recipe.json_schema import recipe_schema, sweep_schema
from finetune.recipe.loader import load_recipe
from finetune.recipe.yaml_parser import NotYamlError, YamlValues, compose
from tests.hostile.recipes import recipe_texts
from tests.support import ROOT
from tests.support.recipes import MINIMAL, RECIPES, ROWS, WriteRecipe

SCHEMA = jsonschema.Draft202012Validator(recipe_schema())
MODEL, DATA = MINIMAL.splitlines()


def accepts(text: str) -> bool:
    """Return whether the schema accepts a recipe as an editor reads it: values by YAML 1.2, whatever their key."""
    node = compose(text)
    assert node is not None
    # Below another key, no key has the rule of the loader that its value is always text.
    document: Any = YamlValues().build(node, ("an editor",))
    return SCHEMA.is_valid(document)


VALID = {
    "the smallest recipe": MINIMAL,
    "label names that look like other types": MINIMAL + "task: {label_names: [true, 1, 1.0, null, no, 2020-01-01]}\n",
    "null where there is no section": MINIMAL + "peft: null\nhead_importance: null\n",
    "null for optional keys": MINIMAL + "training: {max_steps:, learning_rate: null}\n",
    "a whole number for a number": MINIMAL + "training: {learning_rate: 1, warmup_steps: 10, weight_decay: 0}\n",
    "words of YAML 1.1": MINIMAL + "training: {mixed_precision: no}\nevaluation: {eval_strategy: no}\n",
    "no validation rows and no evaluation": f"{MODEL}\ndata: {{train_rows: {ROWS}}}\n"
    "evaluation: {eval_strategy: no}\n",
    "no validation rows, so some are held out": f"{MODEL}\ndata: {{train_rows: {ROWS}}}\n",
    "a dataset of which rows are held out": f"{MODEL}\ndata: {{dataset_name: a/b, validation_split: null}}\n",
    "auto for every key that has it": MINIMAL.replace("{train_rows", "{validation_size: auto, train_rows")
    + "training: {learning_rate: auto, num_train_epochs: auto, per_device_train_batch_size: auto, warmup_steps: auto}\n"
    + "evaluation: {eval_strategy: no, early_stopping_patience: auto}\n",
    "a dataset, which has a validation split": f"{MODEL}\ndata: {{dataset_name: a/b}}\n",
    "an empty text for a file that is not given": f"{MODEL}\ndata: {{dataset_name: a/b, train_file: ''}}\n",
    "a new model with an empty name": f"model: {{model_type: bert, model_name_or_path: ''}}\n{DATA}\n",
    "cells of any type": f"{MODEL}\ndata: {{train_rows: [{{sentence: 1, label: [a]}}], validation_rows: [{{}}]}}\n",
    "seeds of a series, resumed": MINIMAL + "seeds: [3, 1]\ncheckpoint: {resume_from_checkpoint: auto}\n",
    "a seed for the rows": MINIMAL.replace("{train_rows", "{split_seed: 0, train_rows"),
    "class weights by name": MINIMAL + "training: {class_weights: {x: 1, y: 2.5}}\n",
    "one head method, and several": MINIMAL + "head_importance: {method: [gradient, iterative_shapley]}\n",
    "a head method with settings": MINIMAL + "head_importance: {method: {name: gradient, max_samples: null}}\n",
    "head methods with and without settings": MINIMAL
    + "head_importance: {method: [gradient, {name: integrated_gradients, integration_steps: 16}], max_cost: null}\n",
    "aliases": MINIMAL + "task: {label_names: &names [x, y]}\ntraining: {class_weights: &w {x: 1.0}}\n",
}

WRONG = {
    "one seed": MINIMAL + "seeds: [1]\n",
    "a seed twice": MINIMAL + "seeds: [1, 2, 1]\n",
    "a seed that is too large": MINIMAL + "seeds: [1, 4294967296]\n",
    "a number of seeds": MINIMAL + "seeds: 5\n",
    "one checkpoint for several runs": MINIMAL + "seeds: [1, 2]\ncheckpoint: {resume_from_checkpoint: .}\n",
    "no model": DATA,
    "no data": MODEL,
    "an empty section": MINIMAL + "training:\n",
    "a section that is a number": MINIMAL + "training: 3\n",
    "an unknown section": MINIMAL + "trainng: {}\n",
    "an unknown key": MINIMAL + "training: {learning_rat: 1.0e-3}\n",
    "a key of another tool": MINIMAL + "training: {warmup_ratio: 0.1}\n",
    "a key in the wrong section": MINIMAL + "learning_rate: 1.0e-3\n",
    "a number in quotation marks": MINIMAL + "training: {learning_rate: '1e-3'}\n",
    "a word for a number": MINIMAL + "training: {num_train_epochs: three}\n",
    "yes for true": MINIMAL + "training: {use_cpu: yes}\n",
    "a number for text": MINIMAL + "output_dir: 3\n",
    "an empty output folder": MINIMAL + "output_dir: ''\n",
    "a fraction for a whole number": MINIMAL + "peft: {r: 2.5}\n",
    "a number that is too small": MINIMAL + "peft: {r: -1}\n",
    "a number that is too large": MINIMAL + "seed: 4294967296\n",
    "a probability of 1": MINIMAL + "peft: {lora_dropout: 1.0}\n",
    "a share of 0": f"{MODEL}\ndata: {{train_rows: {ROWS}, validation_size: 0}}\n",
    "a value that is not a choice": MINIMAL + "training: {mixed_precision: bf17}\n",
    "an initialization given as 1": MINIMAL + "peft: {init_lora_weights: 1}\n",
    "an unknown projection": MINIMAL + "peft: {target_modules: [query, dense]}\n",
    "an empty list": MINIMAL + "evaluation: {metrics: []}\n",
    "one label name": MINIMAL + "task: {label_names: [a]}\n",
    "a list as a label name": MINIMAL + "task: {label_names: [[a], b]}\n",
    "rows that are not mappings": f"{MODEL}\ndata: {{train_rows: [a, b], validation_rows: {ROWS}}}\n",
    "two sources of rows": MINIMAL.replace("{train_rows", "{dataset_name: a/b, train_rows"),
    "no source of rows": f"{MODEL}\ndata: {{text_column: text}}\n",
    "validation rows without training rows": f"{MODEL}\ndata: {{validation_rows: {ROWS}}}\n",
    "two models": MINIMAL.replace("some/model", "some/model, model_type: bert"),
    "no model in the section": f"model: {{revision: main}}\n{DATA}\n",
    "validation rows given and held out": MINIMAL.replace("{train_rows", "{validation_size: 0.1, train_rows"),
    "no validation rows, and none held out": f"{MODEL}\ndata: {{train_rows: {ROWS}, validation_size: null}}\n",
    "a dataset without a validation split": f"{MODEL}\n"
    "data: {dataset_name: a/b, validation_split: null, validation_size: null}\n",
    "auto for a key that does not have it": MINIMAL + "training: {weight_decay: auto}\n",
    "another word for auto": MINIMAL + "training: {learning_rate: automatic}\n",
    "null for a key without null": MINIMAL + "training: {per_device_train_batch_size: null}\n",
    "heads ranked on rows that are missing": f"{MODEL}\ndata: {{train_rows: {ROWS}, validation_size: auto}}\n"
    "evaluation: {eval_strategy: no}\nhead_importance: {split: validation}\n",
    "label names in a regression": MINIMAL + "task: {problem_type: regression, label_names: [a, b]}\n",
    "a metric of another problem type": MINIMAL + "evaluation: {metrics: [pearson]}\n",
    "a metric of the default problem type": MINIMAL
    + "task: {problem_type: regression}\nevaluation: {metric_for_best_model: accuracy}\n",
    "class weights in a regression": MINIMAL
    + "task: {problem_type: regression}\ntraining: {class_weights: {x: 1.0}}\n",
    "accuracy in a regression": MINIMAL
    + "task: {problem_type: regression}\nhead_importance: {method: [ablation_accuracy]}\n",
    "accuracy with settings in a regression": MINIMAL
    + "task: {problem_type: regression}\nhead_importance: {method: [{name: ablation_accuracy}]}\n",
    "an unknown setting of a head method": MINIMAL + "head_importance: {method: {name: gradient, max_sample: 3}}\n",
    "settings without a head method": MINIMAL + "head_importance: {method: [{max_samples: 3}]}\n",
    "a temperature in a regression": MINIMAL + "task: {problem_type: regression}\noutputs: {temperature: 2}\n",
    "adapters on a new model": f"model: {{model_type: bert}}\n{DATA}\npeft: {{}}\n",
    "a data type for a new model": f"model: {{model_type: bert, dtype: float16}}\n{DATA}\n",
    "frozen layers with adapters": MINIMAL + "peft: {}\ntraining: {freeze_layers: 2}\n",
    "a cache without frozen layers": MINIMAL + "training: {cache_frozen_layers: true}\n",
    "fp16 on a CPU": MINIMAL + "training: {use_cpu: true, mixed_precision: fp16}\n",
    "compiled layers in int8": MINIMAL + "training: {mixed_precision: int8, torch_compile: true}\n",
    "int8 with other weights than float32": MINIMAL.replace("model_name", "dtype: float16, model_name")
    + "training: {mixed_precision: int8}\n",
    "a fraction of a step": MINIMAL + "training: {warmup_steps: 1.5}\n",
    "stopping early without evaluations": MINIMAL
    + "evaluation: {eval_strategy: no, early_stopping_patience: 2}\n",
    "a head method twice": MINIMAL + "head_importance: {method: [gradient, gradient]}\n",
    "a test of heads without rows": MINIMAL + "head_importance: {leave_one_out: true, curve_split: null}\n",
    "names of heads without rows": MINIMAL + "head_importance: {name_heads: true, curve_split: null}\n",
}  # fmt: skip

# Mistakes that only `check` finds -> why JSON schema cannot express the rule.
ONLY_CHECK = {
    "a whole number written as a float": (MINIMAL + "peft: {r: 8.0}\n", "8.0 is an integer in JSON schema"),
    "an infinite number": (MINIMAL + "training: {learning_rate: .inf}\n", "JSON has no infinite numbers"),
    "equal columns": (
        f"{MODEL}\ndata: {{train_rows: {ROWS}, validation_rows: {ROWS}, label_column: sentence}}\n",
        "a rule cannot compare the values of two keys",
    ),
    "equal label names": (
        MINIMAL + "task: {label_names: [a, a]}\n",
        "uniqueItems would also reject 1 and 1.0, which are different texts",
    ),
    "a weight of an unknown label": (
        MINIMAL + "task: {label_names: [a, b]}\ntraining: {class_weights: {c: 2.0}}\n",
        "a rule cannot compare the values of two keys",
    ),
    "a head method twice, with settings": (
        MINIMAL + "head_importance: {method: [gradient, {name: gradient, max_samples: 3}]}\n",
        "uniqueItems compares the items as they are written",
    ),
    "a key twice": (MINIMAL + "seed: 1\nseed: 2\n", "a parsed mapping has each key once; editors report it themselves"),
    "a file of another format": (f"{MODEL}\ndata: {{train_file: rows.xls, validation_size: 0.1}}\n", "may be a folder"),
    "a missing file": (f"{MODEL}\ndata: {{train_file: no.csv, validation_size: 0.1}}\n", "a schema reads no disk"),
}  # fmt: skip


def test_the_schema_is_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(recipe_schema())


def test_it_accepts_every_recipe_of_the_repository() -> None:
    assert [path.name for path in RECIPES if not accepts(path.read_text())] == []
    assert len(RECIPES) >= 4


@pytest.mark.parametrize("name", VALID)
def test_what_check_accepts_is_accepted(name: str, write_recipe: WriteRecipe) -> None:
    load_recipe(write_recipe(VALID[name]))
    assert accepts(VALID[name])


@pytest.mark.parametrize("name", WRONG)
def test_what_check_rejects_is_rejected(name: str, write_recipe: WriteRecipe) -> None:
    with pytest.raises(RecipeError):
        load_recipe(write_recipe(WRONG[name]))
    assert not accepts(WRONG[name])


@pytest.mark.parametrize("name", ONLY_CHECK)
def test_what_a_schema_cannot_express_is_left_to_check(name: str, write_recipe: WriteRecipe) -> None:
    text, reason = ONLY_CHECK[name]
    with pytest.raises(RecipeError):
        load_recipe(write_recipe(text))
    assert accepts(text)
    assert reason


def test_it_accepts_every_arbitrary_recipe_that_check_accepts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("sentence,label\na,x\nb,y\n")
    accepted = []

    @settings(max_examples=150, database=None)
    @given(recipe_texts())
    def check(content: bytes) -> None:
        Path("recipe.yaml").write_bytes(content)
        try:
            load_recipe("recipe.yaml")
        except FinetuneError:
            return
        accepted.append(content)
        assert accepts(content.decode())

    check()
    assert len(accepted) > 10


def test_text_that_is_not_yaml_is_an_error_of_the_parser() -> None:
    with pytest.raises(NotYamlError):
        accepts("a: [1")


def test_every_key_has_one_sentence_and_no_repeated_title() -> None:
    schema = recipe_schema()
    keys = {name: key for section in (schema, *schema["$defs"].values()) for name, key in section["properties"].items()}
    assert len(keys) > 90
    assert [name for name, key in keys.items() if "title" in key] == []
    sentences = {name: key["description"] for name, key in keys.items()}
    assert [name for name, text in sentences.items() if not (text[0].isupper() and text.endswith("."))] == []
    assert [name for name, text in sentences.items() if len(text.split()) < 4] == []
    null_by_default = [name for name, key in keys.items() if "default" in key and key["default"] is None]
    assert len(null_by_default) > 20
    assert [name for name in null_by_default if "null" not in sentences[name]] == []


def test_the_schema_of_sweeps_accepts_the_shipped_ones() -> None:
    schema = jsonschema.Draft202012Validator(sweep_schema())
    documents = [yaml.safe_load(path.read_text()) for path in sorted(ROOT.glob("recipes/sweeps/*.yaml"))]
    assert len(documents) == 3
    for document in documents:
        schema.validate(document)
        for wrong in ({"sampler": "genetic"}, {"trials": 0}, {"space": {}}, {"objectives": []}, {"learning_rate": 1}):
            assert not schema.is_valid(document | wrong)
