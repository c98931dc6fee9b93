"""Explanations of single rows, as stored in `explanations.parquet`.

The file contains the tokens of texts: it is not published.

L layers, H heads (of the layer with the most heads), S tokens
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from finetune.runs.atomic_files import atomic_file
from finetune.runs.json_files import damaged_file, read_bytes
from finetune.runs.run_folder import RunFolder

HeadEffects = list[list[float | None]]
_METADATA = b"finetune"
_EFFECTS = pa.list_(pa.list_(pa.float32()))
_COLUMNS = pa.schema(
    {
        "split": pa.string(),
        "row": pa.int64(),
        "target": pa.string(),
        "head_effects": _EFFECTS,
        "exact_head_effects": _EFFECTS,
        "tokens": pa.list_(pa.string()),
        "attributions": pa.list_(pa.float32()),
        "score": pa.float32(),
        "baseline_score": pa.float32(),
        "completeness_gap": pa.float32(),
        "attention": pa.map_(pa.string(), pa.binary()),  # "layer.head" to S * S bytes, one token after the other
    }
)


@dataclass(frozen=True)
class RowExplanation:
    """What the classifier's score of one row depends on. Everything after `head_effects` is None for most rows.

    Attributes:
        split, row: the values of these columns in `predictions.parquet`, which identify the row there.
        target: the label whose score is explained; "" for regression.
        head_effects: first-order estimate of the score with all heads minus the score without the head, (L, H); None
            where a layer lacks the head.
        tokens: the tokens as readable text, special tokens included, (S,).
        attributions: share of each token in `score` minus `baseline_score`, (S,).
        score: the score with all heads.
        baseline_score: the score with every token but the special ones replaced by the baseline.
        completeness_gap: sum of the attributions, minus (`score` - `baseline_score`); 0 for an exact integral.
        attention: "layer.head" to the attention map (S, S) in 255ths, rounded: how much each token (first index)
            attends to each token (second index).
        exact_head_effects: the score with all heads minus the score without the head, (L, H).
    """

    split: str
    row: int
    target: str
    head_effects: HeadEffects
    tokens: list[str] | None = None
    attributions: list[float] | None = None
    score: float | None = None
    baseline_score: float | None = None
    completeness_gap: float | None = None
    attention: dict[str, list[list[int]]] = field(default_factory=dict)
    exact_head_effects: HeadEffects | None = None

    def without_tokens(self) -> RowExplanation:
        """Return the explanation without anything that contains or describes single tokens."""
        return replace(self, tokens=None, attributions=None, attention={})


@dataclass(frozen=True)
class Explanations:
    """The explanations of the rows on which the heads were analyzed.

    Attributes:
        score_name: what the score is, in words.
        effect_method: how `head_effects` were computed, in words.
        steps: points of the integral of integrated gradients; rows with a large completeness gap got more.
        notes: what a reader must know, such as what could not be explained.
        baseline: the token that replaces every token of the text in the baseline, such as [MASK].
    """

    score_name: str
    effect_method: str
    steps: int
    rows: list[RowExplanation]
    notes: list[str] = field(default_factory=list)
    baseline: str = ""


@dataclass(frozen=True)
class _Header:
    """The entries of `Explanations` that are not per row, in the metadata of the file."""

    score_name: str
    effect_method: str
    steps: int
    notes: list[str]
    baseline: str


def write_explanations(folder: RunFolder, explanations: Explanations) -> None:
    """Write `explanations.parquet` atomically.

    Raises:
        TrainingError: the disk is full or read-only.
    """
    header = {name: value for name, value in vars(explanations).items() if name != "rows"}
    columns = _COLUMNS.with_metadata({_METADATA: json.dumps(header)})
    table = pa.Table.from_pylist([_stored(row) for row in explanations.rows], schema=columns)
    with atomic_file(folder.explanations) as temporary:
        pq.write_table(table, temporary, compression="zstd", compression_level=9)


def read_explanations(folder: RunFolder) -> Explanations | None:
    """Return the explanations of a run; None if it has none.

    Raises:
        DataError: the file is damaged.
    """
    if not folder.explanations.is_file():
        return None
    content = read_bytes(folder.explanations)
    try:
        table = pq.read_table(pa.BufferReader(content))
        header = TypeAdapter(_Header).validate_json((table.schema.metadata or {}).get(_METADATA, b""))
        rows = [_row(values) for values in table.cast(_COLUMNS).to_pylist(maps_as_pydicts="strict")]
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error).strip()
        raise damaged_file(folder.explanations, reason.splitlines()[0]) from error
    return Explanations(rows=rows, **vars(header))


def _stored(row: RowExplanation) -> dict[str, Any]:
    """Return a row as the values of the file's columns."""
    values = dict(vars(row))
    values["attention"] = {
        head: np.asarray(weights, dtype=np.uint8).tobytes() for head, weights in row.attention.items()
    }
    return values


def _row(values: Mapping[str, Any]) -> RowExplanation:
    """Return the row that the file's columns describe; ValueError if they do not fit together."""
    row = dict(values)
    if any(row[name] is None for name in ("split", "row", "target", "head_effects")):
        raise ValueError("a row has empty cells")
    sizes = {tuple(map(len, row[name])) for name in ("head_effects", "exact_head_effects") if row[name] is not None}
    if len(sizes) > 1 or any(len(set(size)) != 1 for size in sizes):
        raise ValueError(f"the head effects of row {row['row']} are not a table of layers and heads")
    tokens = row["tokens"]
    if (tokens is None) != (row["attributions"] is None) or (tokens and len(tokens) != len(row["attributions"])):
        raise ValueError(f"row {row['row']} does not have one attribution per token")
    length = len(tokens or ())
    maps = {head: np.frombuffer(weights, dtype=np.uint8) for head, weights in (row["attention"] or {}).items()}
    if any(weights.size != length**2 for weights in maps.values()):
        raise ValueError(f"an attention map of row {row['row']} does not have {length} x {length} weights")
    row["attention"] = {head: weights.reshape(length, length).tolist() for head, weights in maps.items()}
    return RowExplanation(**row)
