"""The table of all recipe keys in `finetune/docs/recipes.md`, generated from the schema.

`python -m finetune.recipe.key_table` writes it again after a change to the schema.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from finetune.recipe.schema import Recipe

GUIDE = Path(__file__).parents[1] / "docs" / "recipes.md"
START, END = "<!-- keys -->\n", "<!-- end of keys -->\n"
_MAX_NAMES = 8  # longer lists of names are in the guide on head analysis
_TYPES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}
_BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
}


def key_table() -> str:
    """Return one Markdown table per section: each key with its type, its default and its meaning."""
    schema = Recipe.model_json_schema()
    sections = {"": schema["properties"]}
    for name, field in schema["properties"].items():
        reference = next((part["$ref"] for part in (field, *field.get("anyOf", ())) if "$ref" in part), "")
        if reference:
            sections[name] = schema["$defs"][reference.rpartition("/")[2]]["properties"]
    return "\n".join(_section(name, keys) for name, keys in sections.items())


def write_key_table(guide: Path = GUIDE) -> None:
    """Replace the table in the guide."""
    before, _, rest = guide.read_text(encoding="utf-8").partition(START)
    after = rest.partition(END)[2]
    guide.write_text(f"{before}{START}\n{key_table()}\n{END}{after}", encoding="utf-8")


def _section(name: str, keys: Mapping[str, Mapping[str, Any]]) -> str:
    title = f"### {name}" if name else "### Top level"
    rows = [
        f"| `{key}` | {_type(field)} | {_default(field)} | {field.get('description', '')} |"
        for key, field in keys.items()
        if not _is_section(field)
    ]
    return "\n".join([title, "", "| key | type | default | meaning |", "| --- | --- | --- | --- |", *rows, ""])


def _is_section(field: Mapping[str, Any]) -> bool:
    return "$ref" in field or any("$ref" in part for part in field.get("anyOf", ()))


def _default(field: Mapping[str, Any]) -> str:
    return f"`{json.dumps(field['default'])}`" if "default" in field else "see there"


def _type(field: Mapping[str, Any]) -> str:
    """Return a key's type in words, such as "whole number, at least 1; or null"."""
    if "anyOf" in field:
        kinds = list(dict.fromkeys(map(_type, field["anyOf"])))
        return ("; or " if any("," in kind for kind in kinds) else " or ").join(kinds)
    if "enum" in field:
        return ", ".join(map(_code, field["enum"])) if len(field["enum"]) <= _MAX_NAMES else "name"
    if "const" in field:
        return _code(field["const"])
    if field.get("type") == "array":
        return f"list of {_type(field['items'])}" if field["items"].get("type") != "object" else "list of rows"
    if field.get("type") == "object":
        return f"mapping of names to {_type(field['additionalProperties'])}"
    return ", ".join([_TYPES[field["type"]], *_bounds(field)])


def _code(value: object) -> str:
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _bounds(field: Mapping[str, Any]) -> Iterator[str]:
    for key, text in _BOUNDS.items():
        if key in field:
            yield text.format(f"{field[key]:g}" if field[key] < 2**31 else "2^32")


if __name__ == "__main__":
    write_key_table()
