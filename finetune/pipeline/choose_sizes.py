"""Choose the heads and neurons to prune from a finished run, by speed or by validation score."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from finetune.errors import DataError
from finetune.evaluation.prediction import predict
from finetune.heads.latency import Latencies, measure_latencies
from finetune.heads.pruning import measure_speed, pruned_classifier
from finetune.heads.structured_pruning import SizeSearch, search_sizes
from finetune.heads.sublayers import HEADS, NEURONS, Kept, Sublayer, removed_members, sublayers
from finetune.models.architectures import family_of
from finetune.models.classifier import Classifier
from finetune.pipeline.choose_heads import choose_heads, gated_rows
from finetune.pipeline.finished_run import FinishedRun
from finetune.pipeline.head_choice import HeadChoice
from finetune.progress import stage
from finetune.recipe.named_metrics import lower_is_better

MAX_ROWS = 1024  # training rows whose moments are measured
SPEED_ROWS = 256
_MAX_CORRECTIONS = 4  # of the requested speed, until the measured one reaches it
_BISECTIONS = 6
_SPARE = 1.01  # part of the speed that is requested in addition, as measurements vary


@dataclass(frozen=True)
class Removal:
    """What is pruned from a classifier.

    Attributes:
        heads, neurons: what is removed, by layer.
        chosen_by: how it was chosen.
        classifier: the one to prune, in full size and without adapters, with refitted output projections.
        pruned: the pruned classifier.
        speeds: rows per second of the unpruned and the pruned classifier, from interleaved measurements.
        is_refitted: whether the output projections were refitted.
        requested_speedup: None if no speed was requested.
    """

    heads: dict[int, list[int]]
    neurons: dict[int, list[int]]
    chosen_by: str
    classifier: Classifier
    pruned: Classifier
    speeds: tuple[float, float]
    is_refitted: bool
    requested_speedup: float | None = None


def choose_parts(
    run: FinishedRun, unpruned: Classifier, choice: HeadChoice, latencies: Latencies | None = None
) -> Removal:
    """Return what to prune.

    Args:
        unpruned: the run's classifier with its adapters merged.
        latencies: those of `unpruned`; None: they are measured.

    Raises:
        DataError: the choice removes nothing, or the speed cannot be reached.
    """
    if choice.get("share") is not None or choice.get("heads") is not None:
        heads, chosen_by = choose_heads(run, choice)
        if not any(heads.values()):
            raise DataError(f"nothing to prune: {chosen_by}; increase share or keep_within")
        pruned = pruned_classifier(unpruned, heads)
        return Removal(heads, {}, chosen_by, unpruned, pruned, speeds_of(run, unpruned, pruned), is_refitted=False)
    parts = prunable_parts(run, unpruned, heads_only=bool(choice.get("heads_only")))
    if latencies is None:
        texts = speed_texts(run)
        latencies = measure_latencies(unpruned, parts, texts, run.context.accelerator.device)
    sample = replace(gated_rows(run, "train", MAX_ROWS), classifier=unpruned)
    search = search_sizes(sample, parts, latencies, run.context.recipe.seed)
    names = " and ".join(dict.fromkeys(part.kind for part in parts))
    origin = f"{names} by their effect on the logits of {len(sample)} training rows"
    speedup, keep_within = choice.get("speedup"), choice.get("keep_within")
    if speedup is not None:
        removal = _reach(run, search, speedup)
        return replace(removal, chosen_by=f"{speedup:g} times the speed, {origin}", requested_speedup=speedup)
    assert keep_within is not None
    metric = run.context.recipe.toolkit_metrics()[0]
    score = _validation_score(run, metric)
    best, full_score = fastest_within(search, score, keep_within)
    value = -full_score if lower_is_better(metric) else full_score
    rule = f"the fastest model with validation {metric} within {keep_within:g} of {value:.4f}, {origin}"
    if best is None:
        raise DataError(f"nothing to prune: {rule}; increase share or keep_within")
    removal = _removal(run, search, best)
    return replace(removal, chosen_by=rule)


def prunable_parts(run: FinishedRun, unpruned: Classifier, *, heads_only: bool) -> list[Sublayer]:
    """Return the sublayers whose parts can be removed; if it is only heads or only neurons, a message says why."""
    config = unpruned.base.config
    reasons = {HEADS: why_heads_remain(config), NEURONS: why_neurons_remain(config)}
    kinds = [HEADS] if heads_only else [kind for kind, reason in reasons.items() if not reason]
    for kind, reason in reasons.items():
        if reason and not heads_only:
            run.context.print_line(f"[yellow]Only {kinds[0]} are pruned. No {kind}, because {reason}.[/]")
    return sublayers(unpruned.base, kinds)


def why_heads_remain(config: Any) -> str:
    """Return why no heads can be removed from a model with this config, or ""."""
    return family_of(config).why_not_prunable(config) or ""


def why_neurons_remain(config: Any) -> str:
    """Return why no feed-forward neurons can be removed from a model with this config, or ""."""
    return family_of(config).feed_forward.why_not_prunable(config) or ""


def fastest_within(
    search: SizeSearch, score: Callable[[Classifier], float], tolerance: float
) -> tuple[Kept | None, float]:
    """Return the parts that remain in the fastest model that scores within `tolerance` of the full one, and its score.

    The speed is found by bisection on a logarithmic scale; the score of the full model is returned. None: even a model
    that is hardly faster scores too low.

    Args:
        score: the validation score of a classifier, higher is better.
    """
    full_score = score(search.classifier)
    slow, fast = 0.0, math.log(search.latencies.max_speedup())
    best: Kept | None = None
    with stage("searching the speed", total=_BISECTIONS) as progress:
        for _ in range(_BISECTIONS):
            middle = (slow + fast) / 2
            kept = search.kept_at(math.exp(middle))
            # In floating point, 0.8 - 0.1 is above 0.7.
            if kept is not None and score(_pruned(search, kept)) >= full_score - tolerance - 1e-9:
                best, slow = kept, middle
            else:
                fast = middle
            progress.advance()
    return None if best is None or _is_whole(best) else best, full_score


def _is_whole(kept: Kept) -> bool:
    return all(len(parts) == part.num_parts for part, parts in kept.items())


def _reach(run: FinishedRun, search: SizeSearch, speedup: float) -> Removal:
    """Return the removal with which the measured speed reaches the request."""
    target, best = speedup * _SPARE, 0.0
    for _ in range(_MAX_CORRECTIONS):
        kept = search.kept_at(target)
        if kept is None:
            break
        removal = _removal(run, search, kept)
        measured = removal.speeds[1] / removal.speeds[0]
        if measured >= speedup:
            return removal
        best = max(best, measured)
        run.context.print_line(f"Measured {measured:.2f} times the speed; removing more.")
        target *= speedup / measured * _SPARE
    largest = best or search.latencies.max_speedup()
    raise DataError(f"speedup is {speedup:g}; the largest that this model reaches is about {largest:.2g}: choose less")


def _removal(run: FinishedRun, search: SizeSearch, kept: Kept) -> Removal:
    classifier, heads, neurons = search.refitted(kept), removed_members(kept, HEADS), removed_members(kept, NEURONS)
    pruned = pruned_classifier(classifier, heads, neurons)
    return Removal(heads, neurons, "", classifier, pruned, speeds_of(run, search.classifier, pruned), is_refitted=True)


def _pruned(search: SizeSearch, kept: Kept) -> Classifier:
    return pruned_classifier(search.refitted(kept), removed_members(kept, HEADS), removed_members(kept, NEURONS))


def speeds_of(run: FinishedRun, unpruned: Classifier, pruned: Classifier) -> tuple[float, float]:
    """Return rows per second of both classifiers on training texts, on one thread of a CPU or on the run's device."""
    return measure_speed(unpruned, pruned, speed_texts(run), device=run.context.accelerator.device)


def speed_texts(run: FinishedRun) -> Sequence[tuple[str, ...]]:
    """Return the texts of SPEED_ROWS training rows, repeated if there are fewer."""
    texts = run.inputs.sample_texts(SPEED_ROWS)
    return [texts[index % len(texts)] for index in range(SPEED_ROWS)]


def _validation_score(run: FinishedRun, metric: str) -> Callable[[Classifier], float]:
    """Return a function from a classifier to its metric on the validation rows, negated if lower is better."""
    split, sign = run.inputs.splits["validation"], -1.0 if lower_is_better(metric) else 1.0
    batch_size = run.context.recipe.evaluation.per_device_eval_batch_size

    def score(classifier: Classifier) -> float:
        predictions = predict(classifier, split, batch_size=batch_size, accelerator=run.context.accelerator)
        value = predictions.metrics([metric])[metric]
        return sign * (0.0 if value is None else value)  # an undefined correlation explains nothing

    return score
