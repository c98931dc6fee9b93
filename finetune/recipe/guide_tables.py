"""The generated tables of the guides: recipe keys in `recipes.md`, metrics in `runs.md`, costs in `head-analysis.md`.

After a change of the schema, of the metrics or of the costs, `python -m finetune.recipe.guide_tables` updates them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from finetune.recipe.head_costs import cost_table
from finetune.recipe.named_metrics import names_and_descriptions
from finetune.recipe.names import METRICS
from finetune.recipe.schema import Recipe

DOCS = Path(__file__).parents[1] / "docs"
START, END = "<!-- from python -m finetune.recipe.guide_tables -->\n", "<!-- end of the generated table -->\n"
_MAX_NAMES = 8  # a longer list of names is not shown; the guide on head analysis has it
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


def metric_table() -> str:
    """Return a Markdown table of all metrics: problem type, name, meaning, and whether lower is better."""
    rows = [
        f"| {problem_type.replace('_', ' ')} | `{name}` | {metric.description} | "
        f"{'lower' if metric.lower_is_better else 'higher'} | "
        f"{'probabilities' if metric.needs_probabilities else 'values' if problem_type == 'regression' else 'labels'} |"
        for problem_type in METRICS
        for name, metric in names_and_descriptions(problem_type).items()
    ]
    header = ["| problem type | metric | meaning | better | computed from |", "| --- | --- | --- | --- | --- |"]
    return "\n".join([*header, *rows, ""])


TABLES: dict[str, Callable[[], str]] = {
    "recipes.md": key_table,
    "runs.md": metric_table,
    "head-analysis.md": cost_table,
}


def with_table(text: str, table: str) -> str:
    """Return a guide's text with this table between START and END."""
    before, _, rest = text.partition(START)
    return f"{before}{START}\n{table}\n{END}{rest.partition(END)[2]}"


def write_tables(docs: Path = DOCS) -> None:
    """Replace the table in each guide of TABLES."""
    for name, table in TABLES.items():
        guide = docs / name
        guide.write_text(with_table(guide.read_text(encoding="utf-8"), table()), encoding="utf-8")


def _section(name: str, keys: Mapping[str, Mapping[str, Any]]) -> str:
    title = f"### {name}" if name else "### Top level"
    rows = [
        f"| `{key}` | {_type(field)} | {_default(field)} | {field.get('description', '')} |"
        for key, field in keys.items()
        if name or not _is_section(field)
    ]
    return "\n".join([title, "", "| key | type | default | meaning |", "| --- | --- | --- | --- |", *rows, ""])


def _is_section(field: Mapping[str, Any]) -> bool:
    return "$ref" in field or any("$ref" in part for part in field.get("anyOf", ()))


def _default(field: Mapping[str, Any]) -> str:
    return f"`{json.dumps(field['default'])}`" if "default" in field else "see meaning"


def _type(field: Mapping[str, Any]) -> str:
    """Return a key's type in words, such as "whole number, at least 1; or null"."""
    if "$ref" in field:
        return "mapping"
    if alternatives := field.get("anyOf", field.get("oneOf")):
        types = list(dict.fromkeys(map(_type, alternatives)))
        return ("; or " if any("," in name for name in types) else " or ").join(types)
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
    write_tables()
