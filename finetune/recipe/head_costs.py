"""The cost of a head analysis, counted in passes of rows through the model, and compared with the training.

A row pass is a forward and a backward pass of one row that computes the gradients of the gates. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from finetune.progress import format_duration
from finetune.recipe.names import HEAD_METHOD_NAMES, ITERATIVE, default_rows

GATE_STEPS = 40  # optimizer steps of the method `gates`, each over all rows
ROUNDS = 10  # of an iterative variant
MAX_PERMUTATIONS = 64  # per row, of Shapley values
LEARNED_ORDER = "learned_order"
ROW_PASSES = 1024  # of `learned_order`, if the training was long enough
FOLDS = 4  # of the rows, in which the learned methods are trained separately
START_ROWS = 256  # for the initial scores of `learned_order`, at most
BATCH = 32  # rows of a fold per step of `learned_order`
MIN_ROW_PASSES = 64  # fewer rank no better than chance, and more take a fraction of a second
SCREENING_ROWS = 128  # at most, which choose the pairs of heads for the tests of names
CHECKED_ROWS = 8  # that are scored without and with gates before each method
# Measured on MiniLM in bf16 on one CPU thread, in CPU time (tests/benchmarks/head_costs.py): a trained row was 0.9
# to 1.8 row passes, with all weights or with adapters. With frozen layers, the parts of a pass are those of its matrix
# products: forward, gradients of the states, gradients of the weights.
FORWARD_COST = 0.5  # a forward pass alone, in row passes
TRAINED_ROW = 1.1  # a row of training, in row passes: low, so that rankings keep to their limit
# Leave-one-out computes only the layers above a head, and the attention of a layer once for all heads: about a third
# of a forward pass (tests/benchmarks/ablation.py).
ABLATION_PART = 1 / 3


@dataclass(frozen=True)
class Cost:
    """Passes of single rows through the model.

    Attributes:
        row_passes: forward and backward passes.
        forward_passes: forward passes alone.
        part: the part of the layers that a forward pass computes.
        is_limit: whether these are the most passes; there may be fewer.
    """

    row_passes: int = 0
    forward_passes: int = 0
    part: float = 1.0
    is_limit: bool = False

    def total(self) -> float:
        """Return the number of row passes that take as long as all passes."""
        return self.row_passes + FORWARD_COST * self.part * self.forward_passes

    def text(self) -> str:
        """Return "2,048 row passes and 528 forward passes", or "no passes"."""
        counts = {"row passes": self.row_passes, "forward passes": self.forward_passes}
        named = [f"{count:,} {name}" for name, count in counts.items() if count]
        return ("at most " if self.is_limit and named else "") + (" and ".join(named) or "no passes")


def learned_order_passes(rows: int, row_passes: int) -> tuple[int, int]:
    """Return the rows for the initial scores of `learned_order`, and the number of its steps.

    Args:
        rows: that rank the heads.
        row_passes: that it may make.
    """
    start_rows = min(rows, row_passes, START_ROWS)
    return start_rows, (row_passes - start_rows) // (min(FOLDS, rows) * BATCH)


# Row passes and forward passes per row, from the number of heads and of integration steps. Those of learned_order do
# not depend on the rows.
PASSES_PER_ROW: Mapping[str, Callable[[int, int], tuple[int, int]]] = {
    "gradient": lambda heads, steps: (1, 0),
    "gradient_layer_norm": lambda heads, steps: (1, 0),
    "integrated_gradients": lambda heads, steps: (steps, 2),
    "fisher": lambda heads, steps: (1, 0),
    "ablation_loss": lambda heads, steps: (0, 1 + heads),
    "ablation_kl": lambda heads, steps: (0, 1 + heads),
    "ablation_accuracy": lambda heads, steps: (0, 1 + heads),
    "shapley": lambda heads, steps: (0, 2 + MAX_PERMUTATIONS * (heads - 1)),
    "confidence": lambda heads, steps: (0, 1),
    "entropy": lambda heads, steps: (0, 1),
    "gates": lambda heads, steps: (GATE_STEPS, 0),
    "random": lambda heads, steps: (0, 0),
}


def method_cost(method: str, rows: int, heads: int, steps: int, row_passes: int | None = None) -> Cost:
    """Return the cost of a head method.

    Args:
        rows: that rank the heads.
        heads: of all layers together.
        steps: `integration_steps`.
        row_passes: those that `learned_order` may make; None: its full number.
    """
    name = method.removeprefix(ITERATIVE)
    check = 2 * min(CHECKED_ROWS, rows)
    if name == LEARNED_ORDER:
        start_rows, steps = learned_order_passes(rows, ROW_PASSES if row_passes is None else row_passes)
        return Cost(start_rows + steps * min(FOLDS, rows) * BATCH, check, is_limit=True)
    both, forward = PASSES_PER_ROW[name](heads, steps)
    if method != name:
        both, forward = (scored_rounds(heads) * passes for passes in (both, 0 if both else forward))
    part = ABLATION_PART if name.startswith("ablation") else 1.0
    return Cost(both * rows, forward * rows + check, part, is_limit=name == "shapley")


def scored_rounds(heads: int) -> int:
    """Return how often an iterative variant scores the heads: in each round but the last that removes a head."""
    removed = [round(heads * number / ROUNDS) for number in range(ROUNDS)]
    return sum(after > before for before, after in pairwise(removed))


def curve_cost(rows: int, orders: int, shares: int, single_removals: int) -> Cost:
    """Return the cost of pruning curves.

    Args:
        orders: rankings, reversed rankings and random orders together.
        single_removals: scores after removing one head at a time, of all rankings together.
    """
    return Cost(forward_passes=rows * (1 + orders * shares + single_removals), is_limit=True)


def explanation_cost(rows: int, detailed: int, heads: int, steps: int) -> Cost:
    """Return the cost of explaining rows, without the extra points for integrals that are not exact enough.

    Args:
        rows: with first-order effects of the heads.
        detailed: rows that also get exact effects of the heads, attributions of the tokens and attention maps.
        steps: points of an integral.
    """
    return Cost(rows + detailed * steps, detailed * round((1 + heads) * ABLATION_PART + 3))


def names_cost(rows: int, screening_rows: int, heads: int) -> Cost:
    """Return the cost of the names of heads.

    Args:
        rows: of the tests: each head is removed alone, in a random set and in at most one pair.
        screening_rows: rows that choose the pairs, at most 128 of them.
        heads: of all layers together.
    """
    screening = min(screening_rows, SCREENING_ROWS) * (1 + heads)
    return Cost(screening, rows * (2 + 3 * heads), ABLATION_PART, is_limit=True)


@dataclass(frozen=True)
class TrainingCost:
    """What the training of a run cost.

    Attributes:
        rows: rows that were trained on, counted once per epoch.
        row_passes: the number of row passes that take as long.
    """

    rows: int
    row_passes: float

    def allowed(self, max_cost: float | None) -> int | None:
        """Return the row passes that `learned_order` may make for a share of this cost; None without a share."""
        if max_cost is None:
            return None
        return min(ROW_PASSES, max(MIN_ROW_PASSES, int(max_cost * self.row_passes)))


def training_cost(rows: int, epochs: float, *, frozen_layers: float = 0.0, cached: bool = False) -> TrainingCost:
    """Return the cost of a training.

    Args:
        rows: training rows.
        epochs: that were trained, which may be part of an epoch.
        frozen_layers: share of the layers that were frozen.
        cached: whether the outputs of the frozen layers were computed only once.
    """
    trained = rows * epochs
    above = 1 - frozen_layers
    forward = (min(trained, rows) * frozen_layers + trained * above) if cached else trained
    return TrainingCost(round(trained), TRAINED_ROW * (forward + 2 * trained * above) / 3)


def cost_line(title: str, cost: Cost, training: TrainingCost | None, row_pass_seconds: float | None) -> str:
    """Return a line such as "gradient on 256 train rows: 256 row passes, 1.1 % of the training, about 1 s"."""
    parts = [f"{title}: {cost.text()}"]
    if cost.total() and training is not None and training.row_passes:
        share = cost.total() / training.row_passes
        parts.append(f"{_percent(share)} of the training" if share < 1 else f"{share:.1f} times the training")
    if cost.total() and row_pass_seconds is not None:
        parts.append(f"about {format_duration(cost.total() * row_pass_seconds)}")
    return ", ".join(parts)


def cost_table(heads: int = 72, steps: int = 8, trained_rows: int = 20_000) -> str:
    """Return a Markdown table of the costs of all head methods with the default settings.

    Args:
        heads: of all layers together.
        steps: `integration_steps`.
        trained_rows: rows of full fine-tuning with which the cost is compared, counted once per epoch.
    """
    training = training_cost(trained_rows, 1)
    lines = [
        f"| method | rows | row passes | forward passes | share of training on {trained_rows:,} rows |",
        "| --- | --- | --- | --- | --- |",
    ]
    for method in HEAD_METHOD_NAMES:
        rows = default_rows(method)
        cost = method_cost(method, rows, heads, steps)
        limit = "at most " if cost.is_limit else ""
        share = _percent(cost.total() / training.row_passes)
        lines.append(
            f"| `{method}` | {rows} | {limit if cost.row_passes else ''}{cost.row_passes:,} | "
            f"{limit if not cost.row_passes else ''}{cost.forward_passes:,} | {limit}{share} |"
        )
    return "\n".join([*lines, ""])


def _percent(share: float) -> str:
    """Return "4.3 %" or "310 %"."""
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"
