"""Save a classifier, read it back, and prove that it is the same."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedConfig

from finetune.errors import ModelError
from finetune.models.checkpoint_checks import (
    base_checksum,
    keep_activations,
    new_parameters,
    refuse_missing,
    refuse_no_heads,
    refuse_not_finite,
)
from finetune.models.classifier import Classifier
from finetune.models.freezing import keep_float32
from finetune.models.head_pruning import classifier_class
from finetune.models.lora import as_plain_lora, merge_adapters
from finetune.models.precision import attention_in_any_precision, rounding_tolerance
from finetune.models.pretrained import ATTN_IMPLEMENTATIONS, DTYPES, Source, load_config, load_tokenizer, loading
from finetune.runs.json_files import write_text

_ABOUT = "classifier.json"  # beside the weights: what config.json has no place for
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


def with_plain_adapters(classifier: Classifier, texts: Sequence[Sequence[str]], device: torch.device) -> Classifier:
    """Return the classifier with its adapters, in place, made to belong on the checkpoint's own weights.

    Raises:
        ModelError: its logits on a few rows differ afterwards by more than rounding, as `merge_classifier` allows.
    """
    if not classifier.initial:
        return classifier
    assert isinstance(classifier.model, peft.PeftModel)
    expected = logits_of(classifier, texts, device)
    as_plain_lora(classifier.model, classifier.initial)
    plain = replace(classifier, initial={})
    _refuse_difference(logits_of(plain, texts, device), expected, classifier.source, "the rewritten adapter")
    return plain


def save_classifier(classifier: Classifier, folder: Path) -> None:
    """Write the classifier: full weights or adapter, config with labels, tokenizer, and where the base is from.

    Raises:
        ModelError: its adapters do not belong on the checkpoint's own weights; see `with_plain_adapters`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model, base = classifier.model, classifier.base
    if classifier.initial:
        raise ModelError("adapters that changed the weights under them must be rewritten before they are saved")
    if isinstance(model, peft.PeftModel):
        # No look at the hub for the base's vocabulary: embeddings are never changed here.
        model.save_pretrained(str(folder), save_embedding_layers=False)
        base.config.architectures = [type(base).__name__]
        base.config.save_pretrained(folder)
        folder.joinpath("README.md").unlink(missing_ok=True)  # the run folder's own card says more
    else:
        base.save_pretrained(folder)
    classifier.tokenizer.save_pretrained(folder)
    source = classifier.source
    about = {
        "max_length": classifier.max_length,
        "source": source
        and {
            "name": source.name,
            "revision": source.revision,
            "dtype": source.dtype,
            "attn_implementation": source.attn_implementation,
        },
        "base_checksum": classifier.base_checksum,
    }
    write_text(folder / _ABOUT, json.dumps(about, indent=1) + "\n")


@dataclass(frozen=True)
class _About:
    """What classifier.json says."""

    max_length: int
    source: Source | None
    base_checksum: str | None


def _read_about(folder: Path) -> _About:
    """Return what classifier.json says; whether code is run is not for a file of the folder to say."""
    file = folder / _ABOUT
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        held: dict[str, Any] | None = about["source"]
        source = None
        if held is not None:
            names = [held["name"], held["revision"]]
            if not all(isinstance(name, str) for name in names):
                raise ValueError(f"source {names}")
            if held["dtype"] not in DTYPES or held["attn_implementation"] not in ATTN_IMPLEMENTATIONS:
                raise ValueError(f"dtype {held['dtype']}, attn_implementation {held['attn_implementation']}")
            source = Source(names[0], names[1], held["dtype"], held["attn_implementation"])
        max_length, held_checksum = about["max_length"], about.get("base_checksum")
        if type(max_length) is not int or max_length < 1 or not isinstance(held_checksum, str | None):
            raise ValueError(f"max_length {max_length}, base_checksum {held_checksum}")
        earlier = about.get("changed_base")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"{folder} holds no classifier that was saved here ({type(error).__name__}: {error}); "
            "name a run's model folder"
        ) from error
    if earlier:
        raise ModelError(
            f"{file}: this adapter belongs on weights that an earlier version of finetune changed and kept beside it; "
            "train again, or merge it with that version"
        )
    return _About(max_length, source, held_checksum)


def load_classifier(
    folder: Path, *, trust_remote_code: bool = False, use_safetensors: bool = True, base: str | None = None
) -> Classifier:
    """Return the classifier that `save_classifier` wrote, wherever the folder lies now.

    Args:
        trust_remote_code, use_safetensors: whether code and pickled weights of its base are trusted. That is for the
            user to say: nothing in the folder, which may be somebody else's, says it.
        base: where the base of an adapter lies now; None: where it lay.

    Raises:
        ModelError: the folder does not hold one, or its base model cannot be found or has changed.
    """
    about = _read_about(folder)
    source = about.source and replace(
        about.source,
        name=base or about.source.name,
        trust_remote_code=trust_remote_code,
        use_safetensors=use_safetensors,
    )
    here = Source(str(folder)) if source is None else replace(source, name=str(folder), revision="main")
    here = replace(here, use_safetensors=True)  # as `save_classifier` writes them
    tokenizer = load_tokenizer(here)
    config = load_config(here)
    model: nn.Module
    if (folder / _ADAPTER[0]).is_file():
        if source is None or not (folder / _ADAPTER[1]).is_file():
            raise ModelError(f"{folder} holds an adapter without {_ADAPTER[1]} or without its base; name another run")
        model = _load_adapted(folder, source, config, about.base_checksum)
    else:
        base_model, new = _load_plain(here, config)
        refuse_missing(base_model, new, here.name)
        if new:
            raise ModelError(f"{folder} holds no weights of the right size for {new[0]}; save the classifier again")
        model = base_model
    refuse_not_finite(model, str(folder))
    return Classifier(model.eval(), tokenizer, about.max_length, source, base_checksum=about.base_checksum)


def _load_plain(source: Source, config: PreTrainedConfig) -> tuple[Any, list[str]]:
    """Return the classifier that a source holds for this config, and the names of parameters that it lacks."""
    with loading(source):
        model, info = classifier_class(config).from_pretrained(
            source.location(),
            config=config,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # a base may carry another task's head, which the adapter replaces
            **source.loading_options(),
        )
    keep_activations(model)
    refuse_no_heads(model, source.name)
    return model, new_parameters(info)


def _load_adapted(folder: Path, source: Source, config: PreTrainedConfig, held_checksum: str | None) -> nn.Module:
    """Return the adapter in a folder on its base, which must be the one that it was trained on."""
    model, new = _load_plain(source, config)
    with loading(Source(str(folder))):
        adapter = peft.PeftConfig.from_pretrained(str(folder))
    if not isinstance(adapter, peft.LoraConfig) or adapter.megatron_config:
        raise ModelError(f"{folder} holds an adapter that is not LoRA as it is trained here; name another run")
    whole = list(adapter.modules_to_save or ())
    missing = [name for name in new if name.rpartition(".")[0] not in whole]
    refuse_missing(model, missing, source.name)
    if missing:
        raise ModelError(f"neither the adapter in {folder} nor '{source.name}' holds {missing[0]}; name another run")
    found = base_checksum(model, whole)
    if held_checksum is not None and found != held_checksum:
        raise ModelError(
            f"the weights of '{source.name}' (revision {source.revision}) are not those that the adapter in {folder} "
            f"was trained on (checksum {found}, was {held_checksum}): bring these back, or train the adapter again"
        )
    with loading(Source(str(folder))):
        keep_float32(model, whole)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Found missing adapter keys", category=UserWarning)  # told below
            adapted = peft.PeftModel.from_pretrained(model, str(folder))
        with safe_open(folder / _ADAPTER[1], framework="pt") as file:
            odd = sorted(set(file.keys()) ^ peft.get_peft_model_state_dict(adapted, save_embedding_layers=False).keys())
    if odd:  # peft leaves out what it does not know, and draws what is missing at random
        raise ModelError(
            f"{folder / _ADAPTER[1]} and {_ADAPTER[0]} are not of the same adapter: they differ in {odd[0]}"
            f"{f' and {len(odd) - 1} more' if odd[1:] else ''}; copy both from one run again"
        )
    return adapted


def merge_classifier(classifier: Classifier, folder: Path, texts: Sequence[Sequence[str]]) -> float:
    """Write plain weights, adapters merged in, that stock transformers reads; return the largest logit difference.

    The classifier's model is used up. Where heads were cut out of it, `load_classifier`'s class is needed to read it.

    Raises:
        ModelError: peft cannot merge these adapters, or what `from_pretrained` reads back gives logits that differ
            by more than 1e-3 of the largest (float32; lower precisions round a merged weight once more, 3e-2).
    """
    device = torch.device("cpu")
    expected = logits_of(classifier, texts, device)
    model = merge_adapters(classifier.model)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    classifier.tokenizer.save_pretrained(folder)
    source = (
        Source(str(folder))
        if classifier.source is None
        else replace(classifier.source, name=str(folder), revision="main", use_safetensors=True)
    )
    with loading(source):
        plain = classifier_class(model.config).from_pretrained(folder, **source.loading_options())
    found = logits_of(replace(classifier, model=plain), texts, device)
    return _refuse_difference(found, expected, source, "the merged model")


def _refuse_difference(found: Tensor, expected: Tensor, source: Source | None, what: str) -> float:
    """Return the largest difference of two tables of logits (B, C); raise ModelError if it is more than rounding."""
    difference = float((found - expected).abs().max())
    tolerance = 1e-3 if source is None or source.dtype == "float32" else 3e-2
    if not difference <= tolerance * max(1.0, float(expected.abs().max())):
        raise ModelError(f"the logits of {what} differ by {difference:g}; please report it")
    return difference


@torch.no_grad()
def logits_of(classifier: Classifier, texts: Sequence[Sequence[str]], device: torch.device) -> Tensor:
    """Return logits (B, C) of a few rows in evaluation mode and without autocast; each row is a text or a pair."""
    columns = [list(column) for column in zip(*texts, strict=True)]
    inputs = classifier.tokenizer(
        *columns, truncation=True, max_length=classifier.max_length, padding=True, return_tensors="pt"
    )
    model, training = classifier.model, classifier.model.training
    model.to(device).eval()
    with attention_in_any_precision(classifier.base):
        logits: Tensor = model(**{name: tensor.to(device) for name, tensor in inputs.items()}).logits.float().cpu()
    model.train(training)
    return logits


def _weights_in_use(model: nn.Module) -> dict[str, Tensor]:
    """Return all weights but peft's idle copies of the modules that it trains whole."""
    return {name: tensor for name, tensor in model.state_dict().items() if ".original_module." not in name}


def check_reload(
    trained: Classifier, reloaded: Classifier, texts: Sequence[Sequence[str]], device: torch.device
) -> float:
    """Return the largest difference of their logits on a few rows, once all weights are known to be equal.

    Weights are compared to the bit. Logits show what else may differ, such as the config; equal weights at another
    place in memory may be added up in another order, and kernels of accelerators need not repeat to the bit.

    Raises:
        ModelError: a weight is missing or not equal to the bit, or the logits differ by more than rounding in the
            precision of the weights.
    """
    first, second = (_weights_in_use(classifier.model) for classifier in (trained, reloaded))
    odd = sorted(first.keys() ^ second.keys())
    odd += [name for name in first.keys() & second.keys() if not first[name].cpu().equal(second[name].cpu())]
    if odd:
        raise ModelError(f"the saved model differs from the trained one in {', '.join(odd[:3])}; please report it")
    logits = [logits_of(classifier, texts, device) for classifier in (trained, reloaded)]
    difference = float((logits[0] - logits[1]).abs().max())
    if not difference <= rounding_tolerance(trained.model, logits[0]):
        raise ModelError(
            f"the saved model gives other logits than the trained one, by {difference:g}; please report it"
        )
    return difference
