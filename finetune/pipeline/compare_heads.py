"""The command `heads` for several runs: compare their rankings of the heads."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from finetune.errors import DataError
from finetune.heads.rank_correlation import kendall_tau
from finetune.out_of_memory import report_out_of_memory
from finetune.pipeline.analyze_heads import untrained_warning
from finetune.pipeline.finished_run import finished_folder, finished_recipe
from finetune.report import read_record
from finetune.report.terminal import print_agreement, print_line
from finetune.runs.head_results import RankAgreement
from finetune.runs.run_files import existing_run, read_heads, read_scores
from finetune.runs.run_folder import RunFolder


@report_out_of_memory()
def compare_heads(paths: Sequence[Path]) -> list[RankAgreement]:
    """Print and return Kendall's tau between the leading rankings of each pair of runs.

    Raises:
        DataError: a run has no analysis, or the runs differ in ranking method or in their heads.
    """
    missing = [str(path) for path in paths if not RunFolder(path).heads.is_file()]
    if missing:
        raise DataError(
            f"{missing[0]} has no analysis of heads; make one with `finetune heads RUN head_importance.method=gradient`"
        )
    rankings = {str(path): read_heads(RunFolder(path)).methods[0] for path in paths}
    methods = {ranking.method for ranking in rankings.values()}
    if len(methods) > 1:
        raise DataError(
            f"the runs rank by {', '.join(sorted(methods))}; analyze them with one method first "
            "(head_importance.method=gradient)"
        )
    if len({tuple(map(len, ranking.values)) for ranking in rankings.values()}) > 1:
        raise DataError("the runs have different numbers of layers or heads; compare runs of the same model")
    pairs = [
        RankAgreement(first, second, kendall_tau(rankings[first].values, rankings[second].values))
        for first, second in combinations(rankings, 2)
    ]
    console = Console(highlight=False)
    print_agreement(console, methods.pop(), pairs)
    for path in paths:
        scores = read_scores(RunFolder(path)) if RunFolder(path).scores.is_file() else {}
        if warning := untrained_warning(scores):
            print_line(console, f"[yellow]{escape(str(path))}: {escape(warning)}[/]")
    return pairs


def check_runs(paths: Sequence[Path], overrides: Sequence[str], *, analyze: bool) -> None:
    """Raise a FinetuneError unless the paths are distinct runs with intact files, before any of them is analyzed.

    Args:
        analyze: whether the runs will be analyzed, and not only compared.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise DataError("a run is named twice; name each run once")
    for path in paths:
        folder = existing_run(path)
        if analyze:
            finished_recipe(finished_folder(path), overrides)
            read_record(folder, overrides)  # the report shows every file
        elif folder.heads.is_file():
            read_heads(folder)
