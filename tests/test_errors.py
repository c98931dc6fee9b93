from __future__ import annotations

import pytest

from finetune import errors


def test_the_tree_is_closed() -> None:
    kinds = {error for error in vars(errors).values() if isinstance(error, type) and issubclass(error, Exception)}
    assert {kind.__name__ for kind in kinds} == {
        "FinetuneError", "RecipeError", "DataError", "ModelError", "TrainingError",
    }  # fmt: skip
    assert all(issubclass(kind, errors.FinetuneError) for kind in kinds)


@pytest.mark.parametrize(("name", "said"), [("learning_rat", "; did you mean 'learning_rate'?"), ("zzz", "")])
def test_did_you_mean(name: str, said: str) -> None:
    assert errors.did_you_mean(name, ["learning_rate", "seed"]) == said


def test_a_long_name_is_no_misspelling() -> None:
    assert errors.did_you_mean("learning_rate" * 8, ["learning_rate" * 8]) == ""


def test_a_long_text_keeps_both_ends() -> None:
    assert errors.shorten("abc", 3) == "abc"
    text = errors.shorten("a" * 1000 + "b" * 1000, 90)
    assert text == "a" * 60 + " ... " + "b" * 30


@pytest.mark.parametrize(
    ("text", "shown"),
    [("\x1b[31mred\a", r"\x1b[31mred\x07"), ("a\ud800\u2028", r"a\ud800\u2028"), ("é 日\n\t😀", "é 日\n\t😀")],
)
def test_only_what_a_terminal_prints_reaches_it(text: str, shown: str) -> None:
    assert errors.printable(text) == shown
