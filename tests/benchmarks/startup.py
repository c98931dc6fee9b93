"""Start-up: processor and wall seconds of commands in new processes, against another checkout of this project.

    python -m tests.benchmarks.startup runs/toy --against ../before            # measures
    python -m tests.benchmarks.startup runs/toy --against ../before --write    # and updates the guide

`train` ends after the first optimizer step, the others after one prediction. A checkout without a command is not
measured for it. RUN/onnx (`finetune export RUN`) is measured if it exists. A checkout of an early version needs
libraries that are not installed any more: `--libraries FOLDER` is added to its import path.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from tests.benchmarks.rounds import ROUNDS, Record, keep, measure_rounds, spread, write_tables
from tests.support import ROOT

OURS, OTHER = "now", "before"
# Ends the process at the first optimizer step; `torch` must not be imported for this before the command imports it.
TRAIN = """
import os, sys
from importlib.machinery import PathFinder

class StepFinder:
    def find_spec(name, path, target=None):
        if name == "torch.optim.optimizer":
            sys.meta_path.remove(StepFinder)
            spec = PathFinder.find_spec(name, path, target)
            execute = spec.loader.exec_module
            def execute_with_hook(module):
                execute(module)
                module.register_optimizer_step_post_hook(lambda *args: os._exit(77))
            spec.loader.exec_module = execute_with_hook
            return spec

sys.meta_path.insert(0, StepFinder)
from finetune.cli import main
sys.exit(main(["train", *sys.argv[1:]]))
"""
LOAD = """
import os, sys
from finetune import load_classifier
load_classifier(sys.argv[1]).predict(["one short text"])
os._exit(0)
"""
NEEDS = {"predict": "finetune/pipeline/predict.py", "load_classifier": "finetune/pipeline/load_classifier.py"}
STEP_REACHED = 77
COMMANDS = {
    "train": "`finetune train`, to the first step",
    "predict": "`finetune predict`, one text",
    "predict, exported": "`finetune predict`, one text, exported model",
    "load_classifier": "`load_classifier(RUN).predict`, one text",
}


def command_of(name: str, run: Path, recipe: Path, folder: Path) -> list[str]:
    """Return the arguments of Python for a command; `folder` has a file with one text, and is written to."""
    text = str(folder / "text.txt")
    return {
        "train": ["-c", TRAIN, str(recipe), f"output_dir={folder / 'run'}"],
        "predict": ["-m", "finetune", "predict", str(run), text],
        "predict, exported": ["-m", "finetune", "predict", str(run / "onnx"), text],
        "load_classifier": ["-c", LOAD, str(run)],
    }[name]


def measured(arguments: Sequence[str], path: str, folder: Path, expected_code: int) -> dict[str, float]:
    """Return processor seconds, wall seconds and peak memory in MB of a new Python process.

    Args:
        path: where it imports this project from.

    Raises:
        RuntimeError: it ended with another exit code.
    """
    environment = {**os.environ, "PYTHONPATH": path}
    shutil.rmtree(folder / "run", ignore_errors=True)  # of another checkout
    with (folder / "output").open("w+b") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=folder,
            env=environment,
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != expected_code:
            output.seek(0)
            raise RuntimeError(f"{arguments[:3]} ended with {process.returncode}: {output.read().decode()[-2000:]}")
    return {"cpu": usage.ru_utime + usage.ru_stime, "wall": wall, "memory_mb": usage.ru_maxrss / 1024}


def contenders(args: argparse.Namespace, folder: Path) -> dict[str, Callable[[], dict[str, float]]]:
    """Return what is measured, by "command, checkout"."""
    checkouts = {OURS: (ROOT, str(ROOT))}
    if args.against is not None:
        parts = [args.against.resolve(), *([args.libraries.resolve()] if args.libraries else [])]
        checkouts[OTHER] = (parts[0], os.pathsep.join(map(str, parts)))
    run, recipe, found = args.run.resolve(), args.recipe.resolve(), {}
    for name in COMMANDS:
        if name == "predict, exported" and not (run / "onnx").is_dir():
            continue
        for checkout, (root, path) in checkouts.items():
            if (root / NEEDS.get(name.partition(",")[0], "finetune")).exists():
                code = STEP_REACHED if name == "train" else 0
                found[f"{name}; {checkout}"] = partial(
                    measured, command_of(name, run, recipe, folder), path, folder, code
                )
    return found


def table(record: Record) -> str:
    """Return the table of a record: seconds of both checkouts, and their ratio within a round."""
    lines = ["| | CPU s | wall s | CPU s before | CPU s now / before |", "|---|---|---|---|---|"]
    for name, text in COMMANDS.items():
        ours, other = f"{name}; {OURS}", f"{name}; {OTHER}"
        if not record.values(ours, "cpu"):
            continue
        has_other = bool(record.values(other, "cpu"))
        ratio = spread(record.ratios(ours, other, "cpu")) if has_other else ""
        cells = [text, spread(record.values(ours, "cpu")), spread(record.values(ours, "wall"))]
        lines.append(f"| {' | '.join([*cells, spread(record.values(other, 'cpu')), ratio])} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, and with --write update the guide."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run")
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes/toy.yaml")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="another checkout of this project")
    parser.add_argument("--libraries", type=Path, metavar="FOLDER", help="libraries that only that checkout needs")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--write", action="store_true", help="keep the results and update the guide")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "text.txt").write_text("one short text\n", encoding="utf-8")
        settings = {"recipe": args.recipe.name, "against": args.against is not None}
        record = measure_rounds("startup", contenders(args, folder), settings, rounds=args.rounds)
    print(table(record))
    if args.write:
        keep(record)
        write_tables("startup", table)


if __name__ == "__main__":
    main()
