"""Train the models of the coverage benchmark, and keep their logits on the held-out rows.

N rows, C labels
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray

from finetune.evaluation.prediction import Predictions
from finetune.models.loading import load_classifier
from finetune.pipeline import train_stage
from finetune.pipeline.train import train
from finetune.recipe.loader import load_recipe
from tests.benchmarks.train_cell import MINILM

Row = tuple[str, str]
# Folder of the data, training rows, epochs, optimizer steps between two evaluations.
TRAINING = {
    "trec": ("trec", 3400, 5, 106),
    "banking77": ("banking77", 6000, 5, 190),
    "sst2": ("sst2", 5000, 3, 156),
    "clinc": ("clinc_oos", 7500, 4, 300),
}


def read_rows(file: Path) -> list[Row]:
    """Return text and label name of each row; [] if there is no such file."""
    if not file.is_file():
        return []
    names_file = file.parent / "labels.json"
    names = json.loads(names_file.read_text(encoding="utf-8")) if names_file.is_file() else None
    table = pq.read_table(file, columns=["sentence", "label"]).to_pylist()
    return [(row["sentence"], str(names[row["label"]] if names else row["label"])) for row in table]


def rows_of(name: str, data: Path) -> tuple[list[Row], list[Row], list[str]]:
    """Return the training rows, the held-out rows, which have other texts, and texts out of scope.

    The test rows of TREC come from another source than the others: training rows that were left out replace them.
    """
    folder, count, _, _ = TRAINING[name]
    rows = read_rows(data / folder / "train.parquet")
    order = np.random.default_rng(0).permutation(len(rows)).tolist()
    training = [rows[index] for index in order[:count]]
    others = read_rows(data / folder / "validation.parquet")
    others += [rows[index] for index in order[count:]] if name == "trec" else read_rows(data / folder / "test.parquet")
    known = {text for text, _ in training}
    held_out = [row for row in dict(others).items() if row[0] not in known]
    return training, held_out, [text for text, _ in read_rows(data / folder / "oos_test.parquet")]


def write_rows(rows: Sequence[Row], file: Path) -> str:
    """Write rows to a parquet file, and return its path."""
    texts, labels = zip(*rows, strict=True)
    pq.write_table(pa.table({"sentence": texts, "label": labels}), file)
    return str(file)


def keep_logits(name: str, data: Path, folder: Path, overrides: Sequence[str] = ()) -> None:
    """Train the model of a data set, and write the logits of each evaluation on the held-out rows to NAME.npz.

    Args:
        overrides: to the recipe, as `section.key=value`.
    """
    training, held_out, outside = rows_of(name, data)
    _, _, epochs, steps = TRAINING[name]
    work = folder / name
    work.mkdir(parents=True, exist_ok=True)
    document = {
        "model": {"model_name_or_path": MINILM},
        "output_dir": str(work / "run"),
        "overwrite_output_dir": True,
        "data": {
            "train_file": write_rows(training, work / "train.parquet"),
            "validation_file": write_rows(held_out, work / "held_out.parquet"),
            "text_column": "sentence",
            "label_column": "label",
            "max_length": 64,
        },
        "training": {"mixed_precision": "auto", "num_train_epochs": epochs},
        "evaluation": {"eval_strategy": "steps", "eval_steps": steps, "baselines": None},
        "checkpoint": {"save_strategy": "steps", "save_steps": steps},
        "head_importance": None,
    }
    recipe = work / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(document), encoding="utf-8")
    evaluations: list[Predictions] = []
    predict = train_stage.predict

    def keeping(*arguments: Any, **options: Any) -> Predictions:
        """Return the predictions of an evaluation, and keep them."""
        evaluations.append(predict(*arguments, **options))
        return evaluations[-1]

    train_stage.predict = keeping
    try:
        run = train(load_recipe(recipe, overrides))
    finally:
        train_stage.predict = predict
    arrays: dict[str, NDArray[Any]] = {"labels": evaluations[0].labels}
    arrays["evaluations"] = np.stack([result.logits.numpy() for result in evaluations])
    if outside:
        arrays["outside"] = load_classifier(run.model).logits([outside], 64)
    np.savez_compressed(folder / f"{name}.npz", **arrays)  # type: ignore[arg-type]
