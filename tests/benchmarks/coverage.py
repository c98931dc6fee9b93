"""How reliable are probabilities, prediction sets and the detection of rows out of scope, on four data sets?

    python -m tests.benchmarks.coverage --data DATA     # trains, measures, keeps the results, and updates the guide
    python -m tests.benchmarks.coverage                 # measures again, from the kept logits

DATA has the folders trec, banking77, sst2 and clinc_oos, each with train.parquet and validation.parquet (columns
sentence and label; with labels.json, labels are numbers) and, if there are, test.parquet and oos_test.parquet. A model
of each is trained, and its logits on the held-out rows after each evaluation are kept in FOLDER. The held-out rows are
then split at random into validation and test rows, SPLITS times.

    N rows, C labels
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from finetune.errors import DataError
from finetune.evaluation.calibration import brier_scores, calibration_error, confidences_of, log_losses
from finetune.evaluation.temperature import best_temperature, fit_temperature
from finetune.models.conformal import conformal_scores, scope_scores
from finetune.models.outputs import OutputRules
from tests.benchmarks.kept_results import RESULTS, replace_block
from tests.support import ROOT

Array = NDArray[Any]
FOLDER, FILE = Path("runs/bench-coverage"), RESULTS / "coverage.json"
GUIDE = ROOT / "finetune/docs/probabilities.md"
TITLES = {"trec": "TREC", "banking77": "Banking77", "sst2": "SST-2", "clinc": "CLINC150"}
SPLITS, COVERAGES = 20, (0.8, 0.9, 0.95)
MEASURES = ("log_loss", "calibration_error", "brier")
SINGLE = "single_label_classification"
SCORES = ("LAC", "APS", "APS, randomized", "RAPS")
FEW_ROWS = (100, 200, 500)
CHOICE_SPLITS = 100


@dataclass(frozen=True)
class Split:
    """Numbers of the validation and of the test rows, the rules that fit the former, and all probabilities (N, C)."""

    fitted: Array
    test: Array
    rules: OutputRules
    probabilities: Array


def random_splits(logits: Array, labels: Array) -> list[Split]:
    """Return SPLITS random splits into halves, with the temperature as `outputs.temperature: auto` chooses it."""
    splits = []
    for seed in range(SPLITS):
        order = np.random.default_rng(seed).permutation(len(labels))
        fitted, test = order[: len(order) // 2], order[len(order) // 2 :]
        rules = OutputRules(tuple(map(str, range(logits.shape[1]))), SINGLE)
        fit = fit_temperature(rules, logits[fitted], labels[fitted], samples=1, seed=0)
        rules = replace(rules, temperature=fit.value if fit.applied else 1.0)
        splits.append(Split(fitted, test, rules, rules.probabilities(logits)))
    return splits


def temperature_figures(splits: Sequence[Split], logits: Array, labels: Array) -> dict[str, Any]:
    """Return log loss, calibration error and Brier score of the test rows before and after, means over the splits."""
    figures: dict[str, list[float]] = {"temperature": [split.rules.temperature for split in splits]}
    for split in splits:
        own = labels[split.test]
        before = replace(split.rules, temperature=1.0).probabilities(logits[split.test])
        for state, probabilities in (("before", before), ("after", split.probabilities[split.test])):
            error = calibration_error(confidences_of(probabilities, own), samples=1, seed=0).value
            values = (log_losses(probabilities, own).mean(), error, brier_scores(probabilities, own).mean())
            for name, value in zip(MEASURES, values, strict=True):
                figures.setdefault(f"{name}_{state}", []).append(float(value))
    return {name: round(float(np.mean(values)), 4) for name, values in figures.items()}


def label_scores(probabilities: Array, kind: str, rng: np.random.Generator) -> Array:
    """Return the score of each label, (N, C), low for labels that belong in a set.

    LAC: 1 - p. APS: the sum of the probabilities down to that of the label, or with a random share of its own. RAPS:
    APS plus 0.01 for each label before it but the first.
    """
    if kind == "LAC":
        return 1 - probabilities
    order = np.argsort(-probabilities, axis=1)
    ranks = np.argsort(order, axis=1)
    sums = np.take_along_axis(np.cumsum(np.take_along_axis(probabilities, order, 1), axis=1), ranks, 1)
    if kind == "APS, randomized":
        return np.asarray(sums - rng.random((len(sums), 1)) * probabilities)
    return np.asarray(sums + 0.01 * np.maximum(ranks - 1, 0) if kind == "RAPS" else sums)


def set_figures(sets: Array, labels: Array) -> dict[str, float]:
    """Return what prediction sets (N, C) do on rows with these labels."""
    covered, sizes = sets[np.arange(len(labels)), labels], sets.sum(axis=1)
    answered = sizes == 1
    of_labels = [covered[labels == label].mean() for label in np.unique(labels)]
    return {
        "covered": float(covered.mean()),
        "size": float(sizes.mean()),
        "answered": float(answered.mean()),
        "right": float(covered[answered].mean()) if answered.any() else float("nan"),
        "empty": float((sizes == 0).mean()),
        "lowest": float(min(of_labels)),
    }


def sets_of_splits(
    splits: Sequence[Split], labels: Array, kind: str, coverage: float, *, per_class: bool
) -> Iterator[dict[str, float]]:
    """Yield the figures of the test rows of each split; nothing if the coverage cannot be promised."""
    for seed, split in enumerate(splits):
        fitted, test, probabilities = split.fitted, split.test, split.probabilities
        if kind == "LAC":
            own = probabilities[fitted]
            rules = replace(split.rules, conformal=conformal_scores(own, own[:, 0], labels[fitted], seed=0))
            try:
                limits = rules.limits(coverage, per_class=per_class)
            except DataError:
                return
            sets = limits.label_sets(probabilities[test])
            assert sets is not None
        else:
            of_labels = label_scores(probabilities, kind, np.random.default_rng(seed))
            sets = of_labels[test] <= quantile(of_labels[fitted, labels[fitted]], coverage)
        yield set_figures(sets, labels[test])


def quantile(scores: Array, coverage: float) -> float:
    """Return the k-th smallest of n scores, k = ceil((n + 1) coverage)."""
    return float(np.sort(scores)[math.ceil((len(scores) + 1) * coverage - 1e-9) - 1])


def mean_figures(figures: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each figure, and the standard deviation of the coverage over the splits."""
    means = {name: round(float(np.mean([figure[name] for figure in figures])), 4) for name in figures[0]}
    return means | {"deviation": round(float(np.std([figure["covered"] for figure in figures], ddof=1)), 4)}


def cost_of_choosing(evaluations: Sequence[Array], labels: Array) -> dict[str, float]:
    """Return the coverage at 0.9 if the same validation rows chose checkpoint and temperature, minus if others did."""
    result = {}
    for rows in FEW_ROWS:
        differences = []
        for seed in range(CHOICE_SPLITS):
            order = np.random.default_rng(seed).permutation(len(labels))
            own, others, test = order[:rows], order[rows : 2 * rows], order[2 * rows :]
            covered = [
                _covered(evaluations, labels, choosing=choosing, calibration=own, test=test)
                for choosing in (own, others)
            ]
            differences.append(covered[0] - covered[1])
        half = 1.96 * np.std(differences, ddof=1) / np.sqrt(CHOICE_SPLITS)
        result[str(rows)] = [round(float(np.mean(differences)), 4), round(float(half), 4)]
    return result  # type: ignore[return-value]


def _covered(evaluations: Sequence[Array], labels: Array, *, choosing: Array, calibration: Array, test: Array) -> float:
    """Return the coverage of test rows; `choosing` are the rows that choose checkpoint and temperature."""
    best = max(evaluations, key=lambda logits: float((logits[choosing].argmax(1) == labels[choosing]).mean()))
    rules = OutputRules(tuple(map(str, range(best.shape[1]))), SINGLE)
    rules = replace(rules, temperature=best_temperature(rules, best[choosing], labels[choosing]))
    errors = 1 - rules.probabilities(best)[np.arange(len(labels)), labels]
    return float((errors[test] <= quantile(errors[calibration], 0.9)).mean())


def scope_figures(splits: Sequence[Split], logits: Array, outside: Array) -> dict[str, dict[str, float]]:
    """Return how well scores detect rows out of scope: AUROC, and the share rejected with 95 % of the others kept."""

    def highest(rules: OutputRules, part: Array) -> Array:
        return np.asarray(rules.probabilities(part).max(axis=1))

    kinds: dict[str, Callable[[OutputRules, Array], Array]] = {
        "energy": lambda rules, part: scope_scores(part),
        "highest logit": lambda rules, part: part.max(axis=1),
        "highest probability": highest,
        "highest probability at temperature 1": lambda rules, part: highest(replace(rules, temperature=1.0), part),
    }
    result = {}
    for name, score in kinds.items():
        figures = []
        for split in splits:
            inside, other = score(split.rules, logits[split.test]), score(split.rules, outside)
            limit = -quantile(-score(split.rules, logits[split.fitted]), 0.95)
            truth = np.repeat([1, 0], [len(inside), len(other)])
            area = roc_auc_score(truth, np.concatenate([inside, other]))
            figures.append([area, (other < limit).mean(), (inside >= limit).mean()])
        keys = ("auroc", "rejected", "kept")
        result[name] = dict(zip(keys, np.round(np.mean(figures, axis=0), 4).tolist(), strict=True))
    return result


def measure(folder: Path) -> dict[str, Any]:
    """Return the figures of all data sets from their kept logits."""
    results: dict[str, Any] = {}
    for name in TITLES:
        with np.load(folder / f"{name}.npz") as data:
            evaluations, labels = list(data["evaluations"]), data["labels"]
            outside = data.get("outside")
        logits = max(evaluations, key=lambda part: float((part.argmax(1) == labels).mean()))
        splits = random_splits(logits, labels)
        sets = [
            {"score": kind, "coverage": coverage, "per_class": per_class, **mean_figures(figures)}
            for coverage in COVERAGES
            for kind, per_class in ((SCORES[0], False), (SCORES[0], True), *((kind, False) for kind in SCORES[1:]))
            if len(figures := list(sets_of_splits(splits, labels, kind, coverage, per_class=per_class))) == SPLITS
        ]
        results[name] = {
            "labels": int(logits.shape[1]),
            "rows": len(labels),
            "accuracy": round(float((logits.argmax(1) == labels).mean()), 4),
            "temperature": temperature_figures(splits, logits, labels),
            "sets": sets,
            "cost_of_choosing": cost_of_choosing(evaluations, labels),
        }
        if outside is not None:
            results[name]["scope"] = scope_figures(splits, logits, outside)
        print(f"{name} is measured")
    return results


def table(rows: Sequence[Sequence[str]], header: str) -> str:
    """Return a Markdown table; the first column is text."""
    names = header.split(" | ")
    lines = [f"| {header} |", "| " + " | ".join(["---", *["---:"] * (len(names) - 1)]) + " |"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows), ""])


def guide_tables(results: dict[str, Any]) -> dict[str, str]:
    """Return the tables of the guide by their name."""
    temperature, sets, scores, scope = [], [], [], []
    for name, result in results.items():
        figures = result["temperature"]
        pairs = [f"{figures[f'{key}_before']:.3f} → {figures[f'{key}_after']:.3f}" for key in MEASURES]
        temperature.append([TITLES[name], f"{result['accuracy']:.3f}", f"{figures['temperature']:.2f}", *pairs])
        for entry in result["sets"]:
            line = [f"{entry['covered']:.3f} ({entry['deviation']:.3f})", f"{entry['size']:.2f}"]
            shares = [f"{100 * entry[key]:.1f} %" for key in ("answered", "right", "empty")]
            if entry["score"] == SCORES[0]:
                kind = f"{100 * entry['coverage']:.0f} %{' per class' if entry['per_class'] else ''}"
                sets.append([TITLES[name], kind, *line, *shares, f"{entry['lowest']:.2f}"])
            if entry["coverage"] == 0.9 and not entry["per_class"]:
                scores.append([TITLES[name], entry["score"], *line, shares[0]])
        for kind, values in result.get("scope", {}).items():
            scope.append(
                [kind, f"{values['auroc']:.3f}", f"{100 * values['rejected']:.1f} %", f"{100 * values['kept']:.1f} %"]
            )
    return {
        "temperature": table(
            temperature, "data set | accuracy | temperature | log loss | calibration error | Brier score"
        ),
        "sets": table(
            sets,
            "data set | promised | set has the label (deviation) | labels per set | answered | right if answered "
            "| empty | least covered label",
        ),
        "set-scores": table(scores, "data set | score | set has the label (deviation) | labels per set | answered"),
        "scope": table(scope, "score | AUROC | rows out of scope rejected | rows in scope kept"),
    }


def write(results: dict[str, Any], file: Path) -> None:
    """Write the results, one data set per line."""
    lines = [f'"{name}": {json.dumps(result)}' for name, result in results.items()]
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def with_tables(guide: str, results: dict[str, Any]) -> str:
    """Return the text of the guide with the tables of the results."""
    for name, content in guide_tables(results).items():
        guide = replace_block(guide, name, content)
    return guide


def main() -> None:
    """Train if there are data, measure, keep the results, and update the guide."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of the data sets (default: use the kept logits)")
    arguments = parser.parse_args()
    if arguments.data is not None:
        from tests.benchmarks.coverage_models import keep_logits

        for name in TITLES:
            keep_logits(name, arguments.data, FOLDER)
    results = measure(FOLDER)
    write(results, FILE)
    GUIDE.write_text(with_tables(GUIDE.read_text(encoding="utf-8"), results), encoding="utf-8")


if __name__ == "__main__":
    main()
