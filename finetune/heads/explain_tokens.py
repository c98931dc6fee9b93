"""Which tokens carry the score of a row: integrated gradients over the input embeddings.

B batch, S tokens, E embedding size, K points of the integral
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from finetune.data.windows import WINDOW_COUNTS
from finetune.errors import ModelError
from finetune.heads.explain_scores import Inputs, in_chunks, predicted_targets, target_scores, token_mask
from finetune.heads.gated_forward import attention_kernel, frozen
from finetune.models.classifier import Classifier
from finetune.models.precision import without_flash_attention

STEPS, MAX_STEPS = 12, 108
TOLERANCE = 0.05  # completeness gap, relative to the score minus the baseline score
_ROUNDING = 0.01  # relative to the sum of the absolute attributions: no more points are computed for a smaller gap


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

    def is_complete(self) -> bool:
        """Return whether the gap is at most 5 % of the difference of the two scores.

        Where the attributions nearly cancel, a gap of 1 % of the sum of their absolute values is enough.
        """
        size = max(TOLERANCE * abs(self.score - self.baseline_score), _ROUNDING * sum(map(abs, self.values)))
        return abs(self.completeness_gap) <= size


def token_attributions(
    classifier: Classifier,
    inputs: Inputs,
    targets: Tensor | None = None,
    *,
    steps: int = STEPS,
    max_steps: int = MAX_STEPS,
    baseline: str = "mask",
) -> list[TokenAttributions]:
    """Return the integrated gradients of each row's score (`target_scores`) over its input embeddings.

    The attribution of a token is (x - x') times the integral over a from 0 to 1 of the gradient of the score at
    x' + a (x - x'), summed over the embedding, where x is the token's embedding and x' the baseline (Sundararajan, Taly
    and Yan 2017, equation 1). The integral is a midpoint rule (see `_path_points`). Special tokens and padding are the
    same in the baseline, so their attributions are 0. Autocast to bfloat16 raises the completeness gap by about 0.4 %
    of the difference of the scores (MiniLM on SST-2).

    Args:
        inputs: a tokenized batch, (B, S) each, as the tokenizer or `tokenized` returns it.
        targets: the label of each row to explain, (B,); None: the predicted one (`predicted_targets`).
        steps: points of the integral.
        max_steps: rows whose completeness gap is too large (`TokenAttributions.is_complete`) get three times as many
            points, repeatedly, up to this number.
        baseline: mask or pad, the token whose embedding replaces every token of the text. Encoders have learned what a
            mask token means at any position: an unknown word. Padding they never read, and in some families its
            embedding is zero, where a normalization before the first layer has no derivative. A tokenizer without a
            mask token uses pad.
    """
    base = classifier.base
    if WINDOW_COUNTS in inputs:
        raise ModelError(
            f"tokens are explained for texts that the model reads at once; shorten the text to {classifier.max_length} "
            "tokens"
        )
    inputs = {name: tensor.to(base.device) for name, tensor in inputs.items()}
    with frozen(base), without_flash_attention(base):
        path = _path(classifier, inputs, targets, baseline)
        sums = torch.zeros(inputs["input_ids"].shape, dtype=torch.float64)
        results: dict[int, TokenAttributions] = {}
        rows, new_points = torch.arange(len(sums)), np.ones(steps, dtype=bool)
        while True:
            shares, weights = _path_points(steps)
            sums[rows] += path.weighted_sum(rows, shares[new_points], weights[new_points])
            results |= {row: path.result(row, sums[row] / steps, steps) for row in rows.tolist()}
            rows = rows[[not results[row].is_complete() for row in rows.tolist()]]
            steps, new_points = 3 * steps, np.tile([True, False, True], steps)  # the others are the earlier points
            if not len(rows) or steps > max_steps:
                break
    masks = token_mask(inputs).cpu().tolist()
    return [_without_padding(results[row], mask) for row, mask in enumerate(masks)]


def baseline_token(tokenizer: PreTrainedTokenizerBase, baseline: str = "mask") -> str:
    """Return the token that replaces every token of the text in the baseline, such as [MASK]."""
    mask = tokenizer.mask_token if baseline == "mask" else None
    return str(mask or tokenizer.pad_token)


@dataclass(frozen=True)
class _Path:
    """The straight path of the integral, from the embeddings of the baseline to those of the text.

    Attributes:
        targets: the label of each row to explain, (B,).
        start, difference: the embeddings of the baseline, and what leads from there to the text, (B, S, E).
        scores, baseline_scores: at the end and at the start of the path, (B,).
    """

    classifier: Classifier
    inputs: Inputs
    targets: Tensor
    start: Tensor
    difference: Tensor
    scores: Tensor
    baseline_scores: Tensor

    def weighted_sum(self, rows: Tensor, shares: np.ndarray, weights: np.ndarray) -> Tensor:
        """Return the sum over points of the path of weight times gradient times difference, (rows, S).

        Args:
            shares: the points as shares of the path, (K,).
            weights: their weights, (K,).
        """
        base, device = self.classifier.base, self.start.device
        all_shares = torch.tensor(shares, dtype=torch.float32, device=device)
        all_weights = torch.tensor(weights)
        total = torch.zeros(len(rows), self.start.shape[1], dtype=torch.float64)  # on the CPU: MPS has no float64

        def add(numbers: Tensor) -> None:
            """Add these of the (row, point) pairs, which are numbered row by row."""
            positions, points = numbers // len(shares), numbers % len(shares)
            chosen = rows.to(device)[positions]
            embeddings = self.start[chosen] + all_shares[points, None, None].to(self.start) * self.difference[chosen]
            embeddings.requires_grad_()
            with torch.enable_grad(), attention_kernel(device), _embeddings(base, embeddings):
                logits = base(**{name: tensor[chosen] for name, tensor in self.inputs.items()}).logits
                scores = target_scores(logits, self.targets[chosen], self.classifier.problem_type)
                (gradients,) = torch.autograd.grad(scores.sum(), embeddings)
            products = (gradients.float() * self.difference[chosen].float()).sum(-1).cpu().double()  # (M, S)
            total.index_add_(0, positions.cpu(), all_weights[points.cpu(), None] * products)

        in_chunks(add, len(rows) * len(shares), self.inputs)
        return total

    def result(self, row: int, values: Tensor, steps: int) -> TokenAttributions:
        """Return the attributions of one row, padding included, with its scores."""
        score, baseline_score = float(self.scores[row]), float(self.baseline_scores[row])
        gap = float(values.sum()) - (score - baseline_score)
        return TokenAttributions(values.tolist(), score, baseline_score, gap, steps)


@torch.no_grad()
def _path(classifier: Classifier, inputs: Inputs, targets: Tensor | None, baseline: str) -> _Path:
    """Return the path from the baseline to the texts."""
    base, tokenizer, ids = classifier.base, classifier.tokenizer, inputs["input_ids"]
    baseline_id = torch.tensor(tokenizer.convert_tokens_to_ids(baseline_token(tokenizer, baseline)), device=ids.device)
    in_text = {tokenizer.unk_token_id, tokenizer.mask_token_id}
    kept = torch.tensor([i for i in tokenizer.all_special_ids if i not in in_text], device=ids.device)
    is_kept = torch.isin(ids, kept) | ~token_mask(inputs)
    table = base.get_input_embeddings()
    start, end = (_states(table(tokens)) for tokens in (torch.where(is_kept, ids, baseline_id), ids))
    logits = base(**inputs).logits
    with _embeddings(base, start):
        baseline_logits = base(**inputs).logits
    targets = predicted_targets(logits) if targets is None else targets.to(ids.device)
    scores, baseline_scores = (
        target_scores(values, targets, classifier.problem_type) for values in (logits, baseline_logits)
    )
    return _Path(classifier, inputs, targets, start, end - start, scores, baseline_scores)


def _path_points(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the points of the path, (K,), 0 to 1, and their weights, which sum to about K.

    They are the midpoints u of K equal intervals, mapped to a = u / (2 - u), so that they are closer together near the
    baseline, where the score changes fastest. On SST-2 with MiniLM the score changes most at a = 0.2 and hardly at
    either end. There a midpoint rule is more accurate than a Gauss-Legendre rule: of 40 rows, a gap of at most 5 % had
    78 % with 12 points (even midpoints 55 %, Gauss-Legendre 45 %) and 97 % with 24 (90 %, 80 %).
    """
    midpoints = (np.arange(steps) + 0.5) / steps
    return midpoints / (2 - midpoints), 2 / (2 - midpoints) ** 2


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


def _without_padding(result: TokenAttributions, mask: list[bool]) -> TokenAttributions:
    return replace(result, values=[value for value, is_token in zip(result.values, mask, strict=True) if is_token])
