"""What a run must have in common with the one whose checkpoint it goes on from, and what differs.

Whatever changes a weight, a loss or the choice of the best weights matters; where files lie, what is logged, how often
it is saved and what is done after training do not.
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
from finetune.recipe import Recipe

# Sections and keys that change neither the weights nor which of them are best. All others matter, so that a key that
# is new matters until it is listed here. How long a run trains matters too: the learning rate of each step hangs on it.
_FREE_SECTIONS = ("output_dir", "overwrite_output_dir", "checkpoint", "logging", "head_importance")
_FREE_KEYS = {
    "training": ("num_threads", "use_cpu"),  # whether there is an accelerator is a fact of its own, `device`
    "evaluation": ("metrics", "bootstrap_samples", "per_device_eval_batch_size"),
    "model": ("allow_missing_weights",),  # those that are trained are in the checkpoint, the others are compared
    # Rows that are the same may lie elsewhere: they are compared themselves.
    "data": ("test_split", "test_file", "test_rows", "train_rows", "validation_rows"),
}
_LONGEST = 60
_ROWS = 10_000  # hashed at a time


def facts_of_recipe(recipe: Recipe, label_names: Sequence[str]) -> dict[str, Any]:
    """Return what matters of a recipe, defaults written out, as JSON."""
    facts = {key: value for key, value in recipe.model_dump(mode="json").items() if key not in _FREE_SECTIONS}
    for section, keys in _FREE_KEYS.items():
        facts[section] = {key: value for key, value in facts[section].items() if key not in keys}
    facts["task"]["label_names"] = list(label_names)
    facts["evaluation"]["metric_for_best_model"] = recipe.best_metric()
    return facts


def facts_of_material(splits: Mapping[str, EncodedSplit], model: nn.Module) -> dict[str, Any]:
    """Return checksums of what a recipe only names: the rows of each split, and the weights that are not trained."""
    rows = {name: fingerprint(splits[name]) for name in ("train", "validation") if name in splits}
    return {"rows": rows, "frozen_weights": _frozen(model)}


def fingerprint(split: EncodedSplit) -> str:
    """Return a checksum of texts, token ids and labels, in order; the names of files and columns do not count."""
    digest = hashlib.sha256(np.ascontiguousarray(split.labels).tobytes())
    for rows in (split.texts, split.rows):
        for table in rows.with_format("arrow").iter(batch_size=_ROWS):
            for column in table.columns:
                # Through Arrow's own file form: a slice and a copy of the same values give the same bytes.
                digest.update(repr(column.type).encode())
                for values in _values(column):
                    digest.update(values)
    return digest.hexdigest()[:16]


def _values(column: pa.ChunkedArray) -> Iterator[bytes]:
    """Yield the bytes of a column's values, and of the lengths of its texts or lists."""
    for chunk in column.chunks:
        if pa.types.is_list(chunk.type) or pa.types.is_large_list(chunk.type):
            yield np.ascontiguousarray(chunk.value_lengths()).tobytes()
            yield np.ascontiguousarray(chunk.flatten()).tobytes()
        elif pa.types.is_string(chunk.type) or pa.types.is_large_string(chunk.type):
            texts = [(text or "").encode() for text in chunk.to_pylist()]
            yield b",".join(str(len(text)).encode() for text in texts) + b":" + b"".join(texts)
        else:
            yield np.ascontiguousarray(chunk).tobytes()


def _frozen(model: nn.Module) -> str | None:
    """Return a checksum of the parameters that are not trained, None where all are."""
    # peft keeps a copy of each new module as it was drawn, which is never used.
    named = [(name, p) for name, p in model.named_parameters() if ".original_module." not in name]
    frozen = [(name, p) for name, p in named if not p.requires_grad]
    digest = hashlib.sha256()
    for name, parameter in frozen:
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16] if frozen else None


def refuse_differences(folder: Path, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise TrainingError, with each difference on a line, unless the run of a checkpoint is this one."""
    found = list(differences(was, json.loads(json.dumps(now))))
    if was.get("rows") == now.get("rows"):
        found = [line for line in found if not line.startswith("data.")]  # the same rows, found elsewhere
    if found:
        lines = "".join(f"\n  {line}" for line in found)
        raise TrainingError(
            f"checkpoint {folder} is of a run that differs from this one:{lines}\n"
            "set these as they were, or start anew in another output_dir"
        )


def differences(was: Any, now: Any, path: str = "") -> Iterator[str]:
    """Yield what differs in two JSON values: "training.seed: was 1, now 2"."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys((*was, *now)):
            yield from differences(was.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif was != now:
        yield f"{path}: was {_short(was)}, now {_short(now)}"


def _short(value: Any) -> str:
    text = "none" if value is None else json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
