"""Speed of training and scoring, compared with transformers' Trainer.

    make bench                                           measures: at most 20 minutes on two idle cores
    python -m tests.benchmarks.speed --write             keeps the results, and updates the tables of guide and README

The contenders run one after another, each in its own process, for five rounds. The results of each kind of processor
have a file and a table of their own. With the variables of `machine.IMITATED_AVX2` an AVX2-only processor is imitated.
On a machine with a CUDA GPU the same command compares on the GPU.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import get_args

import torch

from finetune.recipe.training_section import TrainingSection
from tests.benchmarks.comparison import markdown
from tests.benchmarks.contender_settings import PRECISIONS, Contender
from tests.benchmarks.kept_results import replace_block, write_to_guide
from tests.benchmarks.machine import AMX, AVX2, BF16, has_bf16, machine
from tests.benchmarks.rounds import Record, about, keep_finished, kept, measure_rounds, spread, write_tables
from tests.support import ROOT

NAME, GOALS_NAME, README_NAME = "speed", "speed-goals", "speed-readme"
README = ROOT / "README.md"
FULL, LORA = "full", "LoRA"
ROWS = {"bf16": 960, "no": 768, "gpu": 6920}  # by the best precision of the processor, for the time that a round takes


@dataclass(frozen=True)
class Goal:
    """A ratio, or a model FLOPs utilization, that the project wants to reach.

    Attributes:
        kinds: the beginnings of the kinds of processors.
        weights: full or LoRA.
        ours: precision of ours.
        key: train, score or mfu.
        over: default or best: the setting of Trainer; None: the number itself.
    """

    kinds: tuple[str, ...]
    weights: str
    ours: str
    key: str
    over: str | None
    value: float

    def text(self) -> str:
        """Return what is measured, as a cell of the table."""
        what = {"train": "training", "score": "scoring", "mfu": "model FLOPs utilization of training"}[self.key]
        compared = {"best": " over Trainer's best", "default": " over `evaluate`'s default", None: ""}[self.over]
        return f"{what}, {self.weights}, {PRECISIONS[self.ours]}{compared}"


GOALS = [
    *(Goal((AVX2,), weights, "no", "train", "best", 1.5) for weights in (FULL, LORA)),
    *(Goal((AVX2,), weights, "int8", "train", "best", 1.5) for weights in (FULL, LORA)),
    *(Goal((AVX2,), FULL, precision, "score", "default", 2.5) for precision in ("no", "int8")),
    *(Goal((BF16, AMX, "NVIDIA"), weights, "bf16", "train", "best", 1.5) for weights in (FULL, LORA)),
    Goal((BF16, AMX), FULL, "bf16", "mfu", None, 0.6),
]  # fmt: skip


def contenders(kind: str) -> dict[str, Contender]:
    """Return the contenders on a kind of processor by name: "full, finetune, bf16", "LoRA, Trainer, best"."""
    gpu, best = torch.cuda.is_available(), "bf16" if has_bf16(kind) else "no"
    ours = ["no"] if best == "no" else ["no", "bf16"]
    if best == "no" and "int8" in get_args(TrainingSection.model_fields["mixed_precision"].annotation):
        ours.append("int8")
    sides = [("ours", precision) for precision in ours]
    sides += [("Trainer", "no"), ("compiled" if gpu else "grouped", best)]
    rows = ROWS["gpu" if gpu else best]
    epochs, warm_up = (4, 1) if gpu else (1, 0)  # the first epoch of compiled layers compiles them
    return {
        f"{weights}, {label(side, precision)}": Contender(
            side, weights == LORA, precision, rows, use_cpu=not gpu, epochs=epochs, warm_up=warm_up
        )
        for weights in (FULL, LORA)
        for side, precision in sides
    }


def label(side: str, precision: str) -> str:
    """Return the name of a contender without its weights."""
    if side == "ours":
        return f"finetune, {PRECISIONS[precision]}"
    return "Trainer, default" if side == "Trainer" else "Trainer, best"


def settings(all_contenders: dict[str, Contender]) -> dict[str, object]:
    """Return what the record says about the work of each contender."""
    first = next(iter(all_contenders.values()))
    best = next(contender for name, contender in all_contenders.items() if name.endswith("best"))
    compiled = ", compiled" if best.side == "compiled" else ""
    return {
        "rows": first.rows,
        "timed epochs": first.epochs - first.warm_up,
        "Trainer, best": f"{PRECISIONS[best.precision]}, by length{compiled}",
        "contenders": list(all_contenders),
    }


def measure() -> Record:
    """Measure all contenders in interleaved rounds."""
    everyone = contenders(machine()["kind"])
    return measure_rounds(NAME, {name: one.run for name, one in everyone.items()}, settings(everyone))


def table(record: Record) -> str:
    """Return the tables of one kind of processor: training, and scoring."""
    training = [["training", "rows per second", "over Trainer, best", "over Trainer, default", "peak MB", "MFU"]]
    scoring = [["scoring", "rows per second", "over Trainer, best", "over Trainer, default"]]
    for name in record.settings["contenders"]:
        weights = name.partition(",")[0]
        columns = partial(compared, record, name, [f"{weights}, Trainer, {other}" for other in ("best", "default")])
        mfu = "" if name.endswith("int8") else spread(record.values(name, "mfu"))
        memory = f"{statistics.median(record.values(name, 'memory')):,.0f}"
        training.append([name, spread(record.values(name, "train"), 0), *columns("train"), memory, mfu])
        scoring.append([name, spread(record.values(name, "score"), 0), *columns("score")])
    best = record.settings["Trainer, best"]
    rows = f"{record.settings['rows']:,} rows; Trainer, default: float32; Trainer, best: {best}."
    return f"{rows}\n\n{markdown(training)}\n\n{markdown(scoring)}"


def compared(record: Record, name: str, others: Sequence[str], key: str) -> list[str]:
    """Return the ratios of a contender over others; nothing over itself."""
    return ["" if name == other else spread(record.ratios(name, other, key)) for other in others]


def goal_values(record: Record) -> Iterator[tuple[Goal, list[float]]]:
    """Yield the goals for the kind of processor of a record, each with its value in every round."""
    for goal in GOALS:
        name = f"{goal.weights}, {label('ours', goal.ours)}"
        if record.kind.startswith(goal.kinds) and name in record.settings["contenders"]:
            other = f"{goal.weights}, Trainer, {goal.over}"
            yield goal, record.ratios(name, other, goal.key) if goal.over else record.values(name, goal.key)


def goal_table(records: Sequence[Record]) -> str:
    """Return the goals of all measured kinds of processors, with reached or missed."""
    rows = [["processor", "goal", "", "measured", ""]]
    for record in records:
        for goal, values in goal_values(record):
            reached = "reached" if statistics.median(values) >= goal.value else "missed"
            rows.append([record.kind, goal.text(), f"{goal.value:.2f}", spread(values), reached])
    return markdown(rows)


def readme_sentence(records: Sequence[Record]) -> str:
    """Return what the README says about `Trainer`: the speed of training all weights on CPUs."""
    cpus = [record for record in records if not record.kind.startswith("NVIDIA")]
    ratios: dict[str, list[str]] = {"best": [], "default": []}
    for record in cpus:
        precision = "bf16" if f"{FULL}, {label('ours', 'bf16')}" in record.settings["contenders"] else "no"
        for other, values in ratios.items():
            found = record.ratios(f"{FULL}, {label('ours', precision)}", f"{FULL}, Trainer, {other}", "train")
            values.append(f"{statistics.median(found):.1f}")
    kinds = " and ".join(
        f"imitated {AVX2}" if record.kind.startswith(f"{AVX2} (imitated") else record.kind for record in cpus
    )
    best, default = (" and ".join(values) for values in ratios.values())
    return (
        "- **transformers `Trainer`** is a class for your own script, for any model and task. On two CPU cores\n"
        f"  ({kinds}), finetune trained {best} times as fast as Trainer's best\n"
        f"  settings and {default} times as fast as its defaults, at the same accuracy; see\n"
        "  [performance](finetune/docs/performance.md)."
    )


def write() -> None:
    """Keep the finished results, and update guide and README."""
    keep_finished(NAME)
    write_tables(NAME, table)
    records = kept(NAME)
    if not records:
        return
    write_to_guide(GOALS_NAME, goal_table(records))
    text = README.read_text(encoding="utf-8")
    README.write_text(replace_block(text, README_NAME, readme_sentence(records)), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the tables, or keep the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep the finished results, and update guide and README")
    if parser.parse_args(arguments).write:
        write()
        return
    record = measure()
    print(f"{about(record)}\n\n{table(record)}\n\n{goal_table([record])}")


if __name__ == "__main__":
    main()
