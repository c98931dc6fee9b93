"""What `tests.benchmarks.claims` measures on one trained model, or on one sub-network that it trains.

Training rows rank the heads; a ranking is judged on test rows, which choose nothing. A head is written as one number,
layer x heads per layer + head.

    N rows, L layers, H heads
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.state import AcceleratorState

from finetune.heads.analysis import leave_one_out
from finetune.heads.attention_maps import entropy
from finetune.heads.gated_forward import gate_gradients
from finetune.heads.importance_estimate import Head, layer_normalized, mean_over_rows, removal_order
from finetune.heads.methods import measure_importance
from finetune.heads.pruning_curve import CurveSettings, gates_without, pruning_curves, removed, scorer
from finetune.models.head_gates import max_num_heads
from finetune.recipe.evaluation_section import HeadImportanceSection
from tests.benchmarks.head_candidates import scaled_to_1
from tests.benchmarks.heads import LoadedRun, load_run

DEFAULT = HeadImportanceSection()  # the recipe's default ranking
DEFAULT_METHOD = DEFAULT.methods()[0]
ITERATIVE = "iterative_gradient_layer_norm"
GRADIENT_ROWS, ITERATIVE_ROWS, ATTENTION_ROWS = 512, 128, 256
BATCHES = (8, 32, 96)  # batch sizes of the absolute value per batch
CURVE_ROWS, ABLATION_ROWS, RANDOM_ORDERS = 300, 300, 3
ATTENTION = ("confidence", "entropy")
HIES_WEIGHTS, WEIGHT_ROWS = (0.3, 0.5, 0.7, 0.9), 150
Orders = dict[str, list[int]]


def run_folder(runs: Path, task: str, seed: int) -> Path:
    """Return the folder of a trained model."""
    return runs / f"{task}-full-{seed}"


@lru_cache(maxsize=1)
def loaded(folder: Path) -> LoadedRun:
    """Return a trained model and its rows."""
    AcceleratorState._reset_state(True)  # of a training in this process
    return load_run(folder)


def numbered(order: Sequence[Head], width: int) -> list[int]:
    """Return heads as numbers; `width` is the number of heads per layer."""
    return [layer * width + head for layer, head in order]


def named(order: Sequence[int], width: int) -> list[Head]:
    """Return the (layer, head) pairs of these numbers."""
    return [divmod(number, width) for number in order]


def gradient_orders(run: LoadedRun) -> Orders:
    """Return the orders that follow from the gradients of the gates of the same rows.

    `gradient` and `gradient_layer_norm` take the absolute value per row; `gradient_batch_B` takes it per batch of B
    rows in random order, as public code does. `gradient_half_1` and `gradient_half_2` use one half of the rows each.
    """
    sample = run.sample("train", GRADIENT_ROWS)
    gradients = gate_gradients(sample).astype(np.float64)  # (N, L, H)
    gradients = gradients[np.random.default_rng(run.recipe.seed).permutation(len(gradients))]
    half = len(gradients) // 2
    values = {
        "gradient": np.abs(gradients).mean(0),
        "gradient_layer_norm": layer_normalized(mean_over_rows(np.abs(gradients))).values,
        "gradient_half_1": np.abs(gradients[:half]).mean(0),
        "gradient_half_2": np.abs(gradients[half:]).mean(0),
        **{f"gradient_batch_{size}": per_batch(gradients, size) for size in BATCHES},
    }
    return {name: numbered(removal_order(table, sample.sites), table.shape[1]) for name, table in values.items()}


def per_batch(gradients: np.ndarray, size: int) -> np.ndarray:
    """Return the mean over batches of the absolute value of a batch's mean gradient, (L, H)."""
    starts = range(0, len(gradients), size)
    table: np.ndarray = np.mean([np.abs(gradients[start : start + size].mean(0)) for start in starts], axis=0)
    return table


def hies_orders(run: LoadedRun) -> Orders:
    """Return the order of HIES (Choi et al. 2025) with the best weight for this model, chosen on validation rows.

    The authors choose the weight of the importance for each task and each share of removed heads.
    """
    sample, chooser = run.sample("train", GRADIENT_ROWS), run.sample("validation", WEIGHT_ROWS)
    importance = scaled_to_1(np.abs(gate_gradients(sample)).mean(0))
    focus = scaled_to_1(entropy(sample).values)  # minus the entropy
    orders = {
        str(weight): removal_order(weight * importance + (1 - weight) * focus, sample.sites) for weight in HIES_WEIGHTS
    }
    settings = CurveSettings("accuracy", random_orders=0, reverse=False)
    best = max(pruning_curves(chooser, orders, settings).curves, key=lambda curve: curve.mean).method
    return {"hies": numbered(orders[best], importance.shape[1])}


def method_orders(methods: Sequence[str], max_rows: int | None) -> Callable[[LoadedRun], Orders]:
    """Return a function from a run to the orders of these methods."""

    def orders(run: LoadedRun) -> Orders:
        sample, steps = run.sample("train", max_rows), DEFAULT.integration_steps
        width = max_num_heads(sample.sites)
        scores = [measure_importance(sample, name, steps=steps, seed=run.recipe.seed) for name in methods]
        return {score.method: numbered(score.order, width) for score in scores}

    return orders


RANKINGS: dict[str, Callable[[LoadedRun], Orders]] = {
    "gradients": gradient_orders,
    "iterative": method_orders([ITERATIVE], ITERATIVE_ROWS),
    "default": method_orders([DEFAULT_METHOD], DEFAULT.settings_of(DEFAULT_METHOD).max_samples),
    "attention": method_orders(ATTENTION, ATTENTION_ROWS),
    "hies": hies_orders,
}
CURVES = (
    DEFAULT_METHOD, "gradient_layer_norm", "gradient", ITERATIVE, *ATTENTION, "hies", "gradient_batch_32", "random",
)  # fmt: skip


def curve(run: LoadedRun, order: Sequence[int] | None) -> dict[str, Any]:
    """Return the pruning curve of an order on test rows; None: the mean curve of random orders."""
    sample = run.sample("test", CURVE_ROWS)
    orders = {} if order is None else {"order": named(order, max_num_heads(sample.sites))}
    random_orders = RANDOM_ORDERS if order is None else 0
    settings = CurveSettings("accuracy", random_orders, reverse=False, seed=100 * (1 + run.recipe.seed))
    curves = pruning_curves(sample, orders, settings)
    scores = curves.curves[0].scores if order is not None else curves.random.mean_scores if curves.random else []
    return {"score": float(np.mean(scores)), "whole": curves.whole, "scores": scores}


def accuracy_without(run: LoadedRun, order: Sequence[int], share: float) -> dict[str, Any]:
    """Return the accuracy on all test rows without a share of the heads, and that of the whole model."""
    sample = run.sample("test", len(run.splits["test"]))
    score = scorer(sample, "accuracy")
    without = gates_without(sample, removed(named(order, max_num_heads(sample.sites)), share))
    return {"score": score(without), "whole": score(sample.gates()), "rows_scored": len(sample)}


def single_heads(run: LoadedRun) -> dict[str, Any]:
    """Return the share of heads whose removal alone changes the accuracy on test rows significantly.

    McNemar's exact test at 0.05, corrected for the number of heads by Holm's method.
    """
    sample = run.sample("test", ABLATION_ROWS)
    result = leave_one_out(sample, run.recipe.seed)
    significant = [test for test in result.tests if test.p_holm < 0.05]
    raw = [test for test in result.tests if test.p_value < 0.05]
    return {
        "score": len(significant) / len(result.tests),
        "significant": len(significant),
        "helpful_removals": sum(test.change > 0 for test in significant),
        "uncorrected": len(raw),
        "heads": len(result.tests),
        "lowest_change": min(test.change for test in result.tests),
        "rows_scored": len(sample),
    }
