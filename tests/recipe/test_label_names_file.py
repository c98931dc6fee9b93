"""Label names in a file: finetune/recipe/label_names_file.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.errors import RecipeError
from finetune.recipe.loader import dump_recipe, load_recipe
from tests.support.recipes import MINIMAL, WriteRecipe


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("names.json", '["x", "y z", 3]'),
        ("names.txt", "x\n\n y z \r\n3\n"),
        ("names", "\ufeffx\ny z\n3"),
    ],
)
def test_names_are_read_from_a_file(
    name: str, content: str, tmp_path: Path, write_recipe: WriteRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(content.encode())
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(write_recipe(MINIMAL), [f"task.label_names={name}"])
    assert recipe.task.label_names == ["x", "y z", "3"]
    assert "label_names:\n  - x\n  - y z\n  - '3'\n" in dump_recipe(recipe)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"0": "x"}', "is not a list of names; write a JSON list of names, or one name per line"),
        (b'["x", null]', "is not a list of names"),
        (b'["x"', r"is not valid JSON \(Expecting ',' delimiter.*\); write a JSON list"),
        (b"\xff", "is not UTF-8; save it as UTF-8"),
        (b'["x", "x"]', "must be at least two different names"),
        (b'["x", "y", "x"]', "label_names has 'x' more than once; give each name once"),
        (None, r"is not a file \(full path: .*\); correct the path, or write the names as a list"),
    ],
)
def test_a_file_without_names_is_one_message(
    content: bytes | None, message: str, tmp_path: Path, write_recipe: WriteRecipe
) -> None:
    file = tmp_path / "n.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RecipeError, match=message) as error:
        load_recipe(write_recipe(f"{MINIMAL}task: {{label_names: {file}}}\n"))
    assert len(str(error.value).splitlines()) == 2
    assert "task" in str(error.value)
