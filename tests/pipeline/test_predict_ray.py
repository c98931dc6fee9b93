"""The example with Ray Data in the guide to prediction, with two local workers, where ray is installed."""

from __future__ import annotations

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from finetune.models.loading import load_classifier
from tests.support.documents import blocks
from tests.support.helpers import HANG_SECONDS
from tests.support.processes import process_environment


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason='needs ray: pip install "ray[data]"')
def test_two_workers_label_all_rows(small_run: Path, tmp_path: Path) -> None:
    (example,) = (block.text for block in blocks("finetune/docs/predict.md") if block.text.startswith("# needs ray"))
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "my").symlink_to(small_run)
    texts = [f"the cat {'sat ' * (number % 7)}on the {'mat' if number % 3 else 'dog'}" for number in range(300)]
    with (tmp_path / "new.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "sentence"], *enumerate(texts)])
    environment = {**process_environment(tmp_path), "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    program = example.replace("import ray\n", "import ray\n\nray.init(num_cpus=3, include_dashboard=False)\n", 1)
    program = program.replace('"new.csv"', repr(str(tmp_path / "new.csv")))
    program = program.replace('"runs/my"', repr(str(tmp_path / "runs" / "my"))).replace(
        "batch_size=1024", "batch_size=50"
    )
    program = program.replace('"labeled"', repr(str(tmp_path / "labeled")))
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG_SECONDS,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = sorted(pq.read_table(tmp_path / "labeled").to_pylist(), key=lambda row: row["id"])
    assert [row["sentence"] for row in rows] == texts
    for row, expected in zip(rows, load_classifier(small_run / "model").predict(texts), strict=True):
        assert row["predicted"] == expected.label
        assert row["probability"] == pytest.approx(max(expected.probabilities.values()), abs=1e-6)
