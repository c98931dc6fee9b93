"""The recipes and sweeps that come with finetune: `recipe:toy` and `sweep:heads` name them from any folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from finetune.errors import RecipeError, did_you_mean, shorten

PREFIX, SWEEP_PREFIX = "recipe:", "sweep:"


def shipped_recipes() -> dict[str, Path]:
    """Return the file of each shipped recipe by its name."""
    return {path.stem: path for path in sorted(_folder().glob("*.yaml"))}


def shipped_sweeps() -> dict[str, Path]:
    """Return the file of each shipped sweep by its name."""
    return {path.stem: path for path in sorted((_folder() / "sweeps").glob("*.yaml"))}


def _folder() -> Path:
    """Return the folder of the recipes: in the wheel finetune/recipes, in a checkout next to the package."""
    package = Path(__file__).parents[1]
    return next((path / "recipes" for path in (package, package.parent) if (path / "recipes").is_dir()), package)


def recipe_file(name: str | Path) -> Path:
    """Return the path of a recipe: the shipped one for `recipe:NAME`, otherwise the path itself.

    Raises:
        RecipeError: there is no shipped recipe of this name.
    """
    return _file(name, PREFIX, shipped_recipes)


def sweep_file(name: str | Path) -> Path:
    """Return the path of a sweep: the shipped one for `sweep:NAME`, otherwise the path itself.

    Raises:
        RecipeError: there is no shipped sweep of this name.
    """
    return _file(name, SWEEP_PREFIX, shipped_sweeps)


def _file(name: str | Path, prefix: str, shipped: Callable[[], dict[str, Path]]) -> Path:
    if not str(name).startswith(prefix):
        return Path(name)
    files, wanted = shipped(), str(name).removeprefix(prefix).removesuffix(".yaml")
    if wanted not in files:
        known = ", ".join(f"{prefix}{each}" for each in files)
        hint = did_you_mean(wanted, files)
        kind = prefix.removesuffix(":")
        raise RecipeError(f"there is no {kind} '{shorten(str(name), 80)}'; finetune comes with {known}{hint}")
    return files[wanted]
