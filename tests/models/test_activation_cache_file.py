"""The file of cached frozen layers: its content, its size, a full disk, several processes."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from finetune.cli import main
from finetune.data.activation_store import FROZEN_STATES, RowStates
from finetune.data.batching import load_batches
from finetune.errors import TrainingError
from finetune.models import activation_cache
from tests.support.frozen_layers import assert_restored, cached, frozen, write_frozen_recipe
from tests.support.helpers import (
    HANG_SECONDS,
    assert_equal_up_to_rounding,
    encoded,
    tiny_classifier,
)

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use an empty temporary folder, to check which files remain in it."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_the_file_disappears_and_its_size_is_printed(tiny_bert: Path, temporary: Path) -> None:
    classifier, printed = frozen(tiny_classifier(tiny_bert)), []
    classifier.model.train()
    tokens = int(encoded(classifier).lengths.sum())
    with cached(classifier, notify=printed.append) as splits:
        assert not list(temporary.iterdir())  # the file has no name: it disappears with the process, even if killed
        assert splits["train"].states.file.seek(0, 2) == 2 * tokens * 24 * 4
    assert splits["train"].states.file.closed
    assert_restored(classifier)
    assert classifier.model.training
    assert printed == [
        f"Cache of the 1 frozen layers: 12 rows of {tokens / 6:.1f} tokens on average x 24 x 4 bytes = 0.0 MB in "
        f"{temporary}, deleted when training ends."
    ]
    with cached(classifier, write=False) as splits:  # a dry run
        assert splits["train"].states is None
    assert not list(temporary.iterdir())


def test_a_full_disk_gives_one_error_message(tiny_bert: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = frozen(tiny_classifier(tiny_bert))

    def fail(self: RowStates, rows: np.ndarray, states: Tensor) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        usage = shutil.disk_usage(temporary)
        patch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1000))
        with (
            pytest.raises(TrainingError, match=r"takes 0\.0 MB, but .* has 0\.0 MB left; set TMPDIR"),
            cached(classifier),
        ):
            pass
    write, row_batches = RowStates.write, []

    def first_checked(self: RowStates, rows: np.ndarray, states: Tensor) -> None:
        # The check writes its rows to memory first.
        row_batches.append(rows)
        (write if len(row_batches) <= 6 else fail)(self, rows, states)

    monkeypatch.setattr(RowStates, "write", first_checked)
    with (
        pytest.raises(TrainingError, match=r"cannot be written: .*No space left on device; set TMPDIR"),
        cached(classifier),
    ):
        pass
    assert not list(temporary.iterdir())
    assert_restored(classifier)


def test_states_are_read_unchanged(tiny_bert: Path) -> None:
    classifier = frozen(tiny_classifier(tiny_bert))
    rows = np.array([3, 0, 5])
    with cached(classifier) as splits:
        (batch,) = load_batches(splits["train"], [rows], classifier.tokenizer, device=CPU)
        states = batch.inputs.pop(FROZEN_STATES)
        assert states.shape == (3, int(splits["train"].lengths[rows].max()), 24)
        real = batch.inputs["attention_mask"].bool()
        assert not states[~real].any()
        expected = classifier.base(**batch.inputs, output_hidden_states=True).hidden_states[1]
        assert_equal_up_to_rounding(states[real], expected[real])
        splits["train"].states.file.truncate(100)
        with pytest.raises(TrainingError, match="ends before row 4"):
            list(load_batches(splits["train"], [rows], classifier.tokenizer, device=CPU))


@pytest.mark.parametrize("left", [False, True])
def test_padding_may_be_on_either_side(left: bool) -> None:
    store = RowStates(io.BytesIO(), np.array([7, 9, 12]), 2, torch.bfloat16, left)
    states = torch.randn(2, 5, 2, dtype=torch.bfloat16)
    real = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]).bool()
    real = real.flip(1) if left else real
    store.write(np.array([0, 1]), states)
    assert torch.equal(store.read(np.array([0, 1]), 5), torch.where(real[..., None], states, 0))
    assert torch.equal(store.read(np.array([1]), 3)[0], states[1][real[1]])


@dataclass(frozen=True)
class Process:
    """Accelerate as seen by one of two processes of a machine; each runs in a thread."""

    process_index: int
    wait_for_everyone: Callable[[], object]
    device: torch.device = CPU

    @property
    def local_process_index(self) -> int:
        return self.process_index

    @property
    def is_local_main_process(self) -> bool:
        return self.process_index == 0

    def autocast(self) -> AbstractContextManager[None]:
        return nullcontext()


def test_processes_of_a_machine_divide_the_rows(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    barrier, gathered, current = threading.Barrier(2, timeout=HANG_SECONDS), [[], []], threading.local()

    def gather(objects: list[object]) -> list[object]:
        gathered[current.index] = objects
        barrier.wait()
        all_objects = gathered[0] + gathered[1]
        barrier.wait()
        return all_objects

    monkeypatch.setattr(activation_cache, "gather_object", gather)
    written: list[tuple[int, list[int]]] = []
    write = RowStates.write

    def recorded_write(self: RowStates, rows: np.ndarray, states: Tensor) -> None:
        if not isinstance(self.file, io.BytesIO):  # the check writes to memory
            written.append((current.index, rows.tolist()))
        write(self, rows, states)

    monkeypatch.setattr(RowStates, "write", recorded_write)

    def process(index: int) -> list[Tensor]:
        current.index = index
        with cached(classifiers[index], accelerator=Process(index, barrier.wait), batch_size=2) as splits:
            result = [split.states.read(np.arange(6), 16) for split in splits.values()]
            barrier.wait()
            return result

    with ThreadPoolExecutor(2) as pool:
        classifiers = [frozen(tiny_classifier(tiny_bert)) for _ in range(2)]
        first, second = pool.map(process, range(2))
    by_process = [
        sorted(row for index, rows in written for row in rows if index == process_index) for process_index in range(2)
    ]
    assert [len(rows) for rows in by_process] == [8, 4]  # of three batches per split, two and one
    assert sorted(by_process[0] + by_process[1]) == sorted([*range(6), *range(6)])
    monkeypatch.undo()
    with cached(classifiers[0], batch_size=2) as splits:
        single_process = [split.states.read(np.arange(6), 16) for split in splits.values()]
    assert len(first) == len(second) == len(single_process) == 2
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(first, second, single_process, strict=True))


def test_a_complete_run(tiny_bert: Path, tmp_path: Path, temporary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_frozen_recipe(tmp_path, tiny_bert)
    assert main(["train", str(recipe)]) == 0
    assert "Cache of the 1 frozen layers: 12 rows" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "scores.json").read_text())["validation"]["rows"] == 6
    assert not [path for path in temporary.iterdir() if "frozen" in path.name]
