from __future__ import annotations

from pathlib import Path

import pytest

from finetune.runs.completion_marker import find_damage, mark_complete


def test_the_marker_detects_kind_version_and_changed_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("text")
    assert find_damage(tmp_path, "thing", 1) == "it has no COMPLETE marker, so it was never finished"
    mark_complete(tmp_path, "thing", 1)
    assert find_damage(tmp_path, "thing", 1) is None
    assert find_damage(tmp_path, "other", 1) == "it is a thing of version 1; expected a other of version 1"
    (tmp_path / "a").write_text("tent")
    assert find_damage(tmp_path, "thing", 1) == "a was changed: its checksum is wrong"
    assert find_damage(tmp_path / "nowhere", "thing", 1) == "there is no such folder"


def test_an_unreadable_file_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights").write_text("1")
    mark_complete(tmp_path, "checkpoint", 1)

    def bad_sector(file: Path) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("finetune.runs.completion_marker._checksum", bad_sector)
    assert find_damage(tmp_path, "checkpoint", 1) == "weights cannot be read: Input/output error"
