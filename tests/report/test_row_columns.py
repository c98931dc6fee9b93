from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from finetune.report import row_columns
from finetune.report.row_columns import row_elements
from finetune.report.row_texts import text_elements
from tests.support.browser import chromium, needs_chromium, opened
from tests.support.row_pages import single_label_table, write_rows_page

ROWS = """() => ({
    count: rows.count, splits: rows.splits, labels: rows.labels, problemType: rows.problemType,
    split: [...rows.split], row: [...rows.row], length: [...rows.length], loss: [...rows.loss],
    confidence: rows.confidence && [...rows.confidence],
})"""
PROBABILITIES = (
    "() => rows.split.reduce((all, _, i) => [...all, rows.labels.map((_, k) => rows.probability(i, k))], [])"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


def drawn(rows: int, labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities (N, K) and labels (N,)."""
    random = np.random.default_rng(0)
    return random.dirichlet(np.full(labels, 0.5), rows) + 1e-6, random.integers(labels, size=rows)


def test_rows_without_texts_have_no_text_element() -> None:
    table = single_label_table(*drawn(3, 2), ["no", "yes"], ["one", "two", "three"])
    assert "rows-text-0" in row_elements(table, ["no", "yes"], "test")
    lengths = table.append_column("length", pa.array([3, 3, 5])).drop_columns(["text"])
    assert "rows-text-0" not in row_elements(lengths, ["no", "yes"], "test")


@needs_chromium
@pytest.mark.parametrize("labels", [2, 12])
def test_single_label_rows_are_those_of_the_table(tmp_path: Path, browser: Any, labels: int) -> None:
    probabilities, ids = drawn(300, labels)
    names = [f"</script>{label}" for label in range(labels)]
    texts = [f"text {row} </script> \N{SNOWMAN} \x01" * 200 for row in range(300)]  # more than one chunk
    table = single_label_table(probabilities, ids, names, texts)
    table = pa.concat_tables([table.set_column(0, "split", [["validation"] * 300]), table])
    with opened(browser, write_rows_page(tmp_path / "page.html", table, names, sections=False)) as page:
        rows = page.evaluate(ROWS)
        assert page.evaluate("[...rows.label]") == [*ids, *ids]
        assert page.evaluate("[...rows.predicted]") == [*probabilities.argmax(1)] * 2
        assert page.evaluate("rows.correct(5)") == bool(probabilities.argmax(1)[5] == ids[5])
        assert np.allclose(page.evaluate(PROBABILITIES), [*probabilities, *probabilities], atol=1e-4)
        assert page.evaluate("Promise.all([0, 299, 300, 599].map((row) => rows.text(row)))") == [
            texts[0], texts[299], texts[0], texts[299],
        ]  # fmt: skip
        assert page.evaluate("rows.chunks.size") == 3  # only chunks that were looked at are decoded
        assert page.evaluate("[...currentSlice]") == list(range(300, 600))  # the split that is shown first
    assert (rows["count"], rows["splits"], rows["labels"]) == (600, ["validation", "test"], names)
    assert rows["split"] == [0] * 300 + [1] * 300
    assert rows["row"] == [*range(1, 301)] * 2
    assert rows["length"] == [len(text) for text in texts] * 2
    assert np.allclose(rows["loss"], table["loss"].to_numpy(), atol=2e-3)
    assert np.allclose(rows["confidence"], [*probabilities.max(1)] * 2, atol=1e-4)


@needs_chromium
def test_only_the_highest_probabilities_are_kept_where_there_are_too_many(
    tmp_path: Path, browser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_columns, "MAX_PROBABILITIES", 50 * 5)
    probabilities, ids = drawn(50, 12)
    names = [str(label) for label in range(12)]
    table = single_label_table(probabilities, ids, names, [""] * 50)
    with opened(browser, write_rows_page(tmp_path / "page.html", table, names, sections=False)) as page:
        kept = page.evaluate(PROBABILITIES)
        rows = page.evaluate(ROWS)
        assert not page.evaluate("rows.hasAllProbabilities")
    for values, expected in zip(kept, probabilities, strict=True):
        highest = set(np.argsort(-expected)[:5])
        assert {label for label, value in enumerate(values) if value is not None} == highest
        assert all(value is None or abs(value - expected[label]) < 1e-4 for label, value in enumerate(values))
    assert np.allclose(rows["loss"], table["loss"].to_numpy())


@needs_chromium
def test_multi_label_rows_of_pairs(tmp_path: Path, browser: Any) -> None:
    columns = {
        "split": ["test"] * 3, "row": [4, 2, 9], "text": ["a", "b", "c"], "text_1": ["d", "", None],
        "label": [["x"], [], ["x", "z"]], "predicted": [["x"], ["y"], ["z", "x"]],
        "probabilities": [[0.9, 0.2, 0.1], [0.1, 0.6, 0.0], [0.7, 0.4, 1.0]], "loss": [0.1, 0.6, 0.3],
    }  # fmt: skip
    page_path = write_rows_page(tmp_path / "page.html", pa.table(columns), ["x", "y", "z"], sections=False)
    with opened(browser, page_path) as page:
        rows = page.evaluate(ROWS)
        assert page.evaluate("[0, 1, 2].map((i) => [[...rows.labelSets(i)], [...rows.predictedSets(i)]])") == [
            [[0], [0]], [[], [1]], [[0, 2], [2, 0]],
        ]  # fmt: skip
        assert page.evaluate("[0, 1, 2].map((i) => rows.correct(i))") == [True, False, True]
        assert page.evaluate("Promise.all([0, 1, 2].map((i) => rows.text(i)))") == ["a ⏐ d", "b ⏐ ", "c ⏐ "]
    assert rows["row"] == [4, 2, 9]
    assert rows["length"] == [2, 1, 1]
    assert np.allclose(rows["confidence"], [0.8, 0.6, 0.6], atol=1e-3)


@needs_chromium
def test_regression_rows(tmp_path: Path, browser: Any) -> None:
    columns = {
        "split": ["test"] * 2, "row": [1, 2], "text": ["a", "b"], "label": [0.5, -3.25], "predicted": [0.25, 1e6],
        "probabilities": [[0.25], [1e6]], "loss": [0.0625, 1e12],
    }  # fmt: skip
    with opened(browser, write_rows_page(tmp_path / "page.html", pa.table(columns), [], sections=False)) as page:
        rows = page.evaluate(ROWS)
        assert page.evaluate("[[...rows.value], [...rows.predictedValue], rows.correct(0)]") == [
            [0.5, -3.25], [0.25, 1e6], None,
        ]  # fmt: skip
    assert (rows["labels"], rows["confidence"]) == ([], None)
    assert np.allclose(rows["loss"], [0.0625, 1e12])


def test_the_texts_of_wrong_rows_come_first_where_not_all_fit() -> None:
    random = np.random.default_rng(0)
    texts = ["".join(random.choice(list("abcdefgh"), 200)) for _ in range(400)]
    first = np.arange(400) % 8 == 0
    found = text_elements(pa.table({"text": texts}), first, 15_000)  # of about 80,000 characters, 3 bits each
    assert found.contained[first].all()
    assert 10_000 < sum(map(len, found.elements)) * 3 / 4 < 16_000
    others = np.flatnonzero(found.contained & ~first)
    assert len(others) > 50
    assert others.max() - others.min() > 300  # a sample of all rows
    assert found.manifest["embedded"] == found.contained.sum()
    assert (found.manifest["first"], found.manifest["firstEmbedded"]) == (50, 50)
    few = text_elements(pa.table({"text": texts}), ~first, 5_000)
    assert 0 < np.count_nonzero(few.contained & first) < np.count_nonzero(few.contained & ~first) < 350
    assert text_elements(pa.table({"text": texts}), first, 100_000).contained.all()


@needs_chromium
def test_a_text_that_is_not_in_the_page_is_null(tmp_path: Path, browser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_columns, "MAX_TEXT_BYTES", 6_000)
    monkeypatch.setattr(row_columns, "MIN_TEXT_BYTES", 6_000)
    random = np.random.default_rng(0)
    texts = ["".join(random.choice(list("abcdefgh"), 200)) for _ in range(300)]
    probabilities, _ = drawn(300, 2)
    labels = np.where(np.arange(300) % 10 == 0, probabilities.argmin(1), probabilities.argmax(1))
    table = single_label_table(probabilities, labels, ["no", "yes"], texts)
    with opened(browser, write_rows_page(tmp_path / "page.html", table, ["no", "yes"]), fragment="#text=a") as page:
        shown = page.evaluate("Promise.all(rows.label.reduce((all, _, i) => [...all, rows.text(i)], []))")
        kept = [index for index, text in enumerate(shown) if text is not None]
        assert all(shown[index] == texts[index] for index in kept)
        assert set(range(0, 300, 10)) <= set(kept)
        assert 35 < len(kept) < 150
        assert page.evaluate("[...currentSlice]") == kept
        assert f"The text search covers the {len(kept)} rows" in page.inner_text("#slice-texts")
        note = page.inner_text("#row-texts")
        assert note.startswith("This page contains the texts of 30 of the 30 rows that were predicted wrongly")
        assert f"and of {len(kept) - 30} other rows, chosen at random." in note
