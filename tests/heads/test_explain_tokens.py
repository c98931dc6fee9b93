from __future__ import annotations

from pathlib import Path

import pytest

from finetune.heads import explain
from tests.conftest import SENTENCES
from tests.support.helpers import tiny_classifier


def test_attributions_sum_to_the_difference_of_the_scores(tiny_bert: Path) -> None:
    classifier = tiny_classifier(tiny_bert)
    results = explain.token_attributions(classifier, explain.tokenized(classifier, [SENTENCES]))
    tokens = explain.readable_tokens(classifier, [SENTENCES])
    assert len(results) == len(tokens) == 6
    for result, row in zip(results, tokens, strict=True):
        assert len(result.values) == len(row)
        difference = result.score - result.baseline_score
        assert sum(result.values) == pytest.approx(difference + result.completeness_gap)
        assert abs(result.completeness_gap) <= 0.05 * abs(difference)
