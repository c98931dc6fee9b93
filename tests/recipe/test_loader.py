"""Loading recipes and overrides: finetune/recipe/loader.py."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from finetune.errors import RecipeError
from finetune.recipe.loader import MAX_BYTES, dump_recipe, load_recipe
from finetune.recipe.schema import Recipe
from tests.support.recipes import MINIMAL, RECIPES, WriteRecipe


def test_every_recipe_of_the_repository_is_valid() -> None:
    loaded = [load_recipe(path) for path in RECIPES]
    assert len(loaded) == 9
    assert [Path(recipe.output_dir).name for recipe in loaded] == [path.stem for path in RECIPES]


def test_a_recipe_that_is_too_large_is_an_error(write_recipe: WriteRecipe) -> None:
    path = write_recipe(MINIMAL + "seed: '" + "1" * MAX_BYTES + "'\n")
    with pytest.raises(RecipeError, match=r"has 20,000,\d+ bytes, but a recipe may have at most 20,000,000; put"):
        load_recipe(path)


def test_yaml_1_1_traps_are_avoided(write_recipe: WriteRecipe) -> None:
    text = MINIMAL + "task: {label_names: [no, yes]}\ntraining: {mixed_precision: no, learning_rate: 2e-5}\n"
    recipe = load_recipe(write_recipe(text))
    assert recipe.task.label_names == ["no", "yes"]
    assert recipe.training.mixed_precision == "no"
    assert recipe.training.learning_rate == 2e-5


def test_label_names_are_always_text(write_recipe: WriteRecipe) -> None:
    recipe = load_recipe(write_recipe(MINIMAL), ["task.label_names=[true, 1, 1.50, null]"])
    assert recipe.task.label_names == ["true", "1", "1.50", "null"]


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("training.learning_rate=3e-4", lambda r: r.training.learning_rate == 3e-4),
        ("training.mixed_precision=no", lambda r: r.training.mixed_precision == "no"),
        ("peft.r=4", lambda r: r.peft.r == 4),
        ("peft=null", lambda r: r.peft is None),
        ("data.max_train_samples=", lambda r: r.data.max_train_samples is None),
        ("evaluation.metrics=[accuracy]", lambda r: r.evaluation.metrics == ["accuracy"]),
        ("output_dir=/elsewhere", lambda r: r.output_dir == "/elsewhere"),
    ],
)
def test_overrides_are_typed_as_in_the_file(
    write_recipe: WriteRecipe, override: str, read: Callable[[Recipe], bool]
) -> None:
    assert read(load_recipe(write_recipe(MINIMAL), [override]))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.learning_rate", r"override 'training.learning_rate' does not have the form"),
        ("a" + ".a" * 10_000 + "=1", r"override 'a\.a.* does not have the form"),
        ("training.learnin_rate=1", r"training.learnin_rate \(override\): unknown key; did you mean"),
        ("head_importance.method={name: gradient, rows: 3}", r"head_importance.method.rows \(override\): unknown key"),
        (
            "head_importance.method=[[gradient]]",
            r"method.0 \(override\): given \['gradient'\]; must be the name of a method, or a mapping",
        ),
        ("training.learning_rate=fast", r"training.learning_rate \(override\): given 'fast'"),
        ("training.learning_rate=[1", r"not valid YAML"),
        ("seed=&a [*a]", r"seed .*an alias that contains itself"),
        ("seed=" + "[" * 1000, r"seed .*nested more than 50 deep"),
        ('seed="\\UFFFFFFFF"', r"seed .*an invalid escape or directive"),
        ("seed=!!timestamp foo", r"seed .*the tag !!timestamp does not fit"),
        ("seed=\ud800", r"seed \(override\): the value .*ud800. is not allowed"),
        ("seed=\0", r"seed.*the character '.x00' is not allowed"),
        ("data.train_rows.0.label=1", r"a single item of a list cannot be changed"),
    ],
)
def test_a_wrong_override_is_reported(write_recipe: WriteRecipe, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(write_recipe(MINIMAL), [override])


def test_an_override_of_the_source_replaces_the_other_source(tmp_path: Path) -> None:
    rows = tmp_path / "train.csv"
    rows.write_text("sentence,label\na,b\n")
    changes = [
        f"data.train_file={rows}",
        "data.validation_rows=null",
        "data.validation_size=0.5",
        "model.model_type=bert",
    ]
    recipe = load_recipe(RECIPES[0].parent / "sst2.yaml", changes)
    assert (recipe.data.dataset_name, recipe.data.train_file) == (None, str(rows))
    assert (recipe.model.model_name_or_path, recipe.model.model_type) == (None, "bert")


def test_the_path_of_a_data_folder_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "train.CSV").write_text("sentence,label\na,b\n")
    monkeypatch.chdir(tmp_path)
    sst2 = RECIPES[0].parent / "sst2.yaml"
    for name in ("./rows", "rows"):
        assert load_recipe(sst2, [f"data.dataset_name={name}"]).data.dataset_name == str(tmp_path / "rows")
    assert load_recipe(sst2, ["data.dataset_name=some/rows"]).data.dataset_name == "some/rows"
    with pytest.raises(RecipeError, match=r"data\.dataset_name .*'train\.CSV' is a file; give it as data\.train_file"):
        load_recipe(sst2, ["data.dataset_name=train.CSV"])
    with pytest.raises(RecipeError, match=r"data\.train_file .*the folder rows has no data files; the name"):
        load_recipe(sst2, ["data.train_file=rows", "data.validation_size=0.5"])
    changes = ["data.train_file=train.CSV", "data.validation_size=0.5"]
    assert load_recipe(sst2, changes).data.train_file == str(tmp_path / "train.CSV")


def test_the_resolved_recipe_loads_as_the_same_recipe(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(MINIMAL), ["task.label_names=[no, on]", "output_dir=elsewhere"])
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(dump_recipe(recipe))
    assert load_recipe(resolved) == recipe
    assert "weight_decay: 0.01" in resolved.read_text()  # defaults are written out
    assert Path(recipe.output_dir).is_absolute()
    # A YAML 1.1 parser must read them as words too.
    assert yaml.safe_load(resolved.read_text())["task"]["label_names"] == ["no", "on"]


@given(
    rate=st.floats(1e-12, 1e3),
    seed=st.integers(0, 2**32 - 1),
    names=st.lists(st.text(min_size=1), min_size=2, unique=True),
)
def test_any_values_survive_the_round_trip(
    tmp_path_factory: pytest.TempPathFactory, rate: float, seed: int, names: list[str]
) -> None:
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(MINIMAL)
    recipe = load_recipe(path)
    changed = recipe.model_copy(
        update={
            "seed": seed,
            "training": recipe.training.model_copy(update={"learning_rate": rate}),
            "task": recipe.task.model_copy(update={"label_names": names}),
        }
    )
    path.write_text(dump_recipe(changed), encoding="utf-8")
    assert load_recipe(path) == changed


def test_an_unreadable_recipe_is_reported(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"there is no recipe .*missing\.yaml"):
        load_recipe(tmp_path / "missing.yaml")
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("seed: 1 # é".encode("latin-1"))
    with pytest.raises(RecipeError, match=r"not UTF-8 \(byte 10\)"):
        load_recipe(latin)


@pytest.mark.parametrize("command", [["check", str(RECIPES[2])], ["schema"], ["--help"]])
def test_light_commands_do_not_import_torch(command: list[str]) -> None:
    also = () if command[0] == "check" else ("numpy", "pyarrow")  # check reads the first rows
    program = (
        "import sys\nfrom finetune.cli import main\n"
        f"try:\n    code = main({command!r})\nexcept SystemExit as error:\n    code = error.code\n"
        f"heavy = {{'torch', 'transformers', 'datasets', *{also!r}}} & set(sys.modules)\n"
        "sys.exit(f'code {code}, imported {heavy}' if code or heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
