"""Predictions with given logits and labels."""

from __future__ import annotations

import numpy as np
import torch

from finetune.evaluation.prediction import Predictions
from finetune.models.outputs import OutputRules


def predictions_of(
    logits: list[list[float]], labels: object, problem_type: str = "single_label_classification"
) -> Predictions:
    """Return predictions with these logits and labels, each with a loss of 1."""
    rules = OutputRules(tuple(f"label {index}" for index in range(len(logits[0]))), problem_type)
    return Predictions(torch.tensor(logits), torch.ones(len(logits)), np.array(labels), rules)
