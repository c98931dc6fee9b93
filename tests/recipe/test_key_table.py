"""The table of recipe keys in the guide: complete, and equal to what the schema gives."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from finetune.recipe.key_table import END, GUIDE, START, key_table, write_key_table
from finetune.recipe.schema import Recipe


def test_the_table_in_the_guide_is_that_of_the_schema() -> None:
    written = GUIDE.read_text().partition(START)[2].partition(END)[0]
    assert written == f"\n{key_table()}\n", "run `python -m finetune.recipe.key_table`"


def _keys() -> list[str]:
    recipe = Recipe(output_dir="x", model={"model_name_or_path": "x"}, data={"train_file": "x.csv"}, peft={})  # type: ignore[arg-type]
    sections = [value for _, value in recipe if isinstance(value, BaseModel)]
    assert len(sections) == 9
    own = [name for name, value in recipe if not isinstance(value, BaseModel)]
    return [*own, *(name for section in sections for name in type(section).model_fields)]


def test_every_key_is_in_the_table_once_and_has_a_meaning() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \| (.*) \|$", key_table(), re.MULTILINE)
    assert sorted(key for key, *_ in rows) == sorted(_keys())
    assert [key for key, kind, default, meaning in rows if not (kind and default and meaning.strip())] == []


@pytest.mark.parametrize(
    "row",
    [
        "| `num_train_epochs` | whole number, at least 1; or null | `null` |",
        "| `lora_dropout` | number, at least 0, below 1 | `0.05` |",
        "| `init_lora_weights` | `true`, `gaussian`, `orthogonal`, `olora`, `pissa` | `true` |",
        "| `class_weights` | `balanced`; or mapping of names to number, above 0; or null | `null` |",
        "| `train_rows` | list of rows or null | `null` |",
        '| `method` | name or list of name | `"learned_order"` |',
    ],
)
def test_types_are_in_words(row: str) -> None:
    assert row in key_table()


def test_writing_replaces_the_table_alone(tmp_path: Path) -> None:
    guide = tmp_path / "guide.md"
    guide.write_text(f"before\n{START}old\n{END}after\n")
    write_key_table(guide)
    once = guide.read_text()
    assert once == f"before\n{START}\n{key_table()}\n{END}after\n"
    write_key_table(guide)
    assert guide.read_text() == once
