"""Guesses of the text and label columns: finetune/data/column_roles.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from finetune.data.column_roles import MULTI, REGRESSION, SINGLE, Roles, guess_roles, missing_roles
from finetune.data.preview import Preview, PreviewColumn
from finetune.errors import DataError

ROWS = 40
TEXT: list[object] = [f"the cat number {number} sat on a mat" for number in range(ROWS)]
OTHER: list[object] = [
    f"some {number} other words of a longer text than that, written by hand" for number in range(ROWS)
]
CLASSES: list[object] = ["red", "green", "blue", "red"] * 10
IDS: list[object] = [*range(ROWS)]
DATES: list[object] = [f"2024-01-{1 + number % 28:02}" for number in range(ROWS)]
VALUES: list[object] = [number / 7 for number in range(1, ROWS + 1)]


def preview(**columns: Sequence[object]) -> Preview:
    return Preview(
        Path("d.csv"), {name: PreviewColumn(name, values) for name, values in columns.items()}, ROWS, complete=True
    )


@pytest.mark.parametrize(
    ("columns", "text", "pair", "label", "problem_type"),
    [
        ({"sentence": TEXT, "label": [0, 1] * 20}, "sentence", None, "label", SINGLE),
        ({"label": CLASSES, "text": TEXT}, "text", None, "label", SINGLE),
        ({"id": IDS, "created": DATES, "text": TEXT, "sentiment": CLASSES}, "text", None, "sentiment", SINGLE),
        ({"review": TEXT, "category": CLASSES, "price": VALUES}, "review", None, "category", SINGLE),
        ({"text": TEXT, "target": CLASSES}, "text", None, "target", SINGLE),
        ({"Text": TEXT, "Class": CLASSES}, "Text", None, "Class", SINGLE),
        ({"text": TEXT, "target": VALUES}, "text", None, "target", REGRESSION),
        ({"text": TEXT, "score": [str(value) for value in VALUES]}, "text", None, "score", REGRESSION),
        ({"sentence1": TEXT, "sentence2": OTHER, "label": [1, 0] * 20}, "sentence1", "sentence2", "label", SINGLE),
        (
            {"idx": IDS, "premise": TEXT, "hypothesis": OTHER, "label": CLASSES},
            "premise",
            "hypothesis",
            "label",
            SINGLE,
        ),
        ({"question": TEXT, "answer": OTHER, "label": CLASSES}, "question", "answer", "label", SINGLE),
        ({"text1": TEXT, "text2": OTHER, "similarity": VALUES}, "text1", "text2", "similarity", REGRESSION),
        ({"sentence": TEXT, "labels": [[1, 2], []] * 20, "domain": CLASSES}, "sentence", None, "labels", MULTI),
        ({"text": TEXT, "tags": [["a"], ["b", "a"]] * 20}, "text", None, "tags", MULTI),
        ({"text": TEXT, "label": [*range(20)] * 2}, "text", None, "label", SINGLE),
        ({"text": TEXT, "label": ["Bonn, Rhein", "Ulm, Donau"] * 20}, "text", None, "label", SINGLE),
        ({"text": TEXT, "label": [True, False] * 20}, "text", None, "label", SINGLE),
        ({"text": TEXT, "label": ["1.0", "0.0"] * 20}, "text", None, "label", SINGLE),
        ({"text": TEXT, "gold_label": CLASSES, "annotator_id": [1, 2] * 20}, "text", None, "gold_label", SINGLE),
    ],
)
def test_usual_files_are_guessed_with_certainty(
    columns: dict[str, list[object]], text: str, pair: str | None, label: str, problem_type: str
) -> None:
    roles = guess_roles(preview(**columns), Roles())
    assert (roles.text, roles.pair, roles.label, roles.problem_type) == (text, pair, label, problem_type)
    assert (roles.unsure, roles.candidates) == ((), {})


@pytest.mark.parametrize(
    ("columns", "expected", "note"),
    [
        (
            {"sentence": TEXT, "label": [0, 1] * 20, "label_fine": [*range(10)] * 4},
            ("sentence", "label", SINGLE),
            "label column 'label': label_fine could be the label too; choose with --label-column",
        ),
        ({"text": TEXT, "kind": CLASSES}, ("text", "kind", SINGLE), "label column 'kind': its name is unusual"),
        ({"text": TEXT, "price": VALUES}, ("text", "price", REGRESSION), "label column 'price': its name is unusual"),
        (
            {"title": TEXT, "body": OTHER, "label": CLASSES},
            ("body", "label", SINGLE),
            "text column 'body': title is a text too; choose with --text-column",
        ),
        (
            {"text": TEXT, "tags": ["a|b", "b|c", "c", "a"] * 10},
            ("text", "tags", MULTI),
            f"problem type {MULTI}: 'a|b' is read as several labels, separated by '|'; change it with",
        ),
        (
            {"review": TEXT, "stars": [1, 2, 3, 4, 5] * 8},
            ("review", "stars", SINGLE),
            "'stars' has 5 different whole numbers, from 1 to 5; change it with --problem-type regression",
        ),
        (
            {"text": TEXT, "label": [number * number for number in range(ROWS)]},
            ("text", "label", REGRESSION),
            "40 different whole numbers, from 0 to 1521; change it with --problem-type single_label_classification",
        ),
    ],
)
def test_a_guess_that_could_be_wrong_says_how_to_change_it(
    columns: dict[str, list[object]], expected: tuple[str, str, str], note: str
) -> None:
    roles = guess_roles(preview(**columns), Roles())
    assert (roles.text, roles.label, roles.problem_type) == expected
    assert any(note in sentence for sentence in roles.unsure)


def test_equal_candidates_are_not_guessed() -> None:
    two_texts = guess_roles(preview(a=TEXT, b=OTHER, label=CLASSES), Roles())
    assert (two_texts.text, two_texts.candidates) == (None, {"--text-column": ["a", "b"]})
    assert missing_roles(two_texts) == ["several columns could be the text: a, b; choose one with --text-column"]
    two_labels = guess_roles(preview(text=TEXT, a=CLASSES, b=["x", "y"] * 20), Roles())
    assert (two_labels.label, two_labels.candidates) == (None, {"--label-column": ["a", "b"]})
    both = guess_roles(preview(a=TEXT, b=OTHER, c=CLASSES, d=CLASSES), Roles())
    assert both.candidates == {"--label-column": ["c", "d"], "--text-column": ["a", "b"]}


def test_given_columns_are_used() -> None:
    columns = preview(a=TEXT, b=OTHER, kind=CLASSES, label=[0, 1] * 20)
    roles = guess_roles(columns, Roles(text="b", label="kind"))
    assert (roles.text, roles.pair, roles.label, roles.problem_type) == ("b", None, "kind", SINGLE)
    assert guess_roles(columns, Roles(text="a", pair="b")).label == "label"
    assert guess_roles(columns, Roles(text="a", problem_type=REGRESSION)).problem_type == REGRESSION


@pytest.mark.parametrize(
    ("columns", "given", "message"),
    [
        (
            {"text": TEXT, "label": CLASSES},
            Roles(text="txt"),
            r"no column 'txt' \(--text-column\).*did you mean 'text'",
        ),
        ({"text": TEXT, "label": CLASSES}, Roles(label="class"), r"no column 'class' \(--label-column\)"),
        ({"text": TEXT, "label": CLASSES}, Roles(text="text", label="text"), r"columns must differ, got text, text"),
        ({"text": TEXT, "other": OTHER}, Roles(), r"no column of d\.csv looks like a label .*--label-column"),
        ({"id": IDS, "label": CLASSES}, Roles(), r"no column of d\.csv looks like a text; .*--text-column"),
        ({"text": TEXT, "x": [None] * ROWS}, Roles(label="x"), r"column 'x' of d\.csv is empty or has values that are"),
    ],
)
def test_columns_that_do_not_fit_are_an_error(columns: dict[str, list[object]], given: Roles, message: str) -> None:
    with pytest.raises(DataError, match=message):
        guess_roles(preview(**columns), given)
