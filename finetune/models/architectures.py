"""Where each model family keeps its attention heads: the only such table.

A row names, inside one attention module, the projections by role. Paths are relative to the encoder.
A family that is not in the table is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedModel

from finetune.errors import ModelError

ROLES = ("query", "key", "value", "output")


def _num_hidden_layers(config: Any) -> int:
    return int(config.num_hidden_layers)


def _num_attention_heads(config: Any) -> int:
    return int(config.num_attention_heads)


def _num_key_value_heads(config: Any) -> int:
    return int(config.num_key_value_heads)


def _n_layers(config: Any) -> int:
    return int(config.n_layers)


def _n_heads(config: Any) -> int:
    return int(config.n_heads)


def _albert_layers(config: Any) -> int:
    return int(config.num_hidden_layers * config.inner_group_num)


def _albert_path(config: Any, layer: int) -> str:
    """ALBERT shares its layers within groups: the same module is called for several layers."""
    block, inner = divmod(layer, config.inner_group_num)
    group = int(block / (config.num_hidden_layers / config.num_hidden_groups))
    return f"encoder.albert_layer_groups.{group}.albert_layers.{inner}"


def _convbert_heads(config: Any) -> int:
    """ConvBERT hands as many convolution heads as attention heads to the output projection, behind them."""
    return 2 * max(1, int(config.num_attention_heads // config.head_ratio))


def _sparse_attention(config: Any) -> str:
    if config.attention_type == "original_full":
        return ""
    return (
        f"attention_type '{config.attention_type}' draws what a head looks at by the head's number; "
        'write "attention_type": "original_full" in its config.json'
    )


def _talking_heads(config: Any) -> str:
    return "talking_head mixes its heads with one another" if getattr(config, "talking_head", False) else ""


@dataclass(frozen=True)
class Family:
    """Module paths below one layer, and how the config tells the sizes.

    Attributes:
        layer: path of a layer, with `{layer}` for its number, or a function of config and number.
        query, key, value, output: paths below it; the first three are the same where they are fused.
        channels_first: states reach the output projection as (B, C, S) instead of (B, S, C).
        fused: how the rows of a fused projection are laid out: "3HD" by role, then head; "H3D" by head, then role.
        num_key_value_heads: fewer than the heads where several share a key and a value (grouped-query attention).
        mask_only: why heads can be gated but not cut out; "" where they can.
        mask_only_if: the same where it depends on the config.
        beside: names, beside the query projection, of what else has rows by head; some configs lack some of them.
        position_bias: the attention's third argument is a bias (B, H, S, S) that all layers share.
        note: what its users must know.
    """

    layer: str | Callable[[Any, int], str]
    query: str
    key: str
    value: str
    output: str
    num_layers: Callable[[Any], int] = _num_hidden_layers
    num_heads: Callable[[Any], int] = _num_attention_heads
    num_key_value_heads: Callable[[Any], int] | None = None
    channels_first: bool = False
    fused: str = ""
    mask_only: str = ""
    mask_only_if: Callable[[Any], str] | None = None
    beside: tuple[str, ...] = ()
    position_bias: bool = False
    note: str = ""

    def why_mask_only(self, config: Any) -> str:
        """Return why heads of a model with this config can be gated but not cut out, or ""."""
        return self.mask_only or (self.mask_only_if(config) if self.mask_only_if else "")

    def path(self, config: Any, layer: int) -> str:
        """Return the path of one layer below the encoder."""
        return self.layer.format(layer=layer) if isinstance(self.layer, str) else self.layer(config, layer)


@dataclass(frozen=True)
class AttentionSite:
    """One layer's attention: its heads as the output projection sees them, and the paths of its projections."""

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
        """Return the paths of these roles, a fused projection once."""
        return list(dict.fromkeys(getattr(self, role) for role in roles))

    def slices(self, role: str, heads: Sequence[int], width: int) -> list[int]:
        """Return which rows of the query, key or value projection, or columns of the output projection, are theirs.

        Args:
            role: query, key, value or output.
            heads: numbers of query heads; where several share a key and a value, these are named once.
            width: the head width D.
        """
        grouped = role in ("key", "value")
        size = self.num_heads // self.num_key_value_heads if grouped else 1
        numbers = list(dict.fromkeys(head // size for head in heads))
        place = ROLES.index(role)
        if self.fused == "3HD" and role != "output":
            starts = [(place * self.num_heads + number) * width for number in numbers]
        elif self.fused == "H3D" and role != "output":
            starts = [(3 * number + place) * width for number in numbers]
        else:
            starts = [number * width for number in numbers]
        return [start + step for start in starts for step in range(width)]


def _family(
    layer: str | Callable[[Any, int], str], attention: str, names: Sequence[str], output: str, **sizes: Any
) -> Family:
    """Return a family whose query, key and value are `names` below `attention`."""
    query, key, value = (f"{attention}.{name}".lstrip(".") for name in names)
    return Family(layer, query, key, value, output, **sizes)


_QKV = ("query", "key", "value")
_PROJ = ("q_proj", "k_proj", "v_proj")
_LIN = ("q_lin", "k_lin", "v_lin")
_LAYER = "encoder.layer.{layer}"
_BERT = _family(_LAYER, "attention.self", _QKV, "attention.output.dense")
_XLM = _family(
    "attentions.{layer}",
    "",
    _LIN,
    "out_lin",
    num_layers=_n_layers,
    num_heads=_n_heads,
)
_DECODER_LIKE = _family("layers.{layer}", "self_attn", _PROJ, "self_attn.o_proj")
_CONVOLVED = "a convolution is mixed with its heads"

FAMILIES: dict[str, Family] = {
    "albert": _family(_albert_path, "attention", _QKV, "attention.dense", num_layers=_albert_layers),
    "bert": _BERT,
    "big_bird": replace(_BERT, mask_only_if=_sparse_attention),
    "camembert": _BERT,
    "convbert": _family(
        _LAYER, "attention.self", _QKV, "attention.output.dense", num_heads=_convbert_heads, mask_only=_CONVOLVED
    ),
    "data2vec-text": _BERT,
    "deberta": _family(
        _LAYER,
        "attention.self",
        ("in_proj",) * 3,
        "attention.output.dense",
        fused="H3D",
        beside=("q_bias", "v_bias", "pos_proj", "pos_q_proj"),
        mask_only_if=_talking_heads,
    ),
    "deberta-v2": _family(
        _LAYER,
        "attention.self",
        ("query_proj", "key_proj", "value_proj"),
        "attention.output.dense",
        beside=("pos_key_proj", "pos_query_proj"),
    ),
    "distilbert": _family(
        "transformer.layer.{layer}",
        "attention",
        _LIN,
        "attention.out_lin",
        num_layers=_n_layers,
        num_heads=_n_heads,
    ),
    "electra": _BERT,
    "ernie": _BERT,
    "esm": _BERT,
    "eurobert": replace(_DECODER_LIKE, num_key_value_heads=_num_key_value_heads),
    "flaubert": _XLM,
    "ibert": _BERT,
    "layoutlm": _BERT,
    "megatron-bert": _BERT,
    "mobilebert": _BERT,
    "modernbert": _family("layers.{layer}", "attn", ("Wqkv",) * 3, "attn.Wo", fused="3HD"),
    "mpnet": _family(_LAYER, "attention.attn", ("q", "k", "v"), "attention.attn.o", position_bias=True),
    "multi_head_classifier": _family("layers.{layer}", "attention", _QKV, "attention.output"),
    "nomic_bert": _DECODER_LIKE,
    "nystromformer": replace(
        _BERT, mask_only=_CONVOLVED, note="transformers 5.23 fails on batches in which rows differ in length"
    ),
    "rembert": _BERT,
    "roberta": _BERT,
    "roberta-prelayernorm": _BERT,
    "roformer": _BERT,
    "squeezebert": _family(
        "encoder.layers.{layer}",
        "attention",
        _QKV,
        "post_attention.conv1d",
        channels_first=True,
        mask_only="its projections are grouped convolutions",
    ),
    "xlm": _XLM,
    "xlm-roberta": _BERT,
    "xlm-roberta-xl": _BERT,
    "xmod": _BERT,
}


def pruned_heads(config: Any) -> dict[int, list[int]]:
    """Return the heads that were cut out, by layer, in the numbers of the whole model.

    They are written in the config under the key that transformers 4 used, so that either reads the other's.
    """
    written = getattr(config, "pruned_heads", None) or {}
    return {int(layer): sorted(int(head) for head in heads) for layer, heads in written.items() if heads}


def attention_sites(classifier: PreTrainedModel) -> list[AttentionSite]:
    """Return the attention sites of a transformers classifier (not wrapped by peft), first layer first.

    Heads that were cut out are not counted, and the others are numbered anew.

    Raises:
        ModelError: the family is not in the table, or a path of the table is not in the model.
    """
    return _sites(classifier, pruned_heads(classifier.config))


def whole_sites(classifier: PreTrainedModel) -> list[AttentionSite]:
    """Return the same as if no head had been cut out."""
    return _sites(classifier, {})


def family_of(config: Any) -> Family:
    """Return the row of the table; raise ModelError if the model type has none."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ModelError(
            f"where a '{config.model_type}' model keeps its attention heads is not known here; "
            f"known model types are {', '.join(sorted(FAMILIES))}"
        )
    return family


def _sites(classifier: PreTrainedModel, lost: dict[int, list[int]]) -> list[AttentionSite]:
    config = classifier.config
    family = family_of(config)
    prefix = f"{classifier.base_model_prefix}." if hasattr(classifier, classifier.base_model_prefix) else ""
    modules = dict(classifier.named_modules())
    whole = family.num_heads(config)
    group = whole // family.num_key_value_heads(config) if family.num_key_value_heads else 1
    sites = []
    for layer in range(family.num_layers(config)):
        below = prefix + family.path(config, layer)
        paths = {role: f"{below}.{getattr(family, role)}" for role in ROLES}
        missing = [path for path in paths.values() if path not in modules]
        if missing:
            raise ModelError(f"a '{config.model_type}' model should have {', '.join(missing)}, but this one has not")
        left = whole - len(lost.get(layer, ()))
        sites.append(
            AttentionSite(layer, left, left // group, **paths, channels_first=family.channels_first, fused=family.fused)
        )
    return sites
