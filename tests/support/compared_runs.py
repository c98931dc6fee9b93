"""Finished runs with given predictions, written without training, for tests of comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from finetune.runs.head_results import HeadAnalysis, HeadScores, PruningCurve, PruningCurves
from finetune.runs.json_files import write_json
from finetune.runs.results import ClassScores, MetricValue, SplitScores, TrainingResult, TrainingSpeed
from finetune.runs.run_folder import RunFolder
from finetune.runs.series import MemberResult, SeriesResult

NAMES = ("no", "yes")
ENVIRONMENT = {
    "started": "2026-01-02T03:04:05+00:00", "device": "cpu", "processes": 1, "mixed_precision": "no", "python": "3.11",
    "packages": {"torch": "2.13"}, "commit": None, "finetune": "1.0", "seed": 1,
}  # fmt: skip


def write_run(
    path: Path,
    splits: dict[str, pa.Table],
    *,
    problem_type: str = "single_label_classification",
    names: Sequence[str] = NAMES,
    heads: HeadAnalysis | None = None,
    **recipe: Any,
) -> Path:
    """Write the files of a finished run that `compare` reads, and return its folder.

    Args:
        splits: the rows of each split, see `rows`.
        recipe: keys of the recipe.
    """
    folder = RunFolder(path)
    path.mkdir(parents=True)
    content = {
        "seed": 1, "output_dir": str(path), "model": {"model_name_or_path": "some/model"},
        "task": {"problem_type": problem_type}, "data": {"train_file": "moved/away.csv", "validation_size": 0.1},
        "evaluation": {"bootstrap_samples": 200}, **recipe,
    }  # fmt: skip
    folder.recipe.write_text(yaml.safe_dump(content))
    write_json(folder.environment, ENVIRONMENT)
    speed = TrainingSpeed(10.0 * content["seed"], 100.0, 1000.0, 0.05, 200.0, 900.0)
    write_json(folder.training, TrainingResult(2, 2, "x", 0.9, "all epochs done", 1234, 56789, "float32", speed))
    nothing = MetricValue(None)
    classes = [] if problem_type == "regression" else [ClassScores(name, *[nothing] * 3, 1) for name in names]
    write_json(folder.scores, {split: SplitScores(1, 0.5, {}, classes) for split in splits})
    if heads is not None:
        write_json(folder.heads, heads)
    tables = [table.add_column(0, "split", [pa.repeat(split, len(table))]) for split, table in splits.items()]
    pq.write_table(pa.concat_tables(tables), folder.predictions)
    return path


def rows(labels: Sequence[Any], predicted: Sequence[Any], first: int = 1) -> pa.Table:
    """Return a table of predictions, with row numbers from `first` and texts that follow from them."""
    count = len(labels)
    return pa.table(
        {
            "row": list(range(first, first + count)), "text": [f"text {first + index}" for index in range(count)],
            "label": labels, "predicted": predicted, "probabilities": [[0.5, 0.5]] * count, "loss": [0.5] * count,
        }
    )  # fmt: skip


def write_series(
    path: Path, runs: dict[int, dict[str, pa.Table]], unfinished: Sequence[int] = (), **options: Any
) -> Path:
    """Write a series with one finished run per seed, and return its folder."""
    for seed, splits in runs.items():
        write_run(path / f"seed-{seed}", splits, seed=seed, **options)
    (path / "recipe.yaml").write_bytes((path / f"seed-{min(runs)}" / "recipe.yaml").read_bytes())
    members = [MemberResult(seed, "finished") for seed in runs] + [MemberResult(seed) for seed in unfinished]
    write_json(path / "series.json", SeriesResult("accuracy", members))
    return path


def analysis(values: list[list[float]], scores: Sequence[float] = (0.9, 0.9, 0.5), method: str = "x") -> HeadAnalysis:
    """Return an analysis of heads with these importances, whose pruning curve has these scores after 0.9 with all."""
    order = [(layer, head) for layer in range(len(values)) for head in range(len(values[0]))]
    result = HeadScores(
        method, "E|g|", "train", 9, [list(row) for row in values], [[None] * len(values[0])] * len(values), order
    )
    shares = [0.25, 0.5, 0.75]
    curves = PruningCurves("accuracy", "test", 9, 0.9, shares, [PruningCurve(method, list(scores), 0.7)], None)
    return HeadAnalysis([result], curves)
