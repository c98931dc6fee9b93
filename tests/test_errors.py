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
