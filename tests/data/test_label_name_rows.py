"""Label names as training rows: which names are added, and what the rows are."""

from __future__ import annotations

import pytest

from finetune.data.label_name_rows import MAX_ROWS_PER_LABEL, MIN_LABELS, adds_label_names, name_as_text
from finetune.data.splits import read_labeled
from finetune.errors import DataError
from finetune.recipe.data_section import DataSection

SINGLE = "single_label_classification"
TEXTS = ["where is my card", "my card is lost", "what is the rate"]
LABELS = ["card_arrival", "card_arrival", "exchangeRate"]
MANY = tuple(f"{animal} at home" for animal in ("ant", "bee", "cat", "dog", "emu", "fox", "gnu", "hen", "kid", "owl"))


def section(**keys: object) -> DataSection:
    rows = [{"sentence": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]
    return DataSection.model_validate({"train_rows": rows, "validation_size": None, **keys})


def test_each_label_name_is_one_more_training_row() -> None:
    data = section(validation_rows=[{"sentence": "a card", "label": "card_arrival"}], label_name_rows=True)
    splits = read_labeled(data, SINGLE, None, seed=0)
    assert splits.has_label_names
    assert list(splits.training_texts()["sentence"]) == [*TEXTS, "card arrival", "exchange Rate"]
    assert splits.labels["train"].tolist() == [0, 0, 1, 0, 1]
    assert splits.raw["train"].row_numbers().tolist() == [1, 2, 3, 0, 0]
    assert len(splits.labels["validation"]) == 1


def test_false_adds_nothing() -> None:
    splits = read_labeled(section(label_name_rows=False), SINGLE, None, seed=0)
    assert not splits.has_label_names
    assert len(splits.labels["train"]) == 3


@pytest.mark.parametrize(
    ("names", "is_added"),
    [
        (MANY, True),
        (("card_arrival", "exchange-rate", *MANY), True),
        (("猫の話題", "犬の話題", *MANY), True),
        (("3", *MANY), False),
        (("LABEL_0", *MANY), False),
        (("class a", "B", *MANY), False),
        (MANY[: MIN_LABELS - 1], False),
        (("negative", "positive"), False),
        (("Ant_at_home", *MANY), False),
    ],
)
def test_auto_adds_the_names_of_many_labels_that_are_words(names: tuple[str, ...], is_added: bool) -> None:
    assert adds_label_names(section(), SINGLE, names, rows=10) is is_added


def test_auto_adds_names_only_to_few_rows_per_label() -> None:
    most = MAX_ROWS_PER_LABEL * len(MANY)
    assert adds_label_names(section(), SINGLE, MANY, rows=most)
    assert not adds_label_names(section(), SINGLE, MANY, rows=most + 1)
    assert adds_label_names(section(label_name_rows=True), SINGLE, ("negative", "positive"), rows=10_000)


def test_names_that_cannot_be_rows_are_refused_only_if_the_recipe_wants_them() -> None:
    pair = {"text_pair_column": "other"}
    for data, problem_type in ((section(), "regression"), (section(**pair), SINGLE)):
        assert not adds_label_names(data, problem_type, ("yes", "no"), rows=4)
    with pytest.raises(DataError, match="label_name_rows is true, but a label's name is one text"):
        adds_label_names(section(label_name_rows=True, **pair), SINGLE, ("yes", "no"), rows=4)
    with pytest.raises(DataError, match="label_name_rows is true, but a row of multi_label_classification"):
        adds_label_names(section(label_name_rows=True), "multi_label_classification", ("yes", "no"), rows=4)
    with pytest.raises(DataError, match="label_name_rows is true, but two labels have the same name as words"):
        adds_label_names(section(label_name_rows=True), SINGLE, ("card_arrival", "card-arrival"), rows=4)


def test_underscores_and_capitals_separate_words() -> None:
    assert name_as_text("card_arrival") == "card arrival"
    assert name_as_text("exchangeRate--today") == "exchange Rate today"
