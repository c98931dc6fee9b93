"""The explanations of single rows in the page, which `scripts/heads_explanations.js` reads.

N rows, L layers, H heads, S tokens, C labels
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from markupsafe import Markup
from scipy.special import stdtrit

from finetune.report.embedding import embedded
from finetune.runs.explanations import Explanations, RowExplanation
from finetune.runs.results import format_significant

MAX_EFFECTS = 500_000  # effects (rows times heads) in one page; the effects of further rows stay out of it
_MAX_ROWS_PER_HEAD = 5  # that need a head most, and that it hurts most
_LARGEST = 127  # effects in bytes: 0 stands for no head, 1 to 255 for -_LARGEST to _LARGEST
_MIN_ROWS_OF_LABEL = 3
_TABLE_TOKENS = 60  # tokens of a row in the table of explained rows


@dataclass(frozen=True)
class ShownToken:
    """A token in the table of explained rows; the level is -100 to 100, None for special tokens."""

    text: str
    level: int | None
    title: str
    continues: bool


def explanation_elements(explanations: Explanations | None, predictions: pa.Table | None) -> Markup:
    """Return the elements with the explanations; empty if there are none.

    Args:
        predictions: the table of predicted rows, to which the page refers by position.
    """
    if explanations is None or not explanations.rows:
        return Markup("")
    rows = explanations.rows
    effects = np.array([row.head_effects for row in rows], dtype=np.float64)  # (N, L, H)
    targets = sorted({row.target for row in rows})
    number = {target: index for index, target in enumerate(targets)}
    kept = max(1, MAX_EFFECTS // max(effects[0].size, 1))
    content = {
        "scoreName": explanations.score_name,
        "effectMethod": explanations.effect_method,
        "targets": targets,
        "splits": [row.split for row in rows],
        "rows": [row.row for row in rows],
        "rowTargets": [number[row.target] for row in rows],
        "positions": row_positions(rows, predictions),
        "extremes": _extremes(effects),
        "labelEffects": label_effects(effects, np.array([number[row.target] for row in rows])),
        "withEffects": min(kept, len(rows)),
        "explained": [_explained(index, row) for index, row in enumerate(rows) if row.tokens or row.exact_head_effects],
    }
    elements = [
        embedded("row-explanations", json.dumps(content, separators=(",", ":"), allow_nan=False).encode()),
        embedded("row-effects", _packed_effects(effects[:kept])),
        embedded("row-attention", _packed_attention(rows)),
    ]
    return Markup("\n").join(elements)


def row_positions(rows: Sequence[RowExplanation], predictions: pa.Table | None) -> list[int | None]:
    """Return the position of each explained row in the table of predictions; None if it was not predicted."""
    if predictions is None:
        return [None] * len(rows)
    splits = predictions["split"].to_pylist()
    numbers: Sequence[int] = predictions["row"].to_pylist()
    positions = {key: index for index, key in enumerate(zip(splits, numbers, strict=True))}
    return [positions.get((row.split, row.row)) for row in rows]


def label_effects(effects: np.ndarray, targets: np.ndarray) -> dict[str, list[list[float | int]]]:
    """Return for each head and label the mean effect over the rows with that target, with its 95 % interval.

    The interval is that of Student's t. Labels with fewer than three rows are left out.

    Args:
        effects: (N, L, H).
        targets: number of the label of each row, (N,).

    Returns:
        "layer.head" to [label number, mean, half of the width of the interval, rows].
    """
    labels = [(label, targets == label) for label in np.unique(targets)]
    counted = [
        (int(label), effects[mask], int(mask.sum())) for label, mask in labels if mask.sum() >= _MIN_ROWS_OF_LABEL
    ]
    return {
        f"{layer}.{head}": [
            [label, _rounded(mean[layer, head]), _rounded(stdtrit(count - 1, 0.975) * error[layer, head]), count]
            for label, mean, error, count in (
                (label, part.mean(0), part.std(0, ddof=1) / np.sqrt(count), count) for label, part, count in counted
            )
        ]
        for layer, head in _heads(effects)
    }


def shown_tokens(row: RowExplanation, limit: int = _TABLE_TOKENS) -> list[ShownToken]:
    """Return the tokens of an explained row with their attributions, at most `limit` of them."""
    values = row.attributions or []
    largest = max(map(abs, values), default=0.0) or 1.0
    return [
        ShownToken(
            text=token.removeprefix("##") or token,
            level=None if is_special(token, value) else round(100 * value / largest),
            title=f"{value:+.3f}",
            continues=token.startswith("##") and len(token) > 2,
        )
        for token, value in list(zip(row.tokens or [], values, strict=True))[:limit]
    ]


def is_special(token: str, attribution: float) -> bool:
    """Return whether a token is special, such as [CLS] or </s>: these are part of the baseline."""
    return attribution == 0 and len(token) > 2 and (token[0], token[-1]) in {("[", "]"), ("<", ">")}


def gap_text(row: RowExplanation) -> str:
    """Return the score of a row, that of its baseline and the completeness gap, in words."""
    if row.score is None or row.baseline_score is None or row.completeness_gap is None:
        return ""
    difference, gap = row.score - row.baseline_score, row.completeness_gap
    return (
        f"score {row.score:+.3f}, baseline {row.baseline_score:+.3f}; the tokens sum to {difference + gap:+.3f} "
        f"of {difference:+.3f} (gap {format_significant(gap, 2)})"
    )


def _heads(effects: np.ndarray) -> list[tuple[int, int]]:
    """Return the heads that the model has, from effects (N, L, H)."""
    layers, heads = np.nonzero(~np.isnan(effects[0]))
    return list(zip(layers.tolist(), heads.tolist(), strict=True))


def _extremes(effects: np.ndarray) -> dict[str, list[list[list[float | int]]]]:
    """Return for each head the rows that need it most, and the rows that it hurts most, as [index, effect]."""

    def listed(values: np.ndarray, order: np.ndarray) -> list[list[float | int]]:
        return [[int(index), _rounded(values[index])] for index in order[:_MAX_ROWS_PER_HEAD]]

    result = {}
    for layer, head in _heads(effects):
        values = effects[:, layer, head]
        order = np.argsort(values, kind="stable")
        needed, hurt = order[::-1][: (values > 0).sum()], order[: (values < 0).sum()]
        result[f"{layer}.{head}"] = [listed(values, needed), listed(values, hurt)]
    return result


def _explained(index: int, row: RowExplanation) -> Mapping[str, Any]:
    """Return what is known about a row beyond its first-order effects."""
    exact = row.exact_head_effects
    return {
        "index": index,
        "tokens": row.tokens,
        "attributions": row.attributions and [_rounded(value) for value in row.attributions],
        "score": row.score if row.score is None else _rounded(row.score),
        "baseline": row.baseline_score if row.baseline_score is None else _rounded(row.baseline_score),
        "gap": row.completeness_gap if row.completeness_gap is None else _rounded(row.completeness_gap),
        "effects": exact and [[None if value is None else _rounded(value) for value in heads] for heads in exact],
        "attention": list(row.attention),  # heads, in the order of their maps in row-attention
    }


def _packed_effects(effects: np.ndarray) -> bytes:
    """Return the largest effect of each row as 32-bit floats, then all effects relative to it as bytes."""
    largest = np.nan_to_num(np.nanmax(np.abs(effects), axis=(1, 2))).astype("<f4")  # (N,)
    scaled = effects / np.where(largest > 0, largest, 1)[:, None, None]
    packed = np.where(np.isnan(scaled), 0, np.rint(np.nan_to_num(scaled) * _LARGEST) + _LARGEST + 1).astype(np.uint8)
    return bytes(largest.tobytes() + packed.tobytes())


def _packed_attention(rows: Sequence[RowExplanation]) -> bytes:
    """Return the attention maps of all explained rows one after the other: (S, S) bytes each, in percent.

    The first index is the token that is attended to: the columns of a map are more alike than its rows.
    """
    maps = [weights for row in rows for weights in row.attention.values()]
    return b"".join(np.rint(np.array(weights).T / 2.55).astype(np.uint8).tobytes() for weights in maps)


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
