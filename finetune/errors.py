"""The errors that a user can cause and correct.

    FinetuneError
    ├── RecipeError      the recipe or an override is wrong
    ├── DataError        a data file, a column, a row or a file of a run is wrong
    ├── ModelError       a model cannot be loaded, adapted, gated or pruned
    ├── TrainingError    training cannot start, resume or continue, or a file cannot be written
    └── TrainingStopped  the caller of `train` stopped training after an evaluation

Each message gives the value, the rule and the fix. The command line prints it without a traceback and exits with
`EXIT_CODE`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

__all__ = [
    "EXIT_CODE",
    "DataError",
    "FinetuneError",
    "ModelError",
    "RecipeError",
    "TrainingError",
    "TrainingStopped",
    "did_you_mean",
    "printable",
    "shorten",
]

EXIT_CODE = 2
_MAX_NAME_LENGTH = 100  # characters; difflib is slow on long names, and a longer one is not a misspelling
# Control characters except tab and line feed, line separators, and unpaired surrogates.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class FinetuneError(Exception):
    """An error that the user can correct."""


class RecipeError(FinetuneError):
    """The recipe or a key=value override is wrong."""


class DataError(FinetuneError):
    """A data file, a column, a row, or a file of a run is wrong."""


class ModelError(FinetuneError):
    """A model cannot be loaded, adapted, gated or pruned."""


class TrainingError(FinetuneError):
    """Training cannot start, resume or continue, or a file cannot be written."""


class TrainingStopped(FinetuneError):  # noqa: N818  (a request, not a mistake)
    """The function `on_evaluation`, which was given to `train`, returned True."""


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the choice closest to `name`, or "" if none is close."""
    if len(name) > _MAX_NAME_LENGTH:
        return ""
    matches = difflib.get_close_matches(name, sorted(choices), n=1, cutoff=0.6)
    return f"; did you mean '{matches[0]}'?" if matches else ""


def shorten(text: str, max_length: int = 600) -> str:
    """Return the text, with its middle replaced by "..." if it is longer than `max_length` characters.

    The end is kept because a message ends with the fix.
    """
    if len(text) <= max_length:
        return text
    end = max_length // 3
    return f"{text[: max_length - end]} ... {text[-end:]}"


def printable(text: str) -> str:
    """Return the text with control characters and other unprintable characters escaped; line breaks and tabs stay."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
