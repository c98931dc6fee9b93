"""Read back what a run left in its folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from finetune.errors import DataError
from finetune.head_results import HeadAnalysis
from finetune.results import RunFolder, SplitScores, SplitSummary, Training, read_json, read_lines


@dataclass(frozen=True)
class WrongRow:
    """A row that the classifier got wrong, or the worst of a regression."""

    split: str
    row: int
    text: str
    label: str
    predicted: str
    confidence: float | None
    loss: float


@dataclass(frozen=True)
class RunRecord:
    """All that the report tells."""

    recipe: dict[str, Any]
    environment: dict[str, Any]
    data: dict[str, SplitSummary]
    history: list[dict[str, Any]]
    training: Training
    scores: dict[str, SplitScores]
    heads: HeadAnalysis | None
    worst: list[WrongRow]


def read_record(folder: RunFolder, worst: int = 10) -> RunRecord:
    """Return what the run folder holds.

    Raises:
        DataError: the run is not finished.
    """
    if not folder.recipe.is_file():
        raise DataError(f"{folder.path} holds no run (no {folder.recipe.name}); name the folder that `train` wrote")
    return RunRecord(
        recipe=yaml.safe_load(folder.recipe.read_text(encoding="utf-8")),
        environment=read_json(folder.environment, dict[str, Any]),
        data=read_json(folder.data, dict[str, SplitSummary]),
        history=list(read_lines(folder.history)),
        training=read_json(folder.training, Training),
        scores=read_json(folder.scores, dict[str, SplitScores]),
        heads=read_json(folder.heads, HeadAnalysis) if folder.heads.is_file() else None,
        worst=worst_rows(folder, worst),
    )


def worst_rows(folder: RunFolder, most: int) -> list[WrongRow]:
    """Return the rows with a wrong prediction and the highest loss, worst first."""
    if not folder.predictions.is_file():
        return []
    table = pq.read_table(folder.predictions)
    labels = table["label"].to_pylist()
    wrong: list[int] = [
        index
        for index, pair in enumerate(zip(labels, table["predicted"].to_pylist(), strict=True))
        if pair[0] != pair[1]
    ]
    chosen = table.take(pa.array(wrong, pa.int64()))
    chosen = chosen.take(pc.sort_indices(chosen["loss"], sort_keys=[("", "descending")])[:most])
    return [_wrong_row(row) for row in chosen.to_pylist()]


def _wrong_row(row: dict[str, Any]) -> WrongRow:
    single = isinstance(row["label"], str)
    return WrongRow(
        split=row["split"],
        row=row["row"],
        text=" ⏐ ".join(row[name] for name in ("text", "text_1") if row.get(name)),
        label=_shown(row["label"]),
        predicted=_shown(row["predicted"]),
        confidence=max(row["probabilities"]) if single else None,
        loss=row["loss"],
    )


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
