"""Finished runs on a few artificial rows, for tests of the commands that read a run."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import yaml

from finetune.pipeline.finished_run import FinishedRun, open_run
from finetune.pipeline.train import train
from finetune.recipe.loader import load_recipe

WORDS = ["the", "a", "mat", "floor", "sat", "on", "clean", "now", "is", "chased", "it", "not"]
LAYERS, HEADS = 2, 4  # of the small classifier
SCRATCH = {
    "model_type": "multi_head_classifier",
    "config_overrides": {
        "vocab_size": 40, "hidden_size": 16, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "head_dim": 4,
        "intermediate_size": 16,
    },
}  # fmt: skip


def rows(count: int, seed: int, *, flipped: bool = False) -> list[dict[str, object]]:
    """Return rows of random words, labeled by whether they contain both cat and dog; `flipped` swaps the labels."""
    draw, result = random.Random(seed), []
    for number in range(count):
        words = draw.choices(WORDS, k=draw.randint(4, 8))
        positions = draw.sample(range(len(words)), 2)
        for animal, position, missing in zip(("cat", "dog"), positions, (3, 1), strict=True):
            if number % 4 != missing:
                words[position] = animal
        result.append({"sentence": " ".join(words), "label": int((number % 2 == 0) != flipped)})
    return result


def recipe(model: dict[str, Any], **sections: dict[str, Any]) -> dict[str, Any]:
    """Return a quick recipe; `sections` change or add keys of its sections."""
    result: dict[str, Any] = {
        "seed": 4,
        "model": model,
        "task": {"label_names": ["0", "1"]},
        "data": {"train_rows": rows(48, 1), "validation_rows": rows(40, 2), "test_rows": rows(40, 3), "max_length": 16},
        "training": {
            "num_train_epochs": 6, "per_device_train_batch_size": 4, "learning_rate": 0.01, "use_cpu": True,
            "num_threads": 1,
        },
        "evaluation": {
            "bootstrap_samples": 100, "metrics": ["accuracy"], "baselines": ["majority"], "label_errors": False,
        },
        "checkpoint": {"save_strategy": "no"},
        "head_importance": {"method": ["gradient", "fisher"], "random_orders": 1, "explained_rows": 3},
    }  # fmt: skip
    for name, keys in sections.items():
        result[name] = {**result.get(name, {}), **keys}
    return result


def finished(folder: Path, content: dict[str, Any], *overrides: str) -> Path:
    """Train a recipe and return the run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return train(load_recipe(path, [f"output_dir={folder / 'run'}", *overrides])).path


def read_back(run: Path, *overrides: str) -> FinishedRun:
    """Return a finished run as the commands see it; its folder is not locked any more."""
    with open_run(run, overrides) as finished_run:
        return finished_run


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of every file in a folder, to check that nothing was written."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert files
    return files
