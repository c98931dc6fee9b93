"""The command `compare`, and the page of `report --compare`. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from finetune.errors import DataError
from finetune.pipeline.changed_rows import write_changed_rows
from finetune.pipeline.compare_runs import compare_runs
from finetune.report.comparison_page import render_comparison
from finetune.report.comparison_terminal import print_comparison
from finetune.report.terminal import print_line
from finetune.runs.atomic_files import write_text
from finetune.runs.comparison import RunsComparison
from finetune.runs.json_files import write_json
from finetune.runs.new_dirs import atomic_new_dir, check_dir_is_free, lock_new_dir

PAGE = "comparison.html"
CHANGED_ROWS = "changed_rows.csv"


def compare(paths: Sequence[Path], *, output: Path | None = None) -> RunsComparison:
    """Compare runs or series with the first one, print the comparison, and return it.

    Args:
        output: a new folder for `comparison.html`, `comparison.json` and, in classification, `changed_rows.csv`; None
            writes no file.

    Raises:
        FinetuneError: a run cannot be compared, or the output folder cannot be written.
    """
    target = None if output is None else output.absolute()
    if target is not None:
        check_dir_is_free(target)
    compared = compare_runs(paths)
    comparison, console = compared.comparison, Console(highlight=False)
    print_comparison(console, comparison)
    if target is None:
        count = len(compared.changed)
        changed = f" and {count} changed row{'s' * (count != 1)}" if count else ""
        print_line(console, f"Nothing was written; --output FOLDER writes a page, the results as JSON{changed}.")
        return comparison
    with lock_new_dir(target), atomic_new_dir(target) as temporary:
        file = None if comparison.problem_type == "regression" else CHANGED_ROWS
        page = render_comparison(comparison, compared.changed, compared.rankings, changed_file=file)
        write_text(temporary / PAGE, page)
        write_json(temporary / "comparison.json", comparison)
        if file is not None:
            write_changed_rows(temporary / file, compared.changed)
    print_line(console, f"Comparison: {escape(str(target / PAGE))}")
    return comparison


def write_comparison_page(paths: Sequence[Path], file: Path | None = None) -> Path:
    """Write the page of a comparison and return its path; an earlier page at that path is replaced.

    Args:
        file: where to write; None: `comparison.html` in the working directory.

    Raises:
        FinetuneError: a run cannot be compared, or the file cannot be written.
    """
    target = (file or Path(PAGE)).absolute()
    if target.suffix != ".html":
        raise DataError(f"--output is '{file}'; the name of a page must end in .html")
    if target.is_dir() or not target.parent.is_dir():
        raise DataError(f"{target} cannot be written: it is a folder, or there is no folder {target.parent}")
    compared = compare_runs(paths)
    write_text(target, render_comparison(compared.comparison, compared.changed, compared.rankings))
    return target
