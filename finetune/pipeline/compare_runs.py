"""Compare runs or series with the first one, on the same rows. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa

from finetune.errors import DataError
from finetune.evaluation.intervals import Array
from finetune.evaluation.row_matching import as_array, compare_rows, probabilities_of, rows_of_split
from finetune.evaluation.run_differences import DifferenceSettings, difference_on_rows
from finetune.heads.rank_correlation import kendall_tau
from finetune.pipeline.changed_rows import changed_rows
from finetune.recipe.named_metrics import find_metric
from finetune.runs.candidates import Candidate, read_candidate, recipe_differences
from finetune.runs.comparison import ChangedRow, MetricDifference, PairComparison, RunsComparison, SplitDifference
from finetune.runs.head_results import HeadScores, TauValue
from finetune.runs.json_files import damaged_file
from finetune.runs.multiple_tests import holm
from finetune.runs.results import MetricValue
from finetune.runs.run_folder import RunFolder

_IS_LABEL = {
    "single_label_classification": pa.types.is_string,
    "multi_label_classification": pa.types.is_list,
    "regression": pa.types.is_floating,
}


@dataclass(frozen=True)
class ComparedRuns:
    """The comparison, the rows that changed sides, and the leading ranking of the heads of each run.

    A run without an analysis and a series have no ranking.
    """

    comparison: RunsComparison
    changed: list[ChangedRow]
    rankings: list[tuple[str, HeadScores | None]]


@dataclass(frozen=True)
class _MatchedRows:
    """The rows of a split that two candidates were scored on: a table per run, sorted by row number."""

    first: list[pa.Table]
    second: list[pa.Table]


def compare_runs(paths: Sequence[Path]) -> ComparedRuns:
    """Return every run or series compared with the first one, on the rows that both were scored on.

    Raises:
        DataError: a folder is no finished run, a file is damaged, there are fewer than two different runs, or two of
            them have no rows in common.
        RecipeError: a recipe cannot be read.
    """
    if len(paths) < 2:
        named = ", ".join(map(str, paths)) or "none"
        raise DataError(f"compare needs at least two runs or series, and got {named}; name another one")
    if len({path.resolve() for path in paths}) < len(paths):
        raise DataError("a run is named twice; name each run once")
    candidates = [replace(read_candidate(path), name=name) for path, name in zip(paths, _names(paths), strict=True)]
    settings = _settings(candidates)
    pairs, changed = [], []
    for other in candidates[1:]:
        pair, rows = _compare_pair(candidates[0], other, settings)
        pairs.append(pair)
        changed += rows
    comparison = RunsComparison(
        problem_type=candidates[0].recipe().task.problem_type,
        metric=settings.metric,
        runs=[candidate.summary() for candidate in candidates],
        pairs=_corrected(pairs),
        recipe=recipe_differences(candidates),
        notes=_notes(candidates),
    )
    rankings = [(candidate.name, _ranking(candidate)) for candidate in candidates]
    return ComparedRuns(comparison, changed, rankings)


def _ranking(candidate: Candidate) -> HeadScores | None:
    heads = None if candidate.is_series else candidate.runs[0].heads
    return heads.methods[0] if heads else None


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the name of each folder, or its path if two folders have the same name."""
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _settings(candidates: Sequence[Candidate]) -> DifferenceSettings:
    """Return what is compared.

    Raises:
        DataError: the problem types or the labels differ.
    """
    first = candidates[0]
    recipe, label_names = first.recipe(), first.label_names()
    for other in candidates[1:]:
        types = [recipe.task.problem_type, other.recipe().task.problem_type]
        if types[0] != types[1]:
            raise DataError(
                f"{other.name} is a {types[1]}, and {first.name} a {types[0]}; compare runs of the same problem type"
            )
        if set(other.label_names()) != set(label_names):
            unknown = ", ".join(sorted(set(other.label_names()) ^ set(label_names)))
            raise DataError(
                f"{first.name} and {other.name} have different labels (only one of them has {unknown}); compare runs "
                "with the same labels"
            )
    reported = dict.fromkeys(name for candidate in candidates for name in candidate.recipe().metric_names())
    metrics = [name for name in reported if find_metric(name, recipe.task.problem_type) is not None]
    metrics = metrics or list(recipe.toolkit_metrics())
    metric = recipe.best_metric() if recipe.best_metric() in metrics else metrics[0]
    return DifferenceSettings(metrics, metric, label_names, recipe.evaluation.bootstrap_samples, recipe.seed)


def _compare_pair(
    first: Candidate, second: Candidate, settings: DifferenceSettings
) -> tuple[PairComparison, list[ChangedRow]]:
    """Return the second candidate compared with the first, and the rows that changed sides.

    Raises:
        DataError: they have no split in common, or all common splits have different rows.
    """
    common = [split for split in first.splits() if split in second.splits()]
    if not common:
        scored = (f"{item.name} on {' and '.join(item.splits()) or 'no split'}" for item in (first, second))
        raise DataError(
            f"the runs were scored on different splits: {', '.join(scored)}; score them on the same rows with "
            "`finetune evaluate RUN data.test_file=FILE`"
        )
    splits: dict[str, SplitDifference] = {}
    skipped: dict[str, str] = {}
    changed: list[ChangedRow] = []
    for split in common:
        rows = _match(first, second, split)
        if isinstance(rows, str):
            skipped[split] = rows
            continue
        references = _arrays(first, rows.first[:1], "label", settings)[0]
        predicted = (
            _arrays(first, rows.first, "predicted", settings),
            _arrays(second, rows.second, "predicted", settings),
        )
        probabilities = [probabilities_of(table) for table in (*rows.first, *rows.second)]
        result = difference_on_rows(*predicted, references, settings, probabilities)
        splits[split] = replace(result, metrics=result.metrics | _loaded_differences(first, second, split))
        if references.dtype.kind != "f":
            changed += changed_rows(second.name, rows.first[0], predicted, references, settings.label_names)
    if not splits:
        reasons = "; ".join(f"{split}: {reason}" for split, reason in skipped.items())
        raise DataError(
            f"{first.name} and {second.name} were scored on different rows ({reasons}); score them on the same rows "
            "with `finetune evaluate RUN data.test_file=FILE`"
        )
    tau, note = _head_agreement(first, second)
    return PairComparison(second.name, splits, skipped, tau, note), changed


def _loaded_differences(first: Candidate, second: Candidate, split: str) -> dict[str, MetricDifference]:
    """Return second minus first in the metrics that both runs loaded, from their scores, without an interval."""
    differences = {}
    for name in first.runs[0].scores[split].metrics:
        sides = [[run.scores[split].metrics.get(name) for run in candidate.runs] for candidate in (first, second)]
        values = [[None if cell is None else cell.value for cell in side] for side in sides]
        if find_metric(name, first.recipe().task.problem_type) is None and None not in values[0] + values[1]:
            left, right = (float(np.mean(side)) for side in values)  # type: ignore[arg-type]  # None is excluded
            note = "no interval: the metric is loaded from a file, and its scores were read from the runs"
            differences[name] = MetricDifference(left, right, MetricValue(right - left, note=note))
    return differences


def _match(first: Candidate, second: Candidate, split: str) -> _MatchedRows | str:
    """Return the rows of a split, or how those of the two candidates differ."""
    tables = [[rows_of_split(run.predictions, split) for run in candidate.runs] for candidate in (first, second)]
    for candidate, own in zip((first, second), tables, strict=True):
        for table in own:
            if len(set(table["row"].to_pylist())) < table.num_rows:
                raise damaged_file(RunFolder(candidate.path).predictions, f"a {split} row occurs twice")
            if mismatch := compare_rows(tables[0][0], table):
                return mismatch.text(first.name, candidate.name)
    return _MatchedRows(*tables)


def _arrays(candidate: Candidate, tables: Sequence[pa.Table], column: str, settings: DifferenceSettings) -> list[Array]:
    """Return a column of every run: class ids (N,), 0/1 label sets (N, C) or values (N,).

    Raises:
        DataError: the column is not of the problem type, or has an unknown label.
    """
    problem_type = candidate.recipe().task.problem_type
    file = RunFolder(candidate.path).predictions
    for table in tables:
        if not _IS_LABEL[problem_type](table[column].type):
            raise damaged_file(file, f"column {column} is of type {table[column].type} in {problem_type}")
    try:
        return [as_array(table[column], settings.label_names) for table in tables]
    except KeyError as error:
        raise damaged_file(file, f"column {column} has the unknown label {error}") from error


def _head_agreement(first: Candidate, second: Candidate) -> tuple[TauValue | None, str]:
    """Return Kendall's tau between the leading head rankings, and why there is none or what it is a mean of."""
    if not (first.head_methods() | second.head_methods()) - {None}:
        return None, ""
    rankings = [
        [run.heads.methods[0] for run in candidate.runs if run.heads is not None] for candidate in (first, second)
    ]
    missing = [item.name for item in (first, second) if None in item.head_methods()]
    if missing:
        return None, f"The heads of {' and '.join(missing)} were not analyzed, so the rankings cannot be compared."
    if methods := sorted({ranking.method for own in rankings for ranking in own})[1:]:
        return (
            None,
            f"The heads were ranked by different methods (also {', '.join(methods)}), so they are not compared.",
        )
    if len({tuple(map(len, ranking.values)) for own in rankings for ranking in own}) > 1:
        return None, "The models have different numbers of layers or heads, so the rankings cannot be compared."
    taus = [kendall_tau(left.values, right.values) for left, right in product(*rankings)]
    if len(taus) == 1:
        return taus[0], "95 % interval over heads"
    defined = [tau.value for tau in taus if tau.value is not None]
    mean = float(np.mean(defined)) if defined else None
    return TauValue(mean), f"mean of {len(taus)} pairs of seeds"


def _corrected(pairs: Sequence[PairComparison]) -> list[PairComparison]:
    """Return the comparisons with the p-values on each split corrected for their number (Holm 1979)."""
    corrected: list[dict[str, SplitDifference]] = [dict(pair.splits) for pair in pairs]
    for split in dict.fromkeys(split for pair in pairs for split in pair.splits):
        tested = [splits for splits in corrected if split in splits and splits[split].test is not None]
        tests = [test for splits in tested if (test := splits[split].test) is not None]
        p_values = holm([test.p_value for test in tests])
        for splits, test, p_value in zip(tested, tests, p_values, strict=True):
            splits[split] = replace(splits[split], test=replace(test, p_holm=p_value))
    return [replace(pair, splits=splits) for pair, splits in zip(pairs, corrected, strict=True)]


def _notes(candidates: Sequence[Candidate]) -> list[str]:
    """Return what a reader must know about checkpoints, seeds, and the number of comparisons."""
    notes = []
    count = len(candidates) - 1
    if count > 1:
        notes.append(
            f"{count} comparisons with {candidates[0].name}: the p-values of each split are corrected for {count} "
            "comparisons (Holm), the intervals are not corrected."
        )
    chosen = [candidate.name for candidate in candidates if candidate.chose_checkpoint()]
    if chosen and any("validation" in candidate.splits() for candidate in candidates):
        notes.append(
            f"The validation rows selected the checkpoint of {', '.join(chosen)}, so validation scores are slightly "
            "optimistic."
        )
    notes += [
        f"{candidate.name}: the seeds {', '.join(map(str, candidate.unfinished))} are not finished, and not compared."
        for candidate in candidates
        if candidate.unfinished
    ]
    single = [candidate.name for candidate in candidates if len(candidate.runs) == 1]
    if single:
        notes.append(
            f"One seed: {', '.join(single)}. An interval holds the rows and the seeds of a series, but not other seeds "
            "of a single run, which can give another difference."
        )
    return notes
