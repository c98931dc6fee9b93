"""Cost of the gradients of all heads, as a multiple of one plain scoring pass over the same rows.

    python -m tests.benchmarks.gradients            measures: a minute on two idle cores
    python -m tests.benchmarks.gradients --write    keeps the results, and updates the table of the guide

Random rows as short as SST-2's sentences, all-MiniLM-L6-v2, all weights or LoRA.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import datasets

from finetune.evaluation.prediction import predict
from finetune.heads.gated_forward import GatedRows
from finetune.heads.gradients import gradient, integrated_gradients
from finetune.models.pretrained import quiet_libraries
from tests.benchmarks.ablation import sample, timed
from tests.benchmarks.comparison import markdown
from tests.benchmarks.rounds import Measurement, Record, measure_rounds, run_benchmark, spread

NAME, ROWS, STEPS = "gradients", 64, 8


def multiples(rows: GatedRows) -> dict[str, float]:
    """Return the seconds of a scoring pass, and the cost of the two gradient methods as multiples of it."""
    accelerator, size = rows.accelerator, rows.batch_size
    seconds, _ = timed(lambda: predict(rows.classifier, rows.split, batch_size=size, accelerator=accelerator))
    return {
        "scoring pass": seconds,
        "gradient": timed(lambda: gradient(rows))[0] / seconds,
        "integrated": timed(lambda: integrated_gradients(rows, STEPS))[0] / seconds,
    }


def measure() -> Record:
    """Measure both kinds of weights in interleaved rounds."""
    quiet_libraries()
    datasets.disable_progress_bars()
    contenders: dict[str, Callable[[], Measurement]] = {
        weights: partial(multiples, sample(weights == "LoRA", (ROWS, 8, 30, 32))) for weights in ("full", "LoRA")
    }
    for run in contenders.values():
        run()  # warm up
    return measure_rounds(NAME, contenders, {"rows": ROWS, "steps": STEPS})


def table(record: Record) -> str:
    """Return the cost of the methods as multiples of a scoring pass."""
    rows = [["weights", "scoring pass", "gradient", f"integrated gradients, {record.settings['steps']} steps"]]
    for weights in record.rounds[0]:
        multiples = (f"{spread(record.values(weights, key))} times" for key in ("gradient", "integrated"))
        rows.append([weights, f"{spread(record.values(weights, 'scoring pass'))} s", *multiples])
    return f"{record.settings['rows']} short rows, float32.\n\n{markdown(rows)}"


if __name__ == "__main__":
    run_benchmark(NAME, measure, table)
