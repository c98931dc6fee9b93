"""The command `report`: write the report and model card of a run, series or sweep again. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from finetune.errors import DataError
from finetune.report import write_report
from finetune.report.series_page import write_series_report
from finetune.report.sweep_page import write_sweep_report
from finetune.runs.locks import locked_folder, wait_for_lock
from finetune.runs.run_files import existing_run
from finetune.runs.series import is_series
from finetune.runs.sweep_results import is_sweep


def report(path: str | Path, overrides: Sequence[str] = ()) -> Path:
    """Write the report and model card of a finished run or series, or the page of a sweep, and return its path.

    Args:
        overrides: to the run's recipe, as `section.key=value`.

    Raises:
        FinetuneError: the folder contains no finished run, or one of its files is damaged.
    """
    if is_series(Path(path)):
        if overrides:
            raise DataError(f"{path} is a series, and {overrides[0]} changes the recipe of one run; name a run in it")
        with locked_folder(Path(path)):
            return write_series_report(Path(path))
    if is_sweep(Path(path)) and not overrides:
        with wait_for_lock(Path(path)):
            return write_sweep_report(Path(path))
    folder = existing_run(Path(path))
    with locked_folder(folder.path):
        write_report(folder, overrides)
    return Path(folder.report)
