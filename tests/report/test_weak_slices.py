from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import fisher_exact

from finetune.report import weak_slices
from finetune.report.weak_slices import _p_values, find_weak_slices
from finetune.runs.multiple_tests import holm

WORDS = ["the", "film", "naïve", "plot", "was", "good"]


def weak_table(rows: int, split: str = "test") -> pa.Table:
    """Return pairs of texts in which rows with "not" and "good" are mostly wrong, and rows with the label yes often."""
    random = np.random.default_rng(rows)
    label = random.integers(2, size=rows)
    has_not, has_good = random.random(rows) < 0.3, random.random(rows) < 0.4
    wrong = random.random(rows) < np.where(has_not & has_good, 0.8, np.where(label == 1, 0.25, 0.05))
    names = np.array(["no", "yes"])
    filler = [" ".join(random.choice(WORDS[:5], random.integers(1, 9))) for _ in range(rows)]
    return pa.table(
        {
            "split": [split] * rows, "row": np.arange(rows),
            "text": [f"{text} Not" if flag else text for text, flag in zip(filler, has_not, strict=True)],
            "text_1": ["good" if flag else "?" for flag in has_good],
            "label": names[label], "predicted": names[label ^ wrong],
            "probabilities": [[0.5, 0.5]] * rows, "loss": np.zeros(rows),
        }
    )  # fmt: skip


def test_planted_slices_are_found_and_nothing_else() -> None:
    weak = find_weak_slices(weak_table(2000), "test")
    assert weak is not None
    names = [each.name() for each in weak.slices]
    assert "the word “good” and the word “not”" in names
    assert "label yes" in names
    assert not any("naïve" in name and "not" not in name and "good" not in name and "yes" not in name for name in names)
    both = weak.slices[names.index("the word “good” and the word “not”")]
    table = weak_table(2000).to_pylist()
    inside = [row for row in table if "Not" in row["text"] and row["text_1"] == "good"]
    assert both.rows == len(inside)
    assert both.error_rate == pytest.approx(sum(row["label"] != row["predicted"] for row in inside) / len(inside))
    assert weak.fragment(both) == "#text=%5Cbgood%5Cb%5B%5E%5D%2A%5Cbnot%5Cb%7C%5Cbnot%5Cb%5B%5E%5D%2A%5Cbgood%5Cb"
    assert (weak.rows, weak.all_rows, weak.splits) == (2000, 2000, ["test"])


def test_random_errors_have_no_weak_slices() -> None:
    found = 0
    for seed in range(5):
        table = weak_table(600 + seed)
        predicted = np.where(np.random.default_rng(seed).random(len(table)) < 0.2, "x", table["label"].to_pylist())
        weak = find_weak_slices(table.drop_columns(["predicted"]).append_column("predicted", [predicted]), "test")
        assert weak is not None
        assert weak.tested > 50
        found += sum(all(condition.key != "predicted" for condition in each.conditions) for each in weak.slices)
    assert found == 0


def test_rows_that_were_trained_on_are_left_out() -> None:
    table = pa.concat_tables([weak_table(500, "train"), weak_table(400, "validation"), weak_table(300, "test")])
    weak = find_weak_slices(table, "test")
    assert weak is not None
    assert (weak.rows, weak.splits) == (300, ["test"])
    without = find_weak_slices(table.slice(500), "test")
    assert without is not None
    assert (without.rows, without.splits, without.state) == (700, ["validation", "test"], "all")


def test_without_texts_no_word_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weak_slices, "MAX_ROWS", 500)  # a sample
    table = weak_table(2000)
    lengths = table.append_column("length", pa.array([len(text) for text in table["text"].to_pylist()]))
    weak = find_weak_slices(lengths.drop_columns(["text", "text_1"]), "test")
    assert weak is not None
    assert (weak.rows, weak.all_rows) == (500, 2000)
    assert not any(condition.key == "text" for each in weak.slices for condition in each.conditions)


def test_runs_without_errors_or_with_values_have_no_weak_slices() -> None:
    perfect = weak_table(50).drop_columns(["predicted"])
    weak = find_weak_slices(perfect.append_column("predicted", perfect["label"]), "test")
    assert weak is not None
    assert weak.slices == []
    one = find_weak_slices(weak_table(1), "test")
    assert one is not None
    assert (one.slices, one.tested) == ([], 0)
    assert find_weak_slices(pa.table({"split": ["test"], "label": [0.5], "predicted": [0.25]}), "test") is None


def test_p_values_are_those_of_scipy() -> None:
    for total, wrong, slices in (
        (200, 20, [(6, 4), (6, 6)]), (40, 5, [(10, 3)]), (9, 3, [(2, 2)]), (500, 140, [(100, 40), (6, 4), (100, 20)]),
        (2693, 317, [(196, 41), (62, 18)]),  # the chi-square test would give a third and a seventh of these
        (100_000, 30_000, [(40_000, 12_300), (1000, 900)]),
    ):  # fmt: skip
        rows, errors = np.array(slices).T
        for value, size, wrong_inside in zip(_p_values(rows, errors, total, wrong), rows, errors, strict=True):
            rest = wrong - wrong_inside
            table = [[wrong_inside, size - wrong_inside], [rest, total - size - rest]]
            expected = fisher_exact(table, "greater").pvalue if wrong_inside * total > size * wrong else 1.0
            assert value == pytest.approx(expected, rel=1e-6)
    assert holm(np.array([0.01, 0.04, 0.03])) == pytest.approx([0.03, 0.06, 0.06])
