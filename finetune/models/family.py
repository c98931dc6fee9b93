"""What differs between model families: the columns of the table in `architectures.py`. Imports no torch.

B batch, S tokens, E hidden size, H heads, C channels
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

_num_hidden_layers = attrgetter("num_hidden_layers")
_num_attention_heads = attrgetter("num_attention_heads")


def _no_positions(config: Any) -> int:
    return 0


def _output_only(attention: Any, states: Any, output: Any) -> Any:
    return output


@dataclass(frozen=True)
class FeedForward:
    """Where the feed-forward network of a layer is: projections into its neurons, and one out of them.

    Attributes:
        inputs: paths of the projections into the neurons, relative to the layer. A gated network may have two.
        output: path of the projection that receives the neurons.
        fused: how many rows of an input projection belong to one neuron: 2 if a gated network has one projection, with
            the rows of all gates after those of all neurons.
        layer: path of the module in the encoder to which the paths are relative, with `{layer}` for its number; "":
            the layer's own.
        not_prunable: function of the config that returns why neurons cannot be removed, or "" if they can be; None:
            they can be.
    """

    inputs: tuple[str, ...] = ("intermediate.dense",)
    output: str = "output.dense"
    fused: int = 1
    layer: str = ""
    not_prunable: Callable[[Any], str] | None = None

    def why_not_prunable(self, config: Any) -> str:
        """Return why neurons of a model with this config cannot be removed, or "" if they can be."""
        return self.not_prunable(config) if self.not_prunable else ""


@dataclass(frozen=True)
class Family:
    """One row of the table. Module paths are relative to one layer, that of a layer to the encoder (`base_model`).

    Attributes:
        layer: path of a layer, with `{layer}` for its number, or a function of config and number. Look for the
            `ModuleList` of layers in the printed model.
        query, key, value, output: paths of the attention projections. A fused projection is named three times.
        num_layers, num_heads: functions that read the two numbers from the config. Look up their names in the
            family's `configuration_*.py`; num_heads counts what the output projection receives.
        num_key_value_heads: the same for key and value heads if several query heads share one (grouped-query
            attention); None: as many as query heads.
        fused: layout of the rows of a fused query-key-value projection: "3HD" (role, then head) or "H3D" (head, then
            role). See how the attention's forward pass splits its output.
        channels_first: the output projection receives (B, C, S) instead of (B, S, C).
        not_prunable: why heads can be masked but not pruned; "" if they can be pruned. Heads are prunable if each is a
            slice of the projections and nothing else mixes them (no convolution, no map across heads).
        not_prunable_if: the same as a function of the config, for families where it depends on the config.
        per_head_weights: names of further parameters or linear layers next to the query projection whose rows belong
            to heads; pruning slices them too. Some configs may lack some of them.
        after_output: what an attention module with an output projection of its own does after it, as a function of the
            module, the states that the module received, and the projection's output.
        returns_scales: modules return pairs of a tensor and its quantization scale.
        feed_forward: where the neurons of the feed-forward network are.
        separate_biases: role -> name of its bias, if the bias is a parameter next to the projection.
        shared_position_bias: the attention's third argument is one position bias (B, H, S, S) for all layers.
        embedding_projection: path, in the encoder, of a module outside `embeddings` that processes embeddings before
            the first layer (projection or norm); it is frozen together with them. "" if there is none.
        reserved_positions: how many of `max_position_embeddings` no token can use. Families derived from RoBERTa
            number positions from the padding id on; see `create_position_ids_from_input_ids`.
        after_attention: path of the module that receives the states right after attention and treats tokens
            separately; from there the last layer needs only the first token. "" if there is none. May be a function of
            the config.
        not_exportable: function of the config and max_length that returns why the model cannot be exported to ONNX, or
            "" if it can; None: it can.
        not_packed: function of the config that returns why it may not even be tried whether the layers can compute only
            real tokens (padding_free_trial.py), or "" if it may be; None: it may be.
        forward_bypasses_hooks: the model calls `layer.forward(...)` instead of `layer(...)`, so hooks of a layer do
            not run; FSDP then shards the model as one unit.
        not_pooled: why a classifier cannot read the first token or the mean over tokens in place of the family's own
            head (`model.pooling`); "" if it can.
        autocast: whether the family's code in transformers runs under autocast to bf16 and fp16.
        token_types: whether pairs need segment ids that the family's tokenizer does not return by default.
        note: a known problem that is printed before training.
    """

    layer: str | Callable[[Any, int], str]
    query: str
    key: str
    value: str
    output: str
    num_layers: Callable[[Any], int] = _num_hidden_layers
    num_heads: Callable[[Any], int] = _num_attention_heads
    num_key_value_heads: Callable[[Any], int] | None = None
    fused: str = ""
    channels_first: bool = False
    not_prunable: str = ""
    not_prunable_if: Callable[[Any], str] | None = None
    per_head_weights: tuple[str, ...] = ()
    after_output: Callable[[Any, Any, Any], Any] = _output_only
    returns_scales: bool = False
    feed_forward: FeedForward = FeedForward()
    separate_biases: Mapping[str, str] = field(default_factory=dict)
    shared_position_bias: bool = False
    embedding_projection: str = ""
    reserved_positions: Callable[[Any], int] = _no_positions
    after_attention: str | Callable[[Any], str] = ""
    not_packed: Callable[[Any], str] | None = None
    forward_bypasses_hooks: bool = False
    not_exportable: Callable[[Any, int], str] | None = None
    not_pooled: str = ""
    autocast: bool = True
    token_types: bool = False
    note: str = ""

    def layer_path(self, config: Any, layer: int) -> str:
        """Return the path of a layer in the encoder."""
        return self.layer.format(layer=layer) if isinstance(self.layer, str) else self.layer(config, layer)

    def why_not_prunable(self, config: Any) -> str:
        """Return why heads of a model with this config can be masked but not pruned, or "" if they can be pruned."""
        return self.not_prunable or (self.not_prunable_if(config) if self.not_prunable_if else "")

    def why_not_packed(self, config: Any) -> str:
        """Return why layers of a model with this config get padded batches, or "" if real tokens only may be tried."""
        return self.not_packed(config) if self.not_packed else ""

    def why_not_exportable(self, config: Any, max_length: int) -> str:
        """Return why a model with this config and maximum length cannot be exported to ONNX, or "" if it can be."""
        return self.not_exportable(config, max_length) if self.not_exportable else ""

    def after_attention_path(self, config: Any) -> str:
        """Return `after_attention` for this config."""
        return self.after_attention if isinstance(self.after_attention, str) else self.after_attention(config)
