from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune.cli import main
from finetune.pipeline.training_cost import training_cost_of_run
from finetune.recipe.head_costs import TRAINED_ROW
from tests.support.finished_runs import read_back


def test_the_cost_follows_from_the_files_of_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened = read_back(run)
    classifier = opened.inputs.classifier
    cost = training_cost_of_run(opened.context, classifier)
    assert cost is not None
    assert (cost.rows, cost.row_passes) == (48 * 6, pytest.approx(48 * 6 * TRAINED_ROW))
    training = json.loads((run / "training.json").read_text())
    (run / "training.json").write_text(json.dumps(training | {"steps": training["steps"] // 4}))
    stopped_early = training_cost_of_run(opened.context, classifier)
    assert stopped_early is not None
    assert stopped_early.rows == 48 * 6 // 4
    capsys.readouterr()
    method = "head_importance.method=[learned_order, {name: gradient, max_samples: 10}]"
    assert (
        main(["heads", str(run), method, "head_importance.curve_split=null", "head_importance.explained_rows=0"]) == 0
    )
    printed = capsys.readouterr().out
    assert "the training of 72 rows took as long as 79 row passes" in printed
    assert "learned_order on 48 train rows: at most 48 row passes" in printed
    assert "(limited to 64, the minimum; the full number is 1,024)" in printed
    assert "gradient on 10 train rows: 10 row passes and 16 forward passes, 23 % of the training" in printed
    (run / "training.json").unlink()
    assert training_cost_of_run(opened.context, classifier) is None
