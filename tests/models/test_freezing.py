from __future__ import annotations

from pathlib import Path

import pytest

from finetune.errors import ModelError
from finetune.models.attention_sites import attention_sites
from finetune.models.freezing import Freezing, freeze
from tests.support.families import build, save_checkpoint
from tests.support.helpers import tiny_classifier


def trained(model: object) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}  # type: ignore[attr-defined]


def test_embeddings_and_lower_layers_are_frozen(tiny_bert: Path) -> None:
    built = tiny_classifier(tiny_bert)
    everything = trained(built.model)
    freeze(built.base, Freezing(embeddings=True, layers=1))
    frozen = everything - trained(built.model)
    assert frozen == {n for n in everything if n.startswith(("bert.embeddings.", "bert.encoder.layer.0."))}
    assert len(frozen) == 5 + 16


@pytest.mark.parametrize("family", ["xlm", "distilbert", "modernbert", "deberta-v2", "mpnet"])
def test_lower_layers_are_frozen_in_other_families(family: str, tmp_path: Path) -> None:
    built = build(save_checkpoint(family, tmp_path))
    everything = trained(built.model)
    freeze(built.base, Freezing(embeddings=False, layers=1))
    frozen = everything - trained(built.model)
    assert frozen
    assert all(".0." in name for name in frozen)
    assert not {name for name in trained(built.base) if ".0." in name}
    freeze(built.base, Freezing(embeddings=True, layers=1))
    assert not any("embeddings" in name for name in trained(built.base))


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("albert", "albert.encoder.embedding_hidden_mapping_in"),
        ("convbert", "convbert.embeddings_project"),
        ("deberta-v2", "deberta.encoder.LayerNorm"),
        ("electra", "electra.embeddings_project"),
        ("flaubert", "transformer.layer_norm_emb"),
        ("rembert", "rembert.encoder.embedding_hidden_mapping_in"),
        ("roformer", "roformer.embeddings_project"),
        ("xlm", "transformer.layer_norm_emb"),
    ],
)
def test_norm_and_projection_of_the_embeddings_are_frozen_too(family: str, name: str, tmp_path: Path) -> None:
    built = build(save_checkpoint(family, tmp_path)).base
    frozen = {f"{name}.{kind}" for kind in ("weight", "bias")}
    assert frozen <= trained(built)
    freeze(built, Freezing(embeddings=True, layers=0))
    assert not frozen & trained(built)
    assert {f"{site.output}.weight" for site in attention_sites(built)} <= trained(built)


def test_too_many_or_shared_layers_are_rejected(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"freeze_layers is 3, but this 'bert' model has 2 layers"):
        freeze(tiny_classifier(tiny_bert).base, Freezing(embeddings=False, layers=3))
    with pytest.raises(ModelError, match="shares weights between its layers"):
        freeze(build(save_checkpoint("albert", tmp_path)).base, Freezing(embeddings=False, layers=1))
