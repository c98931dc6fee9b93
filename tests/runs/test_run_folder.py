from __future__ import annotations

from pathlib import Path

from finetune.runs.run_folder import RunFolder


def test_the_outputs_are_all_paths_of_the_run_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    outputs = folder.outputs()
    assert len(outputs) == len(set(outputs)) == 25
    assert all(path.parent == tmp_path for path in outputs)
    assert {tmp_path, *outputs} == set(vars(folder).values())
