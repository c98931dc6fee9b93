"""`finetune help`: the list of guides, each guide, and unknown topics."""

from __future__ import annotations

import subprocess
import sys

import pytest

from finetune.cli import main
from finetune.help import guides, help_text, summary


def test_help_lists_the_guides_and_shows_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help"]) == 0
    listed = capsys.readouterr().out
    assert len(guides()) > 8
    for topic, path in guides().items():
        assert f"- **{topic}**: {summary(path)}\n" in listed
        assert main(["help", topic]) == 0
        assert capsys.readouterr().out == path.read_text()


def test_help_in_a_terminal_is_formatted(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    for topic in (None, *guides()):
        assert main(["help", *([topic] if topic else [])]) == 0
        output = capsys.readouterr().out
        assert help_text(topic).splitlines()[0].removeprefix("# ") in output
        assert "\n# " not in output
        assert "<!--" not in output


@pytest.mark.parametrize(
    ("topic", "suggestion"), [("prune", "pruning"), ("heads", "head-analysis"), ("recipe", "recipes")]
)
def test_an_unknown_topic_gives_one_error_message(
    topic: str, suggestion: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["help", topic]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: there is no guide on '{topic}'; topics are claims, data-formats, ")
    assert printed.err.endswith(f"; did you mean '{suggestion}'?\n")


def test_help_imports_no_torch() -> None:
    program = "import sys\nfrom finetune.cli import main\nmain(['help', 'recipes'])\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
