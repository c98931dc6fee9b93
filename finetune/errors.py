"""The errors a user can cause, and the nearest right name for a wrong one.

    FinetuneError
    ├── RecipeError      the recipe or an override is wrong
    ├── DataError        a data file or a row is wrong
    ├── ModelError       a model cannot be loaded, adapted or gated
    └── TrainingError    training cannot start or go on

Every message says what was given, the rule and the repair. The command line prints it without a
traceback and ends with `EXIT_CODE`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["EXIT_CODE", "DataError", "FinetuneError", "ModelError", "RecipeError", "TrainingError", "did_you_mean"]

EXIT_CODE = 2


class FinetuneError(Exception):
    """Any mistake that the user can repair."""


class RecipeError(FinetuneError):
    """The recipe or a key=value override is wrong."""


class DataError(FinetuneError):
    """A data file, a column or a row is wrong."""


class ModelError(FinetuneError):
    """A model cannot be found, loaded, adapted, gated or read back."""


class TrainingError(FinetuneError):
    """Training cannot start, resume or go on."""


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the nearest of `choices`, or "" when none is near."""
    near = difflib.get_close_matches(name, sorted(choices), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""
