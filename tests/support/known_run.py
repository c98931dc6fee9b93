"""A run folder with known results and without a model, and a head analysis with every part, for tests of pages."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from finetune.runs.explanations import Explanations, RowExplanation
from finetune.runs.head_names import HeadNames, JointRemoval, NamedHead
from finetune.runs.head_results import (
    ChangeAgreement,
    HeadAnalysis,
    HeadChanges,
    HeadScores,
    HeadTest,
    LeaveOneOut,
    PruningCurve,
    PruningCurves,
    RandomBand,
    RankAgreement,
    TauValue,
)
from finetune.runs.json_files import append_line, write_json
from finetune.runs.results import ClassScores, MetricValue, SplitScores, SplitSummary, TrainingResult, TrainingSpeed
from finetune.runs.run_folder import RunFolder

RECIPE = """\
seed: 1
output_dir: known
model: {model_name_or_path: some/model}
data: {train_file: moved/away.csv, validation_size: 0.1}
peft: {r: 8, target_modules: [query, value]}
"""


GRADIENT = HeadScores(
    "gradient", "E|dL/dgate|", "test", 40, [[0.01, 0.09], [0.02, None]], [[0.001, 0.002], [0.003, None]],
    [(0, 0), (1, 0), (0, 1)],
)  # fmt: skip


def cell(value: float) -> MetricValue:
    return MetricValue(value, value - 0.05, value + 0.05)


def known_run(path: Path) -> RunFolder:
    """Write the run folder and return it; the text of each row contains a script."""
    folder = RunFolder(path)
    folder.path.mkdir()
    folder.recipe.write_text(RECIPE)
    write_json(
        folder.environment,
        {
            "started": "2026-01-02T03:04:05+00:00", "device": "cpu", "processes": 1, "mixed_precision": "no",
            "python": "3.11", "packages": {"torch": "2.13"}, "commit": None,
            "finetune": "1.0", "seed": 1,
        },
    )  # fmt: skip
    summary = SplitSummary(40, {"no": 10, "yes": 30}, 7.0, 12, 0.125)
    write_json(folder.data, {"train": summary, "test": SplitSummary(40, {"no": 10, "yes": 30}, 7.0, 12, 0.0, 3)})
    for step in (1, 2):
        append_line(folder.history, {"step": step, "epoch": step / 2, "loss": 1 / step, "learning_rate": 0.1})
    append_line(folder.history, {"step": 2, "epoch": 1.0, "eval_loss": 0.6})
    speed = TrainingSpeed(1.0, 123.4, 1000.0, 0.05, 200.0, 900.0)
    write_json(folder.training, TrainingResult(2, 2, "accuracy", 0.9, "all epochs done", 1234, 56789, "float32", speed))
    classes = [ClassScores(name, cell(0.7), cell(0.8), cell(0.75), rows) for name, rows in (("no", 10), ("yes", 30))]
    scores = SplitScores(
        40, 0.4321, {"accuracy": cell(0.875), "f1_macro": MetricValue(0.8)}, classes, [[8, 2], [3, 27]]
    )
    write_json(folder.scores, {"test": scores})
    write_json(
        folder.heads,
        HeadAnalysis([GRADIENT]),
    )
    texts = [f"text {n} <script>alert({n})</script>" for n in range(14)]
    pq.write_table(
        pa.table(
            {
                "split": ["test"] * 14, "row": list(range(1, 15)), "text": texts, "label": ["no"] * 14,
                "predicted": ["no", "no", *["yes"] * 12], "probabilities": [[0.25, 0.75]] * 14,
                "loss": [0.1 * n for n in range(14)],
            }
        ),
        folder.predictions,
    )  # fmt: skip
    return folder


def full_analysis(methods: int, measure: str = "accuracy") -> HeadAnalysis:
    """Return an analysis with every optional part, of 2 layers with 12 and 11 heads."""
    table: list[list[float | None]] = [[0.0, *[head / 100 for head in range(1, 12)]], [0.14] * 11 + [None]]
    heads = [(layer, head) for layer in range(2) for head in range(12 - layer)]
    names = [f"iterative_method_{number}" for number in range(methods)]
    shares = [tenth / 10 for tenth in range(1, 10)]
    tau = TauValue(0.5, 0.4, 0.6)
    tables = [table] * 10
    return HeadAnalysis(
        [HeadScores(name, "E|g|", "train", 40, table, table, heads, 1.5, tau, "a note") for name in names],
        PruningCurves(
            "accuracy", "test", 40, 0.9, shares,
            [PruningCurve(name, [0.9] * 9, 0.75, 0.25, [], [0.25] * 9) for name in names],
            RandomBand(3, [0.5] * 9, [0.4] * 9, [0.6] * 9, 0.5, 0.0125, 0.51),
        ),
        [RankAgreement(names[0], name, tau) for name in names[1:]],
        LeaveOneOut("test", 40, measure, [HeadTest(*head, -0.1, -0.2, 0.0, 4, 0, 0.125, 1.0) for head in heads]),
        HeadChanges("train", 40, "KL", *tables[:8]),
        ChangeAgreement(names[0], tau, tau, tau, "No such tie is seen."),
        ["beware of <this>"],
        _names(table),
    )  # fmt: skip


def _names(table: list[list[float | None]]) -> HeadNames:
    named = [
        NamedHead(0, 1, "redundant", 0.001, 0.001, (1, 10), 0.09),
        NamedHead(1, 10, "redundant", 0.001, 0.14, (0, 1), 0.09),
        NamedHead(1, 10, "essential", 0.002, 0.14), NamedHead(0, 0, "unused", 0.01, 0.0),
        NamedHead(0, 2, "unused", 0.01, 0.0), NamedHead(1, 0, "harmful", 0.03, -0.05),
    ]  # fmt: skip
    score, together = "probability of the right label", JointRemoval(2, -0.001, 0.004)
    return HeadNames("test", 40, "train", 64, 0.05, 0.01, 0.02, 115, score, 0.9, named, *[table] * 4, together)


HOSTILE_TOKENS = ["[CLS]", "</script>", "##<img src=x onerror=alert(1)>", "\u202eabc", "\x00&amp;", "[SEP]"]


def known_explanations() -> Explanations:
    """Return explanations of rows 1 to 12 of the known run: head 0.h has the effect (row - 4) * h / 10 on a row.

    Rows 2 and 3 are explained in detail; head 1.2 has attention maps, in which a token attends to itself and to the
    first one.
    """

    def effects(row: int, scale: float) -> list[list[float | None]]:
        first: list[float | None] = [scale * (row - 4) * head / 10 for head in range(12)]
        return [first, [*[0.125 * scale] * 11, None]]

    tokens = len(HOSTILE_TOKENS)
    attention = [[155 if to == start else 0 for to in range(tokens)] for start in range(tokens)]
    for line in attention:
        line[0] += 100
    rows = [
        RowExplanation("test", row, "no" if row < 3 else "yes", effects(row, 1.0))
        if row not in (2, 3)
        else RowExplanation(
            "test", row, "no" if row < 3 else "yes", effects(row, 1.0), HOSTILE_TOKENS,
            [0.0, 0.5, -1.0, 0.25, 0.0625, 0.0], 1.5, 1.75, 0.0625, {"1.2": attention}, effects(row, 2.0),
        )
        for row in range(1, 13)
    ]  # fmt: skip
    return Explanations("log-odds of the label", "first-order estimate", 16, rows, ["a note on <rows>"])
