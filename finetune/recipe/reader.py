"""Read a recipe: strict YAML, key=value overrides, every mistake at once.

YAML is read by PyYAML with the scalar rules of YAML 1.2 (`2e-5` is a float, `no` is a word), on the
level of nodes, so that duplicate keys are seen and each mistake can name its line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from finetune.errors import RecipeError
from finetune.recipe.problems import (
    Location,
    Problem,
    disk_problems,
    freezing_problems,
    metric_problems,
    schema_problems,
    stage_problems,
    weight_problems,
)
from finetune.recipe.schema import SOURCES, Recipe

_TAG = "tag:yaml.org,2002:"
# Values that are names, whatever they look like: `label_names: [true, 1]` are two words.
_WORD_LISTS = {("task", "label_names")}


class _Loader(yaml.SafeLoader):
    """PyYAML with the core schema of YAML 1.2, https://yaml.org/spec/1.2.2/#103-core-schema."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  (PyYAML's own attribute)


_CORE_SCHEMA = (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?[0-9]+$", list("-+0123456789")),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", list("-+.0123456789")),
    ("float", r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", list("-+.")),
)
for _name, _pattern, _first in _CORE_SCHEMA:
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(_pattern), _first)
_Loader.add_constructor(_TAG + "int", lambda loader, node: int(node.value))
_Loader.add_constructor(_TAG + "float", lambda loader, node: _number(node.value))


class _Dumper(yaml.SafeDumper):
    """PyYAML, with those characters escaped that it writes plain but reads as line breaks or refuses."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(_TAG + "str", text, style='"' if _UNSAFE.search(text) else None)


_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
_Dumper.add_representer(str, _represent_text)


def _number(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the checked recipe in `path`, with `section.key=value` overrides applied.

    Relative paths are taken from the working directory and made absolute, so that the resolved recipe
    runs from anywhere.

    Raises:
        RecipeError: the file cannot be read, or anything in it or in the overrides is wrong; the message
            has one line for each mistake.
    """
    path = Path(path)
    root = _compose(_read_text(path), f"{path}")
    lines: dict[Location, str] = {}
    try:
        problems = list(_index(root, (), lines))
    except RecursionError as error:
        raise RecipeError(f"{path} has an alias that holds itself; write the value out") from error
    for override in overrides:
        problems += _apply(override, root, lines)
    document = _construct(root)
    document.setdefault("output_dir", f"runs/{path.stem}")
    problems += [
        *metric_problems(document),
        *weight_problems(document),
        *freezing_problems(document),
        *disk_problems(document),
    ]
    recipe = None
    try:
        recipe = Recipe.model_validate(document)
    except ValidationError as error:
        said = {problem.location for problem in problems}
        problems += [problem for problem in schema_problems(error) if problem.location not in said]
    # What one section asks of another is told last: it often follows from another mistake.
    problems = problems or list(stage_problems(document))
    if problems or recipe is None:
        count = f"{len(problems)} mistakes" if len(problems) > 1 else "a mistake"
        problems.sort(key=lambda problem: problem.position(lines))  # as the file goes
        raise RecipeError("\n  ".join([f"{path} has {count}:", *(p.line(lines) for p in problems)]))
    return _absolute(recipe)


def dump_recipe(recipe: Recipe) -> str:
    """Return the recipe as YAML with every default written out; `load_recipe` gives the same recipe back."""
    document = recipe.model_dump(mode="json")
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _read_text(path: Path) -> str:
    if not path.is_file():
        near = sorted(str(p) for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        repair = f"there are {', '.join(near)}" if near else "correct the path"
        raise RecipeError(f"no recipe '{path}'; {repair}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}") from error


def _compose(text: str, name: str) -> yaml.MappingNode:
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RecipeError(f"{name}{line} is not YAML: {error.problem or error.context}; correct it there") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{name} is not YAML: {error}; correct it there") from error
    if not isinstance(root, yaml.MappingNode):
        raise RecipeError(f"{name} holds no sections; a recipe is a mapping with at least model and data")
    return root


def _index(node: yaml.Node, path: Location, lines: dict[Location, str]) -> Iterator[Problem]:
    """Note each key's line, yield duplicate keys (dropping the later one), and fix which values are words."""
    if path in _WORD_LISTS and isinstance(node, yaml.SequenceNode):
        for item in node.value:
            if isinstance(item, yaml.ScalarNode):
                item.tag = _TAG + "str"
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _index(item, (*path, index), lines)
    if isinstance(node, yaml.MappingNode):
        kept: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            where, line = (*path, str(key.value)), f"line {key.start_mark.line + 1}"
            if str(key.value) in kept:
                yield Problem(where, f"is given again on {line}; a key is given once, remove one")
                continue
            key.tag = _TAG + "str" if isinstance(key, yaml.ScalarNode) else key.tag
            kept[str(key.value)] = (key, value)
            lines[where] = line
            yield from _index(value, where, lines)
        node.value = list(kept.values())


def _apply(override: str, root: yaml.MappingNode, lines: dict[Location, str]) -> list[Problem]:
    """Put one `section.key=value` into the tree, its value typed as in the file; return what is wrong with it."""
    name, equals, text = override.partition("=")
    parts = tuple(name.strip().split("."))
    if not equals or not all(parts):
        return [Problem((), f"override '{override}' is not of the form section.key=value")]
    try:
        value = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError:
        return [Problem(parts, f"the override's value '{text}' is not YAML; quote it")]
    value = value or yaml.ScalarNode(_TAG + "null", "")
    node = root
    for part in parts[:-1]:
        below = _child(node, part)
        if isinstance(below, yaml.SequenceNode):
            return [Problem(parts, "an item of a list cannot be changed by itself; give the whole list")]
        if not isinstance(below, yaml.MappingNode):
            below = yaml.MappingNode(_TAG + "map", [])
            _put(node, part, below)
        node = below
    empty = value.tag == _TAG + "null"
    for other in () if empty else _other_sources(parts):
        node.value = [(key, item) for key, item in node.value if key.value != other]
    _put(node, parts[-1], value)
    found = list(_index(value, parts, lines))
    lines[parts] = "override"
    return found


def _other_sources(parts: Location) -> Iterable[str]:
    """Return the keys that an override of this key replaces: those of the section's other sources."""
    groups = SOURCES.get(str(parts[0]), ()) if len(parts) > 1 else ()
    if not any(parts[1] in group for group in groups):
        return ()
    return [key for group in groups if parts[1] not in group for key in group]


def _child(node: yaml.MappingNode, name: str) -> yaml.Node | None:
    return next((value for key, value in node.value if key.value == name), None)


def _put(node: yaml.MappingNode, name: str, value: yaml.Node) -> None:
    node.value = [(key, item) for key, item in node.value if key.value != name]
    node.value.append((yaml.ScalarNode(_TAG + "str", name), value))


def _construct(root: yaml.MappingNode) -> dict[str, Any]:
    loader = _Loader("")
    try:
        document = loader.construct_document(root)
    except (yaml.constructor.ConstructorError, ValueError, RecursionError) as error:
        said = getattr(error, "problem", error)
        raise RecipeError(f"the recipe uses YAML that is not read here: {said}; write plain values") from error
    assert isinstance(document, dict)
    return document


def _absolute(recipe: Recipe) -> Recipe:
    files = {f"{split}_file": _whole(file) for split, file in recipe.data.local_files().items()}
    name, resume = recipe.model.model_name_or_path, recipe.checkpoint.resume_from_checkpoint
    folder = {"model_name_or_path": _whole(name)} if name and Path(name).expanduser().is_dir() else {}
    resumed = {"resume_from_checkpoint": _whole(resume)} if resume not in (None, "auto") else {}
    return recipe.model_copy(
        update={
            "output_dir": _whole(recipe.output_dir),
            "data": recipe.data.model_copy(update=files),
            "model": recipe.model.model_copy(update=folder),
            "checkpoint": recipe.checkpoint.model_copy(update=resumed),
        }
    )


def _whole(path: str | None) -> str:
    return str(Path(path or "").expanduser().absolute())
