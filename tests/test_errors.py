from __future__ import annotations

import pytest

from finetune import errors


def test_the_exception_tree_is_complete() -> None:
    classes = {error for error in vars(errors).values() if isinstance(error, type) and issubclass(error, Exception)}
    assert {error.__name__ for error in classes} == {
        "FinetuneError", "RecipeError", "DataError", "ModelError", "TrainingError", "TrainingStopped",
    }  # fmt: skip
    assert all(issubclass(error, errors.FinetuneError) for error in classes)
    assert errors.__doc__ is not None
    assert all(error.__name__ in errors.__doc__ for error in classes)


def test_the_public_names_are_pinned() -> None:
    assert errors.__all__ == [
        "EXIT_CODE", "DataError", "FinetuneError", "ModelError", "RecipeError", "TrainingError", "TrainingStopped",
        "did_you_mean", "printable", "shorten",
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "hint"), [("learning_rat", "; did you mean 'learning_rate'?"), ("zzz", "")])
def test_did_you_mean(name: str, hint: str) -> None:
    assert errors.did_you_mean(name, ["learning_rate", "seed"]) == hint


def test_a_long_name_gets_no_suggestion() -> None:
    assert errors.did_you_mean("learning_rate" * 8, ["learning_rate" * 8]) == ""


def test_shorten_keeps_both_ends() -> None:
    assert errors.shorten("abc", 3) == "abc"
    text = errors.shorten("a" * 1000 + "b" * 1000, 90)
    assert text == "a" * 60 + " ... " + "b" * 30


@pytest.mark.parametrize(
    ("text", "escaped"),
    [("\x1b[31mred\a", r"\x1b[31mred\x07"), ("a\ud800\u2028", r"a\ud800\u2028"), ("é 日\n\t😀", "é 日\n\t😀")],
)
def test_unprintable_characters_are_escaped(text: str, escaped: str) -> None:
    assert errors.printable(text) == escaped
