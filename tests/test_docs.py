"""README and the guides: every code block runs, every link leads somewhere, every quoted message exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import BertConfig, BertModel

from finetune.data.tokenization import word_tokenizer
from finetune.help import guides
from finetune.models.architectures import FAMILIES
from finetune.recipe.names import HEAD_METHODS
from tests.support.command_line import commands_with
from tests.support.documents import DOCUMENTS, REPLACED, ROOT, SKIPPED, Result, blocks, commands, replaced, run_block

WORDS = {"negative": ["slow", "dull", "weak"], "positive": ["bright", "quick", "warm"]}
MAX_README_WORDS = 1500


def _write_rows(file: Path, rows: int = 80) -> None:
    lines = []
    for number in range(rows):
        label = ("negative", "positive")[number % 2]
        lines.append(f"a {WORDS[label][number % 3]} film number {number},{label}")
    file.write_text("\n".join(["sentence,label", *lines]) + "\n")


def _save_small_bert(folder: Path) -> Path:
    texts = [f"a {word} film number" for words in WORDS.values() for word in words]
    tokenizer = word_tokenizer(Dataset.from_dict({"sentence": texts}), 40)
    tokenizer.model_max_length = 128
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 16}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=128, pad_token_id=0, **sizes)
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """Run every block of every document, in order, in one folder; return what came of each document."""
    bert, work = _save_small_bert(tmp_path_factory.mktemp("bert")), tmp_path_factory.mktemp("work")
    (work / "recipes").mkdir()
    for recipe in (ROOT / "recipes").glob("*.yaml"):
        (work / "recipes" / recipe.name).write_text(replaced(recipe.read_text(), bert))
    _write_rows(work / "sentences.csv")
    _write_rows(work / "more.csv", 20)
    results = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        for document in DOCUMENTS:
            results[document] = Result()
            for block in blocks(document):
                run_block(block, bert, results[document])
    return results


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_block_runs(document: str, ran: dict[str, Result]) -> None:
    assert ran[document].failures == []


def _without_numbers(line: str) -> str:
    return re.sub(r"\d[\d.]*", "#", re.sub(r"\S*/(?=runs/)", "", line)).strip()


def test_the_sample_output_is_what_is_printed(ran: dict[str, Result]) -> None:
    sample = next(block.text for block in blocks("README.md") if block.language == "text").splitlines()
    printed = {
        _without_numbers(line) for line in ran["README.md"].outputs["finetune train recipes/toy.yaml"].splitlines()
    }
    assert len(sample) > 5
    assert [line for line in sample if line != "..." and _without_numbers(line) not in printed] == []


def test_as_much_ran_as_should(ran: dict[str, Result]) -> None:
    run = sum((result.run for result in ran.values()), start=type(ran["README.md"].run)())
    assert {f"finetune {name}" for name in commands_with("run") | commands_with("recipe")} < set(run)
    assert run["finetune train"] >= 12
    assert run["python"] >= 5
    assert run["yaml"] >= 6
    skipped = sum((result.skipped for result in ran.values()), start=type(run)())
    assert set(skipped) == set(SKIPPED)  # no reason outlives what it was written for
    everything = "".join((ROOT / name).read_text() for name in (*DOCUMENTS, "recipes/toy.yaml", "recipes/sst2.yaml"))
    assert [text for text in REPLACED if text not in everything] == []


def test_a_command_that_is_not_covered_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    block = blocks("README.md")[0]
    for language, text, reason in (
        ("bash", "wget x", "`wget x` is neither run nor in SKIPPED"),
        ("bash", "finetune check nowhere.yaml", "ended with 2"),
        ("python", "1 / 0", "ZeroDivisionError"),
        ("yaml", "model: {}", "the first line is neither"),
        ("", "finetune check", "the language '' is neither run nor shown"),
    ):
        result = Result()
        run_block(type(block)("x.md", 1, language, text), tmp_path, result)
        assert len(result.failures) == 1
        assert reason in result.failures[0]
        assert not result.run


def test_commands_are_split_as_a_shell_does() -> None:
    text = "# comment\na \\\n  b   # more\ncat > x <<'EOF'\n1\n2\nEOF\nc\n"
    assert commands(text) == ["a    b   # more", "cat > x <<'EOF'\n1\n2\nEOF", "c"]


def test_every_guide_is_run() -> None:
    assert sorted(f"finetune/docs/{topic}.md" for topic in guides()) == sorted(DOCUMENTS[1:])


def test_the_guides_list_every_family_and_head_method() -> None:
    families = (ROOT / "finetune/docs/models.md").read_text().partition("\nalbert, ")[2].partition(", and\n")[0]
    listed = re.split(r",\s+", re.sub(r" \([^)]*\)", "", families))
    assert sorted(["albert", *listed, "multi_head_classifier"]) == sorted(FAMILIES)
    methods = (ROOT / "finetune/docs/head-analysis.md").read_text().partition("\n## Methods\n")[2].partition("\n\n`")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", methods, re.MULTILINE)) == sorted(HEAD_METHODS)


def test_contributing_names_files_that_exist_and_every_package() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = re.findall(r"`([\w.]+/[\w./]*)`", text)
    assert len(paths) > 20
    assert [path for path in paths if not any((folder / path).exists() for folder in (ROOT, ROOT / "finetune"))] == []
    parts = {path.name for path in (ROOT / "finetune").iterdir()} - {"__init__.py", "__pycache__", "docs"}
    assert len(parts) > 15
    described = text.partition("## Map")[2].partition("A package imports")[0]
    assert [name for name in parts if not re.search(rf"(?<!\S){re.escape(name)}/?(?!\S)", described)] == []


def test_readme_is_short() -> None:
    assert 800 < len((ROOT / "README.md").read_text().split()) <= MAX_README_WORDS


def test_every_link_leads_to_a_file_and_a_heading() -> None:
    count = 0
    for document in DOCUMENTS:
        text = (ROOT / document).read_text()
        for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
            name, _, heading = target.partition("#")
            file = (ROOT / document).parent / name if name else ROOT / document
            assert file.is_file(), f"{document}: {target}"
            anchors = (
                [
                    re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
                    for title in re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
                ]
                if heading
                else [heading]
            )
            assert heading in anchors, f"{document}: {target}"
            count += 1
    assert count > 20


def _package_text() -> str:
    """Return all text constants of the package; what is filled in is {}."""
    found = []
    for file in sorted((ROOT / "finetune").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_every_message_in_troubleshooting_exists() -> None:
    text, package = (ROOT / "finetune/docs/troubleshooting.md").read_text(), _package_text()
    messages = [line.removeprefix("### ") for line in text.splitlines() if line.startswith("### ")]
    assert len(messages) >= 20
    pieces = [piece for message in messages for piece in re.split(r"\bX\b", message)]
    assert [piece for piece in pieces if piece.strip(" '`.;:,()") and piece.strip() not in package] == []
