from __future__ import annotations

import math

import numpy as np
import pytest

from finetune.runs.token_lengths import length_quantiles, truncation_hint, usual_length


def test_quantiles_are_lengths_that_this_share_of_the_rows_has_at_most() -> None:
    lengths = np.random.default_rng(0).integers(1, 400, 317)
    for share, length in length_quantiles(lengths).items():
        assert length in lengths
        assert (lengths <= length).mean() >= int(share) / 100
        assert (lengths < length).mean() < int(share) / 100


@pytest.mark.parametrize(
    ("tokens", "limit", "expected"),
    [(1, math.inf, 16), (16, math.inf, 16), (17, 512, 32), (600, 512, 512), (9000, math.inf, 9000)],
)
def test_the_usual_length_fits(tokens: int, limit: float, expected: int) -> None:
    assert usual_length(tokens, limit) == expected


def test_the_hint_names_a_length_only_if_it_helps() -> None:
    assert truncation_hint(128, 256) == "raise data.max_length to 256, or set data.long_text"
    assert truncation_hint(512, 512) == "the model takes no longer rows, so set data.long_text"
    assert truncation_hint(128, 256, "head_tail") == "raise data.max_length to 256, or set data.long_text: window"
    assert truncation_hint(128, 256, "window") == "raise data.max_length to 256, or raise data.max_windows"
    assert truncation_hint(512, 512, "window") == "raise data.max_windows"
