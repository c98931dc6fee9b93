"""The tables of the speed benchmark, and that guide and README have those of the kept results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import ablation, accuracy, gradients, growth, inference, levers, rounds, speed
from tests.benchmarks.kept_results import GUIDE, RESULTS, block_names, replace_block
from tests.benchmarks.machine import AVX2, BF16
from tests.benchmarks.rounds import Record, block, keep_finished, kept, read_record
from tests.benchmarks.speed import GOALS, contenders, goal_table, goal_values, readme_sentence, settings, table

# The table of one kind of processor, of every benchmark with rounds.
TABLES = {one.NAME: one.table for one in (speed, levers, growth, inference, gradients, ablation, accuracy)}


def record(kind: str, count: int = 2) -> Record:
    """Return a record in which each contender is half as fast as the one before."""
    everyone = contenders(kind)
    numbers = {name: 1000 / 2**index for index, name in enumerate(everyone)}
    measured = {
        name: {"train": number, "score": 2 * number, "memory": 1500.0, "mfu": 0.5} for name, number in numbers.items()
    }
    machine: dict[str, Any] = {"kind": kind, "processor": "one", "threads": 2, "commit": "abc1234"}
    machine["versions"] = {"torch": "2", "transformers": "5"}
    return Record(speed.NAME, machine, dict(settings(everyone)), [measured] * count)


def test_the_contenders_are_those_that_the_processor_is_good_at() -> None:
    with_bf16, without = contenders(BF16), contenders(AVX2)
    assert {one.precision for one in with_bf16.values()} == {"no", "bf16"}
    assert "bf16" not in {one.precision for one in without.values()}
    for everyone in (with_bf16, without):
        assert sum(one.lora for one in everyone.values()) * 2 == len(everyone) >= 6
        assert len({(one.rows, one.epochs, one.seed, one.learning_rate) for one in everyone.values()}) == 1
        assert {"full, Trainer, best", "LoRA, Trainer, default"} < set(everyone)
    assert with_bf16["full, Trainer, best"].precision == "bf16"


def test_a_table_has_each_contender_with_its_ratios() -> None:
    text = table(record(BF16))
    assert "960 rows; Trainer, default: float32; Trainer, best: bf16, by length." in text
    assert (
        "| full, finetune, bf16 | 500 (500 to 500) | 4.00 (4.00 to 4.00) | 2.00 (2.00 to 2.00) | 1,500 | 0.50 (0.50 "
        "to 0.50) |" in text
    )
    assert text.count("| LoRA, Trainer, best | ") == 2  # in training and in scoring


def test_goals_are_reached_or_missed() -> None:
    rows = goal_table([record(BF16), record(AVX2)]).splitlines()[2:]
    assert len(rows) == sum(1 for kind in (BF16, AVX2) for _ in goal_values(record(kind)))
    assert (
        "| AVX-512 with bf16 | training, full, bf16 over Trainer's best | 1.50 | 4.00 (4.00 to 4.00) | reached |"
        in rows
    )
    assert any("| 0.60 | 0.50 (0.50 to 0.50) | missed |" in row for row in rows)
    assert {goal.over for goal in GOALS} == {"best", "default", None}


def test_the_sentence_of_the_readme() -> None:
    imitated = record("AVX2 (imitated on AVX-512 with bf16)")
    sentence = readme_sentence([imitated, record(BF16)])
    assert "(imitated AVX2 and AVX-512 with bf16), finetune trained " in sentence
    assert " and 4.0 times as fast as Trainer's best\n" in sentence
    assert " and 2.0 times as fast as its defaults" in sentence


def test_the_table_of_accuracies() -> None:
    everyone = accuracy.by_seed(AVX2, "train", "test")
    assert {one.seed for one in everyone.values()} == set(accuracy.SEEDS)
    measured = {
        name: {"accuracy": 0.8 + 0.01 * one.seed + 0.1 * (one.side == "ours")} for name, one in everyone.items()
    }
    text = accuracy.table(Record(accuracy.NAME, {}, {"rows": 1000, "epochs": 2}, [measured]))
    assert "| full, Trainer, best | 0.8100 | 0.800, 0.810, 0.820 |  |" in text
    assert "| LoRA, finetune, float32 | 0.9100 | 0.900, 0.910, 0.920 | +0.1000 (+0.100, +0.100, +0.100) |" in text


def test_only_complete_rounds_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept_folder, unfinished = tmp_path / "kept", tmp_path / "unfinished"
    monkeypatch.setattr(rounds, "RESULTS", kept_folder)
    monkeypatch.setattr(rounds, "UNFINISHED", unfinished)
    whole = record(AVX2)
    whole.rounds.append({"full, finetune, float32": {"train": 1.0}})
    whole.write(unfinished)
    keep_finished(speed.NAME, 3)
    assert kept(speed.NAME) == []
    keep_finished(speed.NAME, 2)
    assert kept(speed.NAME) == [record(AVX2)]


def test_guide_and_readme_have_the_tables_of_the_kept_results() -> None:
    guide = GUIDE.read_text(encoding="utf-8")
    assert set(TABLES) <= set(block_names(guide))
    for name, one_kind in TABLES.items():
        if kept(name):
            assert replace_block(guide, name, block(name, one_kind)) == guide, f"{name}: run it with --write"
    if records := kept(speed.NAME):
        assert replace_block(guide, speed.GOALS_NAME, goal_table(records)) == guide
        text = speed.README.read_text(encoding="utf-8")
        assert replace_block(text, speed.README_NAME, readme_sentence(records)) == text


def test_kept_rounds_are_enough() -> None:
    files = [file for file in RESULTS.glob("*.json") if '"rounds"' in file.read_text(encoding="utf-8")]
    for found in map(read_record, files):
        assert len(found.rounds) >= (accuracy.ROUNDS if found.name == accuracy.NAME else rounds.ROUNDS)
        assert len({frozenset(measured) for measured in found.rounds}) == 1
        assert found.file(RESULTS) in files
        assert "+" not in found.machine["commit"], "measured with code that is in no commit"
