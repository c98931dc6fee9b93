"""The user's choice of the heads to prune, and its checks. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

from finetune.errors import DataError, did_you_mean
from finetune.recipe.names import HEAD_METHOD_NAMES


class HeadChoice(TypedDict, total=False):
    """How to choose the heads to prune: exactly one of `share`, `keep_within` and `heads`.

    share: the share of all heads to prune, between 0 and 1.
    keep_within: prune as many heads as keep the validation score within this distance of the full model's.
    heads: these heads, as (layer, head).
    method: the ranking from which `share` and `keep_within` prune; default: the leading one of the run's analysis.
    """

    share: float | None
    keep_within: float | None
    heads: Sequence[tuple[int, int]] | None
    method: str | None


def check_choice(choice: HeadChoice) -> None:
    """Raise DataError for a choice that is invalid for every run."""
    share, keep_within, heads = choice.get("share"), choice.get("keep_within"), choice.get("heads")
    method, methods = choice.get("method"), HEAD_METHOD_NAMES
    if sum(value is not None for value in (share, keep_within, heads)) != 1:
        raise DataError("give one of share, keep_within and heads, which choose the heads to prune")
    if share is not None and not 0 < share < 1:
        raise DataError(f"share is {share:g}; it must be above 0 and below 1, as a share of all heads")
    if keep_within is not None and not 0 <= keep_within < math.inf:
        raise DataError(f"keep_within is {keep_within:g}; it must be a difference in score, 0 or more")
    if method is not None and method not in methods:
        raise DataError(f"method is '{method}'; it must be one of {', '.join(methods)}{did_you_mean(method, methods)}")
    if heads is not None and method is not None:
        raise DataError("method ranks the heads to choose from, but heads names them; give one of the two")
    duplicates = [head for index, head in enumerate(heads or ()) if head in (heads or ())[:index]]
    if duplicates:
        layer, head = duplicates[0]
        raise DataError(f"heads names {layer}.{head} twice; name each head once")


def check_epochs(heal_epochs: int) -> None:
    """Raise DataError for a negative number of epochs."""
    if heal_epochs < 0:
        raise DataError(f"heal is {heal_epochs}; it must be a number of epochs, 0 or more")
