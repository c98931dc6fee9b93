"""`Classifier`: a sequence classifier together with everything that is needed to use it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune.data.long_text import TRUNCATE, LongText
from finetune.errors import DataError
from finetune.models.adapted import is_adapted
from finetune.models.conformal import ConformalScores
from finetune.models.head_gates import heads_off
from finetune.models.inference import Texts, as_columns, batched_logits, text_encoder
from finetune.models.outputs import OutputRules, Prediction
from finetune.models.precision import without_flash_attention
from finetune.models.pretrained import Source
from finetune.models.text_batches import EncodedTexts, TextEncoder
from finetune.models.window_pooling import add_window_pooling

if TYPE_CHECKING:  # it imports peft
    from finetune.models.lora import InitialAdapter

_WINDOW_TEXTS = 8192  # texts that are tokenized and sorted by length together


def transformers_model(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model, including adapters but without peft's wrapper."""
    model = model.get_base_model() if is_adapted(model) else model
    assert isinstance(model, PreTrainedModel)
    return model


@dataclass(frozen=True)
class Classifier:
    """A sequence classifier: model, tokenizer, label names.

    Attributes:
        model: the PyTorch model: a transformers classifier, or a `peft.PeftModel` around one if it has adapters. Call
            it with the tokenizer's output; it returns an object with `.logits` (B, C).
        tokenizer: the tokenizer that belongs to the model.
        max_length: largest number of tokens that the model reads at a time.
        source: the checkpoint that was fine-tuned; None if the model was built from a config alone.
        new_parameters: names of the parameters that the checkpoint did not contain.
        base_checksum: checksum of the base weights under the adapters; None without adapters.
        initial: by path, adapters whose initialization (PiSSA, OLoRA) changed the base weights under them.
        notes: what the user should know about how the classifier was built.
        text_columns: names of the one or two text columns of the training data; () if they are unknown.
        thresholds, temperature, conformal: see `OutputRules`.
        long_text: how texts longer than `max_length` tokens are read. With windows, `model` accepts batches of windows
            (data/windows.py) and returns one logit per row.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    source: Source | None
    new_parameters: tuple[str, ...] = ()
    base_checksum: str | None = None
    initial: Mapping[str, InitialAdapter] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    text_columns: tuple[str, ...] = ()
    thresholds: tuple[float | None, ...] | None = None
    temperature: float = 1.0
    conformal: ConformalScores | None = None
    long_text: LongText = TRUNCATE

    def __post_init__(self) -> None:
        """Let the model pool windows; its parts are the same in a copy of the classifier."""
        if self.long_text.windows:
            for model in (self.model, transformers_model(self.model)):  # peft calls forward of the inner one directly
                add_window_pooling(model, self.long_text.window_pooling)

    @property
    def base(self) -> PreTrainedModel:
        """The transformers model, including adapters but without peft's wrapper."""
        return transformers_model(self.model)

    @property
    def label_names(self) -> list[str]:
        """Label names in the order of the logits."""
        names: dict[int, str] = self.base.config.id2label  # type: ignore[assignment]  # loaded keys are integers
        return [names[index] for index in range(len(names))]

    @property
    def problem_type(self) -> str:
        """The kind of task: single_label_classification, multi_label_classification or regression."""
        return str(self.base.config.problem_type)

    @property
    def rules(self) -> OutputRules:
        """How the logits become probabilities and labels."""
        return OutputRules(
            tuple(self.label_names), self.problem_type, self.thresholds, self.temperature, self.conformal
        )

    def predict(
        self,
        texts: Texts,
        *,
        batch_size: int = 32,
        top_k: int | None = None,
        coverage: float | None = None,
        coverage_per_class: bool = False,
        in_scope: float | None = None,
    ) -> list[Prediction]:
        """Return the prediction for each text, or for each pair of texts, in their order.

        Args:
            texts: a list of strings, or a list of pairs of strings for a classifier that was trained on pairs. A text
                longer than `max_length` tokens is read as in training.
            batch_size: texts per forward pass; it changes no prediction except by rounding.
            top_k: number of probabilities in each prediction, highest first; None: all, in the order of the labels.
            coverage: adds prediction sets (`labels`), or intervals for regression, that contain the label with this
                probability for texts like the validation rows, such as 0.9.
            coverage_per_class: whether the coverage must hold for the texts of each label.
            in_scope: adds whether each text looks like the validation rows (`in_scope`), so that this share of such
                texts does, such as 0.95.

        Raises:
            DataError: the texts are neither strings nor pairs of strings, or not what the classifier was trained on,
                `batch_size` or `top_k` is below 1, or the coverage cannot be promised.
        """
        limits = self.rules.limits(coverage, per_class=coverage_per_class, in_scope=in_scope)
        if not len(texts):
            return []
        columns = as_columns(texts)
        if self.text_columns and len(columns) != len(self.text_columns):
            kinds = "texts" if len(columns) == 1 else "pairs of texts"
            expected = " and ".join(self.text_columns)
            raise DataError(f"predict got {kinds}, but the classifier was trained on {expected}; give it those")
        return self.rules.predictions(self.logits(columns, batch_size), top_k=top_k, limits=limits)

    @cached_property
    def encoder(self) -> TextEncoder:
        """The tokenizer in a form that several threads may use."""
        return text_encoder(self.tokenizer, self.max_length, self.long_text)

    def logits(self, columns: list[list[str]], batch_size: int) -> np.ndarray:
        """Return the logits (N, C) of one or two columns of N texts, in float32.

        Raises:
            TrainingError: memory is too small for one text.
        """
        windows = range(0, len(columns[0]), _WINDOW_TEXTS)
        parts = [[column[start : start + _WINDOW_TEXTS] for column in columns] for start in windows]
        return np.concatenate([self.encoded_logits(self.encoder.encode(part), batch_size) for part in parts])

    def encoded_logits(
        self, encoded: EncodedTexts, batch_size: int, on_batch: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Return the logits (N, C) of texts that `encoder` encoded, in float32.

        Args:
            on_batch: called after each batch with its number of texts.

        Raises:
            TrainingError: memory is too small for one text.
        """
        with without_flash_attention(self.base):
            logits = batched_logits(self.model, self.encoder, encoded, batch_size, on_batch)
        return encoded.pool(logits, self.long_text.window_pooling)

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
        """Return the numbers of trainable parameters and of all parameters."""
        sizes = [(p.numel(), p.requires_grad) for p in self.model.parameters()]
        return sum(n for n, trainable in sizes if trainable), sum(n for n, _ in sizes)
