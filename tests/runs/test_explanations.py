from __future__ import annotations

from pathlib import Path

import pytest

from finetune.errors import DataError
from finetune.runs.explanations import Explanations, RowExplanation, read_explanations, write_explanations
from finetune.runs.run_folder import RunFolder

PLAIN = RowExplanation("train", 7, "good", [[0.5, None], [-0.25, 1.5]])
EXPLAINED = RowExplanation(
    "train",
    3,
    "bad </script>",
    [[0.5, None], [0.0, 2.0]],
    tokens=["[CLS]", "\u202eabc"],
    attributions=[0.0, 1.5],
    score=2.0,
    baseline_score=0.5,
    completeness_gap=0.0,
    attention={"1.0": [[255, 0], [128, 127]]},
    exact_head_effects=[[0.25, None], [0.0, 1.0]],
)


def test_explanations_are_read_as_they_were_written(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert read_explanations(folder) is None
    for rows in ([PLAIN, EXPLAINED], [PLAIN], []):
        explanations = Explanations("log-odds of the label", "first-order", 16, rows, ["a note"])
        write_explanations(folder, explanations)
        assert read_explanations(folder) == explanations
    assert [path.name for path in tmp_path.iterdir()] == ["explanations.parquet"]


@pytest.mark.parametrize("content", [b"", b"PAR1 and no more", b"{}"])
def test_a_damaged_file_is_reported(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "explanations.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"explanations.parquet is damaged .*remove the file, and `finetune heads RUN`"):
        read_explanations(RunFolder(tmp_path))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (RowExplanation("train", 0, "", [[0.5, None], [1.0]]), "not a table of layers and heads"),
        (RowExplanation("train", 0, "", [[0.5]], tokens=["a"], attributions=[1.0, 2.0]), "one attribution per token"),
        (RowExplanation("train", 0, "", [[0.5]], tokens=["a"]), "one attribution per token"),
        (
            RowExplanation("train", 0, "", [[0.5]], tokens=["a"], attributions=[1.0], attention={"0.0": [[1, 2]]}),
            "1 x 1 weights",
        ),
    ],
)
def test_columns_that_do_not_fit_together_are_reported(tmp_path: Path, row: RowExplanation, reason: str) -> None:
    folder = RunFolder(tmp_path)
    write_explanations(folder, Explanations("", "", 1, [row]))
    with pytest.raises(DataError, match=reason):
        read_explanations(folder)
