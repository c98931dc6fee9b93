from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from finetune.evaluation.ranking_metrics import RankedRows


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 4), st.integers(1, 5)), min_size=2, max_size=30))
def test_areas_and_average_precisions_equal_sklearn(rows: list[tuple[int, int, int]]) -> None:
    labels, scores, weights = (np.array(column) for column in zip(*rows, strict=True))
    ranked = RankedRows(labels[:, None], scores[:, None] / 4)
    (area,), (precision,) = ranked.areas(weights.astype(float)), ranked.average_precisions(weights.astype(float))
    if labels.any():
        assert precision == pytest.approx(average_precision_score(labels, scores, sample_weight=weights))
    else:
        assert np.isnan(precision)
    if labels.any() and not labels.all():
        assert area == pytest.approx(roc_auc_score(labels, scores, sample_weight=weights))
    else:
        assert np.isnan(area)
