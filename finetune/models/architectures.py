"""The table of supported model families: everything that differs between BERT, DeBERTa, XLM and the others.

To add a family:

1. Print a small model, `print(AutoModelForSequenceClassification.from_config(config))`, and open its `modeling_*.py` in
   transformers.
2. Add a row to `FAMILIES` below. The columns are the attributes of `Family` in `family.py`, which say where to find
   each value. Most families differ from BERT in one or two columns: `replace(_BERT, ...)`.
3. Run `tests/models`. The tests compare the columns with the model, gates with zeroed columns, and the pruned model
   with gates of 0. If the config has other keys than BERT's, add a small one to `CONFIGS` in
   `tests/support/families.py`.
4. Add the family to the list in `finetune/docs/models.md`.

A model type that is not in the table is rejected by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from finetune.errors import ModelError
from finetune.models.family import Family, FeedForward

if TYPE_CHECKING:  # `finetune check` reads the table without torch
    from torch import nn
    from transformers import PreTrainedModel

# Names under which attention modules store their number of heads; head pruning updates those that exist.
HEAD_COUNT_ATTRIBUTES = ("num_attention_heads", "n_heads", "num_heads")
# Config entries that count layers; a config.json with an absurdly large one is rejected.
LAYER_COUNT_KEYS = ("num_hidden_layers", "n_layers", "num_hidden_groups", "inner_group_num", "num_feedforward_networks")

_num_key_value_heads = attrgetter("num_key_value_heads")
_n_layers, _n_heads = attrgetter("n_layers"), attrgetter("n_heads")


def _up_to_padding_id(config: Any) -> int:
    return config.pad_token_id + 1 if isinstance(config.pad_token_id, int) else 0


# --- Functions of the config that single families need ---


def _albert_num_layers(config: Any) -> int:
    return int(config.num_hidden_layers * config.inner_group_num)


def _albert_layer(config: Any, layer: int) -> str:
    """ALBERT shares layers within groups: the same module runs as several layers."""
    block, inner = divmod(layer, config.inner_group_num)
    group = int(block / (config.num_hidden_layers / config.num_hidden_groups))
    return f"encoder.albert_layer_groups.{group}.albert_layers.{inner}"


def _convbert_num_heads(config: Any) -> int:
    """ConvBERT's output projection receives as many convolution heads as attention heads, after them."""
    return 2 * max(1, int(config.num_attention_heads // config.head_ratio))


def _esm_reserved_positions(config: Any) -> int:
    return _up_to_padding_id(config) if config.position_embedding_type == "absolute" else 0


def _mpnet_reserved_positions(config: Any) -> int:
    return 2  # MPNet's padding id is always 1


def _big_bird_sparse_attention(config: Any) -> str:
    if config.attention_type == "original_full":
        return ""
    return (
        f"attention_type '{config.attention_type}' chooses at random, by head number, which tokens a head attends to; "
        'write "attention_type": "original_full" in its config.json'
    )


def _big_bird_after_attention(config: Any) -> str:
    return "" if _big_bird_not_packed(config) else "attention.output"


def _big_bird_not_packed(config: Any) -> str:
    # Nothing may be tried on short inputs: BigBird then switches to full attention permanently.
    if config.attention_type == "original_full":
        return ""
    return f"attention_type '{config.attention_type}' computes blocks of padded rows"


def _big_bird_not_exportable(config: Any, max_length: int) -> str:
    # Up to this length BigBird uses full attention; see BigBirdModel.forward in transformers.
    longest = (5 + 2 * config.num_random_blocks) * config.block_size
    if config.attention_type == "original_full" or max_length <= longest:
        return ""
    return (
        f"above {longest} tokens its attention_type '{config.attention_type}' chooses at random which tokens attend to "
        f"which; train with data.max_length {longest} or less"
    )


def _albert_after_output(attention: Any, states: Any, output: Any) -> Any:
    return attention.LayerNorm(states + attention.output_dropout(output))


def _modernbert_after_output(attention: Any, states: Any, output: Any) -> Any:
    return attention.out_drop(output)


def _ibert_quantized(config: Any) -> str:
    return "quant_mode rounds weights by their range, which pruning would change" if config.quant_mode else ""


def _convbert_grouped_neurons(config: Any) -> str:
    return "its projections are in groups (num_groups)" if config.num_groups > 1 else ""


def _mobilebert_stacked_networks(config: Any) -> str:
    return "its layers have several feed-forward networks, one after the other"


def _squeezebert_grouped_neurons(config: Any) -> str:
    return "its projections are grouped convolutions"


def _toy_no_neurons(config: Any) -> str:
    return "its layers have no feed-forward network"


def _deberta_talking_heads(config: Any) -> str:
    return "talking_head mixes the heads with one another" if getattr(config, "talking_head", False) else ""


def _family(
    layer: str | Callable[[Any, int], str], attention: str, names: Sequence[str], output: str, **columns: Any
) -> Family:
    """Return a row whose query, key and value projections are `names` below `attention`."""
    query, key, value = (f"{attention}.{name}".lstrip(".") for name in names)
    return Family(layer, query, key, value, output, **columns)


# --- The table ---

_QKV = ("query", "key", "value")
_LIN = ("q_lin", "k_lin", "v_lin")
_LAYER = "encoder.layer.{layer}"
_OUTPUT = "attention.output.dense"

_BERT = _family(_LAYER, "attention.self", _QKV, _OUTPUT, after_attention="attention.output")
_ROBERTA = replace(_BERT, reserved_positions=_up_to_padding_id)
_XLM = _family(
    "attentions.{layer}", "", _LIN, "out_lin",
    num_layers=_n_layers, num_heads=_n_heads, embedding_projection="layer_norm_emb",
    feed_forward=FeedForward(("lin1",), "lin2", layer="ffns.{layer}"),
)  # fmt: skip
_LLAMA = _family(
    "layers.{layer}", "self_attn", ("q_proj", "k_proj", "v_proj"), "self_attn.o_proj",
    feed_forward=FeedForward(("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"),
)  # fmt: skip

FAMILIES: dict[str, Family] = {
    "albert": _family(
        _albert_layer, "attention", _QKV, "attention.dense",
        num_layers=_albert_num_layers, embedding_projection="encoder.embedding_hidden_mapping_in",
        after_attention="attention.LayerNorm", token_types=True,
        after_output=_albert_after_output, feed_forward=FeedForward(("ffn",), "ffn_output"),
    ),
    "bert": _BERT,
    "big_bird": replace(
        _BERT, not_prunable_if=_big_bird_sparse_attention, after_attention=_big_bird_after_attention,
        not_packed=_big_bird_not_packed, not_exportable=_big_bird_not_exportable,
    ),
    "camembert": _ROBERTA,
    "convbert": replace(
        _BERT, num_heads=_convbert_num_heads, not_prunable="a convolution is mixed with the heads",
        embedding_projection="embeddings_project", feed_forward=FeedForward(not_prunable=_convbert_grouped_neurons),
    ),
    "data2vec-text": _ROBERTA,
    "deberta": _family(
        _LAYER, "attention.self", ("in_proj",) * 3, _OUTPUT,
        fused="H3D", not_prunable_if=_deberta_talking_heads, after_attention="attention.output",
        per_head_weights=("q_bias", "v_bias", "pos_proj", "pos_q_proj"),
        separate_biases={"query": "q_bias", "value": "v_bias"}, autocast=False,
    ),
    "deberta-v2": _family(
        _LAYER, "attention.self", ("query_proj", "key_proj", "value_proj"), _OUTPUT,
        per_head_weights=("pos_key_proj", "pos_query_proj"), after_attention="attention.output",
        embedding_projection="encoder.LayerNorm",  # the norm of the relative position embeddings
    ),
    "distilbert": _family(
        "transformer.layer.{layer}", "attention", _LIN, "attention.out_lin",
        num_layers=_n_layers, num_heads=_n_heads, after_attention="sa_layer_norm",
        feed_forward=FeedForward(("ffn.lin1",), "ffn.lin2"),
    ),
    "electra": replace(_BERT, embedding_projection="embeddings_project"),
    "ernie": _BERT,
    "esm": replace(_BERT, reserved_positions=_esm_reserved_positions),
    "eurobert": replace(_LLAMA, num_key_value_heads=_num_key_value_heads),
    "flaubert": _XLM,
    "ibert": replace(
        _ROBERTA, returns_scales=True, not_prunable_if=_ibert_quantized,
        feed_forward=FeedForward(not_prunable=_ibert_quantized),
    ),
    "layoutlm": _BERT,
    "megatron-bert": _BERT,
    "mobilebert": replace(_BERT, feed_forward=FeedForward(not_prunable=_mobilebert_stacked_networks)),
    "modernbert": _family(
        "layers.{layer}", "attn", ("Wqkv",) * 3, "attn.Wo", fused="3HD", after_attention="mlp_norm",
        after_output=_modernbert_after_output, feed_forward=FeedForward(("mlp.Wi",), "mlp.Wo", fused=2),
    ),
    "mpnet": _family(
        _LAYER, "attention.attn", ("q", "k", "v"), "attention.attn.o",
        shared_position_bias=True, reserved_positions=_mpnet_reserved_positions, after_attention="attention.LayerNorm",
    ),
    "multi_head_classifier": _family(
        "layers.{layer}", "attention", _QKV, "attention.output",
        feed_forward=FeedForward(not_prunable=_toy_no_neurons),
        not_pooled="the own head of a 'multi_head_classifier' model reads the mean over tokens",
    ),
    "nomic_bert": _LLAMA,
    "nystromformer": replace(
        _BERT, not_prunable="a convolution is mixed with the heads",
        note="transformers 5.23 fails on batches in which rows differ in length", token_types=True,
    ),
    "rembert": replace(_BERT, embedding_projection="encoder.embedding_hidden_mapping_in", token_types=True),
    "roberta": _ROBERTA,
    "roberta-prelayernorm": _ROBERTA,
    "roformer": replace(_BERT, embedding_projection="embeddings_project", token_types=True),
    "squeezebert": _family(
        "encoder.layers.{layer}", "attention", _QKV, "post_attention.conv1d",
        channels_first=True, not_prunable="its projections are grouped convolutions", forward_bypasses_hooks=True,
        feed_forward=FeedForward(("intermediate.conv1d",), "output.conv1d", not_prunable=_squeezebert_grouped_neurons),
    ),
    "xlm": _XLM,
    "xlm-roberta": _ROBERTA,
    "xlm-roberta-xl": _ROBERTA,
    "xmod": replace(_ROBERTA, autocast=False),
}  # fmt: skip


def family_of(config: Any) -> Family:
    """Return the row for this config's model type; raise ModelError if the table has none."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ModelError(
            f"model type '{config.model_type}' is not supported; supported model types: {', '.join(sorted(FAMILIES))}"
        )
    return family


def encoder_layers(model: PreTrainedModel, *, first: int = 0) -> list[nn.Module]:
    """Return the modules of the encoder's layers from number `first` on; a module that several layers share, once."""
    config, family = model.config, family_of(model.config)
    paths = dict.fromkeys(family.layer_path(config, layer) for layer in range(first, family.num_layers(config)))
    return [model.base_model.get_submodule(path) for path in paths]
