"""Initialize the output bias of a new classification head at the label means (multi-label and regression).

In regression the weights are also multiplied by the standard deviation of the labels.

With a bias of 0, a probability of one half per label, the first steps only move all predictions toward the mean. They
do so through the weights, and the encoder's output becomes the same for every row. MiniLM on 300 rows of NLU++ (62
labels) then stays at F1 0.000 for 600 steps; started from the label frequencies it reaches 0.4 in 300. Ratings from 10
to 50 are not learned in 300 steps from 0; from their mean, predictions reach a correlation of 0.95. Lin et al. 2017
(focal loss, section 3.3) initialize the same way.

    N rows, C classes
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from finetune.models.classifier import Classifier
from finetune.models.target_scaling import target_scaling


def init_output_bias(classifier: Classifier, labels: np.ndarray) -> bool:
    """Set the bias of a new head so that it predicts the label means; return whether it was set.

    In regression the random weights then give predictions whose spread fits the labels. The bias is not set for
    single-label classification, nor for a head that comes from the checkpoint.

    Args:
        labels: of the training rows: 0/1 label sets (N, C), values (N,), or ids (N,).
    """
    if classifier.problem_type == "single_label_classification":
        return False
    scaling = target_scaling(labels) if classifier.problem_type == "regression" else None
    if scaling is not None:
        bias = torch.tensor([scaling.mean])
    else:  # smoothed, because frequencies 0 and 1 have infinite log-odds
        bias = torch.as_tensor((labels.sum(0) + 0.5) / (len(labels) + 1)).logit()
    new = set(classifier.new_parameters)
    heads = [
        module
        for name, module in classifier.base.named_modules()
        if isinstance(module, nn.Linear)
        and module.out_features == len(bias)
        and module.bias is not None
        and f"{name.replace('.modules_to_save.default', '')}.bias" in new
    ]
    if not heads:
        return False
    with torch.no_grad():
        heads[-1].bias.copy_(bias)  # the last one: an earlier layer may have the same width
        if scaling is not None:
            heads[-1].weight.mul_(scaling.deviation)
    return True
