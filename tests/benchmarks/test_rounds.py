"""Rounds of a benchmark, their files and tables, and the kinds of processors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.benchmarks import rounds
from tests.benchmarks.machine import IMITATED_AVX2, file_part, machine, processor_kind
from tests.benchmarks.rounds import Measurement, Record, about, measure_rounds, read_record, run_module, spread

AT = {"kind": "AVX2", "processor": "a (family 1, model 2)", "threads": 2, "commit": "abc1234"}
AT |= {"versions": {"torch": "2", "transformers": "5"}}


def counter(calls: list[str], name: str, limit: int = 100) -> Callable[[], Measurement]:
    """Return a contender that counts its calls, and is interrupted at one of them."""

    def run() -> Measurement:
        if len(calls) == limit:
            raise KeyboardInterrupt
        calls.append(name)
        return {"rows": float(len(calls))}

    return run


def test_rounds_are_interleaved_and_continue_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "machine", lambda: AT)
    calls: list[str] = []
    stopped = {name: counter(calls, name, limit=5) for name in "abc"}
    with pytest.raises(KeyboardInterrupt):
        measure_rounds("few", stopped, {"batch": (1,)}, rounds=2, folder=tmp_path)
    contenders = {name: counter(calls, name) for name in "abc"}
    record = measure_rounds("few", contenders, {"batch": (1,)}, rounds=2, folder=tmp_path)
    assert "".join(calls) == "abcabc"
    assert record.rounds == [{"a": {"rows": 1}, "b": {"rows": 2}, "c": {"rows": 3}}, {
        "a": {"rows": 4}, "b": {"rows": 5}, "c": {"rows": 6}}]  # fmt: skip
    assert read_record(tmp_path / "few-avx2.json") == record
    assert record.values("b", "rows") == [2, 5]
    assert record.ratios("c", "a", "rows") == [3, 1.5]
    assert record.values("d", "rows") == []
    measure_rounds("few", contenders, {"batch": (2,)}, rounds=1, folder=tmp_path)  # other settings: all again
    assert len(calls) == 9


def test_tables() -> None:
    assert spread([3.0, 1.0, 2000.0], 0) == "3 (1 to 2,000)"
    assert spread([]) == ""
    assert about(Record("few", AT, {}, [{}, {}])).startswith("AVX2: a (family 1, model 2), 2 threads, 2 interleaved")


def test_the_kind_of_processor_is_that_of_its_newest_instructions() -> None:
    flags = {"avx2", "avx512f", "avx512_bf16"}
    assert processor_kind({"avx2"}, {}) == "AVX2"
    assert processor_kind({"avx2"}, IMITATED_AVX2) == "AVX2"
    assert processor_kind({"avx2", "avx512f"}, {}) == "AVX-512"
    assert processor_kind(flags, {}) == "AVX-512 with bf16"
    assert processor_kind(flags | {"amx_tile"}, {}) == "AMX"
    imitated = processor_kind(flags, IMITATED_AVX2)
    assert imitated == "AVX2 (imitated on AVX-512 with bf16)"
    with pytest.raises(ValueError, match=r"ATEN_CPU_CAPABILITY.*in part; set all of"):
        processor_kind(flags, {"ATEN_CPU_CAPABILITY": "avx2"})
    assert [file_part(kind) for kind in (imitated, "AVX-512 with bf16", "AMX", "NVIDIA H100 80GB HBM3")] == [
        "avx2-imitated", "avx512-bf16", "amx", "nvidia-h100-80gb-hbm3"]  # fmt: skip


def test_a_record_names_the_machine() -> None:
    found = machine()
    assert {"kind", "processor", "threads", "versions", "commit"} == set(found)
    assert set(found["versions"]) == {"python", "torch", "transformers", "peft", "accelerate"}
    assert all(found["versions"].values())


def test_the_last_line_of_a_process_is_its_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    done = {
        "good": CompletedProcess([], 0, 'epoch 1\n{"rows": 2.5}\n', ""),
        "bad": CompletedProcess([], 1, "", "no memory"),
    }
    monkeypatch.setattr(rounds, "forked", lambda command, folder: done[command[1]])
    assert run_module("good", {"batch": 1}) == {"rows": 2.5}
    with pytest.raises(RuntimeError, match=r"bad .'batch': 1. failed:\nno memory"):
        run_module("bad", {"batch": 1})
