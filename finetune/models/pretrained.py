"""A pretrained checkpoint: where it is, how it is loaded, its config and its tokenizer.

Everything in a checkpoint's folder was written by somebody else: whatever goes wrong while it is read becomes one
ModelError, and its files decide neither whether code is run nor whether pickled weights are read.
"""

from __future__ import annotations

import errno
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from finetune.errors import FinetuneError, ModelError
from finetune.models import toy_classifier
from finetune.models.architectures import family_of

_PACKAGE = "package:"
DTYPES = ("float32", "bfloat16", "float16")
# Any other name is a repository on the hub whose kernels, which are code, transformers would download and run.
ATTN_IMPLEMENTATIONS = (None, "sdpa", "eager", "flash_attention_2")
_LARGEST_ENTRY = 10_000_000  # above any vocabulary or length; transformers would fill memory before it fails
_MOST_LAYERS = 1000
_LAYER_COUNTS = ("num_hidden_layers", "n_layers", "num_hidden_groups", "inner_group_num", "num_feedforward_networks")
# What a model returns is for the code that calls it to say, and not for a config.json.
OUTPUTS = {"return_dict": True, "output_attentions": False, "output_hidden_states": False}
_MOST_SHOWN = 300  # characters of a library's own message


@dataclass(frozen=True)
class Source:
    """Which checkpoint, and how it is loaded."""

    name: str
    revision: str = "main"
    dtype: str = "float32"
    attn_implementation: str | None = None
    use_safetensors: bool = True
    trust_remote_code: bool = False

    def loading_options(self) -> dict[str, Any]:
        """Return how `from_pretrained` is to load the weights.

        Flash attention, which needs a GPU, is sdpa where there is none: a run that was trained with it can be scored,
        merged and pruned on a CPU, with logits that differ by rounding.
        """
        toy_classifier = self.attn_implementation
        if toy_classifier == "flash_attention_2" and not torch.cuda.is_available():
            toy_classifier = "sdpa"
        options = {
            "revision": self.revision,
            "dtype": getattr(torch, self.dtype),
            "use_safetensors": self.use_safetensors,
            "trust_remote_code": self.trust_remote_code,
        }
        return options | ({"attn_implementation": toy_classifier} if toy_classifier else {})

    def location(self) -> str:
        """Return the hub id or the folder; `package:NAME/PATH` is the folder PATH inside an installed package.

        Raises:
            ModelError: the package is not installed, or has no such folder.
        """
        if not self.name.startswith(_PACKAGE):
            return self.name
        package, _, path = self.name.removeprefix(_PACKAGE).partition("/")
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None:
            name = package.replace("_", "-")
            raise ModelError(f"model '{self.name}': package '{package}' is not installed; run `pip install {name}`")
        if not spec.submodule_search_locations:
            raise ModelError(f"model '{self.name}': '{package}' is a module without folders; name a package")
        folder = Path(spec.submodule_search_locations[0], path)
        if not folder.is_dir():
            raise ModelError(f"model '{self.name}': package '{package}' has no folder '{path}'; correct the path")
        return str(folder)


class loading:  # noqa: N801  (used as a function)
    """Turn what goes wrong while a checkpoint is loaded into one clear ModelError.

    All errors count, for what a damaged file makes of a library's code is not foreseeable, and so does a panic of the
    Rust code of tokenizers, which is no Exception; only running out of a device's memory keeps its own message.
    """

    def __init__(self, source: Source) -> None:
        self.source = source

    def __enter__(self) -> None:
        toy_classifier.register()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FinetuneError | torch.OutOfMemoryError):
            return
        if isinstance(error, Exception) or (error is not None and type(error).__name__ == "PanicException"):
            what, repair = _reason_and_repair(error)
            raise ModelError(
                f"cannot load model '{self.source.name}' (revision {self.source.revision}): {what}; {repair}"
            ) from error


def _reason_and_repair(error: BaseException) -> tuple[str, str]:
    """Return what transformers or the hub reported, and what to do about it."""
    reason = " ".join(str(error).split())
    sought_before_start = isinstance(error, OSError) and error.errno == errno.EINVAL  # in a pickle that was cut
    if isinstance(error, UnpicklingError | EOFError) or "PytorchStreamReader" in reason or sought_before_start:
        return (
            "a pickled weights file is damaged or holds other objects than tensors",
            "download it again, or choose a checkpoint with safetensors",
        )
    if not isinstance(error, OSError | ValueError | ImportError):
        reason = f"{type(error).__name__}: {reason}"  # of a library that did not expect it: the name says more
    shown = reason[:_MOST_SHOWN]
    if "safetensors" in reason.lower() and "header" not in reason.lower():
        return shown, (
            "choose a checkpoint with safetensors, or trust its pickled weights with model.use_safetensors: false"
        )
    if "trust_remote_code" in reason:
        return shown, "read that code, then allow it with model.trust_remote_code: true"
    return shown, (
        "give a hub id and revision (and go online or fill the cache), a folder with intact config.json, tokenizer "
        "and weights, or package:NAME/PATH"
    )


def load_config(source: Source) -> PreTrainedConfig:
    """Return the checkpoint's config.

    Raises:
        ModelError: it cannot be read, an entry is out of range, or the model type is not known here.
    """
    with loading(source):
        _check_config_file(source)
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            source.location(), revision=source.revision, trust_remote_code=source.trust_remote_code, **OUTPUTS
        )
    return config


def _check_config_file(source: Source) -> None:
    """Raise ModelError for an entry of the checkpoint's config.json with which nothing may be built."""
    entries, _ = PreTrainedConfig.get_config_dict(source.location(), revision=source.revision)
    check_entries(entries, f"model '{source.name}': config.json")


def check_entries(entries: Mapping[str, Any], where: str) -> None:
    """Raise ModelError for entries of a config that run code, fill memory, never end, or are not supported."""
    if entries.get("model_type") and "auto_map" not in entries:
        family_of(SimpleNamespace(model_type=str(entries["model_type"])))
    for key in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"):
        if entries.get(key) not in ATTN_IMPLEMENTATIONS:
            raise ModelError(f"{where} has {key} {entries[key]!r}; remove the entry")
    for key in ("quantization_config", "compression_config"):
        if entries.get(key) is not None:
            raise ModelError(
                f"{where} has {key}: its weights are held in a few bits each, which are not trained here; choose the "
                "checkpoint in full precision, or remove the entry if it is that"
            )
    for key, value in entries.items():
        most = _MOST_LAYERS if key in _LAYER_COUNTS else _LARGEST_ENTRY
        if isinstance(value, int) and value > most:
            raise ModelError(f"{where} has {key} {value}, above {most}; correct the entry")
    labels = entries.get("id2label")
    if labels is not None and (
        not isinstance(labels, dict) or {str(key) for key in labels} != {str(index) for index in range(len(labels))}
    ):
        raise ModelError(
            f"{where} has id2label {str(labels)[:80]}; it must map each id, counted from 0, to a name: correct or "
            "remove the entry"
        )


def label_names_of(config: PreTrainedConfig) -> list[str] | None:
    """Return the label names of a fine-tuned checkpoint's config, in the order of its ids; None: it has none."""
    table: dict[int, str] = config.id2label or {}  # type: ignore[assignment]  # keys are numbers once loaded
    names = [str(table[index]) for index in range(len(table))]
    return None if all(name == f"LABEL_{index}" for index, name in enumerate(names)) else names


def checkpoint_labels(source: Source) -> list[str] | None:
    """Return the label names that a fine-tuned checkpoint carries, in the order of its ids; None if it has none."""
    return label_names_of(load_config(source))


def load_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """Return the checkpoint's tokenizer.

    Raises:
        ModelError: it cannot be read, has no padding token, or holds no token but special ones: without its
            vocabulary file transformers makes an empty one, to which each word is unknown.
    """
    with loading(source):
        _check_config_file(source)  # transformers builds the config on its way to the tokenizer
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source.location(), revision=source.revision, trust_remote_code=source.trust_remote_code
        )
        added = {token.content for token in tokenizer.added_tokens_decoder.values()}
        words = tokenizer.get_vocab().keys() - added - set(tokenizer.all_special_tokens)
    if not words:
        raise ModelError(
            f"the tokenizer of '{source.name}' has only special tokens: its vocabulary file (tokenizer.json, "
            "vocab.txt, vocab.json or a SentencePiece model) is missing or empty; put it beside config.json"
        )
    if tokenizer.pad_token_id is None:
        raise ModelError(f"the tokenizer of '{source.name}' has no padding token; choose an encoder's checkpoint")
    longest: object = tokenizer.model_max_length
    if isinstance(longest, bool) or not isinstance(longest, int | float) or longest < 1:
        raise ModelError(
            f"the tokenizer of '{source.name}' has model_max_length {longest!r:.80}, which counts tokens; correct it "
            "in tokenizer_config.json, or remove it"
        )
    inputs: object = tokenizer.model_input_names
    if not isinstance(inputs, list) or not all(isinstance(name, str) for name in inputs) or inputs[:1] != ["input_ids"]:
        raise ModelError(
            f"the tokenizer of '{source.name}' has model_input_names {inputs!r:.80}, which must be names that begin "
            "with input_ids; correct it in tokenizer_config.json, or remove it"
        )
    return tokenizer
