"""A model that has learned nothing is reported in the terminal, the report, the model card and the head analysis."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from finetune.cli import main
from finetune.pipeline.analyze_heads import untrained_warning
from finetune.runs.results import SplitScores
from tests.support.finished_runs import SCRATCH, finished, recipe

UNCHANGED = "in all 3 evaluations during training, so training did not improve it."
NO_BETTER = "is not clearly above 0.500, the score of predicting "
RANKING = (
    "This ranking describes a model that has not learned the task: on the validation and test rows it is not clearly "
    "better than one constant prediction."
)


def test_an_untrained_model_is_reported_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = recipe(SCRATCH, training={"learning_rate": 1e-9, "num_train_epochs": 3})
    content["head_importance"] = {"method": "entropy", "curve_split": None}
    run = finished(tmp_path, content)
    printed = capsys.readouterr().out
    for text in (printed, (run / "report.html").read_text(), (run / "README.md").read_text()):
        assert UNCHANGED in text
        assert NO_BETTER in text
        assert "for every row: the model may have learned nothing. " in text
        assert "the score of a baseline" not in text  # one warning, not two
        assert RANKING in text
    assert UNCHANGED in json.loads((run / "training.json").read_text())["warnings"][0]
    assert main(["heads", str(run), "head_importance.method=confidence"]) == 0
    assert RANKING in capsys.readouterr().out
    other = Path(shutil.copytree(run, tmp_path / "other"))
    scores = json.loads((other / "scores.json").read_text())
    for split in scores.values():
        del split["above_constant"]  # as an earlier version wrote it
    (other / "scores.json").write_text(json.dumps(scores))
    assert main(["heads", str(run), str(other)]) == 0
    printed = capsys.readouterr().out
    assert f"{run}: {RANKING}" in printed
    assert f"{other}: {RANKING}" not in printed


@pytest.mark.parametrize(
    ("verdicts", "named"),
    [
        ({"validation": False, "test": False}, "validation and test"),
        ({"test": False}, "test"),
        ({"validation": None, "test": False}, "test"),
        ({"validation": True, "test": False}, None),  # a few test rows may not suffice to show it
        ({"validation": None}, None),
        ({}, None),
    ],
)
def test_the_ranking_is_doubted_only_if_no_split_shows_a_trained_model(
    verdicts: dict[str, bool | None], named: str | None
) -> None:
    scores = {split: SplitScores(20, 0.5, {}, above_constant=verdict) for split, verdict in verdicts.items()}
    warning = untrained_warning(scores)
    assert (f"on the {named} rows it is not clearly better" in warning) if named else warning == ""
