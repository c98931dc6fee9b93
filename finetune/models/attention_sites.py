"""Where the attention heads of a model are: one `AttentionSite` per layer, with the paths of its projections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from finetune.errors import ModelError
from finetune.models.architectures import family_of
from finetune.models.pruned_config import pruned_heads

ROLES = ("query", "key", "value", "output")


@dataclass(frozen=True)
class AttentionSite:
    """The attention of one layer: its number of heads and the paths of its projections in the classifier.

    Attributes:
        num_heads: number of heads that the output projection receives; 0 if all were removed.
        num_key_value_heads: smaller than `num_heads` where several heads share a key and a value.
        channels_first, fused: as in `Family`.
    """

    layer: int
    num_heads: int
    num_key_value_heads: int
    query: str
    key: str
    value: str
    output: str
    channels_first: bool = False
    fused: str = ""

    def paths(self, roles: Sequence[str]) -> list[str]:
        """Return the paths of the projections with these roles; a fused projection once."""
        return list(dict.fromkeys(getattr(self, role) for role in roles))

    def slices(self, role: str, heads: Sequence[int], width: int) -> list[int]:
        """Return the rows (output projection: columns) of a projection that belong to these heads.

        Args:
            role: query, key, value or output.
            heads: numbers of query heads; rows of a key or value that several of them share are returned once.
            width: the head width D.
        """
        grouped = role in ("key", "value")
        group_size = self.num_heads // max(1, self.num_key_value_heads) if grouped else 1
        numbers = list(dict.fromkeys(head // group_size for head in heads))
        role_index = ROLES.index(role)
        if self.fused == "3HD" and role != "output":
            starts = [(role_index * self.num_heads + number) * width for number in numbers]
        elif self.fused == "H3D" and role != "output":
            starts = [(3 * number + role_index) * width for number in numbers]
        else:
            starts = [number * width for number in numbers]
        return [start + offset for start in starts for offset in range(width)]


def attention_sites(classifier: PreTrainedModel) -> list[AttentionSite]:
    """Return the attention sites of a transformers classifier (not wrapped by peft), first layer first.

    Pruned heads are not counted, and the remaining heads are renumbered from 0.

    Raises:
        ModelError: the family is not in the table, or the model lacks a module that the table names.
    """
    return _sites(classifier, pruned_heads(classifier.config))


def all_heads(sites: Sequence[AttentionSite]) -> list[tuple[int, int]]:
    """Return every head as (layer, head), layer by layer."""
    return [(site.layer, head) for site in sites for head in range(site.num_heads)]


def unpruned_sites(classifier: PreTrainedModel) -> list[AttentionSite]:
    """Return the attention sites that the model had before any head was pruned."""
    return _sites(classifier, {})


def _sites(classifier: PreTrainedModel, pruned: dict[int, list[int]]) -> list[AttentionSite]:
    config = classifier.config
    family = family_of(config)
    prefix = f"{classifier.base_model_prefix}." if hasattr(classifier, classifier.base_model_prefix) else ""
    modules = dict(classifier.named_modules())
    num_heads = family.num_heads(config)
    group_size = num_heads // family.num_key_value_heads(config) if family.num_key_value_heads else 1
    sites = []
    for layer in range(family.num_layers(config)):
        layer_path = prefix + family.layer_path(config, layer)
        paths = {role: f"{layer_path}.{getattr(family, role)}" for role in ROLES}
        missing = [path for path in paths.values() if path not in modules]
        if missing:
            raise ModelError(f"this '{config.model_type}' model has no module {', '.join(missing)}, but its family has")
        remaining = num_heads - len(pruned.get(layer, ()))
        sites.append(
            AttentionSite(
                layer,
                remaining,
                remaining // group_size,
                **paths,
                channels_first=family.channels_first,
                fused=family.fused,
            )
        )
    return sites
