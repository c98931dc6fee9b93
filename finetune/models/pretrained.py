"""A pretrained checkpoint: where it is, how it is loaded, its config and its tokenizer.

Files of a checkpoint are untrusted: any failure while they are read becomes one ModelError, and they never decide
whether code is run or pickled weights are read.
"""

from __future__ import annotations

import errno
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from finetune.errors import FinetuneError, ModelError
from finetune.models import toy_classifier
from finetune.models.architectures import FAMILIES
from finetune.models.checkpoint_config import FOLDER_FIX, check_entries, checkpoint_location, read_checkpoint_json
from finetune.models.pooling import HEAD, POOLING_KEY, choose_pooling, family_entries, set_pooling
from finetune.runs.pruned_files import FEED_FORWARD_SIZES, PRUNED_HEADS

DTYPES = ("float32", "bfloat16", "float16")
# A config.json must not change what a model returns.
OUTPUTS = {"return_dict": True, "output_attentions": False, "output_hidden_states": False}
_MAX_MESSAGE = 300  # characters of a library's message


def quiet_libraries() -> None:
    """Turn off the libraries' notices and progress bars in the terminal; finetune prints its own."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # peft reads a transformers property under its old name; users cannot change that.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)


@dataclass(frozen=True)
class Source:
    """A checkpoint and how it is loaded.

    Attributes:
        name: hub id, folder, or `package:NAME/PATH` for a folder in an installed package.
        revision: branch, tag or commit on the hub.
        dtype: dtype of the loaded weights, one of DTYPES.
        attn_implementation: one of ATTN_IMPLEMENTATIONS; None: the default of transformers.
        use_safetensors: False allows pickled weights.
        trust_remote_code: True allows code from the checkpoint.
        allow_missing_weights: True allows a checkpoint without some of the encoder's weights, which become random.
        pooling: what a new classification head reads: auto, head, cls or mean; see `pooling.choose_pooling`.
    """

    name: str
    revision: str = "main"
    dtype: str = "float32"
    attn_implementation: str | None = None
    use_safetensors: bool = True
    trust_remote_code: bool = False
    allow_missing_weights: bool = False
    pooling: str = "auto"

    def loading_options(self) -> dict[str, Any]:
        """Return the keyword arguments of `from_pretrained`.

        Flash attention needs a GPU and is replaced by sdpa on a machine without one: a run that was trained with it
        can be scored, merged and pruned on a CPU, with logits that are equal up to rounding.
        """
        attention = self.attn_implementation
        if attention == "flash_attention_2" and not torch.cuda.is_available():
            attention = "sdpa"
        options = {
            "revision": self.revision,
            "dtype": getattr(torch, self.dtype),
            "use_safetensors": self.use_safetensors,
            "trust_remote_code": self.trust_remote_code,
        }
        return options | ({"attn_implementation": attention} if attention else {})

    def location(self) -> str:
        """Return the hub id or the folder; `package:NAME/PATH` becomes the folder PATH in an installed package.

        Raises:
            ModelError: the package is not installed, or has no such folder.
        """
        return checkpoint_location(self.name)


@contextmanager
def model_load_errors(source: Source) -> Iterator[None]:
    """Turn any error while a checkpoint is loaded into one ModelError.

    Every type of exception is caught, because a damaged file can cause any error in a library, even a panic in the
    Rust code of tokenizers, which is not an Exception. Only out-of-memory errors of a device pass through.
    """
    toy_classifier.register()
    try:
        yield
    except (FinetuneError, torch.OutOfMemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason, fix = _reason_and_fix(error)
        raise ModelError(f"cannot load model '{source.name}' (revision {source.revision}): {reason}; {fix}") from error


def _reason_and_fix(error: BaseException) -> tuple[str, str]:
    """Return what transformers or the hub reported, and what to do about it."""
    reason = " ".join(str(error).split())
    seek_before_start = isinstance(error, OSError) and error.errno == errno.EINVAL  # in a truncated pickle
    if isinstance(error, UnpicklingError | EOFError) or "PytorchStreamReader" in reason or seek_before_start:
        return (
            "a pickled weights file is damaged or contains objects other than tensors",
            "download it again, or choose a checkpoint with safetensors",
        )
    if not isinstance(error, OSError | ValueError | ImportError):
        reason = f"{type(error).__name__}: {reason}"  # an unexpected error: its type helps
    return reason[:_MAX_MESSAGE], _fix(reason)


def _fix(message: str) -> str:
    """Return what to do about an error with this message."""
    if "safetensors" in message.lower() and "header" not in message.lower():
        return "choose a checkpoint with safetensors, or trust its pickled weights with model.use_safetensors: false"
    if "trust_remote_code" in message:
        return "read that code, then allow it with model.trust_remote_code: true"
    return FOLDER_FIX


def load_config(source: Source) -> PreTrainedConfig:
    """Return the checkpoint's config.

    Raises:
        ModelError: it cannot be read, an entry is out of range, or the model type is not supported.
    """
    with model_load_errors(source):
        entries = _config_entries(source)
        if entries is not None and _has_own_type(entries):
            config: PreTrainedConfig = CONFIG_MAPPING[entries["model_type"]].from_dict(entries, **OUTPUTS)
            return config
        config = AutoConfig.from_pretrained(
            source.location(), revision=source.revision, trust_remote_code=source.trust_remote_code, **OUTPUTS
        )
    set_pooling(config, HEAD)
    return config


def _has_own_type(entries: Mapping[str, Any]) -> bool:
    """Return whether config.json may have a model type that transformers does not know; see `family_entries`."""
    return POOLING_KEY in entries or PRUNED_HEADS in entries or FEED_FORWARD_SIZES in entries


def load_pooling(source: Source) -> tuple[str, str]:
    """Return the pooling of a new classifier on the checkpoint, and the reason if it was chosen automatically.

    Raises:
        ModelError: see `choose_pooling`.
    """
    with model_load_errors(source):
        entries = _config_entries(source) or {}
        read = partial(_read_checkpoint_json, source)
        return choose_pooling(source.pooling, str(entries.get("model_type")), entries, read)


def _read_checkpoint_json(source: Source, file: str) -> object:
    """Return the content of a JSON file of the checkpoint, from the hub if it is there; None if it has no such file."""
    if not Path(source.location()).is_dir():
        cached_file(
            source.location(),
            file,
            revision=source.revision,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    return read_checkpoint_json(source.name, source.revision, file)


def _config_entries(source: Source) -> dict[str, Any] | None:
    """Return the entries of the checkpoint's config.json, as `family_entries` does; an adapter has none.

    Raises:
        ModelError: it has an entry that must not be used.
    """
    folder = Path(source.location())
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        return None
    entries, _ = PreTrainedConfig.get_config_dict(source.location(), revision=source.revision)
    where = f"model '{source.name}': config.json"
    entries = family_entries(entries, where)
    check_entries(entries, where)
    return entries


def label_names_of(config: PreTrainedConfig) -> list[str] | None:
    """Return the label names in a fine-tuned checkpoint's config, in the order of their ids; None: it has none."""
    table: dict[int, str] = config.id2label or {}  # type: ignore[assignment]  # loaded keys are integers
    names = [str(table[index]) for index in range(len(table))]
    return None if all(name == f"LABEL_{index}" for index, name in enumerate(names)) else names


def checkpoint_labels(source: Source) -> list[str] | None:
    """Return the label names of a fine-tuned checkpoint, in the order of their ids; None if it has none."""
    return label_names_of(load_config(source))


def load_tokenizer(source: Source, *, pairs: bool = False) -> PreTrainedTokenizerBase:
    """Return the checkpoint's tokenizer.

    Args:
        pairs: whether it encodes pairs of texts; then it returns segment ids if the model has embeddings of them.

    Raises:
        ModelError: it cannot be read, has no padding token, or has only special tokens: without its vocabulary file
            transformers creates an empty tokenizer, for which every word is unknown.
    """
    with model_load_errors(source):
        entries = _config_entries(source)  # transformers also reads config.json for the tokenizer
        config = {"config": load_config(source)} if entries is not None and _has_own_type(entries) else {}
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source.location(), revision=source.revision, trust_remote_code=source.trust_remote_code, **config
        )
        added = {token.content for token in tokenizer.added_tokens_decoder.values()}
        words = tokenizer.get_vocab().keys() - added - set(tokenizer.all_special_tokens)
    if not words:
        raise ModelError(
            f"the tokenizer of '{source.name}' has only special tokens: its vocabulary file (tokenizer.json, "
            "vocab.txt, vocab.json or a SentencePiece model) is missing or empty; put it next to config.json"
        )
    if tokenizer.pad_token_id is None:
        raise ModelError(f"the tokenizer of '{source.name}' has no padding token; choose an encoder's checkpoint")
    for key, (is_valid, rule) in _TOKENIZER_ENTRIES.items():
        value: object = getattr(tokenizer, key)
        if not is_valid(value):
            raise ModelError(
                f"the tokenizer of '{source.name}' has {key} {value!r:.80}, which must be {rule}; correct it in "
                "tokenizer_config.json, or remove it"
            )
    model_type = str((entries or {}).get("model_type"))
    if pairs and model_type in FAMILIES and FAMILIES[model_type].token_types:
        tokenizer.model_input_names = list(dict.fromkeys([*tokenizer.model_input_names, "token_type_ids"]))
    return tokenizer


def _is_positive_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 1


def _is_input_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value) and value[:1] == ["input_ids"]


# Entry of tokenizer_config.json -> whether a value is valid, and the rule in words.
_TOKENIZER_ENTRIES: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "model_max_length": (_is_positive_number, "a positive number of tokens"),
    "model_input_names": (_is_input_names, "a list of names that starts with input_ids"),
}
