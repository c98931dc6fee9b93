"""Where each model family keeps its attention heads: the only such table.

A row names, inside one attention module, the projections by role. Paths are relative to the encoder;
`{layer}` runs from 0. A family that is not in the table is refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from finetune.errors import ModelError

ROLES = ("query", "key", "value", "output")


@dataclass(frozen=True)
class Family:
    """Module paths below one layer, and the names under which the config keeps its sizes."""

    layer: str
    query: str
    key: str
    value: str
    output: str
    num_layers: str = "num_hidden_layers"
    num_heads: str = "num_attention_heads"


@dataclass(frozen=True)
class AttentionSite:
    """One layer's attention: its number of heads, and the paths of its projections in the classifier."""

    layer: int
    num_heads: int
    query: str
    key: str
    value: str
    output: str

    def paths(self, roles: Sequence[str]) -> list[str]:
        """Return the paths of these roles."""
        return [getattr(self, role) for role in roles]


_BERT = Family(
    "encoder.layer.{layer}",
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
)

FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "camembert": _BERT,
    "electra": _BERT,
    "ernie": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "distilbert": Family(
        "transformer.layer.{layer}",
        "attention.q_lin",
        "attention.k_lin",
        "attention.v_lin",
        "attention.out_lin",
        num_layers="n_layers",
        num_heads="n_heads",
    ),
    "multi_head_classifier": Family(
        "layers.{layer}", "attention.query", "attention.key", "attention.value", "attention.output"
    ),
}


def attention_sites(classifier: PreTrainedModel) -> list[AttentionSite]:
    """Return the attention sites of a transformers classifier (not wrapped by peft), first layer first.

    Raises:
        ModelError: the family is not in the table, or a path of the table is not in the model.
    """
    config = classifier.config
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ModelError(
            f"where a '{config.model_type}' model keeps its attention heads is not known here; "
            f"known model types are {', '.join(sorted(FAMILIES))}"
        )
    prefix = f"{classifier.base_model_prefix}." if hasattr(classifier, classifier.base_model_prefix) else ""
    modules = dict(classifier.named_modules())
    sites = []
    for layer in range(getattr(config, family.num_layers)):
        below = prefix + family.layer.format(layer=layer)
        paths = {role: f"{below}.{getattr(family, role)}" for role in ROLES}
        missing = [path for path in paths.values() if path not in modules]
        if missing:
            raise ModelError(f"a '{config.model_type}' model should have {', '.join(missing)}, but this one has not")
        sites.append(AttentionSite(layer, getattr(config, family.num_heads), **paths))
    return sites
