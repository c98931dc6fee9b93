from __future__ import annotations

import numpy as np
import pytest
import torch

from finetune.data import cpu_copies
from finetune.data.cpu_copies import CpuCopies
from tests.support.host_reads import HostReads


@pytest.mark.parametrize(("block", "sizes"), [(1, [2, 1, 3]), (12, [3, 3]), (13, [6]), (10**6, [6])])
def test_results_are_copied_in_blocks(monkeypatch: pytest.MonkeyPatch, block: int, sizes: list[int]) -> None:
    monkeypatch.setattr(cpu_copies, "_BLOCK", block)
    rows = [np.array([5, 0]), np.array([3]), np.array([1, 2, 4])]
    table = torch.arange(18, dtype=torch.float32).reshape(6, 3).requires_grad_()
    copies = CpuCopies()
    with HostReads() as reads:
        for batch in rows:
            copies.add(batch, table[torch.from_numpy(batch)], torch.from_numpy(batch))
        blocks = copies.blocks()
    assert [len(numbers) for numbers, _ in blocks] == sizes
    assert reads.counts == {"cpu": 2 * len(sizes)}
    numbers = np.concatenate([numbers for numbers, _ in blocks])
    assert numbers.tolist() == [5, 0, 3, 1, 2, 4]
    values, same_numbers = (torch.cat(column) for column in zip(*(results for _, results in blocks), strict=True))
    assert torch.equal(values, table.detach()[numbers])
    assert not values.requires_grad
    assert same_numbers.tolist() == numbers.tolist()


def test_without_batches_there_are_no_blocks() -> None:
    assert CpuCopies().blocks() == []
