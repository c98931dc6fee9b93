"""The results of head analysis, as stored in `heads.json`.

L layers, H heads
"""

from __future__ import annotations

from dataclasses import dataclass, field

from finetune.runs.head_names import HeadNames

HeadTable = list[list[float | None]]  # (L, H); None if a layer does not have the head


@dataclass(frozen=True)
class HeadCell:
    """The importance of one head; the standard error is None if the method gives none."""

    layer: int
    head: int
    value: float
    error: float | None


@dataclass(frozen=True)
class TauValue:
    """Kendall's tau between two rankings of the heads, and its 95 % interval; None if it is undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def text(self) -> str:
        """Return "0.41 [0.28, 0.54]", or "undefined"."""
        if self.value is None:
            return "undefined"
        bounds = "" if self.low is None or self.high is None else f" [{self.low:.2f}, {self.high:.2f}]"
        return f"{self.value:.2f}{bounds}"


@dataclass(frozen=True)
class HeadScores:
    """The importance of every head by one method; a higher value means a more important head.

    Attributes:
        formula: formula of the values.
        split, rows: the split and number of rows that the values were measured on.
        values, standard_errors: (L, H).
        order: all heads as [layer, head], least important first; the last head of each layer comes at the end.
        seconds: duration of the measurement.
        stability: tau between rankings from different subsets of rows: the mean and the central 95 % over random halves
            of the rows, or the mean, minimum and maximum over pairs of folds.
        note: a limitation that a reader of the values must know.
        errors_over: the unit of the standard errors: "rows", or the folds whose rankings were learned separately.
    """

    method: str
    formula: str
    split: str
    rows: int
    values: HeadTable
    standard_errors: HeadTable
    order: list[tuple[int, int]]
    seconds: float = 0.0
    stability: TauValue | None = None
    note: str = ""
    errors_over: str = "rows"

    def stability_note(self) -> str:
        """Return a sentence on the agreement of rankings from different rows, or ""."""
        if self.stability is None or self.stability.value is None:
            return ""
        if self.errors_over == "rows":
            rows, bounds = "two random halves of the rows", "the central 95 % of random splits"
        else:
            rows, bounds = f"pairs of the {self.errors_over}", "minimum and maximum"
        return (
            f"Kendall's tau between rankings from {rows} is {self.stability.text()} on average (in brackets: {bounds})"
        )

    def sorted_by_value(self) -> list[HeadCell]:
        """Return all heads that have a value, highest value first."""
        cells = [
            HeadCell(layer, head, value, error)
            for layer, (values, errors) in enumerate(zip(self.values, self.standard_errors, strict=True))
            for head, (value, error) in enumerate(zip(values, errors, strict=True))
            if value is not None
        ]
        return sorted(cells, key=lambda cell: -cell.value)

    def most_important_first(self) -> list[HeadCell]:
        """Return all heads that have a value, in the reverse of the order in which they would be removed."""
        cells = {(cell.layer, cell.head): cell for cell in self.sorted_by_value()}
        return [cells[layer, head] for layer, head in reversed(self.order) if (layer, head) in cells]


@dataclass(frozen=True)
class PruningCurve:
    """The scores when heads are removed in the order of a method, at each share of heads removed, and their mean.

    `reverse` is the mean when the most important heads are removed first, and `reverse_scores` are its scores (empty in
    runs of earlier versions). The lower they are, the more informative the ranking. `by_count` has the score after
    removing 1, 2, ... heads, up to one less than all; it is empty for models of more than 16 heads and in runs of
    earlier versions.
    """

    method: str
    scores: list[float]
    mean: float
    reverse: float | None = None
    by_count: list[float] = field(default_factory=list)
    reverse_scores: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class RandomBand:
    """The scores when heads are removed in random order: mean, minimum and maximum of several orders at each share.

    Attributes:
        mean: mean score over all shares and orders.
        spread: standard deviation of the orders' means; None for one order.
        highest_mean: the best mean of one order.
    """

    orders: int
    mean_scores: list[float]
    low: list[float]
    high: list[float]
    mean: float
    spread: float | None
    highest_mean: float


@dataclass(frozen=True)
class PruningCurves:
    """Pruning curves of all methods, measured on rows that were not used for the rankings.

    Attributes:
        metric: the metric of the scores; higher is better, error metrics are negated.
        whole: the score with all heads.
        shares: the shares of heads removed, the same for every curve.
    """

    metric: str
    split: str
    rows: int
    whole: float
    shares: list[float]
    curves: list[PruningCurve]
    random: RandomBand | None


@dataclass(frozen=True)
class RankAgreement:
    """The agreement of two rankings of the heads."""

    first: str
    second: str
    tau: TauValue


@dataclass(frozen=True)
class HeadTest:
    """The effect of removing one head alone, with a paired test over the rows.

    Attributes:
        change: accuracy without the head minus accuracy with it (regression: increase of the mean squared error).
        low, high: 95 % bootstrap interval of the change.
        lost, gained: number of rows that become wrong, or right, without the head.
        p_value: p-value of McNemar's exact test (regression: Wilcoxon's signed-rank test).
        p_holm: the p-value corrected for the number of heads tested (Holm 1979).
    """

    layer: int
    head: int
    change: float
    low: float
    high: float
    lost: int
    gained: int
    p_value: float
    p_holm: float


@dataclass(frozen=True)
class LeaveOneOut:
    """The effect of removing each head alone, measured on rows that were not used for the rankings."""

    split: str
    rows: int
    measure: str
    tests: list[HeadTest]


@dataclass(frozen=True)
class HeadChanges:
    """How training changed each head, compared with the base checkpoint; all tables are (L, H).

    Attributes:
        split, rows: the split and number of rows that the effects were measured on.
        output_value: relative change of W_V W_O, ||after - before||_F / ||before||_F.
        query_key: the same for W_Q W_K^T.
        output_value_rank, query_key_rank: effective rank of the change (Roy and Vetterli 2007), 0 for no change.
        effect: how much the predictions change when the change of this head is undone, in units of `effect_measure`.
        loss_change: mean loss per row without the change of the head, minus the loss with it.
        effect_errors, loss_change_errors: standard errors over rows; None for a single row.
    """

    split: str
    rows: int
    effect_measure: str
    output_value: HeadTable
    query_key: HeadTable
    output_value_rank: HeadTable
    query_key_rank: HeadTable
    effect: HeadTable
    effect_errors: HeadTable
    loss_change: HeadTable
    loss_change_errors: HeadTable


@dataclass(frozen=True)
class ChangeAgreement:
    """Kendall's tau between the importance of the heads and each measure of their change in training."""

    importance: str
    output_value: TauValue
    query_key: TauValue
    effect: TauValue
    answer: str


@dataclass(frozen=True)
class HeadAnalysis:
    """All results of the head analysis. The first method is the one whose ranking is used."""

    methods: list[HeadScores]
    truth: PruningCurves | None = None
    agreement: list[RankAgreement] = field(default_factory=list)
    leave_one_out: LeaveOneOut | None = None
    changes: HeadChanges | None = None
    changes_agreement: ChangeAgreement | None = None
    warnings: list[str] = field(default_factory=list)
    names: HeadNames | None = None
