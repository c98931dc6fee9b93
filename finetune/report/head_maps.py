"""Maps of the heads of a model, a row per layer: importance, removal of one head, change by training.

L layers, H heads
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

from finetune.recipe.names import ITERATIVE
from finetune.runs.head_names import ESSENTIAL, HARMFUL, NAMES, REDUNDANT, UNUSED, HeadNames, NamedHead
from finetune.runs.head_results import HeadAnalysis, HeadScores, HeadTable, HeadTest, LeaveOneOut
from finetune.runs.results import format_significant

LEAVE_ONE_OUT = "leave_one_out"  # its name beside those of the methods
# Methods whose value is zero for a head without an effect, and negative for a head without which the result is better.
_SIGNED = ("integrated_gradients", "ablation_loss", "ablation_kl", "ablation_accuracy", "shapley")
_SIGNED_LEGEND = "hurts, no effect, needed"
_NAME_LEVELS = {ESSENTIAL: 100, REDUNDANT: 45, HARMFUL: -100, UNUSED: 0}


@dataclass(frozen=True)
class MapCell:
    """One head of a map.

    Attributes:
        text: short, fits into the cell.
        level: -100 to 100, the color; negative for heads that hurt.
        uncertain: whether the cell is hatched.
        title: the value with its uncertainty and rank, in words.
    """

    text: str
    level: int
    uncertain: bool
    title: str


@dataclass(frozen=True)
class HeadMap:
    """A map of all heads.

    Attributes:
        note: explains the numbers and the hatched cells.
        cells: (L, H), None where a layer does not have the head.
        legend: what the colors mean, from the lowest level to the highest.
        hatched: whether cells may be hatched.
    """

    key: str
    name: str
    note: str
    cells: list[list[MapCell | None]]
    legend: str = "lowest to highest"
    hatched: bool = True

    def signed(self) -> bool:
        """Return whether negative values have a color of their own."""
        return self.legend == _SIGNED_LEGEND


def head_maps(analysis: HeadAnalysis) -> list[HeadMap]:
    """Return the maps that a reader can choose: one per method, the removal of one head at a time, and the names."""
    maps = [importance_map(scores) for scores in analysis.methods]
    if analysis.leave_one_out is not None:
        maps.append(leave_one_out_map(analysis.leave_one_out, analysis.methods[0].values))
    if analysis.names is not None:
        maps.append(names_map(analysis.names))
    return maps


def change_maps(analysis: HeadAnalysis) -> list[HeadMap]:
    """Return the maps of what training changed; the effect of undoing a change is there only if it was measured."""
    changes = analysis.changes
    if changes is None:
        return []
    maps = [
        _change_map("output_value", "output-value product", changes.output_value),
        _change_map("query_key", "query-key product", changes.query_key),
    ]
    if _known(changes.effect):
        measure = f"{changes.effect_measure} when the change of the head is undone"
        maps.append(_effect_map(measure, changes.effect, changes.effect_errors, changes.rows))
    return maps


def importance_map(scores: HeadScores) -> HeadMap:
    """Return the importance of the heads by one method, scaled to 100."""
    name = scores.method.replace("_", " ")
    median, critical = _median(scores.values), critical_value(scores)
    signed = scores.method.removeprefix(ITERATIVE) in _SIGNED
    scale, scaling = _scale(scores.values, signed=signed)
    ranks = {(cell.layer, cell.head): rank for rank, cell in enumerate(scores.most_important_first(), start=1)}

    def cell(layer: int, head: int, value: float, error: float | None) -> MapCell:
        uncertain = error is not None and critical is not None and abs(value - median) <= critical * error
        title = f"{value:.4g}"
        title += "" if error is None else f" ± {error:.2g}"
        title += f", rank {ranks[layer, head]} of {len(ranks)}" if (layer, head) in ranks else ""
        title += ", not distinguishable from the median head" if uncertain else ""
        return MapCell(str(round(scale(value))), round(scale(value)), uncertain, title)

    note = f"{name} ({scores.formula}), {scores.rows:,} {scores.split} rows. {scaling}"
    if critical is not None:
        note += (
            f" Hatched: the 95 % interval of the head (value ± {format_significant(critical)} standard errors over "
            f"{scores.errors_over}) contains the value of the median head, {format_significant(median)}; "
            "not corrected for the number of heads."
        )
    cells = _cells(scores.values, scores.standard_errors, cell)
    legend = _SIGNED_LEGEND if signed else "lowest to highest"
    return HeadMap(scores.method, name, note, cells, legend, critical is not None)


def leave_one_out_map(single: LeaveOneOut, shape: HeadTable) -> HeadMap:
    """Return the effect of removing each head alone; heads whose corrected p-value is 0.05 or more are hatched."""
    tests = {(test.layer, test.head): test for test in single.tests}
    is_error = single.measure == "mean squared error"
    largest = max((abs(test.change) for test in single.tests), default=0.0) or 1.0

    def cell(layer: int, head: int, _: float, __: float | None) -> MapCell | None:
        test = tests.get((layer, head))
        if test is None:
            return None
        level = round(100 * test.change / largest) * (1 if is_error else -1)
        text = f"{level:d}" if is_error else f"{100 * test.change:+.1f}"
        return MapCell(text, level, test.p_holm >= 0.05, _test_title(test, single.measure))

    unit = "scaled so that the largest change is 100" if is_error else "in percentage points"
    note = (
        f"Change of the {single.measure} on {single.rows:,} {single.split} rows without the head, {unit}. "
        f"Hatched: the corrected p-value is at least 0.05 (Holm, {len(tests)} heads)."
    )
    return HeadMap(LEAVE_ONE_OUT, "removing one head", note, _cells(shape, None, cell), _SIGNED_LEGEND)


def names_map(names: HeadNames) -> HeadMap:
    """Return the names of the heads; heads without a name are hatched."""
    by_head = names.by_head()

    def cell(layer: int, head: int, effect: float, error: float | None) -> MapCell:
        named = by_head.get((layer, head), [])
        level = max((_NAME_LEVELS[each.name] for each in named), key=abs, default=0)
        text = " ".join(each.name[0].upper() for each in named)
        return MapCell(text, level, not named, _name_title(names, layer, head, named))

    letters = ", ".join(f"{name[0].upper()} {name}" for name in NAMES)
    note = (
        f"{letters}, by tests on {names.rows:,} {names.split} rows with a false-discovery rate of at most "
        f"{names.level:.0%}. Hatched: undecided, no name could be shown."
    )
    return HeadMap("names", "names of heads", note, _cells(names.effects, names.effect_errors, cell), _SIGNED_LEGEND)


def _name_title(names: HeadNames, layer: int, head: int, named: Sequence[NamedHead]) -> str:
    parts = [f"{each.text()} (q-value {each.q_value:.2g})" for each in named] or ["undecided"]
    effect, change, context = (
        table[layer][head] or 0.0 for table in (names.effects, names.changes, names.context_changes)
    )
    parts.append(f"score {0 - effect:+.4f} without it")
    parts += [f"{-each.joint_effect:+.4f} without both" for each in named if each.joint_effect is not None]
    return "; ".join([*parts, f"output changes by {change:.4f}, with others removed by {context:.4f}"])


def _test_title(test: HeadTest, measure: str) -> str:
    return (
        f"{measure} {test.change:+.4f} [{test.low:+.4f}, {test.high:+.4f}] without it; "
        f"{test.lost} rows {'get a larger error' if measure == 'mean squared error' else 'become wrong'}, "
        f"{test.gained} {'a smaller one' if measure == 'mean squared error' else 'become right'}; "
        f"corrected p-value {test.p_holm:.2g}"
    )


def _change_map(key: str, name: str, table: HeadTable) -> HeadMap:
    """Return a map of relative changes in percent, without errors: they are exact."""
    largest, ranks = max(_known(table), default=0.0), _ranks(table)
    digits = 1 if largest > 0.01 else 3

    def cell(layer: int, head: int, value: float, _: float | None) -> MapCell:
        level = round(100 * value / largest) if largest else 0
        text = f"{100 * value:.{digits}f}"
        return MapCell(text, level, False, f"changed by {text} %, rank {ranks[layer, head]} of {len(ranks)}")

    return HeadMap(key, name, "Relative change in %.", _cells(table, None, cell))


def _effect_map(name: str, table: HeadTable, errors: HeadTable, rows: int) -> HeadMap:
    """Return a map of effects on the predictions, scaled to 100; effects within two standard errors are hatched."""
    scale, scaling = _scale(table, signed=True)
    critical, ranks = float(stdtrit(max(rows - 1, 1), 0.975)), _ranks(table)

    def cell(layer: int, head: int, value: float, error: float | None) -> MapCell:
        uncertain = error is not None and abs(value) <= critical * error
        title = f"{value:.3g}" + ("" if error is None else f" ± {error:.2g}")
        title += f", rank {ranks[layer, head]} of {len(ranks)}"
        title += ", not distinguishable from zero" if uncertain else ""
        return MapCell(str(round(scale(value))), round(scale(value)), uncertain, title)

    note = f"{scaling} Hatched: the 95 % interval contains zero."
    return HeadMap("effect", name, note, _cells(table, errors, cell))


def _cells(
    values: HeadTable, errors: HeadTable | None, cell: Callable[[int, int, float, float | None], MapCell | None]
) -> list[list[MapCell | None]]:
    """Return the cells (L, H) of a table of values, all rows of the same length."""
    width = max(map(len, values))
    return [
        [
            None if value is None else cell(layer, head, value, errors[layer][head] if errors else None)
            for head, value in enumerate([*row, *[None] * (width - len(row))])
        ]
        for layer, row in enumerate(values)
    ]


def _scale(table: HeadTable, *, signed: bool) -> tuple[Callable[[float], float], str]:
    """Return the function from a value to the number in its cell, -100 to 100, and a sentence that describes it."""
    values = _known(table)
    lowest, highest = min(values, default=0.0), max(values, default=0.0)
    if signed or lowest >= 0:
        largest = max(-lowest, highest) or 1.0
        below = " Below zero: the result is better without the head." if lowest < 0 else ""
        return lambda value: 100 * value / largest, f"Scaled so that the largest absolute value is 100.{below}"
    width = highest - lowest or 1.0
    return lambda value: 100 * (value - lowest) / width, "Scaled from 0 (lowest value) to 100 (highest value)."


def critical_value(scores: HeadScores) -> float | None:
    """Return how many standard errors a 95 % interval extends, by Student's t; None without standard errors."""
    folds = re.match(r"\d+", scores.errors_over)
    count = int(folds.group()) if folds else scores.rows
    return float(stdtrit(count - 1, 0.975)) if count > 1 and _known(scores.standard_errors) else None


def _known(table: HeadTable) -> list[float]:
    return [value for row in table for value in row if value is not None]


def _median(table: HeadTable) -> float:
    values = sorted(_known(table))
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2


def _ranks(table: HeadTable) -> dict[tuple[int, int], int]:
    """Return the rank of each head, 1 for the highest value."""
    cells: Sequence[tuple[float, int, int]] = [
        (value, layer, head) for layer, row in enumerate(table) for head, value in enumerate(row) if value is not None
    ]
    ordered = sorted(cells, key=lambda cell: -cell[0])
    return {(layer, head): rank for rank, (_, layer, head) in enumerate(ordered, start=1)}
