"""How a config lists what was pruned from a model, and the config.json of a pruned classifier. Imports no torch.

`pruned_heads` lists the removed heads of each layer, in the numbering of the unpruned model, under the key of
transformers 4. `feed_forward_sizes` is the number of remaining neurons of each layer that lost some.

Stock transformers knows neither: it would refuse the sizes of the weights, but with `ignore_mismatched_sizes=True` it
would replace the pruned matrices by random ones. A saved pruned classifier therefore has a model type of its own, as a
pooled one does (`pooled_classifier.py`), and the Auto classes refuse it with every option. An unknown layer type makes
the families' classes, such as BertForSequenceClassification, refuse it too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetune.errors import ModelError
from finetune.models.pooling import FAMILY_KEY, LAYER_TYPES, POOLED_MODEL_TYPE, PRUNED_MODEL_TYPE, SAVED_LAYERS
from finetune.runs.atomic_files import write_text
from finetune.runs.pruned_files import FEED_FORWARD_SIZES, PRUNED_HEADS

_LAYERS = "num_hidden_layers"
_NOTICE = f"{PRUNED_MODEL_TYPE}: parts of this model were removed; open it with finetune"
_FIX = "copy config.json from the run again"


def pruned_heads(config: Any) -> dict[int, list[int]]:
    """Return the pruned heads per layer, in the numbering of the unpruned model.

    Raises:
        ModelError: the config's entry is damaged.
    """
    stored = getattr(config, PRUNED_HEADS, None) or {}
    layers = _by_layer(stored, PRUNED_HEADS)
    for heads in layers.values():
        if not isinstance(heads, list | tuple) or not all(_is_count(head) for head in heads):
            raise ModelError(f"the config has {PRUNED_HEADS} {stored!r:.80}; heads are lists of numbers: {_FIX}")
        if len(set(heads)) < len(heads):
            raise ModelError(f"the config has {PRUNED_HEADS} {stored!r:.80}, with a head given twice; {_FIX}")
    return {layer: sorted(heads) for layer, heads in layers.items() if heads}


def feed_forward_sizes(config: Any) -> dict[int, int]:
    """Return the number of feed-forward neurons of the layers that lost some.

    Raises:
        ModelError: the config's entry is damaged.
    """
    stored = getattr(config, FEED_FORWARD_SIZES, None) or {}
    layers = _by_layer(stored, FEED_FORWARD_SIZES)
    if not all(_is_count(size) for size in layers.values()):
        raise ModelError(f"the config has {FEED_FORWARD_SIZES} {stored!r:.80}; sizes are whole numbers from 0: {_FIX}")
    return layers


def is_pruned(config: Any) -> bool:
    """Return whether heads or neurons were removed from a model with this config."""
    return bool(pruned_heads(config) or feed_forward_sizes(config))


def _by_layer(stored: Any, key: str) -> dict[int, Any]:
    """Return the entries of a table by layer, whose numbers are strings in JSON."""
    if not isinstance(stored, dict) or not all(str(layer).isdecimal() for layer in stored):
        raise ModelError(f"the config has {key} {stored!r:.80}; it must map numbers of layers to values: {_FIX}")
    return {int(layer): value for layer, value in stored.items()}


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def write_pruned_type(folder: Path) -> None:
    """Give a saved pruned classifier the model type that stock transformers refuses."""
    file = folder / "config.json"
    entries: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if entries["model_type"] == POOLED_MODEL_TYPE:  # its own code refuses pruned classifiers
        return
    entries |= {
        "model_type": PRUNED_MODEL_TYPE,
        FAMILY_KEY: entries["model_type"],
        LAYER_TYPES: [_NOTICE, *(entries.get(LAYER_TYPES) or [])],
    }
    if _LAYERS in entries:
        entries[SAVED_LAYERS] = entries.pop(_LAYERS)
    write_text(file, json.dumps(entries, indent=2, ensure_ascii=False) + "\n")
