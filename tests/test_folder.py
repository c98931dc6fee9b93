from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from finetune.folder import replaced_whole


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with replaced_whole(tmp_path / "model") as aside:
            (aside / "weights").write_text(text)
    assert contents(tmp_path) == {"model/weights": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("where", ["writing", "rename", "replace"])
def test_what_was_there_is_lost_at_no_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    with replaced_whole(tmp_path / "model") as aside:
        (aside / "weights").write_text("old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    rename = Path.rename
    with suppress(KeyboardInterrupt), replaced_whole(tmp_path / "model") as aside:
        (aside / "weights").write_text("new")
        if where == "writing":
            interrupt()
        elif where == "replace":
            monkeypatch.setattr(Path, "replace", interrupt)
        else:
            monkeypatch.setattr(Path, "rename", lambda p, to: interrupt() if p.name == "model" else rename(p, to))
    assert contents(tmp_path) == {"model/weights": "old"}
