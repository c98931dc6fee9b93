"""Token ids of any rows: finetune/data/token_rows.py and the padded batches that are made from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoTokenizer, DataCollatorWithPadding, PreTrainedTokenizerBase

from finetune.data.batching import LocalBatch, load_batches
from finetune.data.long_text import TRUNCATE, LongText
from finetune.data.padding import Padding
from finetune.data.rows import RawSplit
from finetune.data.token_rows import TokenRows
from finetune.data.tokenization import EncodedSplit, encode_split
from finetune.data.windows import WINDOW_COUNTS
from tests.conftest import SENTENCES
from tests.support.windows import LONG_TEXTS

ROWS = [[7, 8, 9], [], [4], [5, 6], [1, 2, 3, 4, 5]]
LABELS = {
    "classes": np.arange(6),
    "label sets": np.arange(12).reshape(6, 2) % 2,
    "values": np.linspace(-1, 1, 6) / 3,
}


def dataset(column: pa.ChunkedArray) -> datasets.Dataset:
    """A data set with these token ids, in the chunks of the column."""
    return datasets.Dataset(pa.table({"input_ids": column}))


def chunked(type_: pa.DataType, *chunks: list[list[int]]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(chunk, type_) for chunk in chunks], type_)


TABLES = {
    "one chunk": dataset(chunked(pa.list_(pa.int32()), ROWS)),
    "int64": dataset(chunked(pa.list_(pa.int64()), ROWS[:2], ROWS[2:])),
    "empty chunks": dataset(chunked(pa.list_(pa.int32()), [], ROWS[:1], [[]], [], ROWS[2:], [])),
    "large lists": dataset(chunked(pa.large_list(pa.int32()), ROWS[:2], ROWS[2:])),
    "slice": dataset(chunked(pa.list_(pa.int32()), [[9, 9]], [[3], *ROWS], [[1]]).slice(2, 5)),
    "contiguous selection": dataset(chunked(pa.list_(pa.int16()), [[9], *ROWS[:3]], ROWS[3:])).select(range(1, 6)),
    "selection": dataset(chunked(pa.list_(pa.int32()), ROWS[::-1])).select([4, 3, 2, 1, 0]),
}


@pytest.mark.parametrize("rows", TABLES.values(), ids=TABLES)
def test_rows_are_read_from_any_table(rows: datasets.Dataset) -> None:
    tokens = TokenRows.of(rows)
    for chosen in ([0, 1, 2, 3, 4], [4, 0, 4], [1]):
        inputs, counts = tokens.batch(np.array(chosen), Padding(("input_ids", "attention_mask"), pad_id=-1))
        expected = [ROWS[row] for row in chosen]
        assert counts is None
        assert [[token for token in row if token >= 0] for row in inputs["input_ids"].tolist()] == expected
        assert inputs["attention_mask"].sum(1).tolist() == list(map(len, expected))


def test_rows_without_any_token_are_padding() -> None:
    for chunks in ([[[], []]], [[[]], [[]]]):
        tokens = TokenRows.of(dataset(chunked(pa.list_(pa.int32()), *chunks)))
        inputs, _ = tokens.batch(np.array([1, 0]), Padding(("input_ids", "attention_mask"), pad_id=5))
        assert inputs["input_ids"].tolist() == [[5], [5]]
        assert inputs["attention_mask"].tolist() == [[0], [0]]


def test_rows_of_a_mapped_file_are_not_copied(tmp_path: Path) -> None:
    count = 3000
    lengths = np.arange(count) % 7
    ids = np.arange(lengths.sum(), dtype=np.int32)
    rows = np.split(ids, np.cumsum(lengths)[:-1])
    mapped = datasets.Dataset.from_generator(
        lambda: ({"input_ids": row} for row in rows), cache_dir=str(tmp_path), writer_batch_size=100
    )
    table = mapped.data.column("input_ids")
    assert table.num_chunks == 30
    tokens = TokenRows.of(mapped)
    assert tokens.ids.values.ctypes.data == min(chunk.values.buffers()[1].address for chunk in table.chunks)
    chosen = np.random.default_rng(0).permutation(count)
    inputs, _ = tokens.batch(chosen, Padding(("input_ids",), pad_id=-1, left=True))
    np.testing.assert_array_equal(
        inputs["input_ids"][inputs["input_ids"] >= 0], np.concatenate([rows[n] for n in chosen])
    )


def collated(split: EncodedSplit, tokenizer: PreTrainedTokenizerBase, rows: list[int]) -> dict[str, torch.Tensor]:
    """What transformers' collator makes of the rows; of several windows of a row, each is a row."""
    examples: list[dict[str, Any]] = []
    counts = []
    for row in (split.rows[number] for number in rows):
        windows = row.pop("windows", [len(row["input_ids"])])
        counts.append(len(windows))
        for end, size in zip(np.cumsum(windows), windows, strict=True):
            tokens = {name: values[end - size : end] for name, values in row.items() if name != "labels"}
            examples.append({**tokens, "labels": row["labels"]})
    batch = dict(DataCollatorWithPadding(tokenizer)(examples))
    batch["labels"] = batch["labels"][np.cumsum(counts) - counts]
    return batch | ({WINDOW_COUNTS: torch.tensor(counts)} if max(counts) > 1 else {})


def assert_same(batch: LocalBatch, expected: dict[str, torch.Tensor]) -> None:
    actual = {**batch.inputs, "labels": batch.labels}
    assert actual.keys() == expected.keys()
    for name, tensor in actual.items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    "names", [("token_type_ids", "attention_mask"), ("attention_mask",), ("token_type_ids",)], ids=str
)
@pytest.mark.parametrize("kind", ["texts", "pairs", "windows"])
def test_batches_equal_those_of_transformers(tiny_bert: Path, side: str, names: tuple[str, ...], kind: str) -> None:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tiny_bert)
    tokenizer.model_input_names = ["input_ids", *names]
    tokenizer.padding_side, tokenizer._pad_token_type_id = side, 1
    tokenizer.pad_token = "[MASK]"
    texts = {"windows": {"sentence": [*LONG_TEXTS, "a"]}}.get(kind, {"sentence": SENTENCES, "other": SENTENCES[::-1]})
    raw = RawSplit(datasets.Dataset.from_dict(texts), "here")
    columns = list(texts) if kind == "pairs" else ["sentence"]
    long_text = LongText("window", 4, "mean", 16) if kind == "windows" else TRUNCATE
    split = encode_split(raw, LABELS["classes"], tokenizer, columns, 16, long_text)
    plans = [[5, 0, 2, 1], [3], [4, 3], [1, 3, 5]]
    loaded = load_batches(split, [np.array(rows) for rows in plans], tokenizer, device=torch.device("cpu"))
    for rows, batch in zip(plans, loaded, strict=True):
        assert_same(batch, collated(split, tokenizer, rows))
    part = split.select(np.array([5, 2, 4]))
    (batch,) = load_batches(part, [np.array([2, 0])], tokenizer, device=torch.device("cpu"))
    assert_same(batch, collated(split, tokenizer, [4, 5]))


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_labels_have_the_dtypes_of_transformers(tiny_bert: Path, labels: np.ndarray) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    raw = RawSplit(datasets.Dataset.from_dict({"sentence": SENTENCES}), "here")
    split = encode_split(raw, labels, tokenizer, ["sentence"], 16)
    (batch,) = load_batches(split, [np.array([4, 1])], tokenizer, device=torch.device("cpu"))
    assert_same(batch, collated(split, tokenizer, [4, 1]))
