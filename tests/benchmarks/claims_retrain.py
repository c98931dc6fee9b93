"""Train a sub-network from the pretrained weights: half of the heads are removed first.

Prasanna, Rogers and Rumshisky 2020 compare a "good" sub-network, which keeps the most important heads of the fine-tuned
model, with one of random heads and with the "bad" one, which keeps the least important heads. All are trained with the
default recipe on the same rows, and so is the full model.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.heads.importance_estimate import Head, last_heads_last
from finetune.heads.pruning import heads_to_prune
from finetune.heads.pruning_curve import gates_without, random_order, scorer
from finetune.models.building import Labels, pretrained_classifier
from finetune.models.head_pruning import prune_heads
from finetune.models.pretrained import load_tokenizer
from finetune.pipeline.build_model import checkpoint_source
from finetune.pipeline.train import train
from finetune.recipe.loader import load_recipe
from finetune.recipe.schema import Recipe
from finetune.runs.json_files import read_json
from tests.benchmarks.heads import LoadedRun
from tests.benchmarks.train_cell import ALL_ROWS_TRAIN, Timer, quiet
from tests.support import ROOT

SHARE = 0.5  # of the heads removed
KINDS = ("good", "random", "bad", "full")
TRAIN_ROWS = 1000  # drawn by the seed; the default recipe takes 315 steps for them
RECIPES = ROOT / "recipes"
WIDTH = 64  # heads x key size of the small classifier


def removed_heads(run: LoadedRun, kind: str, order: Sequence[Head]) -> dict[int, list[int]]:
    """Return the heads, by layer, that a sub-network of a kind lacks; each layer keeps at least one.

    Args:
        order: the heads of the fine-tuned model, least important first.
    """
    if kind == "full":
        return {}
    sample = run.sample("train", 8)
    orders: dict[str, list[Head]] = {
        "good": list(order),
        "random": random_order(sample, run.recipe.seed),
        "bad": last_heads_last(list(order)[::-1], sample.sites),
    }
    return heads_to_prune(orders[kind], sample.sites, SHARE)


def retrained(run: LoadedRun, run_recipe: Path, kind: str, order: Sequence[Head]) -> dict[str, Any]:
    """Return the test accuracy of a sub-network after training from the pretrained weights, and without it.

    Without training, the same heads of the fine-tuned model are gated to 0.
    """
    heads, timer = removed_heads(run, kind, order), Timer()
    sample = run.sample("test", len(run.splits["test"]))
    gates = gates_without(sample, [(layer, head) for layer, numbers in heads.items() for head in numbers])
    masked = scorer(sample, "accuracy")(gates)
    with tempfile.TemporaryDirectory(prefix="finetune-claims-") as name:
        folder = Path(name)
        write_pruned_encoder(run.recipe, heads, folder / "encoder")
        overrides = [f"model.model_name_or_path={folder / 'encoder'}", f"output_dir={folder / 'run'}"]
        overrides += [*ALL_ROWS_TRAIN, "data.validation_file=null", f"data.max_train_samples={TRAIN_ROWS}"]
        overrides += ["training.num_train_epochs=auto", "evaluation.bootstrap_samples=100"]
        with quiet(folder / "output.txt"):
            train(load_recipe(run_recipe, overrides))
        test = read_json(folder / "run/scores.json", dict[str, Any])["test"]
        steps = read_json(folder / "run/training.json", dict[str, Any])["steps"]
    gc.collect()
    return {
        "score": test["metrics"]["accuracy"]["value"],
        "rows_scored": test["rows"],
        "masked": masked,
        "removed": sum(map(len, heads.values())),
        "steps": steps,
        "cpu_seconds": timer.seconds(),
    }


def write_pruned_encoder(recipe: Recipe, heads: dict[int, list[int]], folder: Path) -> None:
    """Write the recipe's pretrained encoder without these heads, and its tokenizer, as a checkpoint."""
    source = checkpoint_source(recipe.model)
    tokenizer = load_tokenizer(source, pairs=recipe.data.text_pair_column is not None)
    labels = Labels(recipe.task.label_names, recipe.task.problem_type)
    classifier = pretrained_classifier(source, tokenizer, labels, max_length=recipe.data.max_length)
    prune_heads(classifier.base, heads)
    classifier.base.base_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_small_classifier(data: Path, task: str, seed: int, num_heads: int) -> dict[str, Any]:
    """Return the test accuracy of a classifier trained from scratch with one attention layer of width 64."""
    timer = Timer()
    with tempfile.TemporaryDirectory(prefix="finetune-claims-") as name:
        folder = Path(name)
        files = {f"data.{split}_file": data / task / f"{split}.parquet" for split in ("train", "validation", "test")}
        settings = files | {
            "data.train_rows": "null",
            "data.validation_rows": "null",
            "data.max_length": 64,
            "task.label_names": (data / task / "labels.json").read_text(encoding="utf-8"),
            "model.config_overrides.vocab_size": 8000,
            "model.config_overrides.hidden_size": WIDTH,
            "model.config_overrides.num_attention_heads": num_heads,
            "model.config_overrides.head_dim": WIDTH // num_heads,
            "training.per_device_train_batch_size": 32,
            "training.learning_rate": 0.001,
            "training.num_train_epochs": 5,
            "training.num_threads": 1,
            "evaluation.baselines": "null",
            "evaluation.bootstrap_samples": 100,
            "checkpoint.save_strategy": '"no"',
            "head_importance": "null",
            "seed": seed,
            "output_dir": folder / "run",
        }
        with quiet(folder / "output.txt"):
            train(load_recipe(RECIPES / "toy_from_scratch.yaml", [f"{key}={value}" for key, value in settings.items()]))
        test = read_json(folder / "run/scores.json", dict[str, Any])["test"]
    return {
        "score": test["metrics"]["accuracy"]["value"],
        "rows_scored": test["rows"],
        "cpu_seconds": timer.seconds(),
    }
