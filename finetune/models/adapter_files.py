"""The files of a saved adapter, written so that peft, transformers and sentence-transformers read them.

`adapter_config.json` has the task type SEQ_CLS. With it, peft reads every module whose name ends in `classifier` or
`score` from the adapter, whether it was trained or not, and fails if it is missing there.

An adapter of a pooled classifier (`model.pooling`) has a type that peft does not know: on the family's own class, with
its own head, it would silently give other logits.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from finetune.errors import ModelError
from finetune.models.adapted import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from finetune.models.freezing import keep_float32
from finetune.models.pooling import HEAD, pooling_of
from finetune.models.pretrained import Source, model_load_errors
from finetune.recipe.hub_names import hub_id
from finetune.runs.atomic_files import write_text

_HEAD_NAMES = ("classifier", "score")
# The `peft_type` of an adapter of a pooled classifier; other libraries print it when they fail.
_POOLED_TYPE = "LORA of a pooled classifier; open it with finetune, or write plain weights with `finetune merge`"


def trained_modules(model: peft.PeftModel) -> list[str]:
    """Return the names of the modules that were trained in full."""
    config: Any = model.peft_config["default"]
    return list(config.modules_to_save or ())


def save_adapter(model: peft.PeftModel, source: Source, folder: Path) -> None:
    """Write the adapter of a classifier, with its classification head.

    Args:
        source: the base checkpoint. The adapter names its hub id if it has one.
    """
    heads = _head_modules(model.get_base_model())
    config: Any = copy.deepcopy(model.peft_config["default"])
    others = [name for name in trained_modules(model) if not f"{name}.".startswith(_inside(heads))]
    config.modules_to_save = sorted([*heads, *others])
    config.task_type, config.inference_mode = "SEQ_CLS", True
    config.base_model_name_or_path, config.revision = hub_id(source.name) or source.name, source.revision
    weights = {name: weight.contiguous() for name, weight in (_adapter(model) | _heads(model)).items()}
    save_file(weights, folder / ADAPTER_WEIGHTS, {"format": "pt"})
    config.save_pretrained(str(folder))
    if pooling_of(model.get_base_model().config) != HEAD:
        _set_type(folder / ADAPTER_CONFIG, _POOLED_TYPE)


def _set_type(file: Path, peft_type: str) -> None:
    """Set the type of a saved adapter."""
    entries = json.loads(file.read_text(encoding="utf-8"))
    write_text(file, json.dumps(entries | {"peft_type": peft_type}, indent=2, sort_keys=True))


def _head_modules(model: nn.Module) -> list[str]:
    """Return the names of the outermost modules that peft takes for classification heads."""
    heads: list[str] = []
    for name, _ in model.named_modules():
        if name.endswith(_HEAD_NAMES) and not name.startswith(_inside(heads)):
            heads.append(name)
    return heads


def _inside(modules: Sequence[str]) -> tuple[str, ...]:
    """Return the prefixes of everything inside these modules."""
    return tuple(f"{name}." for name in modules)


def _adapter(model: peft.PeftModel) -> dict[str, Tensor]:
    """Return the weights of the adapters and of the modules that were trained in full, by the name in the file.

    peft leaves `.weight` out of the names of DoRA's magnitudes. It reads both names, but transformers does not find
    the magnitudes then, and silently computes without them.
    """
    # Embeddings are never changed here, so peft need not compare the vocabulary with the one on the hub.
    weights: dict[str, Tensor] = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    return {_stored_name(name): weight for name, weight in weights.items()}


def _stored_name(name: str) -> str:
    return f"{name}.weight" if name.endswith("lora_magnitude_vector") else name


def _heads(model: peft.PeftModel) -> dict[str, Tensor]:
    """Return the weights of the classification heads, trained or not, by the name in the file."""
    base = model.get_base_model()
    inside = _inside(_head_modules(base))
    weights = {
        name.replace(".modules_to_save.default", ""): weight
        for name, weight in base.state_dict().items()
        if ".original_module." not in name
    }
    return {f"base_model.model.{name}": weight for name, weight in weights.items() if name.startswith(inside)}


def read_adapter_config(folder: Path, trained: Sequence[str] | None) -> peft.LoraConfig:
    """Return the configuration of a saved adapter.

    Args:
        trained: the modules that were trained in full; None: all that are saved with the adapter.

    Raises:
        ModelError: it is damaged, or of an adapter of another type.
    """
    with model_load_errors(Source(str(folder))):
        entries = peft.PeftConfig.from_json_file(str(folder / ADAPTER_CONFIG))
        if entries.get("peft_type") == _POOLED_TYPE:
            config = peft.PeftConfig.from_peft_type(**entries | {"peft_type": "LORA"})
        else:
            config = peft.PeftConfig.from_pretrained(str(folder))
    if not isinstance(config, peft.LoraConfig) or config.megatron_config:
        raise ModelError(f"{folder} contains an adapter of a type that finetune does not train; name another run")
    if trained is not None:
        config.modules_to_save = list(trained) or None
    return config


def load_adapter(model: Any, config: peft.LoraConfig, folder: Path) -> peft.PeftModel:
    """Return the base model with the saved adapter; `model` is modified.

    Raises:
        ModelError: the adapter's files are damaged or belong to different adapters.
    """
    config.task_type = None  # for a plain `PeftModel`, which passes the inputs on unchanged
    with model_load_errors(Source(str(folder))):
        keep_float32(model, list(config.modules_to_save or ()))
        with warnings.catch_warnings():
            # Missing keys are an error below.
            warnings.filterwarnings("ignore", message="Found missing adapter keys", category=UserWarning)
            adapted = peft.PeftModel.from_pretrained(model, str(folder), config=config)
        with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
            stored = {_stored_name(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    needed, heads = _adapter(adapted).keys(), _heads(adapted).keys()  # earlier versions saved trained heads only
    different = sorted((needed - stored) | (stored - needed - heads))
    if different:  # peft ignores unknown weights and initializes missing ones at random
        more = f" and {len(different) - 1} more" if len(different) > 1 else ""
        raise ModelError(
            f"{folder / ADAPTER_WEIGHTS} and {ADAPTER_CONFIG} belong to different adapters: they differ in "
            f"{different[0]}{more}; copy both from one run again"
        )
    return adapted
