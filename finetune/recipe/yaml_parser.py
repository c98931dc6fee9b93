"""Parse YAML into plain values, with the line number of every key and limits on size and depth.

PyYAML parses the text into nodes, with the scalar rules of YAML 1.2 (`2e-5` is a float, `no` is a string). This module
builds the values from the nodes, so that duplicate keys are detected and every problem is reported with its line. The
limits are far above the size of any real recipe.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

Location = tuple[str | int, ...]

MAX_DEPTH = 50  # levels of nested mappings and lists
MAX_REPEATED = 20_000_000  # total size of the values that aliases repeat, see `_Loader.compose_node`
_NODE_SIZE = 100  # size of a value without its characters
_MAX_DIGITS = 100

_TAG = "tag:yaml.org,2002:"
# The core schema of YAML 1.2, https://yaml.org/spec/1.2.2/#103-core-schema: tag, pattern, first characters.
_CORE_SCHEMA = (
    ("null", r"(?:~|null|Null|NULL|)", ["~", "n", "N", ""]),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))", list("-+.")),
)


class NotYamlError(ValueError):
    """The text is not valid YAML. `line` counts from 1; None if the line is unknown."""

    def __init__(self, reason: str, line: int | None) -> None:
        self.line = line
        super().__init__(reason)


@dataclass
class _Extent:
    """The size and depth of a value with its aliases expanded."""

    size: int = _NODE_SIZE
    height: int = 0


class _Loader(yaml.SafeLoader):
    """PyYAML's loader with the core schema of YAML 1.2, and with limits that are checked during composing."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  (PyYAML's own attribute)

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._open: list[_Extent] = []
        self._extents: dict[int, _Extent] = {}
        self._repeated = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Return the next node; a YAML error if it is nested too deeply, too large, or has an unsupported tag."""
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        self._open.append(_Extent())
        if len(self._open) > MAX_DEPTH:
            _fail(f"values are nested more than {MAX_DEPTH} deep", event)
        node = super().compose_node(parent, index)
        extent = self._open.pop()
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._extents:  # the node is not complete, so the alias is inside it
                _fail("an alias that contains itself; write the value without an alias", event)
            extent = self._extents[id(node)]
            self._repeated += extent.size
            if self._repeated > MAX_REPEATED or len(self._open) + extent.height > MAX_DEPTH:
                _fail("aliases repeat too much; write the values without aliases, or put rows into a file", event)
        elif node is not None:
            _check_tag(node, event)
            extent.size += len(node.value) if isinstance(node, yaml.ScalarNode) else 0
            self._extents[id(node)] = extent
        if self._open:
            parent_extent = self._open[-1]
            parent_extent.size += extent.size
            parent_extent.height = max(parent_extent.height, extent.height + 1)
        return node


def _fail(reason: str, event: yaml.Event) -> None:
    raise yaml.MarkedYAMLError(problem=reason, problem_mark=event.start_mark)  # type: ignore[arg-type]  # of the Python or the C reader


for _name, _pattern, _first in _CORE_SCHEMA:
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(f"^{_pattern}$"), _first)


def _check_tag(node: yaml.Node, event: yaml.Event) -> None:
    """Raise a YAML error for a tag that is not in the core schema, or that does not fit the value."""
    name = node.tag.removeprefix(_TAG)
    patterns = [pattern for known, pattern, _ in _CORE_SCHEMA if known == name]
    if isinstance(node, yaml.ScalarNode) and patterns:
        fits = any(re.fullmatch(pattern, node.value) for pattern in patterns)
    else:
        kinds = {"str": yaml.ScalarNode, "seq": yaml.SequenceNode, "map": yaml.MappingNode}
        fits = isinstance(node, kinds.get(name, ()))
    if not fits:
        given = node.tag.replace(_TAG, "!!")
        _fail(f"the tag {given} does not fit its value, or is not supported in a recipe; write a plain value", event)


def compose(text: str) -> yaml.Node | None:
    """Return the root node of a YAML text, or None if the text is empty.

    Raises:
        NotYamlError: the text is not valid YAML, or exceeds the limits.
    """
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise NotYamlError(f"the character {chr(error.character)!a} is not allowed", line) from error
    try:
        node: yaml.Node | None = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = error.problem or error.context or ""
        reason = f"{error.context}, {reason}" if reason.startswith("but ") else reason
        raise NotYamlError(reason, mark.line + 1 if mark else None) from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # from chr() and int(), for an escape or a directive
        raise NotYamlError("an invalid escape or directive", loader.get_mark().line + 1) from error
    return node


@dataclass
class YamlValues:
    """Builds plain values, and collects the line of each key and the problems, as (location, text)."""

    lines: dict[Location, str] = field(default_factory=dict)
    problems: list[tuple[Location, str]] = field(default_factory=list)

    def build(self, node: yaml.Node, path: Location) -> Any:
        """Return the plain value of a node, and note lines and problems. A duplicate key keeps its first value."""
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*path, index)) for index, item in enumerate(node.value)]
        values: dict[str, Any] = {}
        for key, value in node.value:
            line = f"line {key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode):
                self.problems.append((path, f"has a list or a mapping as a key on {line}; a key must be a word"))
                continue
            where = (*path, key.value)
            if key.value in values:
                self.problems.append((where, f"is given again on {line}; remove one of the two"))
                continue
            self.lines[where] = line
            if self._is_unicode(key.value, where):
                values[key.value] = self.build(value, where)
        return values

    def _scalar(self, node: yaml.ScalarNode, path: Location) -> object:
        text, kind = node.value, node.tag.removeprefix(_TAG)
        if kind == "str" or _is_text(path, kind, text):
            return text if self._is_unicode(text, path) else text.encode(errors="replace").decode()
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind == "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        if len(text) > _MAX_DIGITS:
            self.problems.append((path, f"is a number of {len(text)} digits; if it is text, put it in quotation marks"))
            return None
        return int(text)

    def _is_unicode(self, text: str, path: Location) -> bool:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            bad = text[error.start]
            self.problems.append(
                (path, f"contains {bad!a}, an unpaired surrogate, which is not a character; remove it")
            )
            return False
        return True


def _is_text(path: Location, kind: str, text: str) -> bool:
    """Return whether a scalar is always text: a label name, or a cell of a row in the recipe.

    `label_names: [true, 1]` are two strings, and `007` in a row is the same text as in a csv file.
    """
    if path[:2] in (("task", "label_names"), ("data", "label_columns")):
        return len(path) == 3
    in_row = len(path) > 3 and path[0] == "data" and path[1] in ("train_rows", "validation_rows", "test_rows")
    return in_row and (kind in ("bool", "int") or (kind == "float" and text[-1] not in "fFnN"))
