from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from finetune.heads.gated_forward import GatedRows
from tests.benchmarks.head_candidates import CANDIDATES, scaled_to_1
from tests.benchmarks.head_learners import LEARNERS
from tests.benchmarks.head_tables import GUIDE, comparison, keep_lines, kept_file, read_kept_lines, table
from tests.models.test_head_gates import bert
from tests.support.helpers import sample_of


@pytest.fixture(scope="module")
def sample(tiny_bert: Path) -> GatedRows:
    return sample_of(bert(tiny_bert))


@pytest.mark.parametrize(
    "name",
    [
        "hies",
        "greedy_gnorm",
        "grad_drop",
        "recursive_kl",
        "multilinear, kl, normalized",
        "multilinear, error, signed",
        "one trajectory, kl",
        "one trajectory, rows of equal weight",
        "multilinear start",
        "uniform gradient sampling",
        "uniform gradient sampling, narrow",
        "sparse top-k",
        "quadratic model",
    ],
)
def test_every_candidate_ranks_all_heads_with_few_row_passes(sample: GatedRows, name: str) -> None:
    values = (CANDIDATES | LEARNERS)[name](sample, 64, 0)
    assert values.shape == (2, 3)
    assert np.isfinite(values).all()
    assert len(set(values.ravel().tolist())) > 1
    base = sample.classifier.base
    assert not any(module._forward_pre_hooks for module in base.modules())
    assert all(parameter.grad is None for parameter in base.parameters())


@pytest.mark.parametrize("grid", ["choose", "confirm"])
def test_the_guide_has_the_table_of_the_kept_results(grid: str) -> None:
    lines = read_kept_lines(grid)
    assert len(comparison(lines)) > 3
    assert f"<!-- begin heads-{grid} -->\n{table(grid)}\n<!-- end heads-{grid} -->" in GUIDE.read_text(encoding="utf-8")


def test_kept_results_are_not_lost() -> None:
    before = kept_file("choose").read_bytes()
    with pytest.raises(ValueError, match="kept results are missing"):
        keep_lines([], "choose")
    assert kept_file("choose").read_bytes() == before


def test_scaled_values_go_from_0_to_1() -> None:
    np.testing.assert_allclose(scaled_to_1(np.array([[2.0, np.nan], [6.0, 3.0]])), [[0, np.nan], [1, 0.25]])
