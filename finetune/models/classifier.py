"""Build a classifier: encoder, classification head, LoRA adapters.

What must be trained and saved besides the adapters is whatever the checkpoint did not hold, as the
loader itself reports; no list of module names is kept here.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import peft
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from finetune.errors import ModelError
from finetune.models import toy_classifier
from finetune.models.architectures import attention_sites
from finetune.models.checkpoint_checks import (
    and_more,
    base_checksum,
    keep_activations,
    missing_encoder_weights,
    new_parameters,
    refuse_missing,
    refuse_no_heads,
    refuse_not_finite,
    refuse_too_large,
    refuse_too_long,
    refuse_unknown_ids,
    unused_layers,
)
from finetune.models.classification_head import Head, empty_classifier, fit_head
from finetune.models.freezing import freeze, keep_float32
from finetune.models.head_gates import heads_off
from finetune.models.head_pruning import classifier_class
from finetune.models.inference import Prediction, Texts, as_columns, as_predictions, batched_logits
from finetune.models.lora import InitialAdapter, Lora, add_lora, initial_adapters, projection_weights
from finetune.models.precision import attention_in_any_precision
from finetune.models.pretrained import OUTPUTS, Source, check_entries, load_config, loading


@dataclass(frozen=True)
class Classifier:
    """A sequence classifier with all that is needed to use it.

    Attributes:
        source: None for a model built from a config alone.
        new_parameters: names of those that no checkpoint held.
        base_checksum: of the weights under the adapters, as the checkpoint holds them; None without adapters.
        initial: by path, what an initialization of adapters took out of the weights under them.
        notes: what users must know of how it was built.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    source: Source | None
    new_parameters: tuple[str, ...] = ()
    base_checksum: str | None = None
    initial: Mapping[str, InitialAdapter] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

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

    def predict(self, texts: Texts, *, batch_size: int = 32) -> list[Prediction]:
        """Return the prediction for each text, or for each pair of texts, in their order.

        Args:
            texts: a list of strings, or a list of pairs of strings for a classifier that was trained on pairs. A text
                longer than `max_length` tokens is cut, as in training.
            batch_size: texts per forward pass; it changes no prediction except by rounding.

        Raises:
            DataError: the texts are neither strings nor pairs of strings.
        """
        if not len(texts):
            return []
        columns = as_columns(texts)
        with attention_in_any_precision(self.base):
            logits = batched_logits(
                self.model, self.tokenizer, columns, max_length=self.max_length, batch_size=batch_size
            )
        return as_predictions(logits, self.label_names, self.problem_type)

    def heads_off(self, heads: Sequence[tuple[int, int]]) -> AbstractContextManager[None]:
        """Return a context in which these attention heads are off: `with classifier.heads_off([(3, 2)]): ...`.

        See `head_gates.heads_off`.

        Args:
            heads: (layer, head) pairs, both counted from 0.

        Raises:
            ModelError: a layer or head does not exist or is given twice, or the model did not run in the context.
        """
        return heads_off(self.base, heads)

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
    allow_missing_weights: bool = False,
) -> Classifier:
    """Return a classifier on a pretrained encoder; what the checkpoint lacks is new and random.

    Without `lora` all weights are trained, but for the embeddings and the lowest layers where asked, and all are held
    in float32. With it, those of the checkpoint have the dtype of `source`, and what is trained is float32.

    Raises:
        ModelError: the checkpoint cannot be found or read, lacks weights of the encoder itself (unless
            `allow_missing_weights`), holds others than the tokenizer or its config say, takes fewer tokens than
            `max_length`, or has no place for an adapter that was asked for.
    """
    notes = []
    if lora is None and source.dtype != "float32":
        notes.append(
            f"model.dtype {source.dtype} is for weights that are not trained, under adapters; here they are float32. "
            "For faster products set training.mixed_precision: bf16."
        )
        source = replace(source, dtype="float32")
    labels = _label_config(label_names, problem_type)
    model, new, head, more = _load(source, labels, allow_missing_weights=allow_missing_weights)
    refuse_too_long(model.config, tokenizer, max_length, source.name)
    refuse_unknown_ids(model, tokenizer, source.name)
    notes += more
    if lora is None:
        freeze(model, freeze_embeddings=freeze_embeddings, freeze_layers=freeze_layers)
        random = [name for name in missing_encoder_weights(model, new) if not model.get_parameter(name).requires_grad]
        if random:
            raise ModelError(f"model '{source.name}' holds no weights for {random[0]}, which is frozen; train it")
        return Classifier(model, tokenizer, max_length, source, tuple(new), notes=tuple(notes))
    saved = [*new, *head.reordered]  # with the adapter: the base holds it in its own order
    whole = sorted({name.rpartition(".")[0] for name in saved})
    keep_float32(model, whole)
    held, before = base_checksum(model, whole), projection_weights(model, attention_sites(model))
    adapted = add_lora(model, lora, saved, location=source.location(), revision=source.revision)
    initial = initial_adapters(model, before)
    return Classifier(adapted, tokenizer, max_length, source, tuple(new), held, initial, tuple(notes))


def _load(
    source: Source, labels: dict[str, Any], *, allow_missing_weights: bool
) -> tuple[PreTrainedModel, list[str], Head, list[str]]:
    """Return a checkpoint's classifier for these labels, names of new parameters, what became of its head, notes."""
    if Path(source.location(), "adapter_config.json").is_file():
        raise ModelError(f"model '{source.name}' is an adapter; write plain weights first with `finetune merge`")
    config = load_config(source)
    with loading(source):
        wider = empty_classifier(
            config, num_labels=labels["num_labels"] + 1, trust_remote_code=source.trust_remote_code
        )
        refuse_too_large(sum(p.numel() for p in wider.parameters()), source.name)
        model, info = classifier_class(config).from_pretrained(
            source.location(),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **source.loading_options(),
            **OUTPUTS,
            **labels,
        )
        with TemporaryDirectory() as spare:  # a config that cannot be saved is refused now, and not after training
            model.config.save_pretrained(spare)
    keep_activations(model)
    new = new_parameters(info)
    refuse_no_heads(model, source.name)
    missing = missing_encoder_weights(model, new)
    if not allow_missing_weights:
        refuse_missing(model, new, source.name)
    refuse_not_finite(model, source.name)
    head = fit_head(model, wider, config, list(labels["label2id"]), info)
    notes = [note for note in (head.note, unused_layers(model, info)) if note]
    if missing:
        notes.append(f"The checkpoint holds no weights for {and_more(missing)}: drawn at random.")
    return model, sorted({*new, *head.drawn}), head, notes


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
    toy_classifier.register()
    try:
        defaults = AutoConfig.for_model(model_type)
    except ValueError as error:
        raise ModelError(
            f"model.model_type '{model_type}' is unknown to transformers {transformers.__version__}"
        ) from error
    unknown = sorted(key for key in config_overrides if not hasattr(defaults, key))
    if unknown:
        raise ModelError(f"model.config_overrides: a {model_type} config has no {', '.join(unknown)}; remove or rename")
    check_entries(config_overrides, "model.config_overrides")
    sizes = {**config_overrides, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    try:
        config = AutoConfig.for_model(model_type, **sizes, **_label_config(label_names, problem_type))
        empty = empty_classifier(config, num_labels=len(label_names))
        refuse_too_large(sum(p.numel() for p in empty.parameters()), model_type)
        model = AutoModelForSequenceClassification.from_config(config)
    except ModelError:
        raise
    except Exception as error:  # whatever the library's own code makes of sizes that it did not expect
        raise ModelError(
            f"model.config_overrides: a {model_type} cannot be built: {' '.join(str(error).split())[:300]}"
        ) from error
    refuse_no_heads(model, model_type)
    refuse_too_long(model.config, tokenizer, max_length, model_type)
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
