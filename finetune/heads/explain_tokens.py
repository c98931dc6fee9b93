"""Which tokens carry the score of a row: integrated gradients over the input embeddings.

B batch, S tokens, E embedding size, K points of the integral
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from finetune.heads.explain_scores import Inputs, in_chunks, predicted_targets, target_scores, token_mask
from finetune.heads.gated_forward import attention_kernel, frozen
from finetune.models.classifier import Classifier
from finetune.models.precision import without_flash_attention

STEPS = 16
MAX_STEPS = 128
TOLERANCE = 0.05  # completeness gap, relative to the score minus the baseline score


@dataclass(frozen=True)
class Token:
    """A token as readable text.

    Attributes:
        text: the characters of the text, preceded by ## if the token continues a word; the name of a special token.
        start, end: position in the text; None for special tokens, and for tokenizers without character positions.
        column: 0 or 1, the text of a pair; None for special tokens.
    """

    text: str
    start: int | None = None
    end: int | None = None
    column: int | None = None


@dataclass(frozen=True)
class TokenAttributions:
    """Integrated gradients of one row.

    Attributes:
        values: share of each token in `score` minus `baseline_score`, (S,), padding not included.
        completeness_gap: sum of the values, minus (`score` - `baseline_score`); 0 for an exact integral.
        steps: points of the integral.
    """

    values: list[float]
    score: float
    baseline_score: float
    completeness_gap: float
    steps: int

    def is_complete(self, tolerance: float) -> bool:
        """Return whether the gap is at most `tolerance` of the difference of the two scores."""
        return abs(self.completeness_gap) <= tolerance * abs(self.score - self.baseline_score)


def token_attributions(
    classifier: Classifier,
    inputs: Inputs,
    targets: Tensor | None = None,
    *,
    steps: int = STEPS,
    max_steps: int = MAX_STEPS,
    baseline: str = "pad",
) -> list[TokenAttributions]:
    """Return the integrated gradients of each row's score (`target_scores`) over its input embeddings.

    The attribution of a token is (x - x') times the integral over a from 0 to 1 of the gradient of the score at
    x' + a (x - x'), summed over the embedding, where x is the token's embedding and x' the baseline (Sundararajan, Taly
    and Yan 2017, equation 1). The integral is a Gauss-Legendre rule. Special tokens and padding are the same in the
    baseline, so their attributions are 0. Computed without autocast, in the precision of the weights.

    Args:
        inputs: a tokenized batch, (B, S) each, as the tokenizer or `tokenized` returns it.
        targets: the label of each row to explain, (B,); None: the predicted one (`predicted_targets`).
        steps: points of the integral.
        max_steps: rows whose completeness gap is above 5 % get twice as many points, again and again, up to this.
        baseline: pad or mask, the token whose embedding replaces every token of the text. A tokenizer without a mask
            token uses pad.
    """
    base = classifier.base
    inputs = {name: tensor.to(base.device) for name, tensor in inputs.items()}
    with frozen(base), without_flash_attention(base), torch.autocast(base.device.type, enabled=False):
        path = _embedding_path(classifier, inputs, baseline)
        with torch.no_grad():
            logits = base(**inputs).logits
            targets = predicted_targets(logits) if targets is None else targets.to(base.device)
            scores = target_scores(logits, targets, classifier.problem_type)
            with _embeddings(base, path.start):
                baseline_logits = base(**inputs).logits
            baseline_scores = target_scores(baseline_logits, targets, classifier.problem_type)
        results: dict[int, TokenAttributions] = {}
        rows = torch.arange(len(targets), device=base.device)
        while len(rows):
            values = _integrated_gradients(classifier, inputs, path, rows, targets, steps)
            for row, row_values in zip(rows.tolist(), values, strict=True):
                results[row] = _row_result(row_values, float(scores[row]), float(baseline_scores[row]), steps)
            rows = rows[[not results[row].is_complete(TOLERANCE) for row in rows.tolist()]]
            steps *= 2
            if steps > max_steps:
                break
    masks = token_mask(inputs).cpu().tolist()
    return [_without_padding(results[row], mask) for row, mask in enumerate(masks)]


def readable_tokens(classifier: Classifier, columns: Sequence[Sequence[str]]) -> list[list[Token]]:
    """Return the tokens of each text, or of each pair of texts, in the order in which the model reads them.

    Args:
        columns: one or two columns of texts.
    """
    tokenizer, fast = classifier.tokenizer, classifier.tokenizer.is_fast
    texts = [list(column) for column in columns]
    encoded = tokenizer(
        *texts, truncation=True, max_length=classifier.max_length, return_offsets_mapping=fast, padding=False
    )
    if not fast:
        return [[_named(tokenizer, token_id) for token_id in ids] for ids in encoded["input_ids"]]
    return [
        _with_spans(
            tokenizer,
            [column[row] for column in texts],
            ids,
            encoded["offset_mapping"][row],
            encoded.sequence_ids(row),
        )
        for row, ids in enumerate(encoded["input_ids"])
    ]


@dataclass(frozen=True)
class _Path:
    """The straight path of the integral: the embeddings (B, S, E) of the baseline, and from there to the text."""

    start: Tensor
    difference: Tensor

    def at(self, rows: Tensor, shares: Tensor) -> Tensor:
        """Return the embeddings (M, S, E) of M rows at these shares (M,) of the path."""
        return self.start[rows] + shares[:, None, None].to(self.start) * self.difference[rows]


@torch.no_grad()
def _embedding_path(classifier: Classifier, inputs: Inputs, baseline: str) -> _Path:
    """Return the path from the baseline to the texts."""
    tokenizer, ids = classifier.tokenizer, inputs["input_ids"]
    baseline_id = tokenizer.mask_token_id if baseline == "mask" else None
    if baseline_id is None:
        baseline_id = tokenizer.pad_token_id
    in_text = {tokenizer.unk_token_id, tokenizer.mask_token_id}
    kept = torch.tensor([i for i in tokenizer.all_special_ids if i not in in_text], device=ids.device)
    is_kept = torch.isin(ids, kept) | ~token_mask(inputs)
    table = classifier.base.get_input_embeddings()
    start, end = (_states(table(tokens)) for tokens in (torch.where(is_kept, ids, baseline_id), ids))
    return _Path(start, end - start)


def _integrated_gradients(
    classifier: Classifier, inputs: Inputs, path: _Path, rows: Tensor, targets: Tensor, steps: int
) -> list[list[float]]:
    """Return the attributions of these rows, with padding."""
    base = classifier.base
    nodes, node_weights = np.polynomial.legendre.leggauss(steps)  # on the interval from -1 to 1
    shares, weights = (torch.tensor(values, device=rows.device) for values in ((nodes + 1) / 2, node_weights / 2))
    total = torch.zeros(len(rows), inputs["input_ids"].shape[1], dtype=torch.float64, device=rows.device)

    def add(numbers: Tensor) -> None:
        """Add these of the (row, point) pairs, which are numbered row by row."""
        positions, points = numbers // steps, numbers % steps
        chosen = rows[positions]
        embeddings = path.at(chosen, shares[points]).requires_grad_()
        with torch.enable_grad(), attention_kernel(rows.device), _embeddings(base, embeddings):
            logits = base(**{name: tensor[chosen] for name, tensor in inputs.items()}).logits
            scores = target_scores(logits, targets[chosen], classifier.problem_type)
        (gradients,) = torch.autograd.grad(scores.sum(), embeddings)
        products = (gradients.double() * path.difference[chosen]).sum(-1)  # (M, S)
        total.index_add_(0, positions, weights[points, None] * products)

    in_chunks(add, len(rows) * steps, inputs)
    values: list[list[float]] = total.tolist()
    return values


@contextmanager
def _embeddings(base: Any, embeddings: Tensor) -> Iterator[None]:
    """Replace the output of the word embeddings in every forward pass inside the block.

    A hook, since not every family accepts `inputs_embeds`, and some read the token ids as well.
    """

    def replace_output(module: Any, args: Any, result: Any) -> Any:
        return embeddings if isinstance(result, Tensor) else (embeddings, *result[1:])  # I-BERT adds a scale

    handle = base.get_input_embeddings().register_forward_hook(replace_output)
    try:
        yield
    finally:
        handle.remove()


def _states(result: Any) -> Tensor:
    """Return the embeddings from what an embedding module returns."""
    states: Tensor = result if isinstance(result, Tensor) else result[0]
    return states


def _row_result(values: list[float], score: float, baseline_score: float, steps: int) -> TokenAttributions:
    return TokenAttributions(values, score, baseline_score, sum(values) - (score - baseline_score), steps)


def _without_padding(result: TokenAttributions, mask: list[bool]) -> TokenAttributions:
    return replace(result, values=[value for value, is_token in zip(result.values, mask, strict=True) if is_token])


def _named(tokenizer: PreTrainedTokenizerBase, token_id: int) -> Token:
    """Return a token by its name in the vocabulary."""
    return Token(str(tokenizer.convert_ids_to_tokens(token_id)))


def _with_spans(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    ids: Sequence[int],
    spans: Sequence[tuple[int, int]],
    columns: Sequence[int | None],
) -> list[Token]:
    """Return the tokens of one row with their positions in its texts."""
    tokens: list[Token] = []
    for token_id, (start, end), column in zip(ids, spans, columns, strict=True):
        if column is None:
            tokens.append(_named(tokenizer, token_id))
            continue
        text = texts[column]
        start += len(text[start:end]) - len(text[start:end].lstrip())  # some tokenizers count the space before a word
        tokens.append(Token(text[start:end].rstrip(), start, end, column))
    continued = [False, *(_continues(texts, first, second) for first, second in pairwise(tokens))]
    return [replace(t, text=f"##{t.text}") if more else t for t, more in zip(tokens, continued, strict=True)]


def _continues(texts: Sequence[str], first: Token, second: Token) -> bool:
    """Return whether a token continues the word of the token before it."""
    if second.column is None or first.column != second.column or first.end != second.start or not second.text:
        return False
    text, start = texts[second.column], second.start or 0
    return start > 0 and text[start - 1].isalnum() and text[start].isalnum()
