"""Measurements of several contenders in interleaved rounds, kept as JSON, and the tables that are made from them.

    record = measure_rounds("startup", {"ours": run_ours, "before": run_before}, {"rows": 100})
    keep(record)                                    # tests/benchmarks/results/startup-KIND.json
    write_tables("startup", table)                  # between <!-- begin startup --> and <!-- end startup -->

A contender is a function without arguments that returns numbers by name. In each round every contender runs once, so
that a machine whose speed drifts slows all of them; ratios are those within a round. The file in runs/bench is written
after each measurement, and an interrupted benchmark continues there.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.benchmarks.kept_results import GUIDE, RESULTS, replace_block
from tests.benchmarks.machine import file_part, machine
from tests.support import ROOT
from tests.support.forked import forked

ROUNDS = 5
UNFINISHED = Path("runs/bench")
Measurement = Mapping[str, float]


@dataclass(frozen=True)
class Record:
    """The rounds of a benchmark on one machine.

    Attributes:
        name: name of the benchmark.
        machine: what `machine()` returns.
        settings: what was measured, such as the number of rows.
        rounds: for each round, the measurements of each contender.
    """

    name: str
    machine: dict[str, Any]
    settings: dict[str, Any]
    rounds: list[dict[str, Measurement]] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """The kind of processor."""
        return str(self.machine["kind"])

    def file(self, folder: Path) -> Path:
        """Return the file of this record in a folder."""
        return folder / f"{self.name}-{file_part(self.kind)}.json"

    def write(self, folder: Path) -> None:
        """Write the file, with one line per contender and round."""
        head = json.dumps({key: value for key, value in asdict(self).items() if key != "rounds"}, indent=1)[:-2]
        rounds = [
            "{\n" + ",\n".join(f"   {json.dumps(name)}: {json.dumps(rounded(values))}" for name, values in one.items())
            for one in self.rounds
        ]
        folder.mkdir(parents=True, exist_ok=True)
        text = head + ',\n "rounds": [\n  ' + "\n  },\n  ".join(rounds) + ("\n  }" if rounds else "") + "\n ]\n}\n"
        self.file(folder).write_text(text, encoding="utf-8")

    def values(self, contender: str, key: str) -> list[float]:
        """Return one number of a contender in each round; none if it did not take part."""
        return [measured[contender][key] for measured in self.rounds if contender in measured]

    def ratios(self, contender: str, other: str, key: str) -> list[float]:
        """Return one number of a contender over that of another, in each round."""
        return [one / two for one, two in zip(self.values(contender, key), self.values(other, key), strict=True)]


def rounded(values: Measurement) -> dict[str, float]:
    """Return the numbers with six significant digits, which is more than they are worth."""
    return {name: float(f"{value:.6g}") for name, value in values.items()}


def read_record(file: Path) -> Record:
    """Return the record in a file."""
    return Record(**json.loads(file.read_text(encoding="utf-8")))


def measure_rounds(
    name: str,
    contenders: Mapping[str, Callable[[], Measurement]],
    settings: dict[str, Any],
    *,
    rounds: int = ROUNDS,
    folder: Path = UNFINISHED,
) -> Record:
    """Run every contender once per round, in this order, and return all measurements.

    They are written to a file after each run. If the file has the same machine, commit, settings and contenders, the
    measurements in it are not repeated; any other file is replaced.
    """
    record = Record(name, machine(), json.loads(json.dumps(settings)))
    file = record.file(folder)
    if file.is_file():
        earlier = read_record(file)
        same = (earlier.machine, earlier.settings) == (record.machine, record.settings)
        if same and all(set(measured) <= set(contenders) for measured in earlier.rounds):
            print(f"{file}: continued; delete it to measure again", flush=True)
            record = earlier
    for number in range(rounds):
        if number == len(record.rounds):
            record.rounds.append({})
        for contender, run in contenders.items():
            if contender not in record.rounds[number]:
                record.rounds[number] |= {contender: run()}
                record.write(folder)
        print(f"{name}: round {number + 1} of {rounds} done", flush=True)
    return record


def keep(record: Record) -> None:
    """Write the record to the results that are kept with the project."""
    record.write(RESULTS)


def keep_finished(name: str, rounds: int = ROUNDS) -> None:
    """Keep the complete rounds of each finished file of a benchmark, and print which files are not finished."""
    for file in sorted(UNFINISHED.glob(f"{name}-*.json")):
        record = read_record(file)
        everyone = {contender for measured in record.rounds for contender in measured}
        complete = [measured for measured in record.rounds if set(measured) == everyone]
        if record.name != name:
            continue
        if len(complete) < rounds:
            print(f"{file}: {len(complete)} complete rounds, {rounds} are needed; not kept", flush=True)
        else:
            keep(replace(record, rounds=complete))


def kept(name: str) -> list[Record]:
    """Return the kept records of a benchmark, one for each kind of processor."""
    files = (file for file in sorted(RESULTS.glob(f"{name}-*.json")) if '"rounds"' in file.read_text(encoding="utf-8"))
    return [record for record in map(read_record, files) if record.name == name]


def run_module(module: str, argument: Any) -> dict[str, float]:
    """Return what a module prints as its last line, in JSON, when it is run in a new process with an argument in JSON.

    The process is forked from one that has imported the libraries, so it starts at once.

    Raises:
        RuntimeError: the process failed.
    """
    done = forked(["-m", module, json.dumps(argument)], ROOT)
    if done.returncode:
        raise RuntimeError(f"{module} {argument} failed:\n{done.stderr}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return the median and the range: "2.61 (2.40 to 2.75)"; nothing without values."""
    if not values:
        return ""
    middle, low, high = (f"{value:,.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})"


def about(record: Record) -> str:
    """Return a sentence about the machine and the rounds."""
    at, versions = record.machine, record.machine["versions"]
    libraries = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers"))
    count = len(record.rounds)
    rounds = f"{count} interleaved rounds, medians (range)" if count > 1 else "one round"
    return f"{at['kind']}: {at['processor']}, {at['threads']} threads, {rounds}; {libraries}, commit {at['commit']}."


def block(name: str, table: Callable[[Record], str]) -> str:
    """Return the tables of all kept records of a benchmark, each under a sentence about its machine."""
    return "\n\n".join(f"{about(record)}\n\n{table(record)}" for record in kept(name))


def write_tables(name: str, table: Callable[[Record], str], guide: Path = GUIDE) -> None:
    """Replace the tables of a benchmark in a guide, if there are kept records."""
    if not kept(name):
        print(f"{name}: no results are kept; {guide.name} was not changed", flush=True)
        return
    guide.write_text(replace_block(guide.read_text(encoding="utf-8"), name, block(name, table)), encoding="utf-8")


def run_benchmark(
    name: str, measure: Callable[[], Record], table: Callable[[Record], str], arguments: Sequence[str] | None = None
) -> None:
    """Measure and print the table; with the argument --write, keep the finished results and update the guide."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="keep the finished results, and update the guide")
    if parser.parse_args(arguments).write:
        keep_finished(name)
        write_tables(name, table)
        return
    record = measure()
    print(f"{about(record)}\n\n{table(record)}")
