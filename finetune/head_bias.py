"""Where a new classification head of several labels starts: at the share of the rows that carry each label.

From a bias of 0, which is a probability of one half, the first steps do nothing but lower all labels at once, and they
lower them by way of the weights: the encoder's output comes to say the same of every row. 300 rows of NLU++ (62 labels)
then stay at F1 0.000 for 600 steps; from the shares they reach 0.4 in 300. The same start is in Lin et al. 2017
(focal loss, section 3.3).

    N rows, C classes
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from finetune.modeling import Classifier


def start_at_label_shares(classifier: Classifier, labels: np.ndarray) -> bool:
    """Set the bias of a new head to the log-odds of the labels' shares; return whether that was done.

    Nothing is done for one label a row, for values, and for a head that the checkpoint held.

    Args:
        labels: 0/1 sets of the training rows, (N, C); or ids or values (N,).
    """
    if labels.ndim == 1:
        return False
    rows, classes = labels.shape
    new = set(classifier.new_parameters)
    heads = [
        module
        for name, module in classifier.base.named_modules()
        if isinstance(module, nn.Linear)
        and module.out_features == classes
        and module.bias is not None
        and f"{name.replace('.modules_to_save.default', '')}.bias" in new
    ]
    if not heads:
        return False
    shares = torch.as_tensor((labels.sum(0) + 0.5) / (rows + 1))  # (C,); neither 0 nor 1
    with torch.no_grad():
        heads[-1].bias.copy_(shares.logit())  # the last: a layer before it may be as wide
    return True
