"""Predictions with given logits and labels."""

from __future__ import annotations

import numpy as np
import torch

from finetune.evaluation.prediction import Predictions


def predictions_of(
    logits: list[list[float]], labels: object, problem_type: str = "single_label_classification"
) -> Predictions:
    """Predictions with these logits and labels, all of loss 1."""
    return Predictions(torch.tensor(logits), torch.ones(len(logits)), np.array(labels), problem_type)
