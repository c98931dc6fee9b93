from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from finetune.heads.size_search import cheapest_sizes


@pytest.mark.parametrize("seed", range(5))
def test_the_sizes_are_the_best_of_all_combinations(seed: int) -> None:
    generator = np.random.default_rng(seed)
    sizes = (4, 3, 5, 4)
    costs = [np.sort(generator.random(count) ** 3).tolist() for count in sizes]
    seconds = [(np.sort(generator.integers(0, 40, count))[::-1] / 100).tolist() for count in sizes]
    limit = 0.8  # all times are multiples of the cells
    found = cheapest_sizes(costs, seconds, limit)
    reachable = [
        (sum(cost[index] for cost, index in zip(costs, choice, strict=True)), choice)
        for choice in product(*map(range, sizes))
        if sum(time[index] for time, index in zip(seconds, choice, strict=True)) <= limit + 1e-9
    ]
    if not reachable:
        assert found is None
        return
    assert found is not None
    assert sum(cost[index] for cost, index in zip(costs, found, strict=True)) == pytest.approx(min(reachable)[0])
    assert sum(time[index] for time, index in zip(seconds, found, strict=True)) <= limit + 1e-9


def test_no_sizes_fit_an_impossible_limit() -> None:
    assert cheapest_sizes([[0.0, 1.0]], [[2.0, 1.0]], 0.5) is None
    assert cheapest_sizes([[0.0, 1.0]], [[2.0, 0.0]], 0.0) is None
    assert cheapest_sizes([[0.0, 1.0]], [[2.0, 0.0]], 1e-6) == [1]
    assert cheapest_sizes([[0.0, 1.0]], [[2.0, 1.0]], 5.0) == [0]
