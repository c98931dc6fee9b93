"""What head analysis finds, as it lies in `heads.json`. Imports no torch.

L layers, H heads
"""

from __future__ import annotations

from dataclasses import dataclass, field

from finetune.runs.results import ModelCost

Table = list[list[float | None]]  # (L, H); None where a layer lacks the head


@dataclass(frozen=True)
class HeadCell:
    """One head's importance; the standard error is None where the method gives none."""

    layer: int
    head: int
    value: float
    error: float | None


@dataclass(frozen=True)
class TauValue:
    """Kendall's tau of two tables of heads and its 95 % interval; None where it is not defined."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def text(self) -> str:
        """Return "0.41 [0.28, 0.54]", or "not defined"."""
        if self.value is None:
            return "not defined"
        bounds = "" if self.low is None or self.high is None else f" [{self.low:.2f}, {self.high:.2f}]"
        return f"{self.value:.2f}{bounds}"


@dataclass(frozen=True)
class HeadScores:
    """Importance of every head by one method, higher for heads that matter more.

    Attributes:
        formula: what the values are.
        split, rows: where they were measured.
        values, standard_errors: (L, H).
        order: all heads as [layer, head], least important first; a layer's last head goes at the end.
        seconds: what measuring took.
        stability: tau between rankings from different rows: over halvings of the rows the mean and the central 95 %,
            over pairs of folds the mean, the lowest and the highest.
        note: what must be known of these values.
        errors_over: what the errors are over: rows, or folds of them that were learned apart.
    """

    method: str
    formula: str
    split: str
    rows: int
    values: Table
    standard_errors: Table
    order: list[tuple[int, int]]
    seconds: float = 0.0
    stability: TauValue | None = None
    note: str = ""
    errors_over: str = "rows"

    def stability_note(self) -> str:
        """Return how far rankings from different rows agree, in words, or ""."""
        if self.stability is None or self.stability.value is None:
            return ""
        if self.errors_over == "rows":
            rows, bounds = "two random halves of the rows", "in brackets the central 95 % of halvings"
        else:
            rows, bounds = f"each two of the {self.errors_over}", "in brackets the lowest and the highest"
        return f"Rankings from {rows} agree with Kendall's tau {self.stability.text()}; {bounds}"

    def sorted_by_value(self) -> list[HeadCell]:
        """Return all heads that have a value, the highest first."""
        cells = [
            HeadCell(layer, head, value, error)
            for layer, (values, errors) in enumerate(zip(self.values, self.standard_errors, strict=True))
            for head, (value, error) in enumerate(zip(values, errors, strict=True))
            if value is not None
        ]
        return sorted(cells, key=lambda cell: -cell.value)

    def most_important_first(self) -> list[HeadCell]:
        """Return all heads that have a value in the reverse of the order in which they would be removed."""
        cells = {(cell.layer, cell.head): cell for cell in self.sorted_by_value()}
        return [cells[layer, head] for layer, head in reversed(self.order) if (layer, head) in cells]


@dataclass(frozen=True)
class PruningCurve:
    """Scores as heads go in the order of a method: at each share removed, and their mean over the shares.

    `reverse` is the mean when the most important go first: the further below, the more the ranking tells.
    """

    method: str
    scores: list[float]
    mean: float
    reverse: float | None = None


@dataclass(frozen=True)
class RandomBand:
    """Scores as heads go in random order: the mean, lowest and highest of several orders at each share."""

    orders: int
    mean_scores: list[float]
    low: list[float]
    high: list[float]
    mean: float
    spread: float | None
    highest_mean: float


@dataclass(frozen=True)
class PruningCurves:
    """How well rankings foretell what removal does, on rows that no ranking saw.

    Attributes:
        metric: what is scored; higher is better, errors are negated.
        whole: the score with all heads.
        shares: of heads removed, for every curve.
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
    """How far two methods rank the heads alike."""

    first: str
    second: str
    tau: TauValue


@dataclass(frozen=True)
class HeadTest:
    """What removal of one head alone does to the rows that are right, paired row by row.

    Attributes:
        change: accuracy without the head minus accuracy with it (regression: rise of the mean squared error).
        low, high: 95 % bootstrap interval of the change.
        lost, gained: rows that only the whole model, only the model without the head, gets right.
        p_value: McNemar's exact test (regression: Wilcoxon's signed-rank test).
        p_holm: the same, corrected for having tested all heads (Holm 1979).
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
    """Every head removed alone, on rows that no ranking saw."""

    split: str
    rows: int
    measure: str
    tests: list[HeadTest]


@dataclass(frozen=True)
class HeadChanges:
    """What training changed of every head, against the base checkpoint; all tables are (L, H).

    A layer with fewer heads than another has None in the places it lacks.

    Attributes:
        split, rows: what the effects were measured on.
        output_value: relative change of W_V W_O, ||after - before||_F / ||before||_F.
        query_key: the same of W_Q W_K^T.
        output_value_rank, query_key_rank: effective rank of the change (Roy and Vetterli 2007), 0 for none.
        effect: how far predictions move when the head's own change is taken back, in the unit of `effect_measure`.
        loss_change: mean loss a row without the head's change, minus with it.
        effect_errors, loss_change_errors: standard errors over rows; None where a single row gave them.
    """

    split: str
    rows: int
    effect_measure: str
    output_value: Table
    query_key: Table
    output_value_rank: Table
    query_key_rank: Table
    effect: Table
    effect_errors: Table
    loss_change: Table
    loss_change_errors: Table


@dataclass(frozen=True)
class ChangeAgreement:
    """Whether the heads that matter are those that training changed: Kendall's tau of importance with each change."""

    importance: str
    output_value: TauValue
    query_key: TauValue
    effect: TauValue
    answer: str


@dataclass(frozen=True)
class HeadAnalysis:
    """All that is known of the heads. The first method is the one by which heads are ranked."""

    methods: list[HeadScores]
    truth: PruningCurves | None = None
    agreement: list[RankAgreement] = field(default_factory=list)
    leave_one_out: LeaveOneOut | None = None
    changes: HeadChanges | None = None
    changes_agreement: ChangeAgreement | None = None
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class PruningResult:
    """What cutting heads out did.

    Attributes:
        chosen_by: how the heads were chosen.
        heads: those that went, by layer, in the numbers of the model before.
        share: of all heads.
        difference: largest difference of a logit, before healing, between the pruned model and the whole one with the
            heads gated.
        scores_before, scores_after, scores_healed: metrics by split, None where undefined.
        before, after: parameters, bytes on disk and speed; `before` with adapters merged, speeds measured in turns.
    """

    chosen_by: str
    heads: dict[str, list[int]]
    share: float
    difference: float
    scores_before: dict[str, dict[str, float | None]]
    scores_after: dict[str, dict[str, float | None]]
    heal_epochs: int
    scores_healed: dict[str, dict[str, float | None]] | None
    before: ModelCost
    after: ModelCost
