"""The top layers of a pretrained encoder, initialized at random before training (key `training.reinit_layers`)."""

from __future__ import annotations

from dataclasses import replace

from finetune.errors import ModelError
from finetune.models.classifier import Classifier
from finetune.models.encoder_parts import check_separate_layers, layer_modules
from finetune.models.initialization import initialize_again


def reinit_top_layers(classifier: Classifier, count: int) -> Classifier:
    """Return the classifier with the top `count` encoder layers initialized again (Zhang et al. 2021, section 5).

    Their parameters then count as new: the checkpoint has no values for them.

    Raises:
        ModelError: the model has fewer layers, its layers share weights, or one of these layers is frozen.
    """
    if not count:
        return classifier
    base, key = classifier.base, "training.reinit_layers"
    check_separate_layers(base, key, count, count)
    layers = layer_modules(base)
    modules = [module for layer in layers[len(layers) - count :] for module in layer]
    chosen = {id(parameter) for module in modules for parameter in module.parameters()}
    named = {name: p for name, p in base.named_parameters() if id(p) in chosen}
    if any(not parameter.requires_grad for parameter in named.values()):
        raise ModelError(
            f"{key} is {count}, but some of the top {count} layers are frozen and would stay random: the model has "
            f"{len(layers)} layers; lower it, or training.freeze_layers"
        )
    initialize_again(base, modules)
    new = tuple(sorted({*classifier.new_parameters, *named}))
    note = f"The top {count} of {len(layers)} encoder layers were initialized again at random ({key})."
    return replace(classifier, new_parameters=new, notes=(*classifier.notes, note))
