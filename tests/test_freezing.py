from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModel

from finetune.errors import ModelError
from finetune.freezing import freeze
from tests.helpers import tiny_classifier
from tests.test_families import build, checkpoint


def trained(model: object) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}  # type: ignore[attr-defined]


def test_embeddings_and_lower_layers_stop(tiny_bert: Path) -> None:
    found = tiny_classifier(tiny_bert)
    everything = trained(found.model)
    freeze(found.base, freeze_embeddings=True, freeze_layers=1)
    stopped = everything - trained(found.model)
    assert stopped == {n for n in everything if n.startswith(("bert.embeddings.", "bert.encoder.layer.0."))}
    assert len(stopped) == 5 + 16


@pytest.mark.parametrize("family", ["xlm", "distilbert", "modernbert", "deberta-v2", "mpnet"])
def test_other_families_too(family: str, tmp_path: Path) -> None:
    found = build(checkpoint(family, AutoModel, tmp_path))
    everything = trained(found.model)
    freeze(found.base, freeze_embeddings=False, freeze_layers=1)
    stopped = everything - trained(found.model)
    assert stopped
    assert all(".0." in name for name in stopped)
    assert not {name for name in trained(found.base) if ".0." in name}
    freeze(found.base, freeze_embeddings=True, freeze_layers=1)
    assert not any("embeddings" in name for name in trained(found.base))


def test_what_cannot_be_frozen_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"freeze_layers is 3, but a 'bert' model has 2 layers"):
        freeze(tiny_classifier(tiny_bert).base, freeze_embeddings=False, freeze_layers=3)
    with pytest.raises(ModelError, match="shares weights between them"):
        freeze(build(checkpoint("albert", AutoModel, tmp_path)).base, freeze_embeddings=False, freeze_layers=1)
