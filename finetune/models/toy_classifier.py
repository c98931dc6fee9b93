"""Multi-head attention written out in its three steps, and a small classifier built on it.

Vaswani et al. 2017, section 3.2, for one head with query Q = X W^Q, key K = X W^K, value V = X W^V:

    1. scores         A = softmax(Q K^T / sqrt(D) + mask)
    2. weighted sum   O = A V
    3. recombination  Y = concat(O_1, ..., O_H) W^O

Two details are easily forgotten and change the result: without 1/sqrt(D) the scores of wide heads saturate the
softmax, and without the mask padding tokens receive weight, so that the output for a sentence depends on the other
sentences in the batch.

    B batch, S tokens, E hidden size, H heads, D head width (key size), C classes
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


def attention_scores(query: Tensor, key: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Step 1: return the attention of each token to every other, (B, H, S, S); every row sums to 1.

    Args:
        query: (B, H, S, D).
        key: (B, H, S, D).
        attention_mask: (B, S), 1 for a token and 0 for padding; None: no padding. Padding gets weight 0.
    """
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if attention_mask is not None:
        scores = scores.masked_fill(attention_mask[:, None, None, :] == 0, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1)


def weighted_sum(scores: Tensor, value: Tensor) -> Tensor:
    """Step 2: return the weighted sum of values per token, (B, H, S, D)."""
    return scores @ value


def split_heads(states: Tensor, num_heads: int) -> Tensor:
    """Reshape (B, S, H * D) to (B, H, S, D)."""
    B, S, width = states.shape  # noqa: N806  (the legend above)
    return states.view(B, S, num_heads, width // num_heads).transpose(1, 2)


def concat_heads(states: Tensor) -> Tensor:
    """Reshape (B, H, S, D) to (B, S, H * D); the recombination by W^O follows as a linear layer."""
    return states.transpose(1, 2).flatten(2)


class MultiHeadAttention(nn.Module):
    """Self-attention with H heads of width D on states of width E; H * D may differ from E."""

    def __init__(self, hidden_size: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(hidden_size, num_heads * head_dim)
        self.key = nn.Linear(hidden_size, num_heads * head_dim)
        self.value = nn.Linear(hidden_size, num_heads * head_dim)
        self.output = nn.Linear(num_heads * head_dim, hidden_size)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return new states (B, S, E) and scores (B, H, S, S)."""
        query = split_heads(self.query(hidden_states), self.num_heads)  # (B, H, S, D)
        key = split_heads(self.key(hidden_states), self.num_heads)
        value = split_heads(self.value(hidden_states), self.num_heads)
        scores = attention_scores(query, key, attention_mask)  # (B, H, S, S)
        mixed = concat_heads(weighted_sum(scores, value))  # (B, S, H * D)
        return self.output(mixed), scores


class MultiHeadClassifierConfig(PreTrainedConfig):
    """Sizes of the small classifier; by default those of the article: two heads of key size 16."""

    model_type = "multi_head_classifier"

    def __init__(
        self,
        vocab_size: int = 100,
        hidden_size: int = 16,
        num_attention_heads: int = 2,
        head_dim: int = 16,
        num_hidden_layers: int = 1,
        intermediate_size: int = 24,
        pad_token_id: int = 0,
        **kwargs: Any,
    ) -> None:
        sizes = (vocab_size, hidden_size, num_attention_heads, head_dim, num_hidden_layers, intermediate_size)
        if not all(isinstance(size, int) and size > 0 for size in sizes):
            raise ValueError(f"sizes must be positive integers, got {sizes}")
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_attention_heads = num_attention_heads
        self.head_dim = head_dim
        self.num_hidden_layers = num_hidden_layers
        self.intermediate_size = intermediate_size
        self.pad_token_id = pad_token_id
        super().__init__(**kwargs)


class _Layer(nn.Module):
    def __init__(self, config: MultiHeadClassifierConfig) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(config.hidden_size, config.num_attention_heads, config.head_dim)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        result: tuple[Tensor, Tensor] = self.attention(hidden_states, attention_mask)
        return result


class MultiHeadClassifier(PreTrainedModel):
    """Embedding, multi-head attention, mean over tokens without padding, dense layer with ReLU, output layer.

    With two exclusive labels there is one output unit z, and the logits are (0, z): their softmax is
    (1 - sigmoid(z), sigmoid(z)), and their cross-entropy is the binary cross-entropy of sigmoid(z).
    Otherwise there is one unit per label.
    """

    config_class = MultiHeadClassifierConfig
    base_model_prefix = "encoder"
    _input_embed_layer = "embedding"

    def __init__(self, config: MultiHeadClassifierConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.binary = config.num_labels == 2 and config.problem_type != "multi_label_classification"
        self.classifier = nn.Linear(config.intermediate_size, 1 if self.binary else int(config.num_labels or 1))
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        # Glorot for linear layers, as is common for networks of this size; with transformers' normal(0, 0.02) the
        # gradients of such a small network would almost vanish.
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.uniform_(module.weight, -0.05, 0.05)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Return logits (B, C), and with `output_attentions` also the scores (B, H, S, S) of each layer.

        Args:
            input_ids: (B, S).
            attention_mask: (B, S), 1 for a token, 0 for padding; None: derived from the padding id.
        """
        if attention_mask is None:
            attention_mask = (input_ids != self.config.pad_token_id).long()
        states = self.embedding(input_ids)  # (B, S, E)
        attentions = []
        for layer in self.layers:
            states, scores = layer(states, attention_mask)
            attentions.append(scores)
        mask = attention_mask.unsqueeze(-1).to(states.dtype)  # (B, S, 1)
        mean = (states * mask).sum(1) / mask.sum(1).clamp(min=1)  # (B, E)
        logits = self.classifier(torch.relu(self.dense(mean)))  # (B, 1) or (B, C)
        if self.binary:
            logits = torch.cat([torch.zeros_like(logits), logits], dim=-1)  # (B, 2)
        return SequenceClassifierOutput(logits=logits, attentions=tuple(attentions) if output_attentions else None)


def register() -> None:
    """Register the small classifier with AutoConfig and AutoModelForSequenceClassification, if it is not yet."""
    AutoConfig.register(MultiHeadClassifierConfig.model_type, MultiHeadClassifierConfig, exist_ok=True)
    AutoModelForSequenceClassification.register(MultiHeadClassifierConfig, MultiHeadClassifier, exist_ok=True)
