"""The run fingerprint: what a resumed run must have in common with the run that saved the checkpoint.

It contains everything that changes a weight, a loss or the choice of the best weights, but not file locations, logging,
the frequency of checkpoints, and settings of what happens after training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from finetune.data.tokenization import EncodedSplit
from finetune.errors import TrainingError
from finetune.models.pooling import HEAD
from finetune.recipe.schema import Recipe
from finetune.recipe.training_section import TrainingSection

# Sections and keys that change neither the weights nor the choice of the best ones. All others are part of the
# fingerprint, also a new key that is not listed here, and the number of steps, on which the learning rate depends.
_IGNORED_SECTIONS = (
    "seeds",
    "output_dir",
    "overwrite_output_dir",
    "checkpoint",
    "logging",
    "head_importance",
    "outputs",
)
_IGNORED_KEYS = {
    "training": ("num_threads", "use_cpu"),  # the device type is part of the fingerprint, as `device`
    "evaluation": (
        *("metrics", "bootstrap_samples", "per_device_eval_batch_size"),
        *("baselines", "score_training_rows", "label_errors"),
    ),
    # Trained weights are restored, the others have a checksum.
    "model": ("allow_missing_weights", "classifier_init"),
    # The rows have a checksum.
    "data": ("test_split", "test_file", "test_rows", "train_rows", "validation_rows", "split_seed"),
}
# Keys of `training` that earlier versions did not have; they trained as with the default, so that is left out.
_ADDED_KEYS = (
    "ema_decay", "rdrop_alpha", "contrastive_weight", "contrastive_temperature", "label_smoothing_factor",
    "layerwise_lr_decay", "reinit_layers", "pos_weight", "focal_gamma", "lr_scheduler_kwargs", "gradient_checkpointing",
    "padding_free",
)  # fmt: skip
TARGET_SCALING = "target_scaling"  # mean and deviation of standardized targets; earlier versions did not standardize
_MAX_LENGTH = 60  # characters of a value in a message
_ROWS_PER_READ = 10_000


def recipe_fingerprint(recipe: Recipe, label_names: Sequence[str]) -> dict[str, Any]:
    """Return the recipe's part of the fingerprint, with defaults, as JSON."""
    content = {key: value for key, value in recipe.model_dump(mode="json").items() if key not in _IGNORED_SECTIONS}
    for section, keys in _IGNORED_KEYS.items():
        content[section] = {key: value for key, value in content[section].items() if key not in keys}
    if content["model"]["pooling"] == HEAD:  # earlier versions had no other, and did not write it
        del content["model"]["pooling"]
    for section, key in (("evaluation", "best_model_tolerance"), ("data", "label_name_rows")):
        if not content[section][key]:
            del content[section][key]
    for key in _ADDED_KEYS:
        if content["training"][key] == TrainingSection.model_fields[key].default:
            del content["training"][key]
    content["task"]["label_names"] = list(label_names)
    content["evaluation"]["metric_for_best_model"] = recipe.best_metric()
    return content


def trains_on_standardized_targets(checkpoint: Path | None) -> bool:
    """Return whether a regression trains on standardized targets: always, except to resume from an older checkpoint."""
    if checkpoint is None:
        return True
    try:
        return TARGET_SCALING in json.loads((checkpoint / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):  # `load_checkpoint` reports it
        return True


def data_fingerprint(splits: Mapping[str, EncodedSplit], model: nn.Module) -> dict[str, Any]:
    """Return checksums of what the recipe only names: the rows of each split, and the weights that are not trained."""
    rows = {name: split_checksum(splits[name]) for name in ("train", "validation") if name in splits}
    return {"rows": rows, "frozen_weights": _frozen_checksum(model)}


def split_checksum(split: EncodedSplit) -> str:
    """Return a checksum of texts, token ids and labels in their order; names of files and columns are not included."""
    digest = hashlib.sha256(np.ascontiguousarray(split.labels).tobytes())
    for rows in (split.texts, split.rows):
        for table in rows.with_format("arrow").iter(batch_size=_ROWS_PER_READ):
            for column in table.columns:
                # Values and lengths, not Arrow's buffers, which differ between a slice and a copy of the same values.
                digest.update(repr(column.type).encode())
                for values in _value_bytes(column):
                    digest.update(values)
    return digest.hexdigest()[:16]


def _value_bytes(column: pa.ChunkedArray) -> Iterator[bytes]:
    """Yield a column's values as bytes, and the lengths of its texts or lists."""
    for chunk in column.chunks:
        if pa.types.is_list(chunk.type) or pa.types.is_large_list(chunk.type):
            yield np.ascontiguousarray(chunk.value_lengths()).tobytes()
            yield np.ascontiguousarray(chunk.flatten()).tobytes()
        elif pa.types.is_string(chunk.type) or pa.types.is_large_string(chunk.type):
            texts = [(text or "").encode() for text in chunk.to_pylist()]
            yield b",".join(str(len(text)).encode() for text in texts) + b":" + b"".join(texts)
        else:
            yield np.ascontiguousarray(chunk).tobytes()


def _frozen_checksum(model: nn.Module) -> str | None:
    """Return a checksum of the parameters that are not trained, None if all are trained."""
    # peft keeps an unused copy of each new module with its initial random weights.
    named = [(name, p) for name, p in model.named_parameters() if ".original_module." not in name]
    frozen = [(name, p) for name, p in named if not p.requires_grad]
    digest = hashlib.sha256()
    for name, parameter in frozen:
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16] if frozen else None


def check_fingerprint(folder: Path, saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Raise TrainingError, with one line per difference, unless two run fingerprints are equal.

    Args:
        folder: the checkpoint, for the message.
        saved: the fingerprint in the checkpoint.
        current: the fingerprint of this run.
    """
    lines = list(differences(saved, json.loads(json.dumps(current))))
    if saved.get("rows") == current.get("rows"):
        lines = [line for line in lines if not line.startswith("data.")]  # the same rows, read from elsewhere
    if lines:
        listed = "".join(f"\n  {line}" for line in lines)
        raise TrainingError(
            f"checkpoint {folder} is of a run that differs from this one:{listed}\n"
            "restore these settings, or start a new run in another output_dir"
        )


def differences(saved: Any, current: Any, path: str = "") -> Iterator[str]:
    """Yield each difference between two JSON values, such as "training.seed: was 1, now 2"."""
    if isinstance(saved, Mapping) and isinstance(current, Mapping):
        for key in dict.fromkeys((*saved, *current)):
            yield from differences(saved.get(key), current.get(key), f"{path}.{key}" if path else key)
    elif saved != current:
        yield f"{path}: was {_short(saved)}, now {_short(current)}"


def _short(value: Any) -> str:
    text = "none" if value is None else json.dumps(value)
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]}..."
