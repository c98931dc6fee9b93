"""The command `predict` on finished runs: inputs, outputs, mistakes."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from accelerate.state import AcceleratorState

from finetune.models.loading import load_classifier
from finetune.models.saving import save_classifier
from finetune.pipeline import predict
from tests.support.finished_runs import rows
from tests.support.forked import forked
from tests.support.helpers import FLOAT32, tiny_classifier
from tests.support.predicting import Main, error, read_csv, write_csv


@pytest.mark.parametrize("run", ["small_run", "lora_run"])
@pytest.mark.parametrize("batches", [1, 64])
def test_predictions_are_those_of_the_run(
    run: str, batches: int, request: pytest.FixtureRequest, tmp_path: Path, ran: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "WINDOW_BATCHES", batches)
    folder: Path = request.getfixturevalue(run)
    expected = pq.read_table(folder / "predictions.parquet").to_pylist()
    file = write_csv(tmp_path / "rows.csv", [{"n": n, "sentence": row["text"]} for n, row in enumerate(expected)])
    output, _ = ran(folder, file, "--probabilities", "--batch-size", "8")
    result = read_csv(output)
    assert len(result) == len(expected) == 80
    for number, (row, expected_row) in enumerate(zip(result, expected, strict=True)):
        assert (row["n"], row["sentence"]) == (str(number), expected_row["text"])
        assert row["predicted"] == expected_row["predicted"]
        probabilities = [float(row["probability_0"]), float(row["probability_1"])]
        assert probabilities == pytest.approx(expected_row["probabilities"], abs=FLOAT32)
        assert float(row["probability"]) == max(probabilities)


def test_columns_of_a_csv_file_pass_through_as_they_are_written(small_run: Path, tmp_path: Path, ran: Main) -> None:
    file = tmp_path / "rows.csv"
    cells = ["007", "NA", "1.50", '"a ""quoted"", text\nof two lines"', "the cat", " x "]
    file.write_text(f"id,,amount,note,sentence,label\n{','.join(cells)}\n{','.join(cells)}\n")
    output = tmp_path / "out.csv"
    printed, message = ran(small_run, file, "--output", output)
    assert printed == ""
    assert message.endswith(f"2 rows with predictions: {output}\n")
    lines = list(csv.reader(io.StringIO(output.read_text(), newline="")))
    assert lines[0] == ["id", "", "amount", "note", "sentence", "label", "predicted", "probability"]
    for line in lines[1:]:
        assert line[:6] == ["007", "NA", "1.50", 'a "quoted", text\nof two lines', "the cat", " x "]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_types_of_a_parquet_file_are_kept(small_run: Path, tmp_path: Path, ran: Main) -> None:
    table = pa.table(
        {
            "id": pa.array([1, None], pa.uint8()),
            "when": pa.array([1, 2], pa.timestamp("ms")),
            "sentence": pa.array(["the cat", "a dog"]).dictionary_encode(),
            "tags": pa.array([["a"], []], pa.list_(pa.string())),
        }
    ).replace_schema_metadata({"huggingface": "{}", "pandas": "{}"})
    pq.write_table(table, tmp_path / "rows.parquet")
    ran(small_run, tmp_path / "rows.parquet", "--output", tmp_path / "out.parquet")
    result = pq.read_table(tmp_path / "out.parquet")
    assert result.select(table.column_names).equals(table)
    assert result.schema.metadata.keys() == {b"pandas"}
    assert result.schema.field("predicted").type == pa.string()
    assert result.schema.field("probability").type == pa.float32()
    lines = read_csv(ran(small_run, tmp_path / "rows.parquet")[0])
    assert [line["tags"] for line in lines] == ['["a"]', "[]"]
    assert [line["id"] for line in lines] == ["1", ""]
    assert lines[0]["when"] == "1970-01-01T00:00:00.001000"


JSON = '{"sentence": "the cat", "n": 1.5, "deep": {"a": [1, null]}, "é": "é"}\n{"sentence": "a dog", "more": true}\n'


def test_objects_of_a_jsonl_file_pass_through(small_run: Path, tmp_path: Path, ran: Main) -> None:
    (tmp_path / "rows.jsonl").write_text(JSON, encoding="utf-8")
    (tmp_path / "rows.json").write_text(f"[{JSON.strip().replace(chr(10), ',')}]", encoding="utf-8")
    for name in ("rows.jsonl", "rows.json"):
        ran(small_run, tmp_path / name, "--output", tmp_path / "out.jsonl")
        lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
        for line, original in zip(lines, JSON.splitlines(), strict=True):
            assert line.startswith(original[:-1] + ', "predicted": "')
            assert 0.5 <= json.loads(line)["probability"] <= 1


def test_every_format_gives_the_same_predictions(small_run: Path, tmp_path: Path, ran: Main) -> None:
    table = [{"sentence": str(row["sentence"]), "label": f"{row['label']}"} for row in rows(20, 5)]
    write_csv(tmp_path / "rows.csv", table)
    (tmp_path / "rows.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in [list(table[0]), *map(dict.values, table)]))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    (tmp_path / "rows.json").write_text(json.dumps(table))
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "rows.parquet")
    expected = read_csv(ran(small_run, tmp_path / "rows.csv")[0])
    assert len({row["predicted"] for row in expected}) == 2
    for name in ("tsv", "jsonl", "json", "parquet"):
        assert read_csv(ran(small_run, tmp_path / f"rows.{name}")[0]) == expected
    for name in ("csv", "tsv", "jsonl", "parquet"):
        output = tmp_path / f"out.{name}"
        ran(small_run, tmp_path / "rows.csv", "--output", output)
        assert read_csv(ran(small_run, output, "--prefix", "again_")[0]) == [
            {**row, "again_predicted": row["predicted"], "again_probability": row["probability"]} for row in expected
        ]
    (tmp_path / "rows.txt").write_text("".join(row["sentence"] + "\n" for row in table))
    lines = read_csv(ran(small_run, tmp_path / "rows.txt")[0])
    assert lines == [{name: value for name, value in row.items() if name != "label"} for row in expected]


class _Input:
    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)


def test_standard_input_has_one_text_per_line_or_a_format(
    small_run: Path, ran: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", _Input(b"\xef\xbb\xbfthe cat sat\r\na dog, on\n"))
    lines = read_csv(ran(small_run)[0])
    assert [row["sentence"] for row in lines] == ["the cat sat", "a dog, on"]
    table = b'sentence\nthe cat sat\n"a dog, on"\n'
    for content, kind in ((table, "csv"), (gzip.compress(table), "csv"), (b'[{"sentence": "the cat sat"}]', "json")):
        monkeypatch.setattr(sys, "stdin", _Input(content))
        result = read_csv(ran(small_run, "-", "--input-format", kind)[0])
        assert result[0] == lines[0]
        assert len(result) == (2 if kind == "csv" else 1)
    monkeypatch.setattr(sys, "stdin", _Input(b"n:sentence\n1:the cat sat\n"))
    assert read_csv(ran(small_run, "-", "--input-format", "csv", "--delimiter", ":")[0]) == [{"n": "1", **lines[0]}]
    monkeypatch.setattr(sys, "stdin", _Input(b"sentence,n\na\n"))
    message = error(ran(small_run, "-", "--input-format", "csv", code=2))
    assert message.startswith("standard input row 1 (line 2) has 1 cell, but the header names 2 columns")


def test_the_most_probable_labels_are_added(small_run: Path, texts: Path, ran: Main) -> None:
    for row in read_csv(ran(small_run, texts, "--top-k", "2", "--prefix", "x_")[0]):
        assert list(row) == [
            "sentence", "x_predicted", "x_probability", "x_top_1", "x_top_1_probability", "x_top_2",
            "x_top_2_probability",
        ]  # fmt: skip
        assert row["x_top_1"] == row["x_predicted"] != row["x_top_2"]
        assert float(row["x_top_1_probability"]) + float(row["x_top_2_probability"]) == pytest.approx(1, abs=1e-6)


# bfloat16 has 8 bits of precision: logits of up to 4 differ by up to 0.05, probabilities by a quarter of it. In int8 a
# weight has 7 bits.
@pytest.mark.parametrize("option", ["--bf16", "--int8"])
def test_another_precision_rounds_more(lora_run: Path, texts: Path, ran: Main, option: str) -> None:
    AcceleratorState._reset_state(True)
    rounded = read_csv(ran(lora_run, texts, option)[0])
    AcceleratorState._reset_state(True)
    exact = read_csv(ran(lora_run, texts)[0])
    for row, exact_row in zip(rounded, exact, strict=True):
        assert row["predicted"] == exact_row["predicted"]
        assert row["probability"] != exact_row["probability"]
        assert float(row["probability"]) == pytest.approx(float(exact_row["probability"]), abs=0.05)


def test_a_pipe_is_read_once(small_run: Path, texts: Path, tmp_path: Path, ran: Main) -> None:
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as thread:
        thread.submit(pipe.write_bytes, texts.read_bytes())
        assert ran(small_run, pipe)[0] == ran(small_run, texts)[0]


def test_a_long_text_leaves_space_for_the_predictions(
    small_run: Path, tmp_path: Path, ran: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    file = write_csv(tmp_path / "rows.csv", [{"sentence": "the cat " * 40}])
    lines = ran(small_run, file, "--output-format", "table")[0].splitlines()
    assert "predicted" in lines[1]
    assert "probability" in lines[1]
    assert {len(line) for line in lines} == {60}


def test_a_terminal_gets_a_table(small_run: Path, texts: Path, ran: Main) -> None:
    output, _ = ran(small_run, texts, "--output-format", "table")
    words = ("row", "sentence", "predicted", "probability", "the cat sat", "a dog")
    assert [word for word in words if word not in output] == []
    assert len(output.splitlines()) == 6


@pytest.fixture(scope="module")
def model_of(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that saves an untrained classifier with these settings, and returns its folder."""

    classifier = tiny_classifier(tiny_bert, labels=("0", "1"))

    def save(problem_type: str, **settings: Any) -> Path:
        classifier.base.config.problem_type = problem_type
        folder = tmp_path_factory.mktemp("model")
        save_classifier(replace(classifier, **{"text_columns": ("sentence",), **settings}), folder)
        return folder

    return save


def test_several_labels_per_row_use_the_thresholds_of_the_model(
    model_of: Callable[..., Path], texts: Path, tmp_path: Path, ran: Main
) -> None:
    model = model_of("multi_label_classification", thresholds=(0.0, 1.0), temperature=2.0)
    rows = read_csv(ran(model, texts, "--probabilities")[0])
    for row in rows:
        assert row["predicted"] == '["0"]'
        assert row["probability"] == f"[{row['probability_0']}]"
    everything = read_csv(ran(model, texts, "--threshold", "0")[0])
    assert [row["predicted"] for row in everything] == ['["0", "1"]'] * 2
    ran(model, texts, "--threshold", "1", "--output", tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet")["predicted"].to_pylist() == [[], []]
    assert "none" in ran(model, texts, "--threshold", "1", "--output-format", "table")[0]
    one_label = read_csv(ran(model, texts, "--threshold", "1=0", "--threshold", "0=1")[0])
    assert [row["predicted"] for row in one_label] == ['["1"]'] * 2


def test_one_label_per_row_can_have_a_threshold_for_a_rare_label(
    model_of: Callable[..., Path], texts: Path, ran: Main
) -> None:
    model = model_of("single_label_classification", thresholds=(None, 0.0))
    for options, predicted in (([], "1"), (["--threshold", "1"], "0"), (["--threshold", "1=1"], "0")):
        rows = read_csv(ran(model, texts, "--probabilities", *options)[0])
        assert [row["predicted"] for row in rows] == [predicted] * 2
        assert all(row["probability"] == row[f"probability_{predicted}"] for row in rows)


def test_temperature_is_applied(model_of: Callable[..., Path], texts: Path, ran: Main) -> None:
    plain, flat = (
        read_csv(ran(model_of("single_label_classification", temperature=temperature), texts)[0])
        for temperature in (1.0, 1e6)
    )
    assert [row["predicted"] for row in plain] == [row["predicted"] for row in flat]
    assert [float(row["probability"]) for row in flat] == pytest.approx([0.5, 0.5], abs=1e-4)
    assert min(float(row["probability"]) for row in plain) > 0.51


def test_pairs_are_read_from_two_columns(model_of: Callable[..., Path], tmp_path: Path, ran: Main) -> None:
    model = model_of("single_label_classification", text_columns=("question", "answer"))
    pairs = write_csv(tmp_path / "pairs.csv", [{"question": "the cat", "answer": "a dog"}])
    expected = load_classifier(model).predict([("the cat", "a dog")])[0]
    (row,) = read_csv(ran(model, pairs)[0])
    assert row["predicted"] == expected.label
    renamed = write_csv(tmp_path / "renamed.csv", [{"b": "a dog", "a": "the cat"}])
    (other,) = read_csv(ran(model, renamed, "--text-column", "a", "--text-column", "b")[0])
    assert other["probability"] == row["probability"]
    assert "names 1 column, but the model was trained on 2 (question and answer); give it twice" in error(
        ran(model, renamed, "--text-column", "a", code=2)
    )
    (tmp_path / "lines.txt").write_text("the cat\n")
    assert "lines.txt has one text per line, but the model reads pairs of texts (question and answer)" in error(
        ran(model, tmp_path / "lines.txt", code=2)
    )
    single = write_csv(tmp_path / "single.csv", [{"question": "the cat"}])
    assert "single.csv has no column 'answer' (--text-column); it has question" in error(ran(model, single, code=2))


def test_a_model_of_an_earlier_version_takes_its_columns_from_the_recipe(
    small_run: Path, texts: Path, tmp_path: Path, ran: Main
) -> None:
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    info = json.loads((run / "model" / "classifier.json").read_text())
    del info["text_columns"]
    (run / "model" / "classifier.json").write_text(json.dumps(info))
    assert ran(run, texts)[0] == ran(run / "model", texts)[0] == ran(small_run, texts)[0]
    renamed = write_csv(tmp_path / "renamed.csv", [{"other": "the cat sat"}])
    assert "no column 'sentence'" in error(ran(run, renamed, code=2))
    moved = (run / "model").rename(tmp_path / "moved")
    assert "no column 'text'" in error(ran(moved, texts, code=2))
    assert ran(moved, renamed, "--text-column", "other")[0]


def test_texts_that_are_too_long_are_counted(small_run: Path, tmp_path: Path, ran: Main) -> None:
    file = write_csv(tmp_path / "rows.csv", [{"sentence": "the " * count} for count in (3, 17, 40)])
    assert "2 of 3 rows are longer than 16 tokens: the model read their first 16 tokens.\n" in ran(small_run, file)[1]
    assert "longer" not in ran(small_run, write_csv(file, [{"sentence": "the"}]))[1]


def test_two_processes_write_the_same_rows_in_order(small_run: Path, tmp_path: Path, ran: Main) -> None:
    table = [{"n": number, "sentence": row["sentence"]} for number, row in enumerate(rows(150, 9))]
    file, output = write_csv(tmp_path / "rows.csv", table), tmp_path / "out.csv"
    # Windows of 64 rows per process: 128 and 22.
    arguments = ["predict", small_run, file, "--output", output, "--batch-size", "1"]
    done = forked(["-m", "finetune", *arguments], tmp_path, processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("150 rows with predictions") == 1
    result = read_csv(output.read_text())
    expected = read_csv(ran(small_run, file, "--batch-size", "1")[0])
    assert [(row["n"], row["predicted"]) for row in result] == [(row["n"], row["predicted"]) for row in expected]
    for row, expected_row in zip(result, expected, strict=True):
        assert float(row["probability"]) == pytest.approx(float(expected_row["probability"]), abs=FLOAT32)
