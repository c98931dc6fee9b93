"""The command `predict`: each mistake gives one message and leaves no file."""

from __future__ import annotations

import io
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune.errors import TrainingError
from finetune.pipeline import predict
from finetune.pipeline.prediction_output import Target, open_output
from tests.support.finished_runs import contents
from tests.support.predicting import Main, error

CONTENTS: dict[str, tuple[str, str]] = {
    "empty.csv": ("", "empty.csv is empty (0 bytes); add rows"),
    "header.csv": ("sentence\n", "header.csv has no rows; add at least one"),
    "column.csv": ("sentense\nx\n", "column.csv has no column 'sentence' (--text-column); it has sentense; did you"),
    "cell.csv": ("sentence,n\na,1\n ,2\n", "cell.csv row 2: column 'sentence' (--text-column) is empty; give a text"),
    "wide.csv": ("sentence\na\nb,c\n", "wide.csv row 2 (line 3) has 2 cells, but the header names 1 column"),
    "list.jsonl": ('{"sentence": "a"}\n{"sentence": ["a", "b"]}\n', "list.jsonl row 2: column 'sentence' "
                   "(--text-column) contains a list; it must contain texts"),
    "object.jsonl": ('{"sentence": {"a": "b"}}\n', "contains an object; it must contain texts"),
    "null.jsonl": ('{"sentence": "a"}\n{"n": 1}\n', "null.jsonl row 2: column 'sentence' (--text-column) is empty"),
    "broken.jsonl": ('{"sentence": "a"}\n{"sentence"\n', "broken.jsonl line 2 is not valid JSON"),
    "surrogate.jsonl": ('{"sentence": "\\ud800"}\n', "row 1: column 'sentence' (--text-column) contains an unpaired"),
    "blank.txt": ("a\n\nb\n", "blank.txt row 2: column 'sentence' (--text-column) is empty"),
    "taken.csv": ("sentence,predicted\na,b\n", "taken.csv already has a column 'predicted'; set --prefix"),
    "rows.xlsx": ("x", "the format of"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTENTS)
def test_a_mistake_in_the_rows_gives_one_message_and_no_file(
    name: str, small_run: Path, tmp_path: Path, ran: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, message = CONTENTS[name]
    (tmp_path / name).write_text(content)
    before = contents(tmp_path)
    for check in (predict.check_request, lambda *_: None):  # found before the model is loaded, or while it predicts
        monkeypatch.setattr(predict, "check_request", check)
        assert message in error(ran(small_run, tmp_path / name, "--output", tmp_path / "out.jsonl", code=2))
        assert contents(tmp_path) == before


def test_numbers_are_texts_as_in_training(small_run: Path, tmp_path: Path, ran: Main) -> None:
    pq.write_table(pa.table({"sentence": [1, 2]}), tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl").write_text('{"sentence": 1}\n{"sentence": 2}\n')
    (tmp_path / "rows.csv").write_text("sentence\n1\n2\n")
    results = [ran(small_run, tmp_path / f"rows.{kind}")[0] for kind in ("parquet", "jsonl", "csv")]
    assert results[0] == results[1] == results[2]
    (tmp_path / "rows.jsonl").write_text('{"sentence": 1.50}\n{"sentence": 1e5}\n')
    (tmp_path / "rows.csv").write_text("sentence\n1.50\n1e5\n")  # training reads the text that is written in the file
    assert ran(small_run, tmp_path / "rows.jsonl")[0] == ran(small_run, tmp_path / "rows.csv")[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "FILE"], "there is no folder nowhere; name a run folder"),
        (["RUN", "nowhere.csv"], "nowhere.csv cannot be read: No such file or directory"),
        (["RUN", "."], ". is a folder; name a file"),
        (["RUN", "rows"], "the format of rows is unknown (its name ends in '')"),
        (["RUN", ".", "--input-format", "csv"], ". is a folder; name a file"),
        (["RUN", "FILE", "--output", "FILE"], "is the file that is read; name another file"),
        (["RUN", "FILE", "--output", "out.xlsx"], "it must end in .csv, .tsv, .jsonl or .parquet"),
        (["RUN", "FILE", "--output", "out.csv", "--output-format", "table"], "--output-format table is for a terminal"),
        (["RUN", "FILE", "--output", "no/out.csv"], "--output no/out.csv: there is no folder no; create it"),
        (["RUN", "FILE", "--output", ".", "--output-format", "csv"], "--output . is a folder; name a file"),
        (["RUN", "FILE", "--output", "pipe.csv"], "--output pipe.csv is a pipe or a device; name a file"),
        (["RUN", "FILE", "--output-format", "parquet"], "parquet cannot be written to standard output; set --output"),
        (["RUN", "FILE", "--batch-size", "0"], "--batch-size is 0; it must be at least 1"),
        (["RUN", "FILE", "--top-k", "3"], "--top-k is 3; it must be from 1 to 2, the number of labels"),
        (["RUN", "FILE", "--top-k", "0"], "--top-k is 0; it must be from 1 to 2"),
        (["RUN", "FILE", "--threshold", "0.5"], "which label the threshold is for; name it, such as --threshold"),
        (["RUN", "FILE", "--threshold", "no=2"], "--threshold is no=2; it must be a number from 0 to 1, or LABEL=NUM"),
        (["RUN", "FILE", "--threshold", "on=0.5"], "the model has no label 'on'"),
        (["RUN", "FILE", *["--text-column", "x"] * 3], "--text-column is given 3 times"),
        (["MODEL", "FILE"], "holds no trained model; name a run folder whose training has finished"),
    ],
)  # fmt: skip
def test_a_wrong_argument_gives_one_message(
    arguments: list[str], message: str, small_run: Path, texts: Path, ran: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(texts.parent)
    Path("unfinished").mkdir()
    os.mkfifo("pipe.csv")
    shutil.copy(small_run / "recipe.yaml", "unfinished")
    paths = {"RUN": small_run, "FILE": texts, "MODEL": Path("unfinished")}
    assert message in error(ran(*[paths.get(argument, argument) for argument in arguments], code=2))


def test_an_output_that_cannot_be_written_leaves_nothing(
    small_run: Path, texts: Path, tmp_path: Path, ran: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    for name, method in (("csv", "DelimitedWriter"), ("jsonl", "JsonLinesWriter"), ("parquet", "ParquetWriter")):
        with monkeypatch.context() as patch:
            patch.setattr(f"finetune.data.row_writers.{method}.write", full)
            message = error(ran(small_run, texts, "--output", tmp_path / f"out.{name}", code=2))
        assert message.startswith(f"cannot write {tmp_path / f'out.{name}'}: No space left on device")
        assert contents(tmp_path) == before


def test_a_closed_pipe_is_no_error_and_a_full_disk_is_one(
    small_run: Path, texts: Path, ran: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stream(io.StringIO):
        failure: OSError = BrokenPipeError()

        def flush(self) -> None:
            raise self.failure

    monkeypatch.setattr(predict, "WINDOW_BATCHES", 1)
    monkeypatch.setattr("finetune.pipeline.prediction_output.sys.stdout", stream := Stream())
    assert ran(small_run, texts, "--batch-size", "1")[1].count("error") == 0
    assert len(stream.getvalue().rstrip().splitlines()) == 2  # the header and the first window
    stream.failure = OSError(28, os.strerror(28))
    assert "cannot write standard output: No space left on device" in ran(small_run, texts, code=2)[1]


def test_several_processes_need_a_file_and_a_pytorch_model(
    small_run: Path, tmp_path: Path, ran: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.onnx").touch()
    assert "--bf16 is for PyTorch models" in error(ran(tmp_path, "--bf16", code=2))
    assert "--int8 is for PyTorch models" in error(ran(tmp_path, "--int8", code=2))
    for option in (["--base", "x"], ["--trust-remote-code"]):
        assert "--trust-remote-code are for PyTorch models" in error(ran(tmp_path, *option, code=2))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "an exported model runs in one process, and the launcher started 2" in error(ran(tmp_path, code=2))
    assert "standard input can be read by one process only; name a file" in error(ran(small_run, code=2))
    os.mkfifo(tmp_path / "pipe.csv")
    message = error(ran(small_run, tmp_path / "pipe.csv", code=2))
    assert message.startswith(f"the pipe {tmp_path / 'pipe.csv'} can be read by one process only; name a file")


def test_a_full_folder_for_temporary_files_is_one_message(
    small_run: Path, ran: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("finetune.data.input_rows.shutil.copyfileobj", full)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"sentence\na\n")))
    message = error(ran(small_run, "-", "--input-format", "csv", code=2))
    assert message.startswith("standard input cannot be copied to the folder for temporary files, ")
    assert "No space left on device; free disk space, set TMPDIR" in message


def test_one_process_writes_a_file_at_a_time(tmp_path: Path) -> None:
    target = Target(tmp_path / "out.csv", "csv")
    with open_output(target, []), pytest.raises(TrainingError, match=r"out\.csv is being written by process \d+"):
        open_output(target, []).__enter__()
    assert contents(tmp_path) == {"out.csv": b""}


def test_rows_on_standard_output_are_utf_8(
    small_run: Path, tmp_path: Path, ran: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"sentence": "café 😀", "other": "\\ud800"}\n', encoding="utf-8")
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="latin-1"))
    ran(small_run, tmp_path / "rows.jsonl", "--output-format", "jsonl")
    assert buffer.getvalue().decode("utf-8").startswith('{"sentence": "café 😀", "other": "\\ud800", "predicted"')
