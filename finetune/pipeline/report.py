"""The command `report`: write a finished run's report and model card again. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from finetune.errors import DataError
from finetune.report import write_report
from finetune.report.series_page import write_series_report
from finetune.runs.locks import locked_folder
from finetune.runs.run_files import existing_run
from finetune.runs.series import is_series


def report(path: str | Path, overrides: Sequence[str] = ()) -> Path:
    """Write the report and the model card of a finished run or series again, and return the report's path.

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
    folder = existing_run(Path(path))
    with locked_folder(folder.path):
        write_report(folder, overrides)
    return Path(folder.report)
