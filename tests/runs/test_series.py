from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from finetune.errors import DataError
from finetune.runs.json_files import write_json
from finetune.runs.results import MetricValue
from finetune.runs.run_files import existing_run
from finetune.runs.run_folder import SeriesFolder
from finetune.runs.series import MemberResult, SeedStatistics, SeriesResult, is_series, read_series

RESULT = SeriesResult(
    "accuracy",
    [
        MemberResult(4, "finished", seconds=2.0, scores={"test": {"accuracy": 0.5, "loss": 1.0}}),
        MemberResult(9, "failed", "the loss is not finite", seconds=1.0),
        MemberResult(5),
    ],
    splits={"test": {"accuracy": SeedStatistics(MetricValue(0.5), None)}},
    chosen_seed=4,
)


def test_a_series_is_read_back(tmp_path: Path) -> None:
    folder = SeriesFolder(tmp_path)
    assert not is_series(tmp_path)
    with pytest.raises(DataError, match=r"is not a series \(no series.json\); name the folder that `train` wrote"):
        read_series(tmp_path)
    write_json(folder.results, RESULT)
    assert is_series(tmp_path)
    result = read_series(tmp_path)
    assert result == RESULT
    assert result.seconds() == 3.0
    assert [member.seed for member in result.with_status("failed")] == [9]
    assert result.values("test", "loss") == {4: 1.0}
    assert result.member(9).error == "the loss is not finite"
    for number in (4, 9):
        folder.member(number).path.mkdir()
    with pytest.raises(DataError, match=f"{tmp_path} is a series of 2 runs; name one of them, such as .*/seed-4$"):
        existing_run(tmp_path)


@pytest.mark.parametrize(
    ("damaged", "reason"),
    [
        (replace(RESULT, members=[]), "members: a seed is missing, or occurs twice"),
        (replace(RESULT, members=[*RESULT.members, MemberResult(9)]), "members: a seed is missing, or occurs twice"),
        (replace(RESULT, chosen_seed=5), "chosen_seed: 5 is not a finished run"),
        (replace(RESULT, members=[MemberResult(4, "finished")]), "members: the scores of seed 4 are not those of the"),
    ],
)
def test_inconsistent_results_are_an_error(damaged: SeriesResult, reason: str, tmp_path: Path) -> None:
    write_json(SeriesFolder(tmp_path).results, damaged)
    with pytest.raises(DataError, match=rf"series\.json is damaged or of another version \({reason}"):
        read_series(tmp_path)
