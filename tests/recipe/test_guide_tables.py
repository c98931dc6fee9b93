"""The tables in the guides: complete, and equal to what the schema and the table of metrics give."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from finetune.recipe.guide_tables import (
    DOCS,
    END,
    START,
    TABLES,
    key_table,
    metric_table,
    with_table,
    write_tables,
)
from finetune.recipe.named_metrics import names_and_descriptions
from finetune.recipe.names import METRICS
from finetune.recipe.schema import Recipe


@pytest.mark.parametrize("guide", TABLES)
def test_the_table_in_the_guide_is_up_to_date(guide: str) -> None:
    written = (DOCS / guide).read_text()
    assert written.count(START) == written.count(END) == 1
    assert written == with_table(written, TABLES[guide]()), "run `python -m finetune.recipe.guide_tables`"


def _keys() -> list[str]:
    recipe = Recipe(output_dir="x", model={"model_name_or_path": "x"}, data={"train_file": "x.csv"}, peft={})  # type: ignore[arg-type]
    sections = [value for _, value in recipe if isinstance(value, BaseModel)]
    assert len(sections) == 10
    top_level = [name for name, value in recipe if not isinstance(value, BaseModel)]
    return [*top_level, *(name for section in sections for name in type(section).model_fields)]


def test_every_key_is_in_the_table_once_and_has_a_meaning() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \| (.*) \|$", key_table(), re.MULTILINE)
    assert sorted(key for key, *_ in rows) == sorted(_keys())
    assert [key for key, kind, default, meaning in rows if not (kind and default and meaning.strip())] == []


@pytest.mark.parametrize(
    "row",
    [
        '| `num_train_epochs` | whole number, at least 1; or `auto`; or null | `"auto"` |',
        "| `lora_dropout` | number, at least 0, below 1 | `0.05` |",
        "| `init_lora_weights` | `true`, `gaussian`, `orthogonal`, `olora`, `pissa` | `true` |",
        "| `class_weights` | `balanced`; or mapping of names to number, above 0; or null | `null` |",
        "| `train_rows` | list of rows or null | `null` |",
        '| `method` | name or mapping or list of name or mapping | `"learned_order"` |',
    ],
)
def test_types_are_described_in_words(row: str) -> None:
    assert row in key_table()


def test_every_metric_is_in_the_table_with_its_meaning() -> None:
    rows = re.findall(r"^\| ([\w ]+) \| `(\w+)` \| (.+) \| (\w+) \| (\w+) \|$", metric_table(), re.MULTILINE)
    expected = [
        (kind.replace("_", " "), name, metric.description, "lower" if metric.lower_is_better else "higher")
        for kind in METRICS
        for name, metric in names_and_descriptions(kind).items()
    ]
    assert [row[:4] for row in rows] == expected
    assert len(rows) > 60
    assert {row[4] for row in rows if row[1] in ("roc_auc", "log_loss")} == {"probabilities"}


def test_writing_replaces_only_the_tables(tmp_path: Path) -> None:
    for name in TABLES:
        (tmp_path / name).write_text(f"before\n{START}old\n{END}after\n")
    for _ in range(2):
        write_tables(tmp_path)
        for name, table in TABLES.items():
            assert (tmp_path / name).read_text() == f"before\n{START}\n{table()}\n{END}after\n"
