"""The recipes that come with finetune: `recipe:toy` names one of them from any folder."""

from __future__ import annotations

from pathlib import Path

from finetune.errors import RecipeError, did_you_mean, shorten

PREFIX = "recipe:"


def shipped_recipes() -> dict[str, Path]:
    """Return the file of each shipped recipe by its name."""
    package = Path(__file__).parents[1]
    # The wheel has them in finetune/recipes; in a checkout they are next to the package.
    folder = next((path / "recipes" for path in (package, package.parent) if (path / "recipes").is_dir()), package)
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def recipe_file(name: str | Path) -> Path:
    """Return the path of a recipe: the shipped one for `recipe:NAME`, otherwise the path itself.

    Raises:
        RecipeError: there is no shipped recipe of this name.
    """
    if not str(name).startswith(PREFIX):
        return Path(name)
    recipes, wanted = shipped_recipes(), str(name).removeprefix(PREFIX).removesuffix(".yaml")
    if wanted not in recipes:
        known = ", ".join(f"{PREFIX}{each}" for each in recipes)
        hint = did_you_mean(wanted, recipes)
        raise RecipeError(f"there is no recipe '{shorten(str(name), 80)}'; finetune comes with {known}{hint}")
    return recipes[wanted]
