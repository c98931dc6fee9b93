"""The command `report`: write a finished run's report and model card again. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from finetune.report import write_report
from finetune.runs.locks import locked_folder
from finetune.runs.run_files import existing_run


def report(path: str | Path, overrides: Sequence[str] = ()) -> Path:
    """Write the report and the model card of a finished run again, and return the report's path.

    Args:
        overrides: to the run's recipe, as `section.key=value`.

    Raises:
        FinetuneError: the folder contains no finished run, or one of its files is damaged.
    """
    folder = existing_run(Path(path))
    with locked_folder(folder.path):
        write_report(folder, overrides)
    return Path(folder.report)
