"""Reading every split: finetune/data/loading.py."""

from __future__ import annotations

import pytest

from finetune.data.loading import read_splits
from finetune.errors import DataError
from finetune.recipe.data_section import DataSection


def test_rows_in_the_recipe_are_read_as_text() -> None:
    rows: list[dict[str, object]] = [{"sentence": 1, "label": True}, {"sentence": "b", "label": "no"}]
    splits = read_splits(DataSection(train_rows=rows))
    assert splits["train"].rows[:] == {"sentence": ["1", "b"], "label": ["true", "no"]}
    with pytest.raises(DataError, match=r"data\.train_rows row 2: column 'label' is empty"):
        read_splits(DataSection(train_rows=[{"sentence": "a", "label": "x"}, {"sentence": "b"}]))
