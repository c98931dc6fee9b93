"""The benchmark of calibration and prediction sets: its rows, its scores, and the kept results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.benchmarks import coverage
from tests.benchmarks.coverage import FILE, GUIDE, SCORES, TITLES, label_scores, measure, set_figures, with_tables
from tests.benchmarks.coverage_models import TRAINING, rows_of


def test_held_out_rows_have_other_texts_than_training_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, labels in (("trec", ["A", "B"]), ("clinc_oos", None)):
        (tmp_path / folder).mkdir()
        for split, first in (("train", 0), ("validation", 8), ("test", 20), ("oos_test", 40)):
            numbers = range(first, first + 10)
            cells = [number % 2 if labels else "AB"[number % 2] for number in numbers]
            table = pa.table({"sentence": [f"text {number}" for number in numbers], "label": cells})
            pq.write_table(table, tmp_path / folder / f"{split}.parquet")
        if labels:
            (tmp_path / folder / "labels.json").write_text(json.dumps(labels))
    monkeypatch.setitem(TRAINING, "clinc", ("clinc_oos", 10, 1, 1))
    training, held_out, outside = rows_of("clinc", tmp_path)
    assert {text for text, _ in training} == {f"text {number}" for number in range(10)}
    assert {text for text, _ in held_out} == {f"text {number}" for number in [*range(10, 18), *range(20, 30)]}
    assert all(label == "AB"[int(text.split()[1]) % 2] for text, label in (*training, *held_out))
    assert outside == [f"text {number}" for number in range(40, 50)]
    monkeypatch.setitem(TRAINING, "trec", ("trec", 6, 1, 1))
    training, held_out, _ = rows_of("trec", tmp_path)
    texts = {text for text, _ in held_out}
    assert len(training) == 6
    assert texts == {f"text {number}" for number in range(18)} - {text for text, _ in training}  # no test rows


def test_the_scores_of_labels_by_hand() -> None:
    probabilities, rng = np.array([[0.2, 0.5, 0.3]]), np.random.default_rng(0)
    assert label_scores(probabilities, "LAC", rng)[0] == pytest.approx([0.8, 0.5, 0.7])
    assert label_scores(probabilities, "APS", rng)[0] == pytest.approx([1.0, 0.5, 0.8])
    assert label_scores(probabilities, "RAPS", rng)[0] == pytest.approx([1.01, 0.49, 0.8], abs=0.011)
    share = np.random.default_rng(0).random()
    expected = np.array([1.0, 0.5, 0.8]) - share * probabilities[0]
    assert label_scores(probabilities, "APS, randomized", np.random.default_rng(0))[0] == pytest.approx(expected)


def test_the_figures_of_sets_by_hand() -> None:
    sets = np.array([[1, 0], [0, 0], [1, 1], [1, 0]], dtype=bool)
    figures = set_figures(sets, np.array([0, 0, 1, 1]))
    assert figures == {"covered": 0.5, "size": 1.0, "answered": 0.5, "right": 0.5, "empty": 0.25, "lowest": 0.5}


def test_logits_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=1200)
    logits = rng.normal(size=(1200, 4)) + 2 * np.eye(4)[labels]
    evaluations = np.stack([logits + rng.normal(size=logits.shape), 3 * logits])
    np.savez(tmp_path / "toy.npz", labels=labels, evaluations=evaluations, outside=rng.normal(size=(300, 4)) * 3)
    monkeypatch.setattr(coverage, "TITLES", {"toy": "toy"})
    monkeypatch.setattr(coverage, "CHOICE_SPLITS", 10)
    result = measure(tmp_path)["toy"]
    # The log-odds of logits with mean 2 and variance 1 are twice the logits.
    assert result["temperature"]["temperature"] == pytest.approx(3 / 2, rel=0.15)
    assert result["temperature"]["log_loss_after"] < result["temperature"]["log_loss_before"]
    # 20 splits of 600 and 600 rows: a standard error of 0.004.
    for entry in result["sets"]:
        assert entry["covered"] == pytest.approx(entry["coverage"], abs=0.02) or entry["score"] == "RAPS"
    assert {entry["score"] for entry in result["sets"]} == set(SCORES)
    assert result["scope"]["highest probability"]["kept"] == pytest.approx(0.95, abs=0.015)
    assert result["scope"]["highest probability"]["auroc"] > 0.6
    assert all(abs(value) < 0.05 for value, _ in result["cost_of_choosing"].values())


def test_the_kept_sets_cover_what_they_promise() -> None:
    results = json.loads(FILE.read_text(encoding="utf-8"))
    assert results.keys() == TITLES.keys()
    for name, result in results.items():
        by_score = {
            entry["score"]: entry for entry in result["sets"] if entry["coverage"] == 0.9 and not entry["per_class"]
        }
        assert set(by_score) == set(SCORES), name
        for entry in result["sets"]:
            if entry["score"] == "LAC" and not entry["per_class"]:
                assert entry["covered"] == pytest.approx(entry["coverage"], abs=0.015), name
        assert by_score["LAC"]["size"] == min(entry["size"] for entry in by_score.values()), name
        assert by_score["LAC"]["answered"] == max(entry["answered"] for entry in by_score.values()), name
        temperature = result["temperature"]
        for measure_ in coverage.MEASURES:
            assert temperature[f"{measure_}_after"] < temperature[f"{measure_}_before"], name
    assert results["clinc"]["scope"]["highest probability"]["kept"] == pytest.approx(0.95, abs=0.005)


def test_the_tables_of_the_guide_are_those_of_the_kept_results() -> None:
    guide = GUIDE.read_text(encoding="utf-8")
    results = json.loads(FILE.read_text(encoding="utf-8"))
    assert with_tables(guide, results) == guide, "run python -m tests.benchmarks.coverage"
