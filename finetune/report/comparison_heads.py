"""Maps of the heads of two runs, and of their difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot

from finetune.report.head_maps import HeadMap, MapCell, critical_value, importance_map
from finetune.runs.head_results import HeadScores, HeadTable


@dataclass(frozen=True)
class ComparedMaps:
    """The maps of the first run and of another one, and their difference."""

    name: str
    first: HeadMap
    second: HeadMap
    difference: HeadMap


def compared_maps(runs: Sequence[tuple[str, HeadScores | None]]) -> list[ComparedMaps]:
    """Return the maps of each run beside the first one, if both rank the same heads by the same method.

    Args:
        runs: the name of each run, and its leading ranking; None without one.
    """
    (_, first), *others = runs
    if first is None:
        return []
    return [
        ComparedMaps(name, importance_map(first), importance_map(other), _difference_map(first, other))
        for name, other in others
        if other is not None and other.method == first.method and _shape(other.values) == _shape(first.values)
    ]


def _shape(table: HeadTable) -> list[list[bool]]:
    return [[cell is None for cell in row] for row in table]


def _largest(table: HeadTable) -> float:
    return max((abs(cell) for row in table for cell in row if cell is not None), default=0.0) or 1.0


def _difference_map(first: HeadScores, second: HeadScores) -> HeadMap:
    """Return second minus first, each divided by its largest absolute value, in hundredths."""
    scales = _largest(first.values), _largest(second.values)
    cells: list[list[MapCell | None]] = []
    has_errors, width = False, max(map(len, first.values))
    critical = 100 * max(critical_value(first) or 0.0, critical_value(second) or 0.0)  # standard errors, in hundredths
    for layer, row in enumerate(first.values):
        cells.append([])
        for head, before in enumerate([*row, *[None] * (width - len(row))]):
            after = None if before is None else second.values[layer][head]
            if before is None or after is None:
                cells[-1].append(None)
                continue
            change = 100 * (after / scales[1] - before / scales[0])
            errors = first.standard_errors[layer][head], second.standard_errors[layer][head]
            text, uncertain = "", False
            if errors[0] is not None and errors[1] is not None:
                margin = critical * hypot(errors[0] / scales[0], errors[1] / scales[1])
                has_errors, uncertain, text = True, margin >= abs(change), f" ± {margin:.0f}"
            title = f"layer {layer}, head {head}: {change:+.0f}{text} (from {before:.3g} to {after:.3g})"
            level = max(-100, min(100, round(change)))
            cells[-1].append(MapCell(f"{change:+.0f}", level, uncertain, title))
    note = "Second minus first. The values of each run are divided by its largest one; the difference is in hundredths."
    if has_errors:
        note += " Hatched: the 95 % interval of the difference contains zero; not corrected for the number of heads."
    return HeadMap("difference", "difference", note, cells, "less important, equal, more important", has_errors)
