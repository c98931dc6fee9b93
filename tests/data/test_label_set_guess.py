"""Guesses about sets of labels: finetune/data/label_set_guess.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.data.column_roles import MULTI, SINGLE, Roles, guess_roles
from finetune.data.label_set_guess import with_sets
from finetune.data.preview import Preview, PreviewColumn

TEXT = [f"some text number {n}" for n in range(24)]
FLAGS: list[object] = ["0", "1", "0"] * 8
OTHER_FLAGS: list[object] = [True, False, False, False] * 6


def preview(**columns: list[object]) -> Preview:
    return Preview(Path("d.csv"), {name: PreviewColumn(name, values) for name, values in columns.items()}, 24, True)


@pytest.mark.parametrize(
    ("columns", "given", "label_columns"),
    [
        ({"a": FLAGS, "b": OTHER_FLAGS, "c": FLAGS}, Roles(), ("a", "b", "c")),
        ({"a": FLAGS, "b": OTHER_FLAGS, "c": FLAGS, "topic": ["x", "y"] * 12}, Roles(), ()),  # has a label column
        ({"label": FLAGS, "b": OTHER_FLAGS, "c": FLAGS}, Roles(), ()),
        ({"label": FLAGS, "b": OTHER_FLAGS}, Roles(), ()),
        ({"a": FLAGS, "b": OTHER_FLAGS}, Roles(problem_type=MULTI), ("a", "b")),
        ({"a": FLAGS, "b": OTHER_FLAGS, "c": FLAGS}, Roles(label="a"), ()),
        ({"a": FLAGS, "b": OTHER_FLAGS, "c": FLAGS, "user_id": FLAGS}, Roles(), ("a", "b", "c")),
    ],
)
def test_columns_with_0_and_1_are_labels(
    columns: dict[str, list[object]], given: Roles, label_columns: tuple[str, ...]
) -> None:
    roles = guess_roles(preview(text=list(TEXT), **columns), given)
    assert roles.label_columns == label_columns
    assert (roles.problem_type == MULTI) == bool(label_columns)
    assert any("one column per label; choose one label with --label-column" in note for note in roles.unsure) == bool(
        label_columns
    )


@pytest.mark.parametrize(
    ("cells", "given", "problem_type", "separator"),
    [
        (["a;b", "b;c", "c", "a"], Roles(), MULTI, ";"),
        (["a, b", "b, c", "c", "a"], Roles(), MULTI, ","),
        (["Toys, Games", "Music", "Food", "Art"], Roles(), SINGLE, None),
        (['["a", "b"]', '["b"]', "[]", "['a']"], Roles(), MULTI, None),
        (["a;b", "c", "d", "e"], Roles(problem_type=MULTI), MULTI, ";"),
        (["a;b", "b;c", "c", "a"], Roles(problem_type=SINGLE), SINGLE, None),
    ],
)
def test_cells_with_several_labels(cells: list[object], given: Roles, problem_type: str, separator: str | None) -> None:
    roles = guess_roles(preview(text=list(TEXT), tags=cells * 6), given)
    assert (roles.label, roles.problem_type, roles.label_delimiter) == ("tags", problem_type, separator)


def test_sets_are_shown_as_lists() -> None:
    columns = preview(a=["1", "0"], b=[True, False], tags=["x; y", ""])
    assert with_sets(columns, "label", ("a", "b"), None).columns["label"].values == [["a", "b"], []]
    assert with_sets(columns, "tags", (), ";").columns["tags"].values == [["x", "y"], []]
