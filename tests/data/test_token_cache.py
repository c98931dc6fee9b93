"""The cache of token ids, which is found again by the content of the rows: row_cache.py, tokenization.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from finetune.data import tokenization
from finetune.data.loading import read_splits
from finetune.data.row_cache import cache_folder
from finetune.data.tokenization import EncodedSplit, encode_split
from finetune.recipe.data_section import DataSection
from tests.support.data_files import written

ROWS = 1500  # more than one batch


@pytest.fixture(scope="module")
def tokenizer(tiny_bert: Path) -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tiny_bert)
    return loaded


def write_rows(folder: Path, name: str, last: str) -> Path:
    """Write a csv file whose rows occur in no other test of the session."""
    lines = [f"{folder.name} the cat {number},x" for number in range(ROWS - 1)]
    return written(folder, "csv", "\n".join(["sentence,label", *lines, f"{last},y\n"])).rename(folder / f"{name}.csv")


def encoded(file: Path, tokenizer: PreTrainedTokenizerBase, max_length: int = 8) -> EncodedSplit:
    raw = read_splits(DataSection(train_file=str(file)))["train"]
    return encode_split(raw, np.zeros(len(raw.rows), dtype=np.int64), tokenizer, ["sentence"], max_length)


def token_files() -> set[Path]:
    """Return the files with token ids in the cache."""
    return set(cache_folder().glob("*/cache-*.arrow"))


def test_token_ids_are_found_by_content(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    before = token_files()
    file = write_rows(tmp_path, "a", "the end")
    first = encoded(file, tokenizer)
    (written_file,) = token_files() - before
    time = written_file.stat().st_mtime_ns
    os.utime(file, (0, 0))
    renamed = file.rename(tmp_path / "renamed.csv")
    second = encoded(renamed, tokenizer)
    assert token_files() - before == {written_file}
    assert written_file.stat().st_mtime_ns == time
    assert second.rows["input_ids"][:] == first.rows["input_ids"][:]
    assert (second.lengths == first.lengths).all()
    changed = encoded(write_rows(tmp_path, "b", "the dog"), tokenizer)
    assert len(token_files() - before) == 2
    assert changed.rows["input_ids"][-1] == tokenizer("the dog").input_ids
    encoded(renamed, tokenizer, 6)
    assert len(token_files() - before) == 3


def test_a_run_that_is_killed_leaves_no_incomplete_cache(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed:
        calls = 0

        def advance(self, rows: int) -> None:
            self.calls += 1
            if self.calls > 1:
                raise KeyboardInterrupt

    @contextmanager
    def stage(*args: Any, **options: Any) -> Iterator[Killed]:
        yield Killed()

    before = token_files()
    file = write_rows(tmp_path, "a", "the end")
    with monkeypatch.context() as patched:
        patched.setattr(tokenization, "stage", stage)
        with pytest.raises(KeyboardInterrupt):
            encoded(file, tokenizer)
    assert token_files() == before
    complete = encoded(file, tokenizer)
    assert len(complete) == ROWS
    assert complete.rows["input_ids"][-1] == tokenizer("the end").input_ids


def test_two_at_once_write_the_same_cache(tmp_path: Path, tiny_bert: Path) -> None:
    file = write_rows(tmp_path, "a", "the end")
    tokenizers = [AutoTokenizer.from_pretrained(tiny_bert) for _ in range(2)]
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda tokenizer: encoded(file, tokenizer), tokenizers)
    assert first.rows["input_ids"][:] == second.rows["input_ids"][:]
    assert encoded(file, tokenizers[0]).rows["input_ids"][:] == first.rows["input_ids"][:]


def test_held_out_rows_have_a_cache_of_their_own(tmp_path: Path) -> None:
    raw = read_splits(DataSection(train_file=str(write_rows(tmp_path, "a", "the end"))))["train"]
    positions = np.array([0, 7, 999, 1000, ROWS - 1])
    part = raw.select(positions)
    assert part.rows["sentence"][:] == [raw.rows["sentence"][int(position)] for position in positions]
    assert part.rows["label"][:] == ["x", "x", "x", "x", "y"]
    assert part.row_numbers().tolist() == [1, 8, 1000, 1001, ROWS]
    assert part.rows.features == raw.rows.features
    assert part.rows.cache_files
    assert raw.select(positions).rows._fingerprint == part.rows._fingerprint
    assert len(raw.select(np.array([], dtype=np.int64)).rows) == 0
