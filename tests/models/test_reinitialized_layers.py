"""Top layers initialized again at random: finetune/models/reinitialized_layers.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from finetune.errors import ModelError
from finetune.models.freezing import Freezing, freeze
from finetune.models.reinitialized_layers import reinit_top_layers
from tests.support.families import build, save_checkpoint
from tests.support.helpers import tiny_classifier


@pytest.mark.parametrize("family", ["bert", "xlm", "modernbert"])
def test_only_the_top_layers_are_initialized_as_new_ones(family: str, tmp_path: Path) -> None:
    built = build(save_checkpoint(family, tmp_path))
    with torch.no_grad():
        for parameter in built.base.parameters():
            parameter += 5  # no initialization has this mean
    before = {name: p.clone() for name, p in built.base.named_parameters()}
    changed = reinit_top_layers(built, 1)
    top = {name for name in before if ".1." in name}
    assert {name for name, p in built.base.named_parameters() if not torch.equal(p, before[name])} == top
    for name in top:
        parameter = built.base.get_parameter(name).detach()
        if parameter.dim() > 1:
            assert parameter.mean().abs() < 1
            assert parameter.std() > 0
        else:
            assert parameter.unique().tolist() in ([0.0], [1.0]), name  # a bias, or the weight of a norm
    assert set(changed.new_parameters) == {*built.new_parameters, *top}
    assert (
        changed.notes[-1] == "The top 1 of 2 encoder layers were initialized again at random (training.reinit_layers)."
    )
    assert reinit_top_layers(built, 0) is built


def test_too_many_shared_or_frozen_layers_are_rejected(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"reinit_layers is 3, but this 'bert' model has 2 layers; lower it"):
        reinit_top_layers(tiny_classifier(tiny_bert), 3)
    with pytest.raises(ModelError, match=r"reinit_layers is 1, but this 'albert' model shares weights between its"):
        reinit_top_layers(build(save_checkpoint("albert", tmp_path)), 1)
    frozen = tiny_classifier(tiny_bert)
    freeze(frozen.base, Freezing(layers=1))
    with pytest.raises(
        ModelError, match=r"reinit_layers is 2, but some of the top 2 layers are frozen .* lower it, or"
    ):
        reinit_top_layers(frozen, 2)
    assert reinit_top_layers(frozen, 1).notes
