"""Small data files, and the cells read from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from finetune.data.loading import read_splits
from finetune.recipe.data_section import DataSection

MULTI = "multi_label_classification"


def cells(file: Path, problem_type: str = "single_label_classification", **keys: Any) -> list[tuple[Any, Any]]:
    """Return the texts and labels that are read from a file."""
    train = read_splits(DataSection(train_file=str(file), **keys), problem_type)["train"]
    return list(zip(train.column("sentence").to_pylist(), train.column("label").to_pylist(), strict=True))


def written(folder: Path, extension: str, content: str | bytes) -> Path:
    file = folder / f"d.{extension}"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def parquet(folder: Path, sentence: Any = None, label: Any = None, metadata: dict[str, str] | None = None) -> Path:
    label = pa.array(["x", "y", "x"]) if label is None else label
    sentence = [f"text {n}" for n in range(len(label))] if sentence is None else sentence
    table = pa.table({"sentence": sentence, "label": label})
    pq.write_table(table.replace_schema_metadata(metadata), folder / "d.parquet")
    return folder / "d.parquet"
