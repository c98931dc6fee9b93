"""`finetune init`: from a data file to a recipe that `check` accepts: finetune/pipeline/init.py."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune.cli import main
from finetune.recipe.json_schema import recipe_schema
from finetune.recipe.loader import load_recipe
from finetune.recipe.schema import Recipe

ROWS = "id,review,sentiment\n" + "".join(
    f"{number},the cat sat {number} times,{('good', 'bad')[number % 2]}\n" for number in range(20)
)
AMBIGUOUS = "one,two,label\n" + "".join(f"some text {n},other words {n},{n % 2}\n" for n in range(12))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("finetune.pipeline.init._SMALL_ENCODER", "some/encoder")
    (tmp_path / "reviews.csv").write_text(ROWS)
    (tmp_path / "ambiguous.csv").write_text(AMBIGUOUS)
    return tmp_path


def written(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[Recipe, str]:
    """Run `init`, check the recipe that it wrote, and return it with what was printed."""
    assert main(["init", *arguments]) == 0
    printed = capsys.readouterr().out
    path = printed.partition("Recipe: ")[2].partition(". To train it")[0]
    assert main(["check", path]) == 0
    capsys.readouterr()
    return load_recipe(path), printed


def test_a_csv_file_becomes_a_recipe(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    recipe, printed = written(capsys, "reviews.csv")
    assert (recipe.data.text_column, recipe.data.label_column) == ("review", "sentiment")
    assert (recipe.data.train_file, recipe.data.validation_size) == (str(folder / "reviews.csv"), 0.2)
    assert recipe.model.model_name_or_path == "some/encoder"
    assert "reviews.csv: 20 rows" in printed
    assert "single_label_classification: 2 labels: good 10, bad 10\n" in printed
    assert "validation rows: 20% of the training rows, held out\n" in printed
    assert "Not certain" not in printed
    assert printed.endswith("Recipe: reviews.yaml. To train it: finetune train reviews.yaml\n")
    assert (folder / "reviews.yaml").read_text().startswith("# Written by `finetune init`.")
    assert sorted(path.name for path in folder.iterdir()) == ["ambiguous.csv", "reviews.csv", "reviews.yaml"]


def test_a_folder_of_splits_with_names_of_ids(
    capsys: pytest.CaptureFixture[str], folder: Path, tiny_bert: Path
) -> None:
    (folder / "trec").mkdir()
    for split in ("train", "validation", "test"):
        table = pa.table({"sentence": ["the cat sat", "a dog"] * 6, "label": [0, 1] * 6, "label_fine": [0, 1, 2] * 4})
        pq.write_table(table, folder / "trec" / f"{split}.parquet")
    (folder / "trec" / "labels.json").write_text(json.dumps(["DESC", "no"]))
    (folder / "trec" / "labels_fine.json").write_text(json.dumps(["DESC:a", "DESC:b", "ABBR:c"]))
    recipe, printed = written(capsys, "trec", "--model", str(tiny_bert))
    assert recipe.task.label_names == ["DESC", "no"]
    assert recipe.data.max_length == 16
    assert set(recipe.data.local_files()) == {"train", "validation", "test"}
    assert "validation_size" not in (folder / "trec.yaml").read_text()
    assert "2 labels: DESC 6, no 6\n" in printed
    assert "Not certain: label column 'label': label_fine could be the label too" in printed
    recipe, printed = written(capsys, "trec", "--label-column", "label_fine", "--output", "fine.yaml")
    assert recipe.task.label_names == ["DESC:a", "DESC:b", "ABBR:c"]
    assert "Not certain" not in printed


def test_pairs_lists_and_numbers(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    pairs = "".join(f'{{"premise": "a b {n}", "hypothesis": "c d {n}", "label": {n % 3}}}\n' for n in range(12))
    (folder / "pairs.jsonl").write_text(pairs)
    recipe, _ = written(capsys, "pairs.jsonl")
    assert recipe.data.text_columns() == ["premise", "hypothesis"]
    lists = [{"text": f"a b {n}", "tags": ["x", "y"][: n % 3]} for n in range(12)]
    (folder / "lists.json").write_text(json.dumps(lists))
    recipe, printed = written(capsys, "lists.json")
    assert (recipe.task.problem_type, recipe.data.label_column) == ("multi_label_classification", "tags")
    assert "2 labels (several per row): x 8, y 4\n" in printed
    (folder / "numbers.tsv").write_text("text\ttarget\n" + "".join(f"a b {n}\t{n / 4}\n" for n in range(12)))
    recipe, printed = written(capsys, "numbers.tsv")
    assert recipe.task.problem_type == "regression"
    assert "regression: values from 0 to 2.75\n" in printed


def test_label_sets_and_separators(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    cells = ["bug;bill", "bug", "bill", "", "bug; bill"] * 4
    rows = "".join(f"{n}|a b, c {n}|{cell}\n" for n, cell in enumerate(cells))
    (folder / "tickets.csv.gz").write_bytes(gzip.compress(f"id|comment|tags\n{rows}".encode()))
    recipe, printed = written(capsys, "tickets.csv.gz")
    assert (recipe.task.problem_type, recipe.data.label_column) == ("multi_label_classification", "tags")
    assert (recipe.data.delimiter, recipe.data.label_delimiter) == ("|", ";")
    assert "2 labels (several per row): bug 12, bill 12\n" in printed
    assert "'bug;bill' is read as several labels, separated by ';'; change it with --problem-type" in printed
    assert (folder / "tickets.yaml").is_file()
    flags = "".join(f"a b {n}\t{n % 2}\t{n % 3 == 0:d}\t{n % 5 == 0:d}\n" for n in range(15))
    for split in ("train", "test"):
        (folder / f"{split}.tsv").write_text(f"text\tbug\tbill\tother\n{flags}")
    recipe, printed = written(capsys, "train.tsv", "--output", "flags.yaml")
    assert recipe.data.label_columns == ["bug", "bill", "other"]
    assert (recipe.data.delimiter, set(recipe.data.local_files())) == (None, {"train", "test"})
    assert "3 labels (several per row): bug 7, bill 5, other 3\n" in printed
    (folder / "colons.csv").write_text(ROWS.replace(",", ":"))
    recipe, _ = written(capsys, "colons.csv", "--delimiter", ":")
    assert (recipe.data.text_column, recipe.data.delimiter) == ("review", ":")
    (folder / "semicolons.csv").write_text(ROWS.replace(",", ";"))
    (folder / "commas.csv").write_text(ROWS)
    recipe, _ = written(capsys, "semicolons.csv", "--validation-file", "commas.csv")
    assert recipe.data.delimiter is None


def test_options_decide(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--text-column", "two", "--max-length", "64", "--validation-size", "0.5", "--output", "my.yaml"]
    recipe, _ = written(capsys, "ambiguous.csv", *options, "--test-file", "ambiguous.csv", "--model", "other/model")
    assert (recipe.data.text_column, recipe.data.max_length, recipe.data.validation_size) == ("two", 64, 0.5)
    assert (Path(str(recipe.data.test_file)).name, recipe.model.model_name_or_path) == ("ambiguous.csv", "other/model")
    pair, _ = written(capsys, "ambiguous.csv", "--text-column", "one", "--text-pair-column", "two")
    assert pair.data.text_columns() == ["one", "two"]
    number, _ = written(capsys, "ambiguous.csv", "--text-column", "one", "--problem-type", "regression", "--force")
    assert number.task.problem_type == "regression"


def test_rows_without_a_label_are_skipped(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "gaps.csv").write_text(ROWS + "20,the dog,\n")
    assert written(capsys, "gaps.csv")[0].data.drop_unlabeled
    (folder / "minus.csv").write_text("text,label\na b,0\nc d,1\ne f,-1\ng h,0\ni j,1\n")
    recipe, printed = written(capsys, "minus.csv")
    assert recipe.data.drop_unlabeled
    assert "Not certain: label -1 is read as a missing label" in printed


def test_unlabeled_rows_and_names_of_ids(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "labels.json").write_text('["bad", "good"]')
    (folder / "train.csv").write_text("text,label\n" + "a b,0\nc d,1\n" * 20 + "e f,-1\n")
    recipe, printed = written(capsys, "train.csv", "--output", "ids.yaml")
    assert recipe.task.label_names == ["bad", "good"]
    assert "2 labels: bad 20, good 20\n" in printed
    assert "The largest class" not in (folder / "ids.yaml").read_text()


def test_a_split_beside_the_training_file_may_have_unlabeled_rows(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    (folder / "train.csv").write_text("text,label\n" + "a b,x\nc d,y\n" * 4)
    (folder / "validation.csv").write_text("text,label\na b,x\nc d,\n")
    (folder / "test.csv").write_text("text,label\na b,x\nc d,y\n")
    assert written(capsys, "train.csv")[0].data.drop_unlabeled
    recipe, _ = written(capsys, "train.csv", "--validation-size", "0.5", "--force")
    assert recipe.data.local_files().keys() == {"train", "test"}
    assert not recipe.data.drop_unlabeled


def test_a_file_without_a_header_is_noted(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "rows.csv").write_text("a good film,pos\n" + "".join(f"a b {n},neg\nc d {n},pos\n" for n in range(10)))
    _, printed = written(capsys, "rows.csv")
    assert "Not certain: the first line could be a row, because 'pos', the name of the label column, is also" in printed


def test_a_damaged_tokenizer_is_one_message(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text('{"model_type": "bert", "max_position_embeddings": 64}')
    (folder / "model" / "tokenizer.json").write_text("{}")
    assert main(["init", "reviews.csv", "--model", "./model"]) == 2
    assert "error: model './model': tokenizer.json cannot be read: " in capsys.readouterr().err
    assert not (folder / "reviews.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "init needs a data file (.csv, .tsv, .txt, .json, .jsonl, .parquet, .arrow, .feather): finetune init"),
        (["nowhere.csv"], "there is no file 'nowhere.csv'"),
        (["x.xls"], "the name of a data file must end in .csv"),
        (["empty.csv"], "empty.csv is empty (0 bytes)"),
        (["."], "has 0 files train.*"),
        (["a\0b"], "contains a NUL character"),
        (["ambiguous.csv"], "several columns could be the text: one, two; choose one with --text-column"),
        (["reviews.csv", "--text-column", "text"], "has no column 'text' (--text-column)"),
        (["reviews.csv", "--validation-size", "2"], "--validation-size is 2; it is a share of the rows"),
        (["reviews.csv", "--max-length", "1"], "--max-length is 1; it must be at least 4"),
        (["reviews.csv", "--test-file", "nowhere.csv"], "--test-file: there is no file 'nowhere.csv'"),
        (["reviews.csv", "--validation-file", "reviews.csv", "--validation-size", "0.5"], "are both given"),
        (["reviews.csv", "--model", "package:nowhere/model"], "package 'nowhere' is not installed"),
        (["reviews.csv", "--model", "two words"], "cannot load model 'two words' (revision main): Repo id must"),
        (["reviews.csv", "--model", "x" * 300], "is too long for the file system"),
        (["reviews.csv", "--problem-type", "regression"], "is not a number"),
        (["reviews.csv", "--output", "taken"], "--output taken is a folder"),
        (["reviews.csv", "--output", "reviews.csv", "--force"], "the name of a recipe must end in .yaml or .yml"),
        (["reviews.csv", "--output", "no/where.yaml"], "cannot write no/where.yaml"),
        (["blank.csv"], "row 2: column 'text' is empty"),
    ],
)
def test_a_mistake_gives_one_message_and_writes_nothing(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    (folder / "empty.csv").touch()
    (folder / "x.xls").touch()
    (folder / "taken").mkdir()
    (folder / "blank.csv").write_text("text,label\na b,x\n ,y\nc d,x\ne f,y\n")
    before = sorted(folder.iterdir())
    assert main(["init", *arguments]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert message in printed
    assert printed.count("\n") == 1
    assert sorted(folder.iterdir()) == before


def test_an_existing_recipe_is_replaced_only_with_force(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "reviews.yaml").write_text("mine")
    assert main(["init", "reviews.csv"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "reviews.yaml exists; name another file with --output, or replace it with --force" in printed.err
    assert (folder / "reviews.yaml").read_text() == "mine"
    written(capsys, "reviews.csv", "--force")


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The answers of a user at a terminal; a question after the last one meets the end of the input."""
    given: list[str] = []

    def answer(question: str) -> str:
        if not given:
            raise EOFError
        return given.pop(0)

    monkeypatch.setattr("finetune.pipeline.init._can_ask", lambda: True)
    monkeypatch.setattr("builtins.input", answer)
    return given


def test_a_terminal_is_asked_for_what_is_missing(
    capsys: pytest.CaptureFixture[str], folder: Path, answers: list[str]
) -> None:
    answers += ["ambiguous.csv", "three", "two"]
    recipe, printed = written(capsys)
    assert recipe.data.text_column == "two"
    assert printed.count("Columns that could be the text: one, two\n") == 2  # "three" is no column, so it asks again
    answers.append("n")
    assert main(["init", "ambiguous.csv", "--text-column", "one"]) == 2
    answers.append("yes")
    assert written(capsys, "ambiguous.csv", "--text-column", "one")[0].data.text_column == "one"
    assert main(["init"]) == 2
    assert "there was no answer; give it as an option" in capsys.readouterr().err


def test_a_recipe_of_init_fits_the_schema(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    import jsonschema
    import yaml

    written(capsys, "reviews.csv")
    jsonschema.validate(yaml.safe_load((folder / "reviews.yaml").read_text()), recipe_schema())


def test_init_imports_no_torch(folder: Path) -> None:
    program = (
        "import sys\nfrom finetune.cli import main\ncode = main(['init', 'reviews.csv'])\n"
        "sys.exit(code or {'torch', 'transformers', 'datasets'} & set(sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
