"""The check before training in int8, and what a run in int8 can be combined with."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from finetune.errors import ModelError, TrainingError
from finetune.evaluation.prediction import predict
from finetune.models import int8_products
from finetune.models.classifier import Classifier
from finetune.models.lora import Lora
from finetune.models.precision import multiply_in_int8
from finetune.pipeline.evaluate import evaluate
from finetune.recipe.training_section import TrainingSection
from finetune.runs.run_files import read_recipe, read_scores
from finetune.runs.run_folder import RunFolder
from finetune.training.build import Hyperparameters, build_trainer
from finetune.training.int8_check import check_int8
from finetune.training.resume_check import differences, recipe_fingerprint
from finetune.training.trainer import Trainer
from tests.support.families import build as build_family
from tests.support.families import save_checkpoint, split_of
from tests.support.finished_runs import finished, recipe
from tests.support.helpers import ROLES, encoded, plan

Build = Callable[..., Classifier]
LORA = Lora(r=2, lora_alpha=4, lora_dropout=0.1, roles=ROLES)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT with smaller weights than the tiny one of other tests, whose rounding errors grow in each layer."""
    return save_checkpoint("bert", tmp_path_factory.mktemp("bert"), initializer_range=0.1)


@pytest.fixture
def build(checkpoint: Path) -> Build:
    return lambda lora=None: build_family(checkpoint, lora)


@pytest.fixture
def in_int8() -> Iterator[Accelerator]:
    AcceleratorState._reset_state(True)
    accelerator = Accelerator(cpu=True)
    multiply_in_int8(accelerator)
    yield accelerator
    AcceleratorState._reset_state(True)
    Accelerator(cpu=True)  # whose state the accelerators of other tests share


def trainer_of(classifier: Classifier, accelerator: Accelerator, split: Any = None, **training: Any) -> Trainer:
    settings = Hyperparameters(TrainingSection(learning_rate=1e-2, **training), seed=0)
    return build_trainer(classifier, split or encoded(classifier), plan(), settings, accelerator)


def test_other_precisions_are_not_checked(build: Build) -> None:
    AcceleratorState._reset_state(True)
    assert check_int8(trainer_of(build(), Accelerator(cpu=True))) is None


OPTIONS = {
    "padding_free": True,
    "rdrop_alpha": 1.0,
    "ema_decay": 0.9,
    "gradient_checkpointing": True,
    "contrastive_weight": 0.5,
}


@pytest.mark.parametrize(
    ("lora", "options"), [(None, {}), (LORA, {}), (LORA, OPTIONS)], ids=["full", "lora", "every option"]
)
def test_a_run_is_checked_and_trained_and_leaves_a_plain_model(
    build: Build, in_int8: Accelerator, tmp_path: Path, lora: Lora | None, options: dict[str, Any]
) -> None:
    classifier = build(lora)
    trainer = trainer_of(classifier, in_int8, **options)
    random = torch.get_rng_state()
    cosine = check_int8(trainer)
    assert cosine is not None
    assert 0.99 < cosine < 1
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in trainer.stepper.parameters)
    before = [parameter.detach().clone() for parameter in trainer.stepper.parameters]
    trainer.fit(tmp_path)
    assert any(not torch.equal(old, new) for old, new in zip(before, trainer.stepper.parameters, strict=True))
    assert all(bool(parameter.isfinite().all()) for parameter in classifier.model.parameters())
    assert not any("forward" in vars(layer) for layer in int8_products.int8_layers(classifier.base))


def test_layers_that_are_computed_again_have_the_same_gradient(build: Build) -> None:
    gradients = []
    for again in (False, True):
        trainer = trainer_of(build(), Accelerator(cpu=True), gradient_checkpointing=again)
        ((batch,), _), stepper = next(trainer.epoch_steps()), trainer.stepper
        stepper.model.module.train()
        torch.manual_seed(3)
        with int8_products.int8_products(trainer.classifier.base):
            stepper.objective.losses(stepper.model, batch).sum().backward()
        gradients.append([parameter.grad for parameter in stepper.parameters if parameter.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 30
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize("cosines", [[math.nan, 0.999], [0.999, math.nan], [0.999, 0.9]])
def test_the_worst_process_decides(
    cosines: list[float], build: Build, in_int8: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.training.int8_check.gather_results", lambda *_: cosines)
    with pytest.raises(TrainingError, match=r"their cosine is (nan|0\.900)"):
        check_int8(trainer_of(build(), in_int8))


def test_a_gradient_unlike_that_of_float32_is_refused(
    build: Build, in_int8: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(build(), in_int8)
    monkeypatch.setattr(int8_products, "WEIGHT_LEVELS", 1)
    with pytest.raises(TrainingError, match=r"their cosine is -?0\.\d+, and the limit is 0.99; set training.mixed_pre"):
        check_int8(trainer)
    with torch.no_grad():
        trainer.classifier.base.bert.encoder.layer[0].output.dense.weight[0, 0] = torch.inf
    with pytest.raises(TrainingError, match="their cosine is nan"):
        check_int8(trainer)


def test_a_family_without_linear_layers_is_refused(in_int8: Accelerator, tmp_path: Path) -> None:
    classifier = build_family(save_checkpoint("squeezebert", tmp_path))
    trainer = trainer_of(classifier, in_int8, split_of(classifier))
    with pytest.raises(ModelError, match=r"encoder of a 'squeezebert' model has no plain linear layers.* auto"):
        check_int8(trainer)
    with pytest.raises(ModelError, match=r"has no plain linear layers, which are what multiplies in int8.* --int8"):
        predict(classifier, trainer.split, batch_size=2, accelerator=in_int8)


def test_a_run_records_the_cosine_and_resumes_in_int8_only(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = {"mixed_precision": "int8", "num_train_epochs": 1}
    content = recipe({"model_name_or_path": str(checkpoint)}, training=training)
    content = {**content, "head_importance": None, "checkpoint": {"save_strategy": "epoch"}}
    run = finished(tmp_path, content)
    environment = json.loads((run / "environment.json").read_text())
    assert environment["mixed_precision"] == "int8"
    assert 0.99 < (cosine := environment["int8_gradient_cosine"]) < 1
    in_int8 = read_recipe(RunFolder(run), read_data=False)
    fingerprints = [
        recipe_fingerprint(saved, ["0", "1"])
        for saved in (in_int8, read_recipe(RunFolder(run), ["training.mixed_precision=no"], read_data=False))
    ]
    assert list(differences(*fingerprints)) == ['training.mixed_precision: was "int8", now "no"']
    scored = read_scores(RunFolder(run))["test"].loss
    exact = evaluate(run, ["training.mixed_precision=no"])["test"].loss
    assert exact != scored
    assert exact == pytest.approx(scored, abs=0.05)  # measured: 1e-3
    finished(tmp_path, content, "checkpoint.resume_from_checkpoint=auto")
    assert "Resuming from" in capsys.readouterr().out
    # The first weights are checked again, not those of the checkpoint, whose gradient is mostly noise.
    assert json.loads((run / "environment.json").read_text())["int8_gradient_cosine"] == cosine
