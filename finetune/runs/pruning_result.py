"""The result of pruning, as stored in `pruning.json`."""

from __future__ import annotations

from dataclasses import dataclass, field

from finetune.runs.results import MetricValue, ModelCost

Scores = dict[str, dict[str, float | None]]  # metrics by split, None if undefined


@dataclass(frozen=True)
class StateDifference:
    """The difference of a metric between two states of the model on the same rows, with its 95 % interval.

    Attributes:
        first, second: before, cut, after, healed or control, as in `PruningResult`.
        value: second minus first.
    """

    first: str
    second: str
    split: str
    value: MetricValue


@dataclass(frozen=True)
class PruningResult:
    """The result of pruning heads and neurons.

    Attributes:
        chosen_by: how it was chosen what is removed.
        heads: the removed heads by layer, numbered as in the model before pruning.
        share: share of all heads that was removed.
        difference: largest difference of a logit, before recovery fine-tuning, between the pruned model and the full
            model with gates of 0 on the same heads and neurons.
        scores_before, scores_after, scores_healed: metrics of the full model, of the pruned one, and after recovery
            fine-tuning.
        before, after: parameters, bytes on disk and speed; `before` has its adapters merged, and the two speeds are
            from interleaved measurements.
        requested_speedup: None if no speed was requested.
        remaining_heads, remaining_neurons: per layer; [] in results of earlier versions.
        scores_cut: metrics of the pruned model before its output projections were refitted; None: they were not.
        scores_control: metrics of the full model after training for the steps of the recovery; None: not trained.
        metric: the metric of the differences.
        differences: between states, per split.
    """

    chosen_by: str
    heads: dict[str, list[int]]
    share: float
    difference: float
    scores_before: Scores
    scores_after: Scores
    heal_epochs: int
    scores_healed: Scores | None
    before: ModelCost
    after: ModelCost
    requested_speedup: float | None = None
    remaining_heads: list[int] = field(default_factory=list)
    remaining_neurons: list[int] = field(default_factory=list)
    scores_cut: Scores | None = None
    scores_control: Scores | None = None
    metric: str = ""
    differences: list[StateDifference] = field(default_factory=list)

    def states(self) -> list[tuple[str, Scores]]:
        """Return a title and the scores of every state of the model, in order."""
        epochs = f"{self.heal_epochs} epoch{'s' * (self.heal_epochs > 1)}"
        states = [
            ("before", self.scores_before),
            ("pruned without refit", self.scores_cut),
            ("pruned", self.scores_after),
            (f"pruned, fine-tuned for {epochs}", self.scores_healed),
            (f"control: unpruned, trained for {epochs} more", self.scores_control),
        ]
        return [(title, scores) for title, scores in states if scores is not None]

    def speedup(self) -> float:
        """Return how many times as fast the pruned model is."""
        return self.after.rows_per_second / self.before.rows_per_second

    def removed_text(self) -> str:
        """Return how many heads were removed, and how many heads and neurons remain per layer."""
        count = sum(map(len, self.heads.values()))
        parts = [f"Removed {count} head{'s' * (count != 1)} ({self.share:.0%})"]
        if self.remaining_heads:
            parts.append(f"heads per layer: {', '.join(map(str, self.remaining_heads))}")
        if self.remaining_neurons:
            parts.append(f"feed-forward neurons per layer: {', '.join(map(str, self.remaining_neurons))}")
        return "; ".join(parts)

    def difference_texts(self) -> list[str]:
        """Return a line per difference, such as "test accuracy, pruned minus before: -0.004 [-0.01, 0.002]"."""
        names = {"before": "before", "cut": "pruned without refit", "after": "pruned"}
        names |= {"healed": "fine-tuned", "control": "control"}
        return [
            f"{item.split} {self.metric}, {names[item.second]} minus {names[item.first]}: "
            f"{item.value.value:+.4f} {item.value.interval()}".rstrip()
            for item in self.differences
            if item.value.value is not None and item.second != "cut"
        ]
