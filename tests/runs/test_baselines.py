"""The comparison with baselines as it is stored: finetune/runs/baselines.py."""

from __future__ import annotations

from pathlib import Path

from finetune.runs.baselines import BaselineScores
from finetune.runs.json_files import write_json
from finetune.runs.run_files import read_baselines
from finetune.runs.run_folder import RunFolder
from tests.support.baselines import COMPARISON, SCORES


def test_a_comparison_is_read_back(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert read_baselines(folder) is None
    write_json(folder.baselines, COMPARISON)
    assert read_baselines(folder) == COMPARISON
    assert COMPARISON.warnings() == ["test: not above 0.5."]


def test_another_classifier_beside_the_baselines_has_no_differences() -> None:
    other = COMPARISON.with_classifier({"test": {"accuracy": 0.25}})
    assert other is not None
    assert list(other.splits) == ["test"]
    assert other.splits["test"].classifier == {"accuracy": 0.25, "f1_macro": None}
    assert other.splits["test"].baselines == {"majority": BaselineScores(SCORES.metrics)}
    assert other.warnings() == []
    assert COMPARISON.with_classifier({"test": {"f1_macro": 0.25}}) is None
