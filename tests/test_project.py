"""Rules of the project that no other tool holds."""

from __future__ import annotations

import sys

from tests.support import ROOT

LIBRARIES = {"accelerate", "datasets", "evaluate", "jinja2", "numpy", "peft", "plotly", "rich", "tokenizers", "torch"}
LIBRARIES |= {"transformers", "yaml", "pydantic", "pyarrow", "scipy", "safetensors"}


def test_no_module_takes_the_name_of_a_library() -> None:
    # `finetune/run.py` started by path puts finetune/ first on sys.path for a moment.
    names = {path.stem for path in (ROOT / "finetune").iterdir()} - {"__init__", "__pycache__"}
    assert len(names) > 15
    assert not names & (LIBRARIES | sys.stdlib_module_names)


def test_the_top_level_is_what_it_should_be() -> None:
    allowed = {"finetune", "recipes", "tests", "pyproject.toml", "README.md", "Makefile", "LICENSE", "CONTRIBUTING.md"}
    ignored = {"runs", "build", "dist"}
    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".") and path.suffix != ".egg-info"}
    assert found - ignored == allowed


def test_every_module_is_short() -> None:
    modules = sorted((ROOT / "finetune").rglob("*.py"))
    assert len(modules) > 30
    assert {str(m): n for m in modules if (n := len(m.read_text().splitlines())) > 300} == {}
