from __future__ import annotations

import pytest
import torch

from finetune.heads.explain_scores import in_chunks, predicted_targets, target_scores


def test_the_score_of_a_single_label_is_its_log_odds() -> None:
    logits = torch.tensor([[1.0, -2.0, 0.5], [30.0, 0.0, -5.0]])
    targets = predicted_targets(logits)
    assert targets.tolist() == [0, 0]
    p = logits[:1].softmax(-1)[:, 0]
    assert target_scores(logits, targets, "single_label_classification")[:1].allclose((p / (1 - p)).log())
    # The probability of the second row rounds to 1, its log-odds do not.
    assert float(target_scores(logits, targets, "single_label_classification")[1]) == pytest.approx(
        30 - 0.0067, abs=1e-3
    )
    shifted = target_scores(logits + 7, torch.tensor([2, 1]), "single_label_classification")
    assert shifted.allclose(target_scores(logits, torch.tensor([2, 1]), "single_label_classification"), atol=1e-5)


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_other_scores_are_the_logit(problem_type: str) -> None:
    logits = torch.tensor([[1.0, -2.0], [-3.0, -4.0]])
    assert target_scores(logits, predicted_targets(logits), problem_type).tolist() == [1, -3]


def test_chunks_cover_all_numbers_and_get_smaller_if_memory_runs_out() -> None:
    inputs, sizes, covered = {"input_ids": torch.zeros(1, 256, dtype=torch.long)}, [], []

    def function(numbers: torch.Tensor) -> None:
        sizes.append(len(numbers))
        if len(numbers) > 2:
            raise torch.OutOfMemoryError
        covered.extend(numbers.tolist())

    in_chunks(function, 7, inputs)
    assert covered == list(range(7))
    assert sizes == [4, 2, 2, 2, 1]
