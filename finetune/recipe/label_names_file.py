"""Label names in a file: `task.label_names: labels.txt`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from finetune.errors import shorten
from finetune.paths import absolute_path, path_problem
from finetune.recipe.validation import Problem, section_of

_LOCATION = ("task", "label_names")
_SHAPE = "write a JSON list of names, or one name per line"


def read_label_names(document: dict[str, Any]) -> Iterator[Problem]:
    """Put the names in the file that `task.label_names` names into the document; yield the problem if there is one."""
    file = section_of(document, "task").get("label_names")
    if not isinstance(file, str):
        return
    problem = path_problem(file)
    if problem is None:
        names, problem = _names(file)
        if problem is None:
            document["task"] = {**document["task"], "label_names": names}
            return
    yield Problem(_LOCATION, f"'{shorten(file, 120)}' {problem}")


def _names(file: str) -> tuple[list[str], str | None]:
    """Return the names in a file, or why it cannot be read."""
    path = absolute_path(file)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        return [], "is not UTF-8; save it as UTF-8"
    except FileNotFoundError:
        return [], f"is not a file (full path: {path}); correct the path, or write the names as a list"
    except OSError as error:
        return [], f"cannot be read: {error.strerror}; correct the path or its permissions"
    if path.suffix.lower() != ".json":
        return [line.strip() for line in text.splitlines() if line.strip()], None
    try:
        names = json.loads(text, parse_int=str, parse_float=str)
    except (ValueError, RecursionError) as error:
        return [], f"is not valid JSON ({error}); {_SHAPE}"
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return [], f"is not a list of names; {_SHAPE}"
    return names, None
