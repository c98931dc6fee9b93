from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator

from finetune.data.tokenization import EncodedSplit
from finetune.heads import explain
from finetune.heads.analysis import AnalysisSettings
from finetune.heads.explain_rows import explain_rows
from finetune.models.classifier import Classifier
from finetune.runs.explanations import Explanations
from tests.heads.test_analysis import METRIC, case, section_with
from tests.support.helpers import assert_equal_up_to_rounding

ORDER = [(0, 0), (0, 1), (1, 1), (1, 2), (0, 2), (1, 0)]


def explained(classifier: Classifier, split: EncodedSplit, batch_size: int = 6) -> Explanations:
    result = explain_rows(
        classifier,
        {"train": split, "validation": split},
        section_with(explained_rows=7),
        AnalysisSettings("accuracy", batch_size, seed=0),
        ORDER,
        Accelerator(cpu=True),
    )
    assert result is not None
    return result


@pytest.mark.parametrize("problem_type", METRIC)
def test_rows_get_the_values_of_the_functions(tiny_bert: Path, problem_type: str) -> None:
    classifier, split = case(tiny_bert, problem_type)
    result = explained(classifier, split)
    assert [(row.split, row.row) for row in result.rows] == [("validation", number) for number in split.numbers]
    inputs = explain.tokenized(classifier, [list(split.texts["sentence"])])
    first_order, exact = explain.first_order_head_effects(classifier, inputs), explain.head_effects(classifier, inputs)
    assert_equal_up_to_rounding(np.array([row.head_effects for row in result.rows], dtype=float), first_order)
    detailed = [number for number, row in enumerate(result.rows) if row.tokens is not None]
    assert len(detailed) == 7
    assert_equal_up_to_rounding([result.rows[number].exact_head_effects for number in detailed], exact[detailed])
    attributions = explain.token_attributions(classifier, inputs)
    for number in detailed:
        row = result.rows[number]
        assert row.tokens is not None
        assert row.attributions is not None
        assert row.tokens == split.texts["sentence"][number].split()
        assert_equal_up_to_rounding(row.attributions, attributions[number].values)
        assert row.completeness_gap == pytest.approx(attributions[number].completeness_gap, abs=1e-4)
        assert row.attention.keys() == {f"{layer}.{head}" for layer, head in ORDER}
        length = len(row.tokens)
        for maps in row.attention.values():  # each weight is rounded to a 255th
            assert np.abs(np.sum(maps, axis=1) - 255).max() <= length / 2
        assert {row.target} <= ({""} if problem_type == "regression" else set(classifier.label_names))


def test_the_batch_size_changes_nothing(tiny_bert: Path) -> None:
    classifier, split = case(tiny_bert, "single_label_classification")
    first, second = (explained(classifier, split, batch_size) for batch_size in (20, 3))
    assert [row.tokens for row in first.rows] == [row.tokens for row in second.rows]
    for one, other in zip(first.rows, second.rows, strict=True):
        assert_equal_up_to_rounding(np.array(one.head_effects, float), np.array(other.head_effects, float))
