"""Which training options pay? Every option against the default recipe at equal training time.

    python -m tests.benchmarks.defaults --data DATA [--grid choose|confirm] [--variants ema,rdrop] [--seeds 0-4]
    python -m tests.benchmarks.defaults [--grid choose|confirm] --table | --write

DATA has one folder per data set: train.parquet, labels.json, and the split that is scored. The defaults are chosen on
the data sets of one grid and confirmed on those of the other. Each finished cell is one line of RESULTS (by default
runs/bench-defaults/GRID.jsonl). A cell that is there is skipped, so the benchmark can be interrupted and resumed, and
the same command can be started several times at once. --table prints the comparison of the cells so far. --write also
keeps them in tests/benchmarks/results/ and updates the table in the performance guide.

The plain recipe is the default one with its choices written out. It trains for as many steps as it chooses, and every
option for as many. An option that makes steps slower gets as many steps as fit in the same time instead; for this its
cost is measured once per data set and size, as CPU time of the process (elapsed time with a GPU), which other processes
on the machine hardly change.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from finetune.errors import RecipeError
from finetune.recipe.loader import load_recipe
from finetune.signals import Interrupted
from tests.benchmarks.cells import Cell, Line, ResultsLog, Task, grid, load_task, parse_seeds, work
from tests.benchmarks.comparison import comparison_table, markdown, print_table
from tests.benchmarks.kept_results import RESULTS, about, keep, read_kept, write_to_guide
from tests.benchmarks.train_cell import ALL_ROWS_TRAIN, MINILM, Settings, has_key, train_cell

FOLDER = Path("runs/bench-defaults")
SCORED = {"choose": "validation", "confirm": "test"}  # split
GROUPS = {
    "choose": ("cr:100", "subj:100", "mpqa:200", "clinc:3/class", "cr:1000", "subj:1000", "mpqa:1000", "clinc:1000"),
    "confirm": (
        "trec:200", "sst2:200", "mrpc:200", "nlupp:300", "banking77:5/class",
        "trec:1000", "sst2:1000", "mrpc:1000", "nlupp:1000", "banking77:1000",
    ),
}  # fmt: skip
MEAN, PROBE = "model.pooling=mean", "model.classifier_init=linear_probe"
# What a recipe with MiniLM gets by default, in numbers, so that the comparison stays the same when the defaults change.
PLAIN = (
    MEAN,
    PROBE,
    "data.label_name_rows=auto",
    "training.contrastive_weight=0",
    "training.ema_decay=null",
    "training.layerwise_lr_decay=null",
    "training.label_smoothing_factor=0",
    "training.reinit_layers=0",
    "training.rdrop_alpha=0",
    "training.lr_scheduler_type=linear",
    "training.warmup_steps=0.06",
    "training.per_device_train_batch_size=16",
)
HEAD = ("model.pooling=head", "model.classifier_init=random")
NO_NAMES = "data.label_name_rows=false"


@dataclass(frozen=True)
class Variant:
    """A recipe to compare with the plain one.

    Attributes:
        overrides: the `section.key=value` overrides in which it differs from the plain recipe.
        cost: "same": a step takes about as long as in the plain recipe, so the number of steps is the same; "measured":
            the number of steps is chosen for the same time; "own": the recipe chooses its number of steps.
    """

    overrides: tuple[str, ...] = ()
    cost: str = "same"


VARIANTS = {
    "plain": Variant(),
    "pooling_head": Variant(HEAD),
    "pooling_cls": Variant(("model.pooling=cls",)),
    "random_head": Variant(("model.classifier_init=random",)),
    "no_label_names": Variant((NO_NAMES,)),
    "all_off": Variant((*HEAD, NO_NAMES)),
    "contrastive": Variant(("training.contrastive_weight=0.5",)),
    "ema": Variant(("training.ema_decay=0.99",)),
    "layerwise_decay": Variant(("training.layerwise_lr_decay=0.9",)),
    "label_smoothing": Variant(("training.label_smoothing_factor=0.1",)),
    "reinit": Variant(("training.reinit_layers=1",)),
    "rdrop": Variant(("training.rdrop_alpha=1",), "measured"),
    "cosine": Variant(("training.lr_scheduler_type=cosine",)),
    "inverse_sqrt": Variant(("training.lr_scheduler_type=inverse_sqrt",)),
    "warmup_20": Variant(("training.warmup_steps=0.2",)),
    "learning_rate_5e-5": Variant(("training.learning_rate=5e-5",)),
    "learning_rate_2e-4": Variant(("training.learning_rate=2e-4",)),
    "batch_8": Variant(("training.per_device_train_batch_size=8",), "measured"),
    "batch_32": Variant(("training.per_device_train_batch_size=32",), "measured"),
    "default": Variant((), "own"),  # without PLAIN: what a recipe without these keys does
}
TITLES = {
    "defaults-choose": "Training options on the data sets that chose the defaults",
    "defaults-confirm": "Training options on other data sets",
}
COST_STEPS, COST_ROUNDS = (4, 40), 2


def overrides_of(variant: Variant) -> list[str]:
    """Return all overrides of a variant; keys of PLAIN that this version does not have are omitted."""
    plain = () if variant.cost == "own" else PLAIN
    return [*ALL_ROWS_TRAIN, *(item for item in plain if has_key(item)), *variant.overrides]


def problem(variant: Variant, task: Task) -> str | None:
    """Return why this version cannot train a variant on a data set, None if it can."""
    missing = [item for item in variant.overrides if not has_key(item)]
    if missing:
        return f"the recipe has no {', '.join(missing)}"
    document = task.recipe() | {"model": {"model_name_or_path": MINILM}}
    document["data"]["train_file"] = "train.parquet"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.yaml"
        file.write_text(yaml.safe_dump(document), encoding="utf-8")
        try:
            load_recipe(file, overrides_of(variant), read_data=False)
        except RecipeError as error:
            return " ".join(str(error).split()).partition("mistake: ")[2]
    return None


def measure_cost(cell: Cell, settings: Settings, variant: Variant) -> Line:
    """Return the seconds per step, and the seconds of everything else, of the plain recipe and of a variant.

    Each trains for a few steps and for more: the difference is what the steps cost. The sides alternate, and the lower
    value of each counts, because other processes on the machine also make steps slower.
    """
    seconds: dict[tuple[str, int], list[float]] = {}
    few, more = COST_STEPS
    for _ in range(COST_ROUNDS):
        for name, side in {"plain": VARIANTS["plain"], "variant": variant}.items():
            for steps in COST_STEPS:
                line = train_cell(cell, settings, [*overrides_of(side), f"training.max_steps={steps}"])
                seconds.setdefault((name, steps), []).append(float(line["cpu_seconds"]))
    lowest = {key: min(values) for key, values in seconds.items()}
    sides = ("plain", "variant")
    step = {side: max((lowest[side, more] - lowest[side, few]) / (more - few), 1e-3) for side in sides}
    rest = {side: lowest[side, few] - few * step[side] for side in sides}
    cost = {name: {side: round(value[side], 4) for side in sides} for name, value in (("step", step), ("rest", rest))}
    return {"cost": cost, "data": cell.data, "rows": cell.rows, "variant": cell.variant}


def steps_in_the_same_time(cost: Line, plain_steps: int) -> int:
    """Return the number of steps of a variant that take as long as the plain recipe takes for its own."""
    step, rest = cost["cost"]["step"], cost["cost"]["rest"]
    return max(1, int((plain_steps * step["plain"] + rest["plain"] - rest["variant"]) / step["variant"]))


@dataclass(frozen=True)
class Runner:
    """Runs the cells of a grid."""

    log: ResultsLog
    settings: Settings
    variants: dict[str, Variant]

    def run(self, cell: Cell) -> Line | None:
        """Return the line of a cell, None if it needs the plain cell first."""
        variant = self.variants[cell.variant]
        overrides = overrides_of(variant)
        cost = None
        if cell.variant != "plain" and variant.cost != "own":
            plain = self.log.finished().get(replace(cell, variant="plain"))
            if plain is None:
                return None
            steps = plain["steps"]
            if variant.cost == "measured":
                cost = self.cost(cell, variant)
                steps = steps_in_the_same_time(cost, steps)
            overrides.append(f"training.max_steps={steps}")
        line = train_cell(cell, self.settings, overrides)
        return line | {"differs": list(variant.overrides)} | ({"cost": cost["cost"]} if cost else {})

    def cost(self, cell: Cell, variant: Variant) -> Line:
        """Return the cost of a variant on a data set and size: as logged, or measured now and logged."""
        group = {"data": cell.data, "rows": cell.rows, "variant": cell.variant}
        for line in self.log.lines():
            if "score" not in line and group.items() <= line.items():
                return line
        cost = measure_cost(cell, self.settings, variant)
        self.log.append(cost)
        return cost


def parse_variant(text: str) -> tuple[str, Variant]:
    """Return name and variant of "NAME: section.key=value section.key=value"."""
    name, _, overrides = text.partition(":")
    return name.strip(), Variant(tuple(overrides.split()), "measured")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--grid", choices=list(GROUPS), default="choose")
    parser.add_argument("--groups", nargs="+", help="instead of the grid's, such as trec:200 banking77:5/class")
    parser.add_argument("--variants", help="names, comma-separated; by default all")
    parser.add_argument("--variant", action="append", default=[], help="one more: 'NAME: section.key=value ...'")
    parser.add_argument("--seeds", default="0-4")
    parser.add_argument("--results", type=Path, help="the log; by default runs/bench-defaults/GRID.jsonl")
    parser.add_argument("--score-on", choices=["validation", "test"], help="split; by default that of the grid")
    parser.add_argument("--test-rows", type=int, default=600, help="maximum number of scored rows; 0: all")
    parser.add_argument("--table", action="store_true", help="only print the comparison")
    parser.add_argument("--write", action="store_true", help="only keep the results and update the guide")
    parser.add_argument("--against", default="plain", help="variant with which --table compares the others")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--encoder", default=MINILM, help="all-mpnet-base-v2 is downloaded at first use")
    return parser.parse_args(arguments)


def section(name: str) -> str:
    """Return the text of the guide about kept results."""
    document, cells = read_kept(RESULTS / f"{name}.json")
    table = comparison_table(cells)
    keys = {key: " ".join(overrides) for key, overrides in document["variants"].items() if overrides}
    legend = "\n".join(f"- {key}: `{keys[key]}`" for key in (row[0] for row in table[1:]) if key in keys)
    title = TITLES.get(name, f"Training options: {name.removeprefix('defaults-')}")
    return f"### {title}\n\n{about(document, cells)}\n\n{markdown(table)}\n\n{legend}"


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    log = ResultsLog(args.results or FOLDER / f"{args.grid}.jsonl")
    if args.table:
        print_table(comparison_table(list(log.finished().values()), args.against), width=300)
    elif args.write:
        name = f"defaults-{log.file.stem}"
        keep(log.lines(), RESULTS / f"{name}.json")
        write_to_guide(name, section(name))
    else:
        run_grid(args, log)


def run_grid(args: argparse.Namespace, log: ResultsLog) -> None:
    """Train all cells that are not finished."""
    extra = dict(parse_variant(text) for text in args.variant)
    variants = VARIANTS | extra
    names = [*(args.variants.split(",") if args.variants else VARIANTS), *extra]
    unknown = [name for name in names if name not in variants]
    if unknown or args.data is None:
        raise SystemExit(f"unknown variants: {', '.join(unknown)}" if unknown else "--data is missing")
    settings = Settings(
        args.data,
        args.score_on or SCORED[args.grid],
        args.test_rows or None,
        args.threads,
        args.precision,
        args.encoder,
    )
    groups = args.groups or GROUPS[args.grid]
    cells = grid(groups, parse_seeds(args.seeds), sorted(names, key=lambda name: name != "plain"))
    for data in dict.fromkeys(cell.data for cell in cells):
        task = load_task(settings.data / data)
        for name in names:
            if reason := problem(variants[name], task):
                print(f"skipped: {data} {name}: {reason}", flush=True)
                cells = [cell for cell in cells if (cell.data, cell.variant) != (data, name)]
    work(cells, log, Runner(log, settings, variants).run)


if __name__ == "__main__":
    try:
        main()
    except Interrupted as stopped:
        raise SystemExit(stopped.exit_code) from None
