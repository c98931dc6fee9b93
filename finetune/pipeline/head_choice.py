"""The user's choice of what to prune, and its checks. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

from finetune.errors import DataError, did_you_mean
from finetune.recipe.names import HEAD_METHOD_NAMES


class HeadChoice(TypedDict, total=False):
    """How to choose what to prune: exactly one of `speedup`, `keep_within`, `share` and `heads`.

    speedup: prune heads and feed-forward neurons until the model is this many times as fast.
    keep_within: prune the fastest model whose validation score stays within this distance of the full model's.
    share: the share of all heads to prune, between 0 and 1.
    heads: these heads, as (layer, head).
    method: the ranking from which `share` prunes; default: the leading one of the run's analysis.
    heads_only: whether `speedup` and `keep_within` prune heads only.
    """

    speedup: float | None
    keep_within: float | None
    share: float | None
    heads: Sequence[tuple[int, int]] | None
    method: str | None
    heads_only: bool


def check_choice(choice: HeadChoice) -> None:
    """Raise DataError for a choice that is invalid for every run."""
    speedup, keep_within = choice.get("speedup"), choice.get("keep_within")
    share, heads = choice.get("share"), choice.get("heads")
    method, methods = choice.get("method"), HEAD_METHOD_NAMES
    if sum(value is not None for value in (speedup, keep_within, share, heads)) != 1:
        raise DataError("give one of speedup, keep_within, share and heads, which choose what to prune")
    if speedup is not None and not 1 < speedup < math.inf:
        raise DataError(f"speedup is {speedup:g}; it must be above 1: 2 means twice as fast as before")
    if share is not None and not 0 < share < 1:
        raise DataError(f"share is {share:g}; it must be above 0 and below 1, as a share of all heads")
    if keep_within is not None and not 0 <= keep_within < math.inf:
        raise DataError(f"keep_within is {keep_within:g}; it must be a difference in score, 0 or more")
    if method is not None and method not in methods:
        raise DataError(f"method is '{method}'; it must be one of {', '.join(methods)}{did_you_mean(method, methods)}")
    if method is not None and share is None:
        raise DataError("method ranks the heads from which share prunes; give it with share, or remove it")
    if choice.get("heads_only") and (share is not None or heads is not None):
        raise DataError("heads_only restricts speedup and keep_within; share and heads prune only heads, so remove it")
    duplicates = [head for index, head in enumerate(heads or ()) if head in (heads or ())[:index]]
    if duplicates:
        layer, head = duplicates[0]
        raise DataError(f"heads names {layer}.{head} twice; name each head once")


def check_epochs(heal_epochs: int, *, control: bool) -> None:
    """Raise DataError for a negative number of epochs, or if a control is declined where there would be none."""
    if heal_epochs < 0:
        raise DataError(f"heal is {heal_epochs}; it must be a number of epochs, 0 or more")
    if not control and heal_epochs == 0:
        raise DataError("no_control leaves out the control of recovery fine-tuning; give it with heal, or remove it")
