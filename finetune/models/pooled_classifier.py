"""A sequence classifier that reads the mean over tokens, or the first token, in place of its family's own head.

The logits are Linear(dropout(pooled state)). The pooled state is the mean of the last hidden states over all tokens
but padding (`mean`), or the last hidden state of the first token (`cls`). Everything else is the family's transformers
class, such as BertForSequenceClassification.

A copy of this file is saved next to the weights of such a classifier. It needs only torch and transformers:

    AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)

The config.json next to it has a model type of its own, and an unknown layer type. Without `trust_remote_code=True` the
Auto classes of transformers therefore refuse the folder, and so do the family's classes, such as
BertForSequenceClassification, which would compute other logits with a random head.

    B batch, S tokens, E hidden size, C labels
"""

from __future__ import annotations

import inspect
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

MODEL_TYPE = "pooled_classifier"
FAMILY_KEY = "family_model_type"  # in config.json: the model type of the encoder
POOLING_KEY = "finetune_pooling"  # in config.json and in the config of a model: cls or mean
# The first of the layer types in config.json: the configs of transformers raise an error that quotes an unknown one. A
# config without a number of layers, as it is read for the tokenizer alone, does not check them.
_LAYER_TYPES, _LAYERS, _SAVED_LAYERS = "layer_types", "num_hidden_layers", "family_num_hidden_layers"
_NOTICE = f"{MODEL_TYPE}: load it with AutoModelForSequenceClassification and trust_remote_code=True"
_DROPOUT_KEYS = (
    "classifier_dropout", "classifier_dropout_prob", "seq_classif_dropout", "hidden_dropout_prob", "hidden_dropout",
    "dropout",
)  # fmt: skip


def pool(states: Tensor, attention_mask: Tensor | None, pooling: str) -> Tensor:
    """Return the pooled state of each row, (B, E).

    Args:
        states: the last hidden states, (B, S, E).
        attention_mask: (B, S), 1 for a token and 0 for padding; None: no padding.
        pooling: cls or mean.
    """
    if pooling == "cls":
        return states[:, 0]
    if attention_mask is None:
        return states.mean(1)
    mask = attention_mask.unsqueeze(-1).to(states.dtype)  # (B, S, 1)
    dtype = torch.promote_types(states.dtype, torch.float32)
    mean = (states * mask).sum(1, dtype=dtype) / mask.sum(1, dtype=dtype).clamp(min=1)
    return mean.to(states.dtype)


@cache
def pooled_class(family_class: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Return the subclass of a family's sequence classifier that reads pooled states.

    It has the family's class name, because transformers looks up its own tables by it.
    """

    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        family_class.__init__(self, config, *args, **kwargs)
        for name in [name for name, _ in self.named_children() if name != self.base_model_prefix]:
            delattr(self, name)  # the parts of the family's head
        if isinstance(getattr(self.base_model, "pooler", None), nn.Module):
            self.base_model.pooler = nn.Identity()
        self.dropout = nn.Dropout(_dropout(config))
        self.pooled_classifier = nn.Linear(config.hidden_size, config.num_labels)
        self._init_weights(self.pooled_classifier)

    def _init_weights(self: Any, module: nn.Module) -> None:
        if module is getattr(self, "pooled_classifier", None):
            nn.init.normal_(module.weight, std=getattr(self.config, "initializer_range", 0.02))
            nn.init.zeros_(module.bias)
        elif module is not self:  # a family may initialize parts of its own head here
            family_class._init_weights(self, module)

    def forward(
        self: Any, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **inputs: Any
    ) -> SequenceClassifierOutput:
        """Return the logits (B, C) of tokens (B, S), with what else the encoder returns."""
        if inputs.pop("labels", None) is not None:
            raise ValueError("this classifier computes no loss: call it without `labels`, and use its logits")
        output = self.base_model(input_ids=input_ids, attention_mask=attention_mask, **inputs)
        pooled = pool(output[0], attention_mask, getattr(self.config, POOLING_KEY))
        return SequenceClassifierOutput(
            logits=self.pooled_classifier(self.dropout(pooled)),
            hidden_states=getattr(output, "hidden_states", None),
            attentions=getattr(output, "attentions", None),
        )

    def save_pretrained(self: Any, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        family_class.save_pretrained(self, save_directory, *args, **kwargs)
        _write_own_type(Path(save_directory))

    forward.__signature__ = inspect.signature(family_class.forward)  # type: ignore[attr-defined]  # others read it
    methods = {"__init__": __init__, "_init_weights": _init_weights, "forward": forward}
    names = {
        "__module__": family_class.__module__,
        "__qualname__": family_class.__qualname__,
        "__doc__": family_class.__doc__,
    }
    return type(family_class.__name__, (family_class,), {**methods, "save_pretrained": save_pretrained, **names})


def _dropout(config: Any) -> float:
    """Return the dropout probability of the classification head by the family's config."""
    values = [getattr(config, key, None) for key in _DROPOUT_KEYS]
    return next((float(value) for value in values if isinstance(value, int | float)), 0.0)


def _write_own_type(folder: Path) -> None:
    """Give a saved classifier its own model type, and put this file next to it."""
    file = folder / "config.json"
    entries = json.loads(file.read_text(encoding="utf-8"))
    module = Path(__file__).stem
    entries |= {
        "architectures": [PooledClassifier.__name__],
        "model_type": MODEL_TYPE,
        FAMILY_KEY: entries["model_type"],
        _LAYER_TYPES: [_NOTICE, *(entries.get(_LAYER_TYPES) or [])],
        "auto_map": {
            "AutoConfig": f"{module}.{PooledConfig.__name__}",
            "AutoModelForSequenceClassification": f"{module}.{PooledClassifier.__name__}",
        },
    }
    if _LAYERS in entries:
        entries[_SAVED_LAYERS] = entries.pop(_LAYERS)
    file.write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    code = Path(__file__).read_text(encoding="utf-8")
    (folder / Path(__file__).name).write_text(code, encoding="utf-8")


class PooledConfig(PreTrainedConfig):
    """The content of config.json; AutoConfig reads it with `trust_remote_code=True`."""

    model_type = MODEL_TYPE

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Return the config, without the entries that make other classes refuse the folder."""
        entries = dict(config_dict)
        layer_types = [name for name in entries.pop(_LAYER_TYPES, None) or [] if name != _NOTICE]
        if layer_types:
            entries[_LAYER_TYPES] = layer_types
        if _SAVED_LAYERS in entries:
            entries[_LAYERS] = entries.pop(_SAVED_LAYERS)
        return super().from_dict(entries, **kwargs)


class PooledClassifier:
    """Loads the classifier for AutoModelForSequenceClassification, with `trust_remote_code=True`."""

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """Do nothing: `save_pretrained` writes this file itself."""

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, config: PooledConfig, **kwargs: Any) -> PreTrainedModel:
        """Return the classifier, an instance of a subclass of its family's class."""
        entries: dict[str, Any] = config.to_dict()
        if entries.get("pruned_heads") or entries.get("feed_forward_sizes"):
            raise ValueError("parts of this classifier were pruned; open it with finetune")
        for key in ("auto_map", "architectures"):
            entries.pop(key, None)
        config_class = CONFIG_MAPPING[entries.pop(FAMILY_KEY)]
        family_config = config_class.from_dict(entries | {"model_type": config_class.model_type})
        family_class = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[config_class]
        model: PreTrainedModel = pooled_class(family_class).from_pretrained(name, *args, config=family_config, **kwargs)
        return model
