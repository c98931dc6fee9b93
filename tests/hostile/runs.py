"""A finished run, and damage to any of its files."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from tests.support.finished_runs import SCRATCH, finished, recipe, rows


def tiny_run(folder: Path) -> Path:
    """Train for one epoch and return the run folder, which has every file of a run except checkpoints."""
    quick = recipe(
        {**SCRATCH, "config_overrides": {**SCRATCH["config_overrides"], "num_hidden_layers": 1}},
        data={"train_rows": rows(8, 1), "validation_rows": rows(8, 2), "test_rows": rows(8, 3), "max_length": 16},
        training={"num_train_epochs": 1},
        evaluation={"label_errors": True},
        head_importance={"method": ["gradient", "fisher"], "random_orders": 1},
    )
    with redirect_stdout(io.StringIO()):
        return finished(folder, quick)


OTHER = "the undamaged run"
COMMANDS = [
    ["evaluate"], ["report"], ["merge"], ["heads"], ["heads", "head_importance.method=fisher"],
    ["prune", "--share", "0.5"], ["prune", "--heads", "0.1"], ["prune", "--keep-within", "0.1"],
    ["publish", "--repo", "me/a", "--dry-run"], ["compare", OTHER],
]  # fmt: skip
VALUES_OF_JSON: list[Any] = [
    None, True, False, 0, 1, -1, 10**30, 0.5, "", "x", "0", [], [1], ["x"], {}, {"a": 1}, [[]], "x" * 300, "\0", "../x",
]  # fmt: skip


@st.composite
def damages(draw: st.DrawFn, names: list[str]) -> tuple[str, int, list[str]]:
    """Draw a file of a run folder, the seed of its damage, and the command to run."""
    return draw(st.sampled_from(names)), draw(st.integers(0, 10**6)), draw(st.sampled_from(COMMANDS))


def damage(file: Path, draw: random.Random) -> None:
    """Damage or delete a file in a random way."""
    content = file.read_bytes()
    operations: list[Callable[[], bytes | None]] = [
        lambda: None,
        lambda: b"",
        lambda: content[: draw.randrange(len(content))],
        lambda: content[: draw.randrange(len(content))] + draw.randbytes(8) + content[draw.randrange(len(content)) :],
        lambda: draw.randbytes(300),
        lambda: json.dumps(draw.choice(VALUES_OF_JSON)).encode(),
    ]
    if file.suffix == ".json":
        operations += [lambda: _damaged_json(content, draw)] * 8
    if file.suffix == ".jsonl":
        operations += [lambda: b"\n".join(_damaged_json(line, draw) for line in content.splitlines()) + b"\n"] * 3
    if file.name == "recipe.yaml":
        operations += [lambda: _damaged_recipe(content, draw)] * 8 + [lambda: yaml.safe_dump(recipe(SCRATCH)).encode()]
    result = draw.choice(operations)()
    if result is None:
        file.unlink()
    else:
        file.write_bytes(result)


def _damaged_json(content: bytes, draw: random.Random) -> bytes:
    """Return a JSON document with one value, anywhere in it, replaced or removed."""
    document = [json.loads(content)]
    container, key = document, 0
    while True:
        value: Any = container[key]
        keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
        if not keys or draw.random() < 0.2:
            break
        container, key = value, draw.choice(keys)
    if draw.random() < 0.3 and container is not document:
        del container[key]
    else:
        container[key] = draw.choice(VALUES_OF_JSON)
    return json.dumps(document[0]).encode()


def _damaged_recipe(content: bytes, draw: random.Random) -> bytes:
    document = yaml.safe_load(content)
    section = draw.choice([document, *(value for value in document.values() if isinstance(value, dict) and value)])
    key = draw.choice(list(section))
    if draw.random() < 0.4:
        del section[key]
    else:
        section[key] = draw.choice(VALUES_OF_JSON)
    return yaml.safe_dump(document).encode()


def files_of(run: Path) -> list[str]:
    """Return every file of a run folder by its name there."""
    return sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
