"""Largest difference of a probability when transformers, peft and sentence-transformers open the models of runs.

    python -m tests.benchmarks.interop runs/sst2 runs/sst2-lora [--rows 64]

Each run's model is opened by finetune and saved again as it is, merged if it has adapters, and pruned by one head per
layer: without the heads, and with zeros in their place. The other libraries open these folders in a process without
finetune, offline, with the base checkpoint in a stand-in for the cache of the hub. A cell has the largest difference
over all rows and labels from the probabilities of the run's model (for the last two, the pruned model), or the error.

An adapter whose base has another number of labels is opened with `num_labels`. The runs are not changed.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from rich.console import Console
from rich.table import Table

from finetune.heads.pruning import pruned_classifier, write_zeroed
from finetune.models.attention_sites import attention_sites
from finetune.models.classifier import Classifier
from finetune.models.merging import merge_classifier
from finetune.models.pretrained import load_config, quiet_libraries
from finetune.models.saving import save_classifier
from finetune.pipeline.finished_run import open_run
from finetune.recipe.hub_names import hub_id
from tests.support.stock_loaders import LOADERS, Case, Opened, add_to_hub_cache, open_in_a_fresh_process

Rows = list[tuple[str, ...]]


class Models:
    """Saves models and keeps the probabilities that their classifier gives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cases: list[Case] = []
        self.expected: dict[str, np.ndarray] = {}
        self.bases: dict[str, Path] = {}

    def add(self, name: str, classifier: Classifier, expected: Classifier, rows: Rows) -> Path:
        """Add the model in a folder of this name, which the caller saves."""
        columns = [list(column) for column in zip(*rows, strict=True)]
        self.expected[name] = expected.rules.probabilities(expected.logits(columns, 32))
        base, options = None, {}
        if classifier.model is not classifier.base and classifier.source is not None:
            base = hub_id(classifier.source.name) or classifier.source.name
            if not Path(base).is_dir():
                self.bases[base] = Path(classifier.source.location())
            if load_config(classifier.source).num_labels != len(classifier.label_names):
                options = label_options(classifier)
        folder = self.folder / name.replace(" ", "-")
        self.cases.append(Case(name, str(folder), rows, classifier.problem_type, base, options))
        return folder


def label_options(classifier: Classifier) -> dict[str, Any]:
    """Return what transformers must be given for an adapter whose base has other labels."""
    names = classifier.label_names
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
        "problem_type": classifier.problem_type,
    }


def add_run(models: Models, path: Path, max_rows: int) -> None:
    """Save the model of a run in every form."""
    with tempfile.TemporaryDirectory() as copy:  # opening a run writes a lock
        unused = shutil.ignore_patterns("checkpoints", "report.html", "onnx", "trackers", "pruned", "merged")
        run = Path(shutil.copytree(path, Path(copy) / path.name, ignore=unused))
        with open_run(run) as opened:
            classifier, splits = opened.inputs.classifier, opened.inputs.splits
    columns = splits["validation" if "validation" in splits else "train"].texts[:max_rows].values()
    rows: Rows = list(zip(*columns, strict=True))
    adapted = classifier.model is not classifier.base
    save_classifier(
        classifier, models.add(f"{path.name} {'adapter' if adapted else 'full'}", classifier, classifier, rows)
    )
    one_head_per_layer = {site.layer: [site.layer % site.num_heads] for site in attention_sites(classifier.base)}
    pruned = pruned_classifier(classifier, one_head_per_layer)
    save_classifier(pruned, models.add(f"{path.name} pruned", pruned, pruned, rows))
    write_zeroed(pruned, models.add(f"{path.name} zeroed", pruned, pruned, rows), rows[:8])
    if adapted:
        merged = pruned_classifier(classifier, {})
        merge_classifier(classifier, models.add(f"{path.name} merged", merged, classifier, rows), rows[:8])


def cell(opened: Opened, expected: np.ndarray) -> str:
    """Return the largest difference of a probability, or the name of the error."""
    if opened.error:
        return opened.error.partition(":")[0]
    return f"{np.abs(np.array(opened.probabilities) - expected).max():.1e}"


def main() -> None:
    """Print the table, and each different error."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--rows", type=int, default=64, help="number of validation rows")
    args = parser.parse_args()
    quiet_libraries()
    datasets.disable_progress_bars()
    console = Console(highlight=False, width=140)
    with tempfile.TemporaryDirectory() as folder:
        models = Models(Path(folder))
        for run in args.runs:
            add_run(models, run, args.rows)
        for name, checkpoint in models.bases.items():
            add_to_hub_cache(Path(folder) / "hub", name, checkpoint)
        results = open_in_a_fresh_process(models.cases, Path(folder) / "hub", Path(folder))
    table = Table("model", *LOADERS)
    for case in models.cases:
        cells = [cell(results[case.name][loader], models.expected[case.name]) for loader in LOADERS]
        table.add_row(case.name + (" (num_labels given)" if case.options else ""), *cells)
    console.print(table)
    errors = {opened.error.replace(folder, "") for by_loader in results.values() for opened in by_loader.values()}
    for error in sorted(errors - {""}):
        console.print(error[:300], markup=False)


if __name__ == "__main__":
    main()
