"""The results of a series, from the files of its runs: statistics over seeds, the chosen run, agreement of the heads.

S seeds, N rows, L layers, H heads
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import pyarrow.compute as pc

from finetune.evaluation.intervals import Array, interval_note
from finetune.evaluation.named_differences import named_covariance
from finetune.evaluation.row_matching import as_array, probabilities_of
from finetune.evaluation.scored_rows import ScoredRows
from finetune.evaluation.two_level_interval import row_covariance, series_interval
from finetune.heads.rank_correlation import kendall_tau
from finetune.recipe.named_metrics import find_metric, is_toolkit_metric, lower_is_better, metric_bounds
from finetune.recipe.schema import Recipe
from finetune.runs.head_results import HeadScores, RankAgreement, TauValue
from finetune.runs.json_files import read_json
from finetune.runs.predictions import read_predictions
from finetune.runs.results import MetricValue, SplitScores, TrainingResult
from finetune.runs.run_files import read_heads, read_scores, read_summary
from finetune.runs.run_folder import RunFolder, SeriesFolder
from finetune.runs.series import HeadAgreement, MemberResult, SeedStatistics, SeriesResult

INTERVAL_NOTE = (
    "95 % interval of the mean, for other seeds and other rows: variance s^2 / S + Cov of {seeds} runs, where s is the "
    "standard deviation over seeds and Cov the covariance of two runs' scores over resampled rows (Obuchowski and "
    "Rockette 1995); the guide many-runs has the degrees of freedom"
)


def finished_member(member: MemberResult, folder: RunFolder) -> MemberResult:
    """Return a run that has just finished, with its scores and its training time."""
    scores = read_scores(folder)
    return replace(
        member,
        status="finished",
        error="",
        train_seconds=read_json(folder.training, TrainingResult).speed.train_seconds,
        scores={split: _values(result) for split, result in scores.items()},
    )


def _values(scores: SplitScores) -> dict[str, float | None]:
    return {**{name: cell.value for name, cell in scores.metrics.items()}, "loss": scores.loss}


def series_results(folder: SeriesFolder, recipe: Recipe, members: Sequence[MemberResult]) -> SeriesResult:
    """Return the results of the runs that are finished.

    Raises:
        DataError: a file of a run is damaged.
    """
    finished = [member for member in members if member.status == "finished"]
    result = SeriesResult(recipe.best_metric(), list(members))
    if not finished:
        return result
    chosen, choice = choose_run(finished, result.metric)
    runs = {member.seed: folder.member(member.seed) for member in finished}
    scores = read_scores(runs[finished[0].seed])
    splits, notes = {}, []
    for split in scores:
        if not all(split in member.scores for member in finished):
            continue
        covariances, note = _covariances(list(runs.values()), split, recipe)
        values = {name: [member.scores[split].get(name) for member in finished] for name in finished[0].scores[split]}
        splits[split] = {name: _statistics(name, cells, covariances.get(name)) for name, cells in values.items()}
        notes += [f"{split}: {note}"] if note else []
    return replace(
        result,
        rows={split: scores[split].rows for split in splits},
        splits=splits,
        interval_note="; ".join([INTERVAL_NOTE.format(seeds=len(finished)), *notes]),
        chosen_seed=chosen,
        choice=choice,
        heads=head_agreement({seed: run for seed, run in runs.items() if run.heads.is_file()}),
    )


def choose_run(finished: Sequence[MemberResult], metric: str) -> tuple[int, str]:
    """Return the seed whose model is that of the series, and why: the best by validation, and never by test.

    Runs with equal scores are compared by validation loss; without validation rows the first run is taken.
    """
    if not all("validation" in member.scores for member in finished):
        return finished[0].seed, "the first run, because there are no validation rows to choose by"
    sign = 1.0 if lower_is_better(metric) else -1.0

    def rank(member: MemberResult) -> tuple[float, float]:
        scores = member.scores["validation"]
        value, loss = scores.get(metric), scores.get("loss")
        return (np.inf if value is None else sign * value, np.inf if loss is None else loss)

    best = min(finished, key=rank)
    value = best.scores["validation"].get(metric)
    if value is None:  # in every run
        return (
            best.seed,
            f"lowest validation loss, because {metric} is undefined; the test rows are not used for the choice",
        )
    word = "lowest" if lower_is_better(metric) else "highest"
    ties = sum(rank(member)[0] == rank(best)[0] for member in finished) - 1
    tie = f"; {ties} more with this score and a higher validation loss" if ties else ""
    return best.seed, f"{word} validation {metric}, {value:.4f}{tie}; the test rows are not used for the choice"


def _statistics(name: str, cells: Sequence[float | None], covariance: Array | None) -> SeedStatistics:
    """Return mean, interval and standard deviation over the seeds; undefined if the metric is undefined in a run."""
    values = np.array([np.nan if cell is None else cell for cell in cells], dtype=float)  # (S,)
    if not np.isfinite(values).all():
        return SeedStatistics(MetricValue(None), None)
    deviation = float(values.std(ddof=1)) if len(values) > 1 else None
    if covariance is None:
        return SeedStatistics(MetricValue(float(values.mean())), deviation)
    return SeedStatistics(series_interval(values, covariance, metric_bounds(name)), deviation)


def _covariances(runs: Sequence[RunFolder], split: str, recipe: Recipe) -> tuple[dict[str, Array], str]:
    """Return, by metric, the covariance (S, S) of the runs' scores over samples of rows, and why there are none."""
    label_names = list(read_summary(runs[0])["train"].label_counts)
    rows = [_scored_rows(run, split, label_names, recipe.task.problem_type) for run in runs]
    references, predictions = rows[0].labels, [row.predicted for row in rows]
    if not len(references):  # training rows are scored, but not stored
        return {}, ""
    if not all(np.array_equal(run_rows.labels, references) for run_rows in rows):
        return {}, "no interval, because the runs were not scored on the same rows"
    if note := interval_note(len(references)):
        return {}, note
    samples, seed = recipe.evaluation.bootstrap_samples, recipe.seed
    names = [name for name in recipe.metric_names() if is_toolkit_metric(name, recipe.task.problem_type)]
    own = row_covariance(predictions, references, names, num_classes=len(label_names))
    others = [name for name in recipe.metric_names() if name not in names and find_metric(name, rows[0].problem_type)]
    named = {name: named_covariance(rows, name, samples=samples, seed=seed) for name in others}
    notes = [f"{name}: {note}" for name, (_, note) in named.items() if note]
    return own | {name: covariance for name, (covariance, _) in named.items()}, "; ".join(notes)


def _scored_rows(run: RunFolder, split: str, label_names: Sequence[str], problem_type: str) -> ScoredRows:
    """Return the stored predictions of a split."""
    table = read_predictions(run)
    rows = table.filter(pc.equal(table["split"], split))
    labels, predicted = (as_array(rows[name], label_names) for name in ("label", "predicted"))
    probabilities = None if problem_type == "regression" else probabilities_of(rows)
    return ScoredRows(labels, predicted, probabilities, tuple(label_names) or ("value",), problem_type)


def head_agreement(runs: Mapping[int, RunFolder]) -> HeadAgreement | None:
    """Return how well the head rankings of different seeds agree; None unless at least two have the same analysis."""
    rankings = {seed: read_heads(run).methods[0] for seed, run in runs.items()}
    kinds = {(ranking.method, tuple(map(len, ranking.values))) for ranking in rankings.values()}
    if len(rankings) < 2 or len(kinds) > 1:
        return None
    pairs = [
        RankAgreement(f"seed {first}", f"seed {second}", kendall_tau(rankings[first].values, rankings[second].values))
        for first, second in combinations(rankings, 2)
    ]
    taus = [pair.tau.value for pair in pairs if pair.tau.value is not None]
    tau = TauValue(float(np.mean(taus)), min(taus), max(taus)) if taus else TauValue(None)
    return HeadAgreement(next(iter(kinds))[0], pairs, tau, *_rows_agreement(list(rankings.values())))


def _rows_agreement(rankings: Sequence[HeadScores]) -> tuple[float | None, str]:
    """Return the mean agreement of rankings from other rows with the same seed, and which rows are compared."""
    values = [ranking.stability.value for ranking in rankings if ranking.stability is not None]
    defined = [value for value in values if value is not None]
    if len(defined) < len(rankings):
        return None, ""
    over = rankings[0].errors_over
    rows = "two random halves of the rows" if over == "rows" else f"pairs of the {over}"
    return float(np.mean(defined)), rows
