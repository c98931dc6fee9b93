from __future__ import annotations

from pathlib import Path

import pytest

from finetune.heads.sublayers import HEADS, NEURONS, Sublayer, removed_members, sublayers
from tests.support.families import random_model
from tests.support.helpers import tiny_classifier


def test_every_attention_and_feed_forward_network_is_a_sublayer(tiny_bert: Path) -> None:
    base = tiny_classifier(tiny_bert).base
    parts = sublayers(base)
    assert [(part.kind, part.layers, part.num_parts, part.width) for part in parts] == [
        (HEADS, (0,), 3, 8), (HEADS, (1,), 3, 8), (NEURONS, (0,), 32, 1), (NEURONS, (1,), 32, 1),
    ]  # fmt: skip
    assert [part.kind for part in sublayers(base, [HEADS])] == [HEADS, HEADS]


@pytest.mark.parametrize("model_type", ["albert", "eurobert"])
def test_shared_layers_and_shared_keys_are_removed_together(model_type: str) -> None:
    base = random_model(model_type)
    heads = [part for part in sublayers(base) if part.kind == HEADS]
    if model_type == "albert":
        assert all(len(part.layers) > 1 for part in heads)
        assert sum(len(part.layers) for part in heads) == base.config.num_hidden_layers
    else:
        assert {part.part_size for part in heads} == {
            base.config.num_attention_heads // base.config.num_key_value_heads
        }
        assert heads[0].part_size > 1
    removed = removed_members({part: [] for part in heads}, HEADS)
    assert len(removed) == base.config.num_hidden_layers
    first = heads[0]
    assert removed[first.layers[0]] == list(range(first.part_size * first.num_parts))


def test_sizes_are_multiples_of_the_step() -> None:
    part = Sublayer(NEURONS, (0,), "output", 10, 1, 1, 4)
    assert part.sizes() == [10, 8, 4, 0]
    assert Sublayer(NEURONS, (0,), "output", 8, 1, 1, 4).sizes() == [8, 4, 0]
    grouped = Sublayer(HEADS, (0, 1), "output", 2, 3, 12, 1)
    assert grouped.sizes() == [2, 1, 0]
    assert grouped.members([1]) == [3, 4, 5]
    assert grouped.columns([1]) == list(range(12, 24))
    kept = {grouped: [0], part: range(10)}
    assert removed_members(kept, HEADS) == {0: [3, 4, 5], 1: [3, 4, 5]}
    assert removed_members(kept, NEURONS) == {}
