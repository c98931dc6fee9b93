"""The default recipe against other ways to train a classifier, on the same rows.

    python -m tests.benchmarks.peers --data DATA [--peers ours,tfidf] [--seeds 0-4] [--setfit-python PYTHON]
    python -m tests.benchmarks.peers --table | --write

DATA has one folder per data set: train.parquet, test.parquet and labels.json. Peers: `ours` (a recipe that names only
model and data, trained on all rows), `Trainer` with its defaults, `Trainer` with the best fixed setting that was found
(--tuned), SetFit, logistic regression on the frozen encoder's mean-pooled states, and TF-IDF with logistic regression.
Each cell runs in its own process. Finished cells are lines of RESULTS (by default runs/bench-peers/peers.jsonl) and are
skipped.

SetFit's default number of pairs would take hours on 1,000 rows, so it gets as many steps as fit in the time that `ours`
took on the same cell, at most those of num_iterations=20. It needs an environment with setfit (--setfit-python).
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tests.benchmarks.base_encoder import resolve
from tests.benchmarks.cells import Cell, Line, ResultsLog, grid, parse_seeds, work
from tests.benchmarks.comparison import (
    Group,
    compare,
    estimate,
    groups_in_order,
    markdown,
    points,
    print_table,
    scores_by_group,
    title,
)  # fmt: skip
from tests.benchmarks.kept_results import RESULTS, about, keep, read_kept, write_to_guide
from tests.benchmarks.peer_methods import PEERS, in_new_process
from tests.benchmarks.train_cell import ALL_ROWS_TRAIN, MINILM, Settings

LOG = Path("runs/bench-peers/peers.jsonl")
GROUPS = (
    "trec:200", "sst2:200", "mrpc:200", "nlupp:300", "banking77:5/class", "banking77:10/class",
    "trec:1000", "sst2:1000", "mrpc:1000", "nlupp:1000", "banking77:1000",
)  # fmt: skip
TUNED = {"learning_rate": 1e-4, "per_device_train_batch_size": 16, "max_steps": 300}
TUNED_MANY = {"max_steps": 600}
MANY_LABELS = 20
NAMES = ("ours", *PEERS)


def run(cell: Cell, args: argparse.Namespace, log: ResultsLog) -> Line | None:
    """Return the line of a cell, None if it needs the cell of `ours` first."""
    settings = Settings(
        args.data, "test", args.test_rows or None, args.threads, args.precision, resolve(args.encoder)
    )  # fmt: skip
    options = {
        "ours": list(args.ours),
        "tuned": args.tuned,
        "tuned_many": args.tuned_many,
        "many_labels": MANY_LABELS,
        "setfit_python": args.setfit_python,
    }
    if cell.variant == "setfit":
        ours = log.finished().get(replace(cell, variant="ours"))
        if ours is None:
            return None
        options["seconds"] = ours["cpu_seconds"]
    line = in_new_process(cell, settings, options)
    tuned = [f"{key}={value}" for key, value in args.tuned.items()]
    return line | ({"differs": tuned} if cell.variant == "trainer_tuned" else {})


def score_table(cells: Sequence[Line]) -> list[list[str]]:
    """Return the scores of each peer (columns) by group: mean over the seeds with its interval, the best in bold."""
    peers = present(cells)
    rows = [["data, rows", *peers]]
    for group in groups_in_order(cells):
        scores = {
            peer: estimate([100 * cell["score"] for cell in found[group].values()])
            for peer in peers
            if group in (found := scores_by_group(cells, peer))
        }
        best = max(score.mean for score in scores.values())
        texts = {
            peer: f"{s.mean:.1f}" + (f" ± {s.half_width:.1f}" if s.half_width else "") for peer, s in scores.items()
        }
        bold = {peer: f"**{text}**" if scores[peer].mean == best else text for peer, text in texts.items()}
        rows.append([title(group), *(bold.get(peer, "") for peer in peers)])
    return rows


def seconds_table(cells: Sequence[Line]) -> list[list[str]]:
    """Return the mean CPU seconds of each peer (columns) by group: training and scoring."""
    peers = present(cells)
    rows = [["data, rows", *peers]]
    for group in groups_in_order(cells):
        found = {peer: scores_by_group(cells, peer).get(group, {}) for peer in peers}
        means = [
            statistics.fmean(c["cpu_seconds"] for c in found[peer].values()) if found[peer] else None for peer in peers
        ]
        rows.append([title(group), *("" if mean is None else f"{mean:.0f}" for mean in means)])
    return rows


def gain_table(cells: Sequence[Line]) -> list[list[str]]:
    """Return what `ours` gains over each peer, and over the best peer of each group, in points."""
    rows = [["against", "mean gain", "groups where ours is lower"]]
    best: dict[Group, list[float]] = {}
    for peer in present(cells):
        found = None if peer == "ours" else compare(cells, "ours", peer)
        if found is None:
            continue
        for group, values in found.differences.items():
            best[group] = min(best.get(group, values), values, key=statistics.fmean)
        rows.append([peer, points(found.overall()), lower_groups(found.differences)])
    if best:
        overall = estimate([statistics.fmean(values) for values in best.values()])
        rows.append(["the best peer of each group", points(overall), lower_groups(best)])
    return rows


def lower_groups(differences: dict[Group, list[float]]) -> str:
    """Return the groups with a negative mean difference, each with the difference and its interval."""
    each = {group: estimate(values) for group, values in differences.items()}
    return "; ".join(f"{title(group)}: {points(value)}" for group, value in each.items() if value.mean < 0)


def present(cells: Sequence[Line]) -> list[str]:
    """Return the peers that have cells, in the order of NAMES."""
    found = {cell["variant"] for cell in cells}
    return [name for name in NAMES if name in found]


def section(name: str) -> str:
    """Return the text of the guide about kept results."""
    document, cells = read_kept(RESULTS / f"{name}.json")
    scores, gains, seconds = (markdown(table(cells)) for table in (score_table, gain_table, seconds_table))
    title = "Against peers" + ("" if name == "peers" else f": {name.removeprefix('peers-')}")
    return (
        f"### {title}\n\n{about(document, cells)}\n\n{scores}\n\n{gains}\n\nSeconds of CPU time, scoring included:"
        f"\n\n{seconds}"
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--groups", nargs="+", default=GROUPS, help="such as trec:200 banking77:5/class")
    parser.add_argument("--peers", default=",".join(NAMES), help="comma-separated; by default all")
    parser.add_argument("--seeds", default="0-4")
    parser.add_argument("--results", type=Path, default=LOG)
    parser.add_argument("--table", action="store_true", help="only print the tables")
    parser.add_argument("--write", action="store_true", help="only keep the results and update the guide")
    parser.add_argument("--ours", nargs="*", default=ALL_ROWS_TRAIN, help="overrides of the default recipe")
    parser.add_argument("--tuned", type=json.loads, default=TUNED, help="arguments of trainer_tuned, as JSON")
    parser.add_argument("--tuned-many", type=json.loads, default=TUNED_MANY, help="with more than 20 labels, as JSON")
    parser.add_argument("--setfit-python", help="Python of an environment with setfit; without it SetFit is skipped")
    parser.add_argument("--test-rows", type=int, default=600, help="maximum number of scored rows; 0: all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--encoder", default=MINILM, help="all-mpnet-base-v2 is downloaded at first use")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    log = ResultsLog(args.results)
    if args.table:
        for table in (score_table, gain_table, seconds_table):
            print_table(table(list(log.finished().values())), width=200)
    elif args.write:
        name = f"peers-{log.file.stem}".replace("peers-peers", "peers")
        keep(log.lines(), RESULTS / f"{name}.json")
        write_to_guide(name, section(name))
    else:
        run_grid(args, log)


def run_grid(args: argparse.Namespace, log: ResultsLog) -> None:
    """Measure all cells that are not finished."""
    peers = args.peers.split(",")
    if unknown := [peer for peer in peers if peer not in NAMES]:
        raise SystemExit(f"unknown peers: {', '.join(unknown)}; they are {', '.join(NAMES)}")
    if args.data is None:
        raise SystemExit("--data is missing")
    if "setfit" in peers and args.setfit_python is None:
        print("skipped: setfit: --setfit-python is missing", flush=True)
        peers.remove("setfit")
    work(grid(args.groups, parse_seeds(args.seeds), peers), log, lambda cell: run(cell, args, log))


if __name__ == "__main__":
    main()
