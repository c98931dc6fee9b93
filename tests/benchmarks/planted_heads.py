"""False discoveries and power of the names of heads, on classifiers whose heads have known roles.

    python -m tests.benchmarks.planted_heads [number of models]

Each model has 16 heads with random roles (tests/support/planted_heads.py). The exact effects on 1,500 rows are the
population: a name is true if the means over the population meet its definition. Samples of 100 to 1,000 rows are drawn
from it with replacement, and the names that the tests give are compared with the truth. The pairs of heads are chosen
by 128 other rows. The same is done with one-sided t-tests instead of e-values. The results of each model are kept in
results/planted-heads.json, from which an interrupted run resumes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from finetune.heads.head_names import LEVEL, Hypothesis, RowEffects, hypotheses
from finetune.heads.row_effects import SCREENING_ROWS, row_effects, screen_pairs
from finetune.runs.atomic_files import write_text
from finetune.runs.head_names import ESSENTIAL, HARMFUL, NAMES, REDUNDANT, UNUSED
from finetune.runs.multiple_tests import benjamini_hochberg
from tests.support.planted_heads import Planted, plant, planted_rows

RESULTS = Path(__file__).parent / "results" / "planted-heads.json"
FIRST_SEED = 100  # the definitions were chosen on models of other seeds
MODELS, POPULATION, DRAWS = 50, 1500, 10
SIZES = (100, 250, 500, 1000)

Claim = tuple[Any, ...]  # head, name, partner


def claim(hypothesis: Hypothesis) -> Claim:
    return hypothesis.head, hypothesis.name, hypothesis.partner


def e_test(hypothesis: Hypothesis) -> float:
    """Return the p-value 1 / e of the tests of the toolkit."""
    return float(np.exp(-max(0.0, hypothesis.log_e_value())))


def t_test(hypothesis: Hypothesis) -> float:
    """Return the largest p-value of one-sided t-tests of the same variables."""
    return max(_t_test(values, limit) for values, limit, _ in hypothesis.variables)


def _t_test(values: np.ndarray, limit: float) -> float:
    if np.ptp(values) == 0:
        return float(values[0] <= limit)
    return float(stats.ttest_1samp(values, limit, alternative="greater").pvalue)


TESTS: dict[str, Callable[[Hypothesis], float]] = {"e": e_test, "t": t_test}


def true_claims(population: RowEffects) -> set[Claim]:
    """Return the names that are true of the population."""
    return {
        claim(each)
        for each in hypotheses(population)
        if all(values.mean() > limit for values, limit, _ in each.variables)
    }


def planted_claims(planted: Planted) -> Iterator[Claim]:
    """Yield the names that the heads were built to have."""
    for source in planted.sources:
        if source.accuracy == 0.5:
            yield source.heads[0], HARMFUL, None
        elif source.share > 0.05 and (len(source.heads) == 1 or source.needs_all):
            yield from ((head, ESSENTIAL, None) for head in source.heads)
        elif source.share and len(source.heads) == 2:
            yield from ((head, REDUNDANT, partner) for head, partner in (source.heads, source.heads[::-1]))
    yield from ((head, UNUSED, None) for head in (*planted.dead, *planted.decoys))


def measure(seed: int) -> dict[str, Any]:
    """Return the results of one model: false-discovery proportion and power, per test and number of rows."""
    planted = plant(seed)
    rows = planted_rows(planted, SCREENING_ROWS + POPULATION, seed)
    screened = screen_pairs(rows.subset(np.arange(SCREENING_ROWS)), seed)
    built = {tuple(sorted(source.heads)) for source in planted.sources if len(source.heads) == 2}
    pairs = [*screened, *sorted(built - set(screened))]
    population = row_effects(rows.subset(np.arange(SCREENING_ROWS, len(rows))), pairs, seed)  # type: ignore[arg-type]
    truth, intended = true_claims(population), list(planted_claims(planted))
    tested = replace(
        population, pairs=population.pairs[: len(screened)], pair_scores=population.pair_scores[:, : len(screened)]
    )
    means = population.effects().mean(0)
    result: dict[str, Any] = {
        "seed": seed,
        "planted": {name: sum(each[1] == name for each in intended) for name in NAMES},
        "planted and true": {name: sum(each[1] == name and each in truth for each in intended) for name in NAMES},
        "effects": {name: [round(float(means[each[0]]), 4) for each in intended if each[1] == name] for name in NAMES},
        "screened": [len(built & set(screened)), len(built)],
        "sizes": {},
    }
    rng = np.random.default_rng([seed, 3])
    for size in SIZES:
        counts = {test: _Counts(truth, intended) for test in TESTS}
        for _ in range(DRAWS):
            tests = list(hypotheses(tested.subset(rng.integers(0, POPULATION, size))))
            for name, p_value in TESTS.items():
                q_values = benjamini_hochberg([p_value(each) for each in tests])
                counts[name].add({claim(each) for each, q in zip(tests, q_values, strict=True) if q <= LEVEL})
        result["sizes"][str(size)] = {name: each.result() for name, each in counts.items()}
    return result


class _Counts:
    """Sums over the samples from one model."""

    def __init__(self, truth: set[Claim], intended: list[Claim]) -> None:
        self.truth, self.intended = truth, [each for each in intended if each in truth]
        self.names, self.false, self.proportions = 0, dict.fromkeys(NAMES, 0), 0.0
        self.found = dict.fromkeys(NAMES, 0)

    def add(self, named: set[Claim]) -> None:
        false = named - self.truth
        self.names += len(named)
        self.proportions += len(false) / max(1, len(named))
        for each in false:
            self.false[each[1]] += 1
        for each in self.intended:
            self.found[each[1]] += each in named

    def result(self) -> dict[str, Any]:
        return {
            "names": self.names, "false": self.false, "proportion": round(self.proportions / DRAWS, 5),
            "found": self.found,
        }  # fmt: skip


def table(models: list[dict[str, Any]]) -> str:
    """Return a Markdown table: false-discovery rate with its standard error over models, and the power per name."""
    lines = ["| test | rows | names per model | false discoveries | " + " | ".join(NAMES) + " |"]
    lines.append("| --- | " + "--- | " * (3 + len(NAMES)))
    for test in TESTS:
        for size in SIZES:
            cells = [model["sizes"][str(size)][test] for model in models]
            proportions = np.array([cell["proportion"] for cell in cells])
            error = proportions.std(ddof=1) / np.sqrt(len(models)) if len(models) > 1 else float("nan")
            powers = [
                sum(cell["found"][name] for cell in cells)
                / max(1, DRAWS * sum(model["planted and true"][name] for model in models))
                for name in NAMES
            ]
            names = sum(cell["names"] for cell in cells) / len(models) / DRAWS
            lines.append(
                f"| {test} | {size:,} | {names:.1f} | {proportions.mean():.2%} ± {error:.2%} | "
                + " | ".join(f"{power:.1%}" for power in powers)
                + " |"
            )
    return "\n".join(lines)


def main() -> None:
    torch.set_num_threads(1)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else MODELS
    models = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    for number in range(len(models), count):
        models.append(measure(FIRST_SEED + number))
        write_text(RESULTS, json.dumps(models, separators=(",", ":")) + "\n")
        print(f"model {number + 1} of {count}", flush=True)
    print(table(models))
    print("planted", {name: sum(model["planted"][name] for model in models) for name in NAMES})
    print("planted and true", {name: sum(model["planted and true"][name] for model in models) for name in NAMES})
    print("planted pairs that were screened", np.sum([model["screened"] for model in models], axis=0).tolist())


if __name__ == "__main__":
    main()
