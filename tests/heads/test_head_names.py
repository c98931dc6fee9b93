"""The tests that name heads, on effects with known means."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from finetune.heads.head_names import LEVEL, RowEffects, assign_names, hypotheses, log_e_value
from finetune.runs.head_names import HeadNames, JointRemoval, NamedHead

ROWS = 600
PAIR = ((0, 2), (1, 0))
DEAD = (1, 1)


def effects(seed: int = 0) -> RowEffects:
    """Return effects of 2 layers with 3 and 2 heads.

    Head 0.0 is essential and 0.1 harmful; 0.2 and 1.0 replace each other; 1.1 does nothing.
    """
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0.8, 1, ROWS)
    without = np.repeat(scores[:, None, None], 6, 1).reshape(ROWS, 2, 3)
    without[:, 0, 0] -= 0.6 * (rng.random(ROWS) < 0.15)
    without[:, 0, 1] = np.minimum(1, without[:, 0, 1] + 0.2 * (rng.random(ROWS) < 0.9))
    for head in PAIR:
        without[:, *head] -= 0.02 * rng.random(ROWS)
    without[:, 1, 2] = np.nan
    changes = np.abs(scores[:, None, None] - without)
    context = changes.copy()
    for head in PAIR:
        context[:, *head] = 0.3 * (rng.random(ROWS) < 0.5)
    joint = scores - 0.7 * (rng.random(ROWS) < 0.3)
    return RowEffects(scores, without, changes, context, (PAIR, ((0, 0), DEAD)), np.stack([joint, without[:, 0, 0]], 1))


def test_every_name_is_found_and_no_other() -> None:
    named, tests = assign_names(effects())
    assert tests == 3 * 5 + 2 * 2
    assert {((each.layer, each.head), each.name, each.partner) for each in named} == {
        ((0, 0), "essential", None),
        ((0, 1), "harmful", None),
        (PAIR[0], "redundant", PAIR[1]),
        (PAIR[1], "redundant", PAIR[0]),
        (DEAD, "unused", None),
    }
    assert all(each.q_value <= LEVEL for each in named)
    assert [each.q_value for each in named] == sorted(each.q_value for each in named)
    (first,) = (each for each in named if each.name == "essential")
    assert first.effect == pytest.approx(float(effects().effects()[:, 0, 0].mean()))
    joint = next(each.joint_effect for each in named if each.name == "redundant")
    assert joint == pytest.approx(float((effects().scores - effects().pair_scores[:, 0]).mean()))


def test_few_rows_give_no_name() -> None:
    assert assign_names(effects().subset(np.arange(20)))[0] == []


def test_heads_whose_effect_is_a_margin_are_rarely_named() -> None:
    """Effects with the mean of the margin of each name: the largest for which a name is false."""
    false = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        scores, values = np.full(ROWS, 0.5), rng.choice([-0.3, 0.3], (ROWS, 1, 12))
        without = scores[:, None, None] - (values - values.mean(0) + np.repeat([0.01, -0.01], 6))
        changes = 0.4 * (rng.random((ROWS, 1, 12)) < 0.05)  # a few rows carry the change, whose mean is the margin
        false += bool(assign_names(RowEffects(scores, without, changes, changes, (), np.empty((ROWS, 0))))[0])
    assert false <= 2  # measured: 0


def test_a_copy_that_replaces_a_head_only_with_others_removed_is_not_unused() -> None:
    names = [each.name for each in assign_names(effects())[0] if (each.layer, each.head) == PAIR[0]]
    assert names == ["redundant"]
    no_context = replace(effects(), context_changes=effects().changes)
    names = [each.name for each in assign_names(no_context)[0] if (each.layer, each.head) == PAIR[0]]
    assert "unused" in names  # alone it does almost nothing


def test_the_partner_with_the_largest_joint_effect_is_named() -> None:
    known = effects()
    pairs = (*known.pairs, ((0, 2), DEAD))
    larger = known.scores - 0.9 * (np.random.default_rng(1).random(ROWS) < 0.5)
    both = replace(known, pairs=pairs, pair_scores=np.column_stack([known.pair_scores, larger]))
    partners = {(each.layer, each.head): each.partner for each in assign_names(both)[0] if each.name == "redundant"}
    assert partners == {(0, 2): DEAD, (1, 0): (0, 2), DEAD: (0, 2)}


def test_the_e_value_by_hand() -> None:
    values = np.array([0.5, -0.25])
    bets = np.array([0.98, 0.5, 0.25, 0.125]) / 1.1  # limit 0.1, lowest value -1
    by_hand = np.log(np.mean((1 + bets * 0.4) * (1 - bets * 0.35)))
    assert log_e_value(values, 0.1, -1) == pytest.approx(by_hand)


@pytest.mark.parametrize(("limit", "lowest"), [(0.0, -1.0), (0.3, 0.0), (0.98, 0.0)])
def test_the_expectation_of_the_e_value_is_one_at_the_limit(limit: float, lowest: float) -> None:
    """Exact, over all samples of 6 rows of a variable with two values and the mean `limit`."""
    chance = (limit - lowest) / (1 - lowest)  # of the value 1; otherwise the lowest value
    total = 0.0
    for draws in itertools.product([0, 1], repeat=6):
        values = np.where(np.array(draws) == 1, 1.0, lowest)
        total += np.exp(log_e_value(values, limit, lowest)) * chance ** sum(draws) * (1 - chance) ** (6 - sum(draws))
    assert total == pytest.approx(1)


def test_hypotheses_of_a_layer_with_fewer_heads() -> None:
    assert {each.head for each in hypotheses(effects())} == {(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)}


def test_the_summary_counts_heads() -> None:
    named = [
        NamedHead(0, 0, "essential", 0.01, 0.1),
        NamedHead(0, 0, "redundant", 0.01, 0.1, (1, 1), 0.4),
        NamedHead(1, 1, "redundant", 0.01, 0.0, (0, 0), 0.4),
    ]
    table: list[list[float | None]] = [[0.1, 0.0, 0.0], [0.0, 0.0, None]]
    names = HeadNames(
        "test", 500, "train", 64, 0.05, 0.01, 0.02, 17, "score", 0.9, named, *[table] * 4, JointRemoval(2, 0.1, 0.1)
    )
    assert names.summary() == "1 essential, 2 redundant, none harmful, none unused, 3 undecided"
    assert [each.text() for each in named] == [
        "essential",
        "redundant with layer 1, head 1",
        "redundant with layer 0, head 0",
    ]
    assert [each.name for each in names.by_head()[0, 0]] == ["essential", "redundant"]
