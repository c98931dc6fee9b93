from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.heads import explain
from finetune.models.classifier import Classifier
from tests.conftest import SENTENCES
from tests.models.test_head_gates import BUILDERS
from tests.support.helpers import assert_equal_up_to_rounding


@pytest.fixture(params=BUILDERS, ids=lambda build: build.__name__)
def classifier(request: pytest.FixtureRequest, tiny_bert: Path) -> Classifier:
    built: Classifier = request.param(tiny_bert)
    return built


def test_head_effects_equal_turning_heads_off_one_by_one(classifier: Classifier) -> None:
    inputs, base = explain.tokenized(classifier, [SENTENCES]), classifier.base.eval()
    targets = torch.tensor([0, 1] * 3)

    @torch.no_grad()
    def scores() -> np.ndarray:
        return np.asarray(explain.target_scores(base(**inputs).logits, targets, classifier.problem_type))

    expected, full = np.zeros((6, 2, 3)), scores()
    for layer in range(2):
        for head in range(3):
            with classifier.heads_off([(layer, head)]):
                expected[:, layer, head] = full - scores()
    assert_equal_up_to_rounding(explain.head_effects(classifier, inputs, targets), expected)
    assert np.abs(expected).max() > 1e-3
