"""Build a classifier: encoder, classification head, LoRA adapters.

What must be trained and saved besides the adapters is whatever the checkpoint did not hold, as the
loader itself reports; no list of module names is kept here.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from finetune import attention
from finetune.errors import ModelError
from finetune.families import attention_sites
from finetune.freezing import freeze, keep_float32
from finetune.lora import Lora, add_lora, changed_base_weights, projection_weights
from finetune.slicing import classifier_class

_PACKAGE = "package:"


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
        """Return how `from_pretrained` is to load the weights."""
        options = {
            "revision": self.revision,
            "dtype": getattr(torch, self.dtype),
            "use_safetensors": self.use_safetensors,
            "trust_remote_code": self.trust_remote_code,
        }
        return options | ({"attn_implementation": self.attn_implementation} if self.attn_implementation else {})

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


@dataclass(frozen=True)
class Classifier:
    """A sequence classifier with all that is needed to use it.

    Attributes:
        source: None for a model built from a config alone.
        new_parameters: names of those that no checkpoint held.
        changed_base: paths of projections whose weights under the adapters are no longer the checkpoint's.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    source: Source | None
    new_parameters: tuple[str, ...] = ()
    changed_base: tuple[str, ...] = ()

    @property
    def base(self) -> PreTrainedModel:
        """The transformers model, adapters in place."""
        model = self.model.get_base_model() if isinstance(self.model, peft.PeftModel) else self.model
        assert isinstance(model, PreTrainedModel)
        return model

    @property
    def label_names(self) -> list[str]:
        """Label names in the order of their ids."""
        names: dict[int, str] = self.base.config.id2label  # type: ignore[assignment]  # keys are numbers once loaded
        return [names[index] for index in range(len(names))]

    @property
    def problem_type(self) -> str:
        """What the classifier predicts, as transformers names it."""
        return str(self.base.config.problem_type)

    def parameter_counts(self) -> tuple[int, int]:
        """Return (trainable, all) numbers of parameters."""
        sizes = [(p.numel(), p.requires_grad) for p in self.model.parameters()]
        return sum(n for n, trained in sizes if trained), sum(n for n, _ in sizes)


def quiet_libraries() -> None:
    """Keep the libraries' own notices and bars off the terminal; ours say what matters."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # peft asks transformers for a property under its old name; nothing a user could change.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)


def load_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """Return the checkpoint's tokenizer."""
    with loading(source):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source.location(), revision=source.revision, trust_remote_code=source.trust_remote_code
        )
    if tokenizer.pad_token_id is None:
        raise ModelError(f"the tokenizer of '{source.name}' has no padding token; choose an encoder's checkpoint")
    return tokenizer


def checkpoint_labels(source: Source) -> list[str] | None:
    """Return the label names that a fine-tuned checkpoint carries, in the order of its ids; None if it has none."""
    with loading(source):
        config = AutoConfig.from_pretrained(
            source.location(), revision=source.revision, trust_remote_code=source.trust_remote_code
        )
    names = [str(config.id2label[index]) for index in range(len(config.id2label or {}))]
    return None if all(name == f"LABEL_{index}" for index, name in enumerate(names)) else names


def pretrained_classifier(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    *,
    label_names: Sequence[str],
    problem_type: str,
    max_length: int,
    lora: Lora | None = None,
    freeze_embeddings: bool = False,
    freeze_layers: int = 0,
) -> Classifier:
    """Return a classifier on a pretrained encoder; what the checkpoint lacks is new and random.

    Without `lora` all weights are trained, but for the embeddings and the lowest layers where asked.

    Raises:
        ModelError: the checkpoint cannot be found or read, lacks weights of the encoder itself, takes fewer
            tokens than `max_length`, or has no place for an adapter that was asked for.
    """
    labels = _label_config(label_names, problem_type)
    if Path(source.location(), "adapter_config.json").is_file():
        raise ModelError(f"model '{source.name}' is an adapter; write plain weights first with `finetune merge`")
    with loading(source):
        config = AutoConfig.from_pretrained(
            source.location(), revision=source.revision, trust_remote_code=source.trust_remote_code
        )
        model, info = classifier_class(config).from_pretrained(
            source.location(),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **source.loading_options(),
            **labels,
        )
    new = new_parameters(info)
    refuse_foreign(model, new, source)
    _refuse_too_long(model.config, tokenizer, max_length, source.name)
    if lora is None:
        freeze(model, freeze_embeddings=freeze_embeddings, freeze_layers=freeze_layers)
        return Classifier(model, tokenizer, max_length, source, tuple(new))
    keep_float32(model, sorted({name.rpartition(".")[0] for name in new}))
    before = projection_weights(model, attention_sites(model))
    adapted = add_lora(model, lora, new, location=source.location(), revision=source.revision)
    changed = changed_base_weights(model, before)
    return Classifier(adapted, tokenizer, max_length, source, tuple(new), tuple(changed))


def new_classifier(
    model_type: str,
    config_overrides: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    *,
    label_names: Sequence[str],
    problem_type: str,
    max_length: int,
) -> Classifier:
    """Return a classifier built from a config, all its weights new.

    Raises:
        ModelError: the type or one of the overrides is unknown, or the sizes do not fit together.
    """
    attention.register()
    try:
        defaults = AutoConfig.for_model(model_type)
    except ValueError as error:
        raise ModelError(
            f"model.model_type '{model_type}' is unknown to transformers {transformers.__version__}"
        ) from error
    unknown = sorted(key for key in config_overrides if not hasattr(defaults, key))
    if unknown:
        raise ModelError(f"model.config_overrides: a {model_type} config has no {', '.join(unknown)}; remove or rename")
    sizes = {**config_overrides, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    try:
        config = AutoConfig.for_model(model_type, **sizes, **_label_config(label_names, problem_type))
        model = AutoModelForSequenceClassification.from_config(config)
    except (ArithmeticError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"model.config_overrides: a {model_type} cannot be built: {error}") from error
    if not attention_sites(model):
        raise ModelError(f"model.config_overrides: a {model_type} with these sizes has no layer; give it one")
    _refuse_too_long(model.config, tokenizer, max_length, model_type)
    names = tuple(name for name, _ in model.named_parameters())
    return Classifier(model, tokenizer, max_length, None, names)


def _label_config(names: Sequence[str], problem_type: str) -> dict[str, Any]:
    id2label = dict(enumerate(names))
    return {
        "num_labels": len(names),
        "id2label": id2label,
        "label2id": {name: index for index, name in id2label.items()},
        "problem_type": problem_type,
    }


class loading:  # noqa: N801  (used as a function)
    """Turn what goes wrong while a checkpoint is loaded into one clear ModelError."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __enter__(self) -> None:
        attention.register()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError | ValueError | TypeError | KeyError | ImportError | SafetensorError):
            said = " ".join(str(error).split())
            raise ModelError(
                f"cannot load model '{self.source.name}' (revision {self.source.revision}): {said[:300]}; "
                f"{_repair(said)}"
            ) from error


def _repair(said: str) -> str:
    """Return what to do about what transformers or the hub said."""
    if "safetensors" in said:
        return "choose a checkpoint with safetensors, or trust its pickled weights with model.use_safetensors: false"
    if "trust_remote_code" in said:
        return "read that code, then allow it with model.trust_remote_code: true"
    return (
        "give a hub id and revision (and go online or fill the cache), a folder with config.json and weights, "
        "or package:NAME/PATH"
    )


def new_parameters(info: dict[str, Any]) -> list[str]:
    """Return the names of parameters that a checkpoint did not fill, from the loader's own report."""
    return sorted({*info["missing_keys"], *(item[0] for item in info["mismatched_keys"])})


def refuse_foreign(model: PreTrainedModel, new: Sequence[str], source: Source) -> None:
    """Raise ModelError if the encoder's own attention is among the new parameters."""
    for site in attention_sites(model):
        lost = [path for path in site.paths(("query", "key", "value", "output")) if f"{path}.weight" in new]
        if lost:
            raise ModelError(
                f"model '{source.name}' holds no weights for {lost[0]}: it is not a checkpoint of a "
                f"'{model.config.model_type}' encoder, or its sizes differ from its config.json"
            )


def _refuse_too_long(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, max_length: int, name: str) -> None:
    most = min(getattr(config, "max_position_embeddings", None) or max_length, tokenizer.model_max_length)
    if max_length > most:
        raise ModelError(f"data.max_length is {max_length}, but '{name}' takes {most} tokens; lower data.max_length")
