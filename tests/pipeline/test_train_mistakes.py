"""Mistakes in a recipe give one error message and leave no folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.cli import main
from tests.support import ROOT
from tests.support.forked import forked

SCRATCH = ROOT / "recipes" / "toy_from_scratch.yaml"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.learning_rte=1"], "did you mean 'learning_rate'"),
        (["data.validation_rows=null", "data.validation_size=null"], "there are no validation rows to evaluate on"),
        (
            ["data.validation_rows=null", "evaluation.eval_strategy=no", "head_importance.split=validation"],
            "split is validation, but there are no validation rows",
        ),
        (["peft.r=2"], "adapters need pretrained weights"),
        (["model.model_type=berd"], "model.model_type 'berd' is unknown"),
        (["model.config_overrides.head_dim=0"], "sizes must be positive integers"),
        (["model.config_overrides.vocab_size=abc"], "it must be an integer of at least 3"),
        (["model.model_name_or_path=nobody/nothing"], "cannot load model 'nobody/nothing'"),
        (["output_dir=taken"], "is not empty and is not a finetune run"),
        (["output_dir=taken", "checkpoint.resume_from_checkpoint=auto"], "is not a finetune run"),
        (["output_dir=file"], "is a file; name a folder"),
        (["checkpoint.resume_from_checkpoint=nowhere"], "no folder 'nowhere'"),
        (["checkpoint.resume_from_checkpoint=taken"], "taken is not a complete checkpoint"),
        (["training.class_weights={maybe: 2.0}", "task.label_names=null"], "class_weights: maybe is not a label"),
    ],
)
def test_a_mistake_gives_one_error_message_and_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    overrides: list[str],
    message: str,
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "recipe.yaml").write_text("mine")
    (tmp_path / "file").write_text("mine")
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(SCRATCH), "training.use_cpu=true", *overrides]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.startswith("error: ")
    assert not (tmp_path / "runs").exists()
    assert {path.name: path.read_text() for path in (tmp_path / "taken").iterdir()} == {"recipe.yaml": "mine"}


def test_a_mistake_is_not_a_traceback_in_a_new_process(tmp_path: Path) -> None:
    done = forked(["-m", "finetune", "train", SCRATCH, "--dry-run", "model.model_type=berd"], tmp_path)
    assert done.returncode == 2
    assert "is unknown to transformers" in done.stderr
    assert "Traceback" not in done.stderr
