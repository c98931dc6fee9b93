"""How a new classification head starts (recipe key `model.classifier_init`).

With `linear_probe` the linear layer of a pooled classifier starts as a linear model that is fitted to the pooled states
of the training rows, before the encoder is trained (Kumar et al. 2022, LP-FT). A random layer would at first change the
encoder in random directions.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from finetune.evaluation.probe import Probe
from finetune.models.classifier import Classifier
from finetune.models.pooled_states import Pooling
from finetune.models.pooling import HEAD, NO_PRETRAINED_ENCODER, NO_STATES, check_probe, pooling_of
from finetune.pipeline.context import RunContext, RunInputs
from finetune.pipeline.linear_probe import fit_linear_probe, probe_rows
from finetune.recipe.schema import Recipe

LINEAR_PROBE, RANDOM = "linear_probe", "random"
AUTO = LINEAR_PROBE  # what `auto` is where the probe is possible
_LAYER = "pooled_classifier"


def init_classifier(context: RunContext, inputs: RunInputs, *, resuming: bool) -> tuple[Recipe, RunInputs, str]:
    """Initialize the new classification head in place; return recipe and inputs with what was done, and a line.

    Args:
        resuming: the weights come from a checkpoint, so nothing is computed.

    Raises:
        ModelError: the recipe sets `linear_probe`, and it is not possible.
    """
    recipe, classifier, train = context.recipe, inputs.classifier, inputs.splits["train"]
    requested, reason = recipe.model.classifier_init, why_no_probe(classifier)
    check_probe(requested, reason)
    chosen = requested if requested != "auto" else RANDOM if reason else AUTO
    resolved = recipe.model_copy(update={"model": recipe.model.model_copy(update={"classifier_init": chosen})})
    if chosen == RANDOM or resuming:
        return resolved, inputs, ""
    pooling = cast(Pooling, pooling_of(classifier.base.config))
    fit = partial(fit_linear_probe, context, classifier, train, pooling)
    probe = context.shared.once_per_encoder("linear probe", fit, recipe)
    set_probe(classifier, probe)
    rows = len(probe_rows(train, len(classifier.label_names), recipe.rows_seed()))
    line = f"model.classifier_init: {LINEAR_PROBE}, fitted to the pooled states of {rows:,} rows."
    return resolved, replace(inputs, probe=probe), line


def why_no_probe(classifier: Classifier) -> str:
    """Return why the head of a classifier cannot start from a linear probe, or "" if it can."""
    if classifier.source is None:
        return NO_PRETRAINED_ENCODER
    if pooling_of(classifier.base.config) == HEAD:
        return NO_STATES
    if f"{_LAYER}.weight" not in classifier.new_parameters:
        return "the classification head of the checkpoint is kept"
    return ""


def set_probe(classifier: Classifier, probe: Probe) -> None:
    """Copy the probe into the linear layer of a pooled classifier."""
    module: Any = classifier.base.get_submodule(_LAYER)
    if hasattr(module, "modules_to_save"):  # peft keeps the layer that it trains there
        module = module.modules_to_save["default"]
    assert isinstance(module, nn.Linear)
    assert module.bias is not None
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(probe.weight))
        module.bias.copy_(torch.from_numpy(probe.bias))
