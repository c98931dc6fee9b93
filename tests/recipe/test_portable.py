from __future__ import annotations

from pathlib import Path

import pytest

from finetune.recipe.hub_names import hub_id
from finetune.recipe.loader import dump_recipe, load_recipe
from finetune.recipe.portable import is_absolute, last_part, portable_recipe, without_paths
from finetune.recipe.schema import Recipe

ROWS = [{"sentence": "a", "label": "x"}, {"sentence": "b", "label": "y"}]
MODEL = {"model_name_or_path": "/home/me/models/tiny"}


def recipe(data: dict[str, object]) -> Recipe:
    checkpoint = {"resume_from_checkpoint": "/home/me/runs/a/checkpoints/step-000001"}
    return Recipe.model_validate(
        {
            "output_dir": "/home/me/runs/a",
            "model": MODEL,
            "data": data | {"validation_size": 0.5},
            "checkpoint": checkpoint,
        }
    )


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"train_file": "/d/x.csv", "test_file": "C:\\d\\y.csv"}, {"train_file": "x.csv", "test_file": "y.csv"}),
        ({"train_rows": ROWS, "test_rows": ROWS}, {"train_file": "train.jsonl", "test_file": "test.jsonl"}),
        ({"dataset_name": "/home/me/films"}, {"dataset_name": "./films"}),
        ({"dataset_name": "team/films"}, {"dataset_name": "team/films"}),
    ],
)
def test_a_portable_recipe_is_valid_and_has_no_paths(
    data: dict[str, object], expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    portable = portable_recipe(recipe(data), keep_rows=False)
    text = dump_recipe(portable)
    assert "/home/me" not in text
    assert "sentence: a" not in text
    sources = {name: value for name, value in portable.data if name.startswith(("train_", "test_", "dataset_name"))}
    assert {name: value for name, value in sources.items() if value and not name.endswith("_split")} == expected
    assert (portable.output_dir, portable.checkpoint.resume_from_checkpoint) == ("runs/a", None)
    assert portable.model.model_name_or_path == "./tiny"
    assert hub_id(portable.model.model_name_or_path) is None
    Path("recipe.yaml").write_text(text)
    assert load_recipe("recipe.yaml", read_data=False).training == portable.training


def test_rows_stay_when_they_are_asked_for() -> None:
    portable = portable_recipe(recipe({"train_rows": ROWS}), keep_rows=True)
    assert portable.data.train_rows == ROWS
    assert portable.data.train_file is None


def test_paths_of_any_operating_system_are_recognized() -> None:
    assert [is_absolute(path) for path in ("/a", "C:\\a", "c:/a", "\\\\host\\a")] == [True] * 4
    assert [is_absolute(path) for path in ("a/b", "./a", "package:a/b", "")] == [False] * 4
    assert [last_part(path) for path in ("/a/b", "C:\\a\\b", "a/b/", "b")] == ["b"] * 4


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("model '/home/me/tiny' has no config.json; correct it", "model 'tiny' has no config.json; correct it"),
        ("cannot read C:\\data\\x.csv (\\\\host\\share)", "cannot read x.csv (\\\\host\\share)"),
        ("see /my data/runs/a/heads.json", "see a/heads.json"),
        ("E|dL/dgate| at 3 rows/s, and/or https://a.b/c/d", "E|dL/dgate| at 3 rows/s, and/or https://a.b/c/d"),
    ],
)
def test_messages_keep_only_the_last_part_of_a_path(message: str, expected: str) -> None:
    assert without_paths(message, ["/my data/runs/a", "relative/path", "/my data"]) == expected
