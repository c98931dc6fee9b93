"""Predictions and explanations of single texts with heads switched off: what the page of `finetune demo` shows.

Every call names the heads that are off, and nothing of a call remains in the model, so any number of people can use one
explorer. Gates are hooks on the model while a call runs, so a lock lets one call at a time use it. Predictions and
explanations have models of their own, which share the weights: a prediction never waits for an explanation.

    C labels, L layers, H heads, S tokens
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from finetune.errors import DataError, ModelError
from finetune.heads.explain import (
    TokenAttributions,
    attention_of,
    first_order_head_effects,
    head_effects,
    predicted_targets,
    readable_tokens,
    token_attributions,
)
from finetune.models.attention_sites import all_heads, attention_sites
from finetune.models.classifier import Classifier
from finetune.models.head_gates import head_gates, max_num_heads
from finetune.models.text_batches import EncodedTexts

Head = tuple[int, int]
Heads = frozenset[Head]
_REMEMBERED_TEXTS = 64  # of which the tokens and the logits with all heads are kept


@dataclass(frozen=True)
class TextPrediction:
    """The prediction for a text, or a pair of texts, with all heads and with some of them off.

    Attributes:
        all_heads, heads_off: the probability of each label, (C,); for regression the value, (1,).
        decided_all_heads, decided_heads_off: positions of the predicted labels; () for regression.
        tokens: number of tokens that the model reads.
        truncated: whether the text is longer, so that the model does not read its end.
    """

    all_heads: list[float]
    heads_off: list[float]
    decided_all_heads: list[int]
    decided_heads_off: list[int]
    tokens: int
    truncated: bool


@dataclass(frozen=True)
class TextExplanation:
    """What the prediction for a text depends on.

    Attributes:
        target: position of the label whose score is explained; 0 for regression.
        exact: whether the effects are exact, or estimated to first order.
        effects: the score minus the score without the head, (L, H); None for a head that is off or does not exist.
        tokens: the tokens as readable text, (S,).
        attributions: integrated gradients of the score over the tokens.
    """

    target: int
    exact: bool
    effects: list[list[float | None]]
    tokens: list[str]
    attributions: TokenAttributions


@dataclass(frozen=True)
class TextAttention:
    """The attention of a head: the tokens, and the weight that each (first index) gives to each (S, S)."""

    tokens: list[str]
    weights: list[list[float]]


class _OneAtATime:
    """A classifier, and the lock that a thread holds while it uses it."""

    def __init__(self, classifier: Classifier) -> None:
        self.classifier, self.lock = classifier, threading.Lock()


def _with_same_weights(classifier: Classifier) -> Classifier:
    """Return the classifier with modules and a config of its own, but the same weights in memory."""
    model = classifier.model
    kept = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return replace(classifier, model=copy.deepcopy(model, kept))


class Explorer:
    """A classifier that explains texts with heads switched off."""

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        self.sites = attention_sites(classifier.base)
        self.heads = frozenset(all_heads(self.sites))
        self._predicting, self._explaining = _OneAtATime(classifier), _OneAtATime(_with_same_weights(classifier))
        self._encoded = lru_cache(_REMEMBERED_TEXTS)(self._encode)
        self._all_heads = lru_cache(_REMEMBERED_TEXTS)(self._logits)

    def predict(self, texts: tuple[str, ...], off: Heads = frozenset()) -> TextPrediction:
        """Return the prediction for a text (one item) or a pair (two), with all heads and without those in `off`.

        Raises:
            FinetuneError: a head does not exist, the text has no tokens, or memory is too small for it.
        """
        rules, encoded = self.classifier.rules, self._encoded(texts)
        logits = np.concatenate([self._all_heads(texts), self._logits(texts, off) if off else self._all_heads(texts)])
        probabilities = rules.probabilities(logits)
        decided = self._positions(rules.decisions(probabilities))
        return TextPrediction(
            all_heads=probabilities[0].tolist(),
            heads_off=probabilities[1].tolist(),
            decided_all_heads=decided[0],
            decided_heads_off=decided[1],
            tokens=int(encoded.text_lengths[0]),
            truncated=bool(encoded.truncated),
        )

    def explain(
        self, texts: tuple[str, ...], off: Heads = frozenset(), *, target: int | None = None, exact: bool = True
    ) -> TextExplanation:
        """Return what the prediction depends on, with the heads in `off` switched off.

        Args:
            target: position of the label whose score is explained; None: the most probable one.
            exact: whether each head is switched off in a forward pass of its own; otherwise its effect is estimated
                from one backward pass.

        Raises:
            FinetuneError: as for `predict`, or the model takes no embeddings in place of tokens.
        """
        labels = len(self.classifier.label_names)
        if target is not None and not 0 <= target < labels:
            raise ModelError(f"there is no label {target}; the labels are 0 to {labels - 1}")
        inputs = self._inputs(texts)
        with self._gated(self._explaining, off) as classifier:
            effects_of = head_effects if exact else first_order_head_effects
            with torch.no_grad():
                targets = predicted_targets(classifier.base(**inputs).logits)
            if target is not None:
                targets = torch.full_like(targets, target)
            (effects,) = effects_of(classifier, inputs, targets)
            (attributions,) = token_attributions(classifier, inputs, targets)
        values = [
            [None if np.isnan(value) or (layer, head) in off else float(value) for head, value in enumerate(row)]
            for layer, row in enumerate(effects)
        ]
        return TextExplanation(int(targets[0]), exact, values, self._tokens(texts), attributions)

    def attention(self, texts: tuple[str, ...], head: Head, off: Heads = frozenset()) -> TextAttention:
        """Return the attention of a head over the tokens, with the heads in `off` switched off.

        Raises:
            FinetuneError: as for `predict`, or the model returns no attention weights.
        """
        inputs = self._inputs(texts)
        self._check(off | {head})
        with self._gated(self._explaining, off) as classifier:
            (maps,) = attention_of(classifier, inputs, [head])
        if head not in maps:
            kind = classifier.base.config.model_type
            raise ModelError(f"a '{kind}' model returns no attention weights of single heads")
        return TextAttention(self._tokens(texts), maps[head].round(4).tolist())

    @contextmanager
    def _gated(self, model: _OneAtATime, off: Heads) -> Iterator[Classifier]:
        """Yield a classifier with these heads off; other threads wait until the block ends.

        Raises:
            ModelError: a head does not exist.
        """
        self._check(off)
        classifier = model.classifier
        gates = torch.ones(len(self.sites), max_num_heads(self.sites), device=classifier.base.device)
        for layer, head in off:
            gates[layer, head] = 0
        with model.lock, head_gates(classifier.base, self.sites, gates) if off else nullcontext():
            yield classifier

    def _check(self, heads: Heads) -> None:
        """Raise ModelError for a head that does not exist."""
        if unknown := sorted(heads - self.heads):
            counts = [site.num_heads for site in self.sites]
            layer, head = unknown[0]
            raise ModelError(f"there is no head {layer}.{head}; the heads per layer are {', '.join(map(str, counts))}")

    def _encode(self, texts: tuple[str, ...]) -> EncodedTexts:
        encoded = self.classifier.encoder.encode([[text] for text in texts])
        if not encoded.lengths[0]:
            raise DataError("the text has no tokens; write at least one word")
        return encoded

    def _logits(self, texts: tuple[str, ...], off: Heads = frozenset()) -> np.ndarray:
        """Return the logits (1, C) without padding, so that they do not depend on other texts."""
        encoded = self._encoded(texts)
        with self._gated(self._predicting, off) as classifier:
            return classifier.encoded_logits(encoded, batch_size=1)

    def _positions(self, decisions: np.ndarray) -> list[list[int]]:
        """Return the positions of the predicted labels of each text, from the decisions of `OutputRules`."""
        if self.classifier.problem_type == "regression":
            return [[] for _ in decisions]
        if decisions.ndim == 2:
            return [np.flatnonzero(row).tolist() for row in decisions]
        return [[label] for label in decisions.tolist()]

    def _inputs(self, texts: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """Return the model inputs (1, S).

        Raises:
            DataError: the text has several windows.
        """
        encoded = self._encoded(texts)
        if (windows := int(encoded.window_counts[0])) > 1:
            raise DataError(
                f"the model reads this text in {windows} windows; heads and tokens are explained for texts of at most "
                f"{self.classifier.max_length} tokens: shorten it"
            )
        batch = self.classifier.encoder.batch(encoded, np.arange(1))
        return {name: torch.from_numpy(values).to(self.classifier.base.device) for name, values in batch.items()}

    def _tokens(self, texts: tuple[str, ...]) -> list[str]:
        (tokens,) = readable_tokens(self.classifier, [[text] for text in texts])
        return [token.text for token in tokens]
