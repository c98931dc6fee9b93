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
import re
from collections.abc import Iterable

__all__ = [
    "EXIT_CODE",
    "DataError",
    "FinetuneError",
    "ModelError",
    "RecipeError",
    "TrainingError",
    "did_you_mean",
    "printable",
    "shorten",
]

EXIT_CODE = 2
_LONGEST_NAME = 100  # characters; difflib takes long over long names, and none is a misspelling
# Control characters but for tab and line feed, line separators, and halves of surrogate pairs.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


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
    if len(name) > _LONGEST_NAME:
        return ""
    near = difflib.get_close_matches(name, sorted(choices), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


def shorten(text: str, longest: int = 600) -> str:
    """Return the text, with its middle left out if it is longer than `longest` characters; its end says the repair."""
    if len(text) <= longest:
        return text
    end = longest // 3
    return f"{text[: longest - end]} ... {text[-end:]}"


def printable(text: str) -> str:
    """Return the text with what a terminal cannot print, or would obey, written as escapes; line breaks stay."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
