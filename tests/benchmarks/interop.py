"""Largest difference of a probability when transformers, peft and sentence-transformers open the models of runs.

    python -m tests.benchmarks.interop runs/sst2 runs/sst2-lora [--rows 64]

Each run's model is opened by finetune and saved again as it is, merged if it has adapters, and pruned by one head per
layer: without the heads, and with zeros in their place. The other libraries open these folders in a process without
finetune, offline, with the base checkpoint in a stand-in for the cache of the hub. A cell has the largest difference
over all rows and labels from the probabilities that finetune gives for the folder, or the error; the column finetune
has the difference of these from the probabilities of the run's model, or of the pruned model.

An adapter whose base has another number of labels is opened with `num_labels`. A model with pooled states is opened
twice: as it is, and with `trust_remote_code=True`. The runs are not changed.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from rich.console import Console
from rich.table import Table

from finetune.heads.pruning import pruned_classifier, write_zeroed
from finetune.models.attention_sites import attention_sites
from finetune.models.classifier import Classifier
from finetune.models.loading import load_classifier
from finetune.models.merging import merge_classifier
from finetune.models.pooling import HEAD, pooling_of
from finetune.models.pretrained import load_config, quiet_libraries
from finetune.models.saving import save_classifier
from finetune.pipeline.finished_run import open_run
from finetune.recipe.hub_names import hub_id
from tests.support.stock_loaders import LOADERS, Case, Opened, add_to_hub_cache, open_in_a_fresh_process

Rows = list[tuple[str, ...]]


class Models:
    """Saved models, and the probabilities that finetune gives for them."""

    def __init__(self, folder: Path, rows: Rows) -> None:
        self.folder, self.columns = folder, [list(column) for column in zip(*rows, strict=True)]
        self.rows = rows
        self.cases: list[Case] = []
        self.expected: dict[str, np.ndarray] = {}
        self.own_difference: dict[str, float] = {}
        self.bases: dict[str, Path] = {}

    def add(self, name: str, before: np.ndarray) -> None:
        """Add the model that was saved under this name; `before` has the probabilities of what was saved."""
        folder = self.folder / name
        classifier = load_classifier(folder)
        self.expected[name] = self.probabilities(classifier)
        self.own_difference[name] = float(np.abs(self.expected[name] - before).max())
        base, options = None, {}
        if classifier.model is not classifier.base and classifier.source is not None:
            base = hub_id(classifier.source.name) or classifier.source.name
            if not Path(base).is_dir():
                self.bases[base] = Path(classifier.source.location())
            if load_config(classifier.source).num_labels != len(classifier.label_names):
                options = label_options(classifier)
        case = Case(name, str(folder), self.rows, classifier.problem_type, base, options)
        self.cases.append(case)
        if pooling_of(classifier.base.config) != HEAD and base is None:
            self.cases.append(replace(case, name=f"{name}, trusted", trusted=True))
            self.expected[f"{name}, trusted"] = self.expected[name]
            self.own_difference[f"{name}, trusted"] = self.own_difference[name]

    def probabilities(self, classifier: Classifier) -> np.ndarray:
        """Return the probabilities of all rows (N, C)."""
        return classifier.rules.probabilities(classifier.logits(self.columns, 32))


def label_options(classifier: Classifier) -> dict[str, Any]:
    """Return what transformers must be given for an adapter whose base has other labels."""
    names = classifier.label_names
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
        "problem_type": classifier.problem_type,
    }


def saved_models(path: Path, max_rows: int, folder: Path) -> Models:
    """Save the model of a run in every form, in folders of `folder`."""
    with tempfile.TemporaryDirectory() as copy:  # opening a run writes a lock
        unused = shutil.ignore_patterns("checkpoints", "report.html", "onnx", "trackers", "pruned", "merged")
        run = Path(shutil.copytree(path, Path(copy) / path.name, ignore=unused))
        with open_run(run) as opened:
            classifier, splits = opened.inputs.classifier, opened.inputs.splits
    columns = splits["validation" if "validation" in splits else "train"].texts[:max_rows].values()
    models = Models(folder, list(zip(*columns, strict=True)))
    before, adapted = models.probabilities(classifier), classifier.model is not classifier.base
    one_head_per_layer = {site.layer: [site.layer % site.num_heads] for site in attention_sites(classifier.base)}
    pruned = pruned_classifier(classifier, one_head_per_layer)
    names = {kind: f"{path.name} {kind}" for kind in ("adapter" if adapted else "full", "merged", "pruned", "zeroed")}
    save_classifier(classifier, folder / names["adapter" if adapted else "full"])
    models.add(names["adapter" if adapted else "full"], before)
    save_classifier(pruned, folder / names["pruned"])
    models.add(names["pruned"], models.probabilities(pruned))
    write_zeroed(pruned, folder / names["zeroed"], models.rows[:8])
    models.add(names["zeroed"], models.probabilities(pruned))
    if adapted:
        merge_classifier(classifier, folder / names["merged"], models.rows[:8])
        models.add(names["merged"], before)
    return models


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
    table, errors = Table("model", "finetune", *LOADERS), set()
    for run in args.runs:
        with tempfile.TemporaryDirectory() as folder:
            models = saved_models(run, args.rows, Path(folder))
            for name, checkpoint in models.bases.items():
                add_to_hub_cache(Path(folder) / "hub", name, checkpoint)
            results = open_in_a_fresh_process(models.cases, Path(folder) / "hub", Path(folder))
        for case in models.cases:
            cells = [cell(results[case.name][loader], models.expected[case.name]) for loader in LOADERS]
            name = case.name + (" (num_labels given)" if case.options else "")
            table.add_row(name, f"{models.own_difference[case.name]:.1e}", *cells)
            errors |= {opened.error.replace(case.folder, "FOLDER") for opened in results[case.name].values()}
    console.print(table)
    for error in sorted(errors - {""}):
        console.print(error[:300], markup=False)


if __name__ == "__main__":
    main()
