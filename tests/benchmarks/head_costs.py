"""The cost of the default head ranking, of its test and of the explanations, as shares of the training, in CPU time.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.head_costs RUN ... [--output FILE]

Each run is a finished run; its training is timed again for a few steps, alternating with gate gradients and forward
passes, and extrapolated to all steps. The ranking is that of the recipe's defaults with the run's own budget. The
pruning curves are timed on a few rows and extrapolated. One thread. Results are added to FILE run by run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.heads.analysis import AnalysisSettings, rows_of_method, separate_rows
from finetune.heads.explain_rows import explain_rows
from finetune.heads.gated_forward import GatedRows, gate_gradients, gated_logits
from finetune.heads.methods import measure_importance
from finetune.heads.pruning_curve import CurveSettings, pruning_curves
from finetune.models.loading import load_classifier
from finetune.pipeline.finished_run import FinishedRun
from finetune.pipeline.training_cost import training_cost_of_run
from finetune.recipe.evaluation_section import HeadImportanceSection
from finetune.runs.json_files import read_json, write_json
from finetune.training.build import Hyperparameters, build_trainer
from finetune.training.schedule import make_plan
from finetune.training.trainer import Trainer
from tests.support import ROOT
from tests.support.finished_runs import read_back

OUTPUT = ROOT / "tests" / "benchmarks" / "results" / "head-costs.json"
ROUNDS, STEPS, GATE_ROWS, CURVE_ROWS = 3, 12, 128, 24


def cpu_seconds(function: Callable[[], object]) -> float:
    """Return the CPU time of a call."""
    started = time.process_time()
    function()
    return time.process_time() - started


def new_trainer(run: FinishedRun) -> Trainer:
    """Return a trainer with the settings of the run, which starts from the trained weights."""
    recipe, rows = run.context.recipe, run.inputs.splits["train"]
    classifier = load_classifier(run.context.folder.model)
    for name, parameter in classifier.model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:  # frozen by load_classifier
            parameter.requires_grad_(True)
    plan = make_plan(recipe, rows=len(rows), processes=1)
    return build_trainer(classifier, rows, plan, Hyperparameters(recipe.training, seed=0), run.context.accelerator)


def measure(run: Path) -> dict[str, Any]:
    """Return the CPU times of one run and their shares of its training."""
    opened = read_back(run)
    torch.set_num_threads(1)
    classifier, splits, accelerator = opened.inputs.classifier, opened.inputs.splits, opened.context.accelerator
    training = training_cost_of_run(opened.context, classifier)
    assert training is not None
    section, recipe = HeadImportanceSection(), opened.context.recipe
    settings = AnalysisSettings(recipe.toolkit_metrics()[0], 64, recipe.seed, training)
    ranking_rows, test_rows = separate_rows(splits, section, settings.seed)
    sample = GatedRows(classifier, splits["train"], "train", ranking_rows, settings.batch_size, accelerator)
    few, trainer = sample.subset(sample.rows[:GATE_ROWS]), new_trainer(opened)

    def train(count: int) -> float:
        """Return the CPU time per row of the first steps of an epoch."""
        trainer.state.step_in_epoch = 0
        batches = list(islice(trainer.epoch_steps(), count))
        seconds = cpu_seconds(lambda: [trainer.optimizer_step(*batch) for batch in batches])
        return seconds / sum(len(rows) for _, rows in batches)

    train(3)
    gate_gradients(few)
    per_row = np.array(
        [
            [
                train(STEPS),
                cpu_seconds(lambda: gate_gradients(few)) / len(few),
                cpu_seconds(lambda: gated_logits(few, few.gates())) / len(few),
            ]
            for _ in range(ROUNDS)
        ]
    )
    train_row, gate_row, forward_row = np.median(per_row, axis=0).tolist()
    method = section.settings_of("learned_order")
    row_passes = settings.row_passes(section)
    ranked = rows_of_method(sample, method, settings.seed)
    ranking = cpu_seconds(lambda: measure_importance(ranked, "learned_order", steps=8, seed=0, row_passes=row_passes))
    total = training.rows * train_row
    test_sample = replace(sample, split=splits["validation"], split_name="validation", rows=test_rows)
    curves = curve_seconds(test_sample, settings.metric)
    order = [(layer, head) for layer, site in enumerate(sample.sites) for head in range(site.num_heads)]
    explained = cpu_seconds(lambda: explain_rows(classifier, splits, section, settings, order, accelerator))
    return {
        "trained_rows": training.rows,
        "row_passes": row_passes,
        "milliseconds_per_row": {"training": 1e3 * train_row, "row_pass": 1e3 * gate_row, "forward": 1e3 * forward_row},
        "row_passes_per_trained_row": train_row / gate_row,
        "shares": {"ranking": ranking / total, "curves": curves / total, "explanations": explained / total},
    }


def curve_seconds(sample: GatedRows, metric: str) -> float:
    """Return the CPU time of the pruning curves of one method, extrapolated from a few rows."""
    few = sample.subset(sample.rows[:CURVE_ROWS])
    order = [(layer, head) for layer, site in enumerate(sample.sites) for head in range(site.num_heads)]
    seconds = cpu_seconds(lambda: pruning_curves(few, {"any": order}, CurveSettings(metric, random_orders=3)))
    return seconds * len(sample) / len(few)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    results = read_json(args.output, dict[str, Any]) if args.output.is_file() else {}
    for run in args.runs:
        if run.name not in results:
            results[run.name] = measure(run)
            write_json(args.output, results)
        shares = results[run.name]["shares"]
        print(run.name, results[run.name]["row_passes"], {name: f"{share:.1%}" for name, share in shares.items()})


if __name__ == "__main__":
    main()
