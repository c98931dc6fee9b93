"""Each command on a run with a damaged file: it prints one error message and writes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune.cli import main
from tests.hostile.runs import tiny_run
from tests.support.finished_runs import contents

COMMANDS = {
    "report": ["report", "RUN"],
    "evaluate": ["evaluate", "RUN"],
    "heads": ["heads", "RUN"],
    "prune": ["prune", "RUN", "--share", "0.5"],
    "merge": ["merge", "RUN"],
    "publish": ["publish", "RUN", "--repo", "me/a", "--dry-run"],
    "compare heads": ["heads", "RUN", "OTHER"],
    "compare": ["compare", "OTHER", "RUN"],
}
REPORTING = {"report", "evaluate", "heads", "publish"}
# Each file of a run folder -> the commands that read it. Other commands do not depend on the file.
READ_BY = {
    "recipe.yaml": {*REPORTING, "prune", "merge", "compare"},
    "environment.json": {*REPORTING, "compare"},
    "data.json": {*REPORTING, "prune"},
    "data_quality.json": REPORTING,
    "history.jsonl": REPORTING,
    "training.json": {*REPORTING, "compare"},
    "outputs.json": REPORTING,
    "scores.json": {*REPORTING, "compare"},
    "baselines.json": REPORTING,
    "predictions.parquet": {*REPORTING, "compare"},
    "label_errors.csv": REPORTING,
    "heads.json": {*REPORTING, "prune", "compare heads", "compare"},
    "explanations.parquet": REPORTING,
}


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with few rows, because every command reads its recipe."""
    return tiny_run(tmp_path_factory.mktemp("tiny"))


def truncated(content: bytes) -> bytes:
    return content[: len(content) * 2 // 3].rstrip(b"\n")  # a text that ends after a complete line may be valid


def overwritten(content: bytes) -> bytes:
    return bytes(range(128, 256)) + content[128:]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": truncated,
    "garbage": overwritten,
    "empty": lambda content: b"",
    "a list": lambda content: b"[1]\n",
    "a number": lambda content: b"1\n",
    "null": lambda content: b"null\n",
    "an empty object": lambda content: b"{}\n",
    "deep": lambda content: b"[" * 100_000 + b"\n",
    "not UTF-8": lambda content: b"\xff\xfe" + content,
}
# Damages that leave a valid file.
VALID = {
    ("scores.json", "an empty object"),  # as in a run without held-out rows
    ("history.jsonl", "cut"),  # an unfinished last line is ignored
    ("history.jsonl", "empty"),
}


def edited(change: Callable[[Any], Any]) -> Callable[[bytes], bytes]:
    """Return a function that changes the value in a JSON file, which stays valid JSON."""

    def damage(content: bytes) -> bytes:
        data = json.loads(content)
        change(data)
        return json.dumps(data).encode()

    return damage


# Files that can be parsed, but whose values are wrong or do not match each other.
INCONSISTENT: list[tuple[str, str, Callable[[bytes], bytes]]] = [
    ("heads.json", "no methods", edited(lambda d: d.update(methods=[]))),
    ("heads.json", "ragged values", edited(lambda d: d["methods"][0]["values"][0].pop())),
    ("heads.json", "fewer errors", edited(lambda d: d["methods"][0]["standard_errors"].pop())),
    ("heads.json", "no values", edited(lambda d: d["methods"][0].update(values=[], standard_errors=[]))),
    ("heads.json", "a head twice", edited(lambda d: d["methods"][0]["order"].append([0, 0]))),
    ("heads.json", "a head of no layer", edited(lambda d: d["methods"][0]["order"].append([9, 9]))),
    ("heads.json", "not a number", edited(lambda d: d["methods"][0]["values"][0].__setitem__(0, float("nan")))),
    ("heads.json", "fewer curves", edited(lambda d: d["truth"]["curves"].pop())),
    ("heads.json", "a short curve", edited(lambda d: d["truth"]["curves"][0]["scores"].pop())),
    ("scores.json", "other metrics", edited(lambda d: d["test"].update(metrics={"f1_macro": {"value": 1.0}}))),
    ("scores.json", "a small matrix", edited(lambda d: d["test"]["confusion"].pop())),
    ("scores.json", "text for a number", edited(lambda d: d["test"].update(loss="low"))),
    ("baselines.json", "other baselines", edited(lambda d: d.update(fitted={}))),
    ("baselines.json", "another metric", edited(lambda d: d.update(metric="f1_macro"))),
    ("baselines.json", "fewer metrics", edited(lambda d: d["splits"]["test"]["classifier"].clear())),
    ("baselines.json", "text for a number", edited(lambda d: d["splits"]["test"].update(rows="many"))),
    ("label_errors.csv", "no column", lambda content: content.replace(b",label,", b",", 1)),
    ("label_errors.csv", "an unfinished row", lambda content: content + b'train,1,"a\n'),
    ("label_errors.csv", "no number", lambda content: content + b"train,one,a,b,c,0.1,0.9\n"),
    ("data.json", "no training rows", edited(lambda d: d.pop("train"))),
    ("environment.json", "no versions", edited(lambda d: d.pop("packages"))),
    ("environment.json", "a list of versions", edited(lambda d: d.update(packages=["torch"]))),
    ("training.json", "no speed", edited(lambda d: d.pop("speed"))),
    ("history.jsonl", "a line without a step", lambda content: b'{"loss": 1.0}\n' + content),
    ("history.jsonl", "text for a loss", lambda content: content + b'{"step": 99, "loss": "low"}\n'),
    ("history.jsonl", "a line that is no object", lambda content: content + b"1\n" + content),
    ("recipe.yaml", "another document", lambda content: b"a: 1\n"),
    ("recipe.yaml", "an unknown key", lambda content: content + b"learning_rate: 1\n"),
]


def table(change: Callable[[pa.Table], pa.Table]) -> Callable[[bytes], bytes]:
    """Return a function that changes the table in a parquet file, which stays valid parquet."""

    def damage(content: bytes) -> bytes:
        sink = pa.BufferOutputStream()
        pq.write_table(change(pq.read_table(pa.BufferReader(content))), sink)
        return sink.getvalue().to_pybytes()

    return damage


INCONSISTENT += [
    ("predictions.parquet", f"no column {name}", table(lambda found, name=name: found.drop_columns([name])))
    for name in ("split", "row", "text", "label", "predicted", "probabilities", "loss")
]
INCONSISTENT += [
    ("predictions.parquet", "numbers for labels", table(lambda t: t.set_column(3, "label", t["loss"]))),
    (
        "predictions.parquet",
        "empty cells",
        table(lambda t: t.set_column(6, "loss", pa.nulls(t.num_rows, pa.float32()))),
    ),
]
CASES = [
    (file, name, damage) for file in READ_BY for name, damage in DAMAGES.items() if (file, name) not in VALID
] + INCONSISTENT


@pytest.mark.parametrize(("file", "name", "damage"), CASES, ids=[f"{file}: {name}" for file, name, _ in CASES])
def test_a_damaged_file_is_an_error_before_the_run_is_opened(
    small_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    name: str,
    damage: Callable[[bytes], bytes],
) -> None:
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    other = Path(shutil.copytree(small_run, tmp_path / "other"))
    original = (run / file).read_bytes()
    (run / file).write_bytes(damage(original))
    assert (run / file).read_bytes() != original
    before = contents(run)
    monkeypatch.setattr(
        "finetune.pipeline.finished_run.start", lambda *args, **kwargs: pytest.fail("the run was opened")
    )
    monkeypatch.setattr(
        "finetune.pipeline.merge.load_saved_classifier", lambda *args, **kwargs: pytest.fail("the run was opened")
    )
    for command in sorted(READ_BY[file]):
        arguments = [{"RUN": str(run), "OTHER": str(other)}.get(part, part) for part in COMMANDS[command]]
        assert main(arguments) == 2, command
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("error: ")
        assert str(run / file) in printed.err, printed.err
        assert "; " in printed.err or "has a mistake" in printed.err or "mistakes:" in printed.err, (
            printed.err
        )  # states the fix
        assert "Traceback" not in printed.err
        assert contents(run) == before, command


@pytest.mark.parametrize("file", READ_BY)
def test_a_missing_file_is_an_error_if_it_is_needed(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    other = Path(shutil.copytree(small_run, tmp_path / "other"))
    (run / file).unlink()
    before = contents(run)

    def fail(*args: object, **kwargs: object) -> None:
        raise KeyError("the run was opened")

    monkeypatch.setattr("finetune.pipeline.finished_run.start", fail)
    # Commands that write the file again or do not need it.
    optional = {
        "outputs.json": REPORTING,
        "scores.json": {"evaluate"},
        "data_quality.json": REPORTING,
        "baselines.json": REPORTING,
        "predictions.parquet": {"evaluate"},
        "label_errors.csv": REPORTING,
        "heads.json": {*REPORTING, "prune", "compare"},
        "explanations.parquet": REPORTING,
    }
    missing_text = "The heads have not been analyzed" if file == "heads.json" else "Scores"
    for command in sorted(READ_BY[file]):
        arguments = [{"RUN": str(run), "OTHER": str(other)}.get(part, part) for part in COMMANDS[command]]
        if command in optional.get(file, ()):
            if command == "compare":
                assert main(arguments) == 0
                assert "The heads of run were not analyzed" in capsys.readouterr().out
            elif command == "report":
                assert main(arguments) == 0
                assert missing_text in (run / "report.html").read_text()
                shutil.copy(small_run / "report.html", run), shutil.copy(small_run / "README.md", run)
            elif command == "publish":
                assert main(arguments) == 0
                assert missing_text in capsys.readouterr().out
            else:
                with pytest.raises(KeyError, match="the run was opened"):
                    main(arguments)
            continue
        assert main(arguments) == 2, command
        printed = capsys.readouterr().err
        expected = "has no analysis of heads" if command == "compare heads" else file
        assert expected in printed
        assert contents(run) == before, command


def test_every_file_of_a_run_is_in_the_table(small_run: Path) -> None:
    written = {path.name for path in small_run.iterdir() if path.is_file()}
    assert written - READ_BY.keys() == {"report.html", "README.md"}  # these are written and never read
