from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from finetune.data.tokenization import EncodedSplit
from finetune.errors import DataError
from finetune.evaluation.prediction import predict
from finetune.models.building import Labels, pretrained_classifier
from finetune.models.classifier import Classifier
from finetune.models.comparison import check_reload
from finetune.models.loading import load_classifier
from finetune.models.lora import Lora
from finetune.models.output_bias import init_output_bias
from finetune.models.pretrained import Source, load_tokenizer
from finetune.models.saving import save_classifier
from finetune.models.target_scaling import TargetScaling, float32_predictions, fold, standardize_output, target_scaling
from finetune.recipe.training_section import TrainingSection
from finetune.training.build import Hyperparameters, build_trainer
from finetune.training.resume_check import trains_on_standardized_targets
from finetune.training.snapshot import trained_weights
from finetune.training.trainer import Trainer
from tests.support.helpers import ROLES, assert_equal_up_to_rounding, encoded, plan
from tests.support.training import largest_difference

LORA = Lora(r=2, lora_alpha=4, lora_dropout=0.0, roles=ROLES)
VALUES = np.array([0.5, 2.0, 4.5, 1.0, 3.5, 5.0])
Build = Callable[..., Classifier]


@pytest.fixture
def build(tiny_bert: Path) -> Build:
    def build(lora: Lora | None = None, labels: np.ndarray = VALUES) -> Classifier:
        torch.manual_seed(3)
        source = Source(str(tiny_bert))
        tokenizer, names = load_tokenizer(source), Labels(["value"], "regression")
        classifier = pretrained_classifier(source, tokenizer, names, max_length=16, lora=lora)
        init_output_bias(classifier, labels)
        return classifier

    return build


def rows_of(classifier: Classifier, labels: np.ndarray = VALUES) -> EncodedSplit:
    return encoded(classifier, labels=labels.tolist())


def new_trainer(classifier: Classifier, labels: np.ndarray = VALUES, *, standardize: bool = True) -> Trainer:
    settings = TrainingSection(learning_rate=1e-2, weight_decay=0.0, lr_scheduler_type="constant")
    schedule = plan(save_every=3)
    parameters = Hyperparameters(settings, seed=5, standardize_targets=standardize)
    return build_trainer(classifier, rows_of(classifier, labels), schedule, parameters, Accelerator(cpu=True))


def predicted(classifier: Classifier, accelerator: Accelerator | None = None) -> np.ndarray:
    accelerator = accelerator or Accelerator(cpu=True)
    return predict(classifier, rows_of(classifier), batch_size=6, accelerator=accelerator).predicted_labels()


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_standardizing_and_folding_keep_the_predictions(build: Build, lora: Lora | None) -> None:
    classifier = build(lora)
    before = predicted(classifier)
    standardized = standardize_output(classifier, VALUES)
    assert standardized is not None
    assert standardized.scaling == TargetScaling(VALUES.mean(), VALUES.std())
    assert_equal_up_to_rounding(predicted(classifier), before)
    with torch.no_grad():
        raw = standardized.layer(torch.zeros(1, standardized.layer.in_features))
        assert raw.item() == pytest.approx(VALUES.mean(), abs=1e-5)  # a new head has standardized bias 0
        assert abs(standardized.layer.bias.item()) < 1e-6
    fold(standardized)
    assert not standardized.layer._forward_hooks
    assert_equal_up_to_rounding(predicted(classifier), before)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_labels_in_other_units_train_the_same_model(build: Build, tmp_path: Path, lora: Lora | None) -> None:
    predictions, losses = [], []
    for number, (factor, offset) in enumerate([(1.0, 0.0), (1000.0, 5000.0), (0.001, 0.0)]):
        labels = VALUES * factor + offset
        classifier = build(lora, labels)
        history: list[dict[str, float]] = []
        new_trainer(classifier, labels).fit(tmp_path / str(number), log=history.append)
        predictions.append((predicted(classifier) - offset) / factor)
        losses.append([entry["loss"] / factor**2 for entry in history])
        save_classifier(classifier, tmp_path / "model")  # an ordinary model: no hook, no entry for the scaling
        check_reload(classifier, load_classifier(tmp_path / "model"), [("the cat",)], torch.device("cpu"))
    assert predictions[0].std() > 0.1
    # Measured up to 4e-6: only the rounding of the labels differs. Without scaling they differ by more than 1.
    for other, loss in zip(predictions[1:], losses[1:], strict=True):
        np.testing.assert_allclose(other, predictions[0], atol=1e-3)
        np.testing.assert_allclose(loss, losses[0], rtol=1e-3)


def test_the_logged_loss_is_in_the_units_of_the_labels(build: Build, tmp_path: Path) -> None:
    labels = VALUES * 100
    classifier = build(labels=labels)
    classifier.model.eval()
    trainer = new_trainer(classifier, labels)
    expected = np.mean((predicted(classifier) - labels) ** 2)
    history: list[dict[str, float]] = []
    trainer.plan = plan(total_steps=3, log_every=3)
    trainer.stepper.scheduler.base_lrs = [0.0] * len(trainer.stepper.scheduler.base_lrs)
    for group in trainer.stepper.optimizer.param_groups:
        group["lr"] = 0.0
    for module in classifier.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    trainer.fit(tmp_path, log=history.append)
    assert history[0]["loss"] == pytest.approx(expected, rel=0.05)  # attention dropout of the CPU kernel remains


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_a_resumed_regression_is_bit_identical(build: Build, tmp_path: Path, lora: Lora | None) -> None:
    full = build(lora)
    new_trainer(full).fit(tmp_path / "full")
    resumed = build(lora)
    trainer = new_trainer(resumed)
    checkpoint = tmp_path / "full" / "step-000003"
    assert trains_on_standardized_targets(checkpoint)
    trainer.resume(checkpoint)
    trainer.fit(tmp_path / "resumed")
    assert largest_difference(trained_weights(resumed.model), trained_weights(full.model)) == 0.0


def test_a_checkpoint_of_an_earlier_version_resumes_without_standardizing(build: Build, tmp_path: Path) -> None:
    full = build()
    new_trainer(full, standardize=False).fit(tmp_path / "full")
    checkpoint = tmp_path / "full" / "step-000003"
    assert not trains_on_standardized_targets(checkpoint)
    assert trains_on_standardized_targets(None)
    resumed = build()
    trainer = new_trainer(resumed, standardize=trains_on_standardized_targets(checkpoint))
    trainer.resume(checkpoint)
    trainer.fit(tmp_path / "resumed")
    assert largest_difference(trained_weights(resumed.model), trained_weights(full.model)) == 0.0


def test_only_a_trained_output_layer_of_a_regression_is_standardized(
    build: Build, tiny_bert: Path, tmp_path: Path
) -> None:
    source = Source(str(tiny_bert))
    labels = Labels(["a", "b"], "single_label_classification")
    assert (
        standardize_output(pretrained_classifier(source, load_tokenizer(source), labels, max_length=16), VALUES) is None
    )
    save_classifier(build(), tmp_path)
    source = Source(str(tmp_path))
    labels = Labels(["value"], "regression")
    adapted = pretrained_classifier(source, load_tokenizer(source), labels, max_length=16, lora=LORA)
    weights = copy.deepcopy(adapted.model.state_dict())
    assert standardize_output(adapted, VALUES) is None  # adapters do not train the checkpoint's own head
    assert all(torch.equal(weights[name], tensor) for name, tensor in adapted.model.state_dict().items())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full(4, 7.5), r"all 4 training rows have the value 7.5; a regression needs at least two different values"),
        (
            1.7e9 + np.arange(4),
            r"1.7e\+09 to 1.7e\+09, which are too close together for float32.*subtract 1.7e\+09 from all labels",
        ),
    ],
)
def test_labels_that_no_regression_can_predict_are_an_error(labels: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        target_scaling(labels)


def test_predictions_under_autocast_are_float32(build: Build) -> None:
    classifier = build(labels=VALUES + 2020)
    with torch.no_grad():  # bfloat16 would round 2021.5 to 2024
        next(
            m for m in classifier.model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == 1
        ).weight.zero_()
    with float32_predictions(classifier), torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        texts = classifier.tokenizer(["the cat sat"], return_tensors="pt")
        logits = classifier.model.eval()(**texts).logits
    assert logits.dtype == torch.float32
    assert logits.item() == pytest.approx(VALUES.mean() + 2020, abs=1e-3)
