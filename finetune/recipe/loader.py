"""Load a recipe from YAML, apply overrides, and report all problems in one error."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from pydantic import ValidationError

from finetune.errors import RecipeError, shorten
from finetune.paths import absolute_path, path_problem
from finetune.recipe.data_files import absolute_entries
from finetune.recipe.label_names_file import read_label_names
from finetune.recipe.loaded_metrics import absolute_metrics
from finetune.recipe.metric_validation import metric_loading_problems, metric_problems
from finetune.recipe.outputs_rules import threshold_problems
from finetune.recipe.python_rows import write_rows
from finetune.recipe.schema import Recipe
from finetune.recipe.schema_validation import in_file_order, schema_problems
from finetune.recipe.section import SOURCES
from finetune.recipe.shipped import recipe_file
from finetune.recipe.training_rules import label_weight_problems, training_problems
from finetune.recipe.validation import (
    Problem,
    cross_section_problems,
    disk_problems,
    freezing_problems,
    label_set_problems,
    series_problems,
)
from finetune.recipe.yaml_parser import MAX_DEPTH, Location, NotYamlError, YamlValues, compose

MAX_BYTES = 20_000_000  # size of a recipe file
MAX_SHOWN = 50  # problems in one error message


class _Dumper(yaml.SafeDumper):
    """PyYAML's dumper, which also escapes the characters that PyYAML cannot read back unescaped."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if _NEEDS_ESCAPE.search(text) else None)


_NEEDS_ESCAPE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
_Dumper.add_representer(str, _represent_text)
_PLAIN = re.compile(r"[A-Za-z_/](?:[\w./:-]*\w)?", re.ASCII)
_NOT_PLAIN = ("null", "true", "false", "yes", "no", "on", "off", "y", "n")  # other values, in YAML 1.1 or 1.2


def load_recipe(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    rows: object = None,
    read_data: bool = True,
    missing: Mapping[str, Mapping[str, object]] = MappingProxyType({}),
) -> Recipe:
    """Return the validated recipe in a file or of the name `recipe:NAME`, with `section.key=value` overrides.

    Relative paths are resolved against the working directory, so that the resolved recipe can be used from any
    directory.

    Args:
        rows: training rows from Python in place of those that the recipe names: a pandas DataFrame, a
            `datasets.Dataset`, a list of mappings, or a mapping of train, validation and test to these. A run keeps
            them in its folder `rows`.
        read_data: whether data files must exist and the tracker must be installed. False for a finished run whose
            data are not read again.
        missing: by section, values for keys that its mapping in the file does not have, in place of the defaults.

    Raises:
        RecipeError: the file cannot be read, or it or an override has mistakes; the message has one line per mistake.
        DataError: `rows` cannot be written.
    """
    path = recipe_file(path)
    if rows is not None:
        files = write_rows(rows)
        overrides = [*overrides, *(f"data.{split}_file={yaml_text(file)}" for split, file in files.items())]
    recipe, problems, lines = validate_recipe(path, overrides, read_data=read_data, missing=missing)
    if recipe is None:
        raise RecipeError(problems_message(path, problems, lines))
    return recipe


def validate_recipe(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    read_data: bool = True,
    missing: Mapping[str, Mapping[str, object]] = MappingProxyType({}),
) -> tuple[Recipe | None, list[Problem], dict[Location, str]]:
    """Return the recipe in a file, or None and its mistakes; and the line of each key. Arguments as `load_recipe`.

    Raises:
        RecipeError: the file cannot be read.
    """
    values = YamlValues()
    document = read_document(path, values)
    for name, keys in missing.items():
        if isinstance(section := document.get(name), dict):
            document[name] = {**keys, **section}
    for override in overrides:
        _apply_override(override, document, values)
    document.setdefault("output_dir", f"runs/{path.stem}")
    problems = [Problem(location, text) for location, text in values.problems]
    problems += read_label_names(document)
    disk = (disk_problems,) if read_data else ()
    # A finished run, whose recipe may lack keys, does not load metrics again.
    disk = (*disk, metric_loading_problems) if read_data and not missing else disk
    checks = (
        metric_problems,
        label_weight_problems,
        label_set_problems,
        freezing_problems,
        training_problems,
        series_problems,
        threshold_problems,
        *disk,
    )
    for check in checks:
        problems += _new_locations_only(problems, islice(check(document), MAX_SHOWN + 1))
    recipe = None
    try:
        recipe = Recipe.model_validate(document)
    except ValidationError as error:
        problems += _new_locations_only(problems, schema_problems(error, document, values.lines, MAX_SHOWN + 1))
    # Checks across sections come last, because such a problem often follows from another one.
    problems = problems or list(cross_section_problems(document))
    if problems or recipe is None:
        return None, problems, values.lines
    return _with_absolute_paths(recipe), [], values.lines


def dump_recipe(recipe: Recipe) -> str:
    """Return the recipe as YAML with all default values. `load_recipe` reads the same recipe from it."""
    document = recipe.model_dump(mode="json")
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def yaml_text(text: str) -> str:
    """Return a text as it is written in a recipe: plain if it is a simple word or path, otherwise in quotes."""
    if _PLAIN.fullmatch(text) and text.lower() not in _NOT_PLAIN:
        return text
    return yaml.dump(text, Dumper=_Dumper, default_style='"', allow_unicode=True, width=float("inf")).strip()


def _new_locations_only(known: Sequence[Problem], more: Iterable[Problem]) -> list[Problem]:
    """Return the problems in `more` whose location has no known problem yet."""
    locations = {problem.location for problem in known}
    return [problem for problem in more if problem.location not in locations]


def problems_message(path: Path, problems: Sequence[Problem], lines: Mapping[Location, str]) -> str:
    """Return the error message: one line per mistake, in the order of the file, at most MAX_SHOWN of them."""
    count = f"{len(problems)} mistakes" if len(problems) > 1 else "a mistake"
    if len(problems) > MAX_SHOWN:
        count = f"more than {MAX_SHOWN} mistakes; the first {MAX_SHOWN}"
    by_location: dict[Location, list[Problem]] = {}
    for problem in problems:
        by_location.setdefault(problem.location, []).append(problem)
    ordered = [problem for location in in_file_order(by_location, lines) for problem in by_location[location]]
    return "\n  ".join([f"{path} has {count}:", *(problem.line(lines) for problem in ordered[:MAX_SHOWN])])


def _with_absolute_paths(recipe: Recipe) -> Recipe:
    """Return the recipe with absolute paths."""
    files: dict[str, object] = {}
    for key in ("train_file", "validation_file", "test_file"):
        if entries := getattr(recipe.data, key):
            files[key] = absolute_entries(entries)
    dataset = recipe.data.dataset_name
    files |= {"dataset_name": _absolute(dataset)} if dataset and absolute_path(dataset).is_dir() else {}
    name, resume = recipe.model.model_name_or_path, recipe.checkpoint.resume_from_checkpoint
    folder = {"model_name_or_path": _absolute(name)} if name and absolute_path(name).is_dir() else {}
    resumed = {"resume_from_checkpoint": _absolute(resume)} if resume not in (None, "auto") else {}
    return recipe.model_copy(
        update={
            "output_dir": _absolute(recipe.output_dir),
            "data": recipe.data.model_copy(update=files),
            "model": recipe.model.model_copy(update=folder),
            "checkpoint": recipe.checkpoint.model_copy(update=resumed),
            "evaluation": recipe.evaluation.model_copy(update={"metrics": absolute_metrics(recipe.evaluation.metrics)}),
        }
    )


def _absolute(path: str | None) -> str:
    return str(absolute_path(path or ""))


def read_document(path: Path, values: YamlValues, kind: str = "recipe") -> dict[str, Any]:
    """Return a recipe file, or a file of another kind, as a mapping, and note lines and problems in `values`.

    Raises:
        RecipeError: the file cannot be read, or is not a mapping.
    """
    text = _read_text(path, kind)
    try:
        root = compose(text)
    except NotYamlError as error:
        line = "" if error.line is None else f", line {error.line}"
        reason = shorten(str(error)) if ";" in str(error) else f"{shorten(str(error))}; correct it"
        raise RecipeError(f"{path}{line} is not valid YAML: {reason}") from error
    if not isinstance(root, yaml.MappingNode):
        parts, names = ("sections", "model and data") if kind == "recipe" else ("keys", "recipe and space")
        raise RecipeError(f"{path} has no {parts}; a {kind} is a mapping with at least the {parts} {names}")
    document: dict[str, Any] = values.build(root, ())
    return document


def _read_text(path: Path, kind: str) -> str:
    """Return the content of the file; RecipeError if it cannot be read."""
    problem = path_problem(path)
    if problem is not None:
        raise RecipeError(f"the {kind}'s path '{shorten(str(path), 120)}' {problem}")
    if not path.is_file():
        near = sorted(str(p) for p in path.parent.glob("*.y*ml"))[:5] if path.parent.is_dir() else []
        fix = f"correct the path; this folder has {', '.join(near)}" if near else "correct the path"
        raise RecipeError(f"there is no {kind} '{path}'; {fix}")
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise RecipeError(
                f"{path} has {size:,} bytes, but a {kind} may have at most {MAX_BYTES:,}; put the rows into a file and "
                "give it as data.train_file"
            )
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}; correct the path or its permissions") from error


def _apply_override(override: str, document: dict[str, Any], values: YamlValues) -> None:
    """Apply one `section.key=value` to the document, with the value read as YAML, and note problems in `values`."""
    name, equals, text = override.partition("=")
    parts = tuple(name.strip().split("."))
    if not equals or not all(parts) or len(parts) > MAX_DEPTH:
        values.problems.append(((), f"override '{shorten(override, 120)}' does not have the form section.key=value"))
        return
    values.lines[parts] = "override"
    try:
        node = compose(text)
    except NotYamlError as error:
        reason = str(error) if ";" in str(error) else f"{error}; quote it"
        reason = f"the value '{shorten(text, 120)}' is not valid YAML: {reason}"
        values.problems.append((parts, reason))
        return
    section = document
    for part in parts[:-1]:
        child = section.get(part)
        if isinstance(child, list):
            values.problems.append((parts, "a single item of a list cannot be changed; give the full list"))
            return
        if not isinstance(child, dict):
            child = section[part] = {}
        section = child
    value = None if node is None else values.build(node, parts)
    values.lines |= {location: "override" for location in values.lines if location[: len(parts)] == parts}
    for other in () if value is None else _other_sources(parts):
        section.pop(str(other), None)
    section[parts[-1]] = value


def _other_sources(parts: Location) -> Iterable[str]:
    """Return the keys of the section's other sources, which are removed when an override sets this key."""
    groups = SOURCES.get(str(parts[0]), ()) if len(parts) > 1 else ()
    if not any(parts[1] in group for group in groups):
        return ()
    return [key for group in groups if parts[1] not in group for key in group]
