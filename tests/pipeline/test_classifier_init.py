"""A new head starts from a linear probe, and a run with a pooled classifier is complete: every command reads it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from finetune.cli import main
from finetune.errors import ModelError
from finetune.evaluation.probe import Probe, fit_probe
from finetune.models.comparison import logits_of
from finetune.models.lora import Lora
from finetune.models.pooled_states import pooled_states
from finetune.models.pooling import pooling_of
from finetune.pipeline import baselines, classifier_init
from finetune.pipeline.baselines import fit_baselines, untrained_encoder
from finetune.pipeline.classifier_init import init_classifier, set_probe
from finetune.pipeline.context import RunContext, RunInputs, SharedWork
from finetune.pipeline.load_classifier import load_classifier
from finetune.pipeline.prepare import prepare
from finetune.pipeline.session import start
from finetune.recipe.loader import load_recipe
from finetune.runs.run_folder import RunFolder
from tests.support.finished_runs import finished, recipe
from tests.support.helpers import ROLES, assert_equal_up_to_rounding, tiny_classifier

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def sentence_encoder(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT as sentence-transformers saves it, with mean pooling."""
    folder = Path(shutil.copytree(tiny_bert, tmp_path_factory.mktemp("sentences") / "bert"))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "mean"}))
    return folder


def content(checkpoint: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    return recipe({"model_name_or_path": str(checkpoint)}, **sections) | {"head_importance": None}


def prepared(folder: Path, checkpoint: Path, *overrides: str, resuming: bool = False) -> tuple[RunContext, RunInputs]:
    """Return the context and the inputs of a run before training."""
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content(checkpoint)))
    resolved = load_recipe(folder / "recipe.yaml", [f"output_dir={folder / 'run'}", *overrides])
    context, inputs, _ = prepare(start(resolved, RunFolder(folder / "run")), resuming=resuming)
    return context, inputs


@pytest.mark.parametrize("overrides", [[], ["model.pooling=cls"], ["peft.r=2"]])
def test_the_logits_before_training_are_those_of_the_probe(
    overrides: list[str], sentence_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context, inputs = prepared(tmp_path, sentence_encoder, *overrides)
    model, train, classifier = context.recipe.model, inputs.splits["train"], inputs.classifier
    assert model.pooling == ("cls" if "model.pooling=cls" in overrides else "mean")
    assert model.classifier_init == "linear_probe"
    assert "linear_probe, fitted to the pooled states of 48 rows." in capsys.readouterr().out
    states = pooled_states(classifier, train, pooling=model.pooling, batch_size=8, accelerator=context.accelerator)
    probe = fit_probe(states, train.labels, classifier.problem_type, 2, context.recipe.seed)
    texts = [(text,) for text in train.texts["sentence"]]
    assert_equal_up_to_rounding(logits_of(classifier, texts, CPU), probe.logits(states))
    accuracy = (probe.logits(states).argmax(-1) == train.labels).mean()
    assert accuracy > max(np.bincount(train.labels)) / len(train)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_the_frozen_encoder_baseline_does_not_fit_the_same_probe_again(
    pooling: str, sentence_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = [f"model.pooling={pooling}", "evaluation.baselines=[frozen_encoder]"]
    context, inputs = prepared(tmp_path, sentence_encoder, *changes)
    assert inputs.probe is not None
    encoder = untrained_encoder(context, inputs)
    fitted = fit_baselines(context, replace(inputs, probe=None), encoder).fitted["frozen_encoder"]
    monkeypatch.setattr(baselines, "fit_linear_probe", lambda *args: pytest.fail("fitted again"))
    again = replace(context, shared=SharedWork())
    reused = fit_baselines(again, inputs, encoder).fitted["frozen_encoder"]
    assert list(reused.predictions) == ["validation", "test"]
    for split, predictions in fitted.predictions.items():
        assert (reused.predictions[split] == predictions).all()


def test_the_frozen_encoder_baseline_does_not_use_the_probe_of_reinitialized_layers(
    sentence_encoder: Path, tmp_path: Path
) -> None:
    fitted = []
    for layers in (0, 1):
        changes = [f"training.reinit_layers={layers}", "evaluation.baselines=[frozen_encoder]"]
        context, inputs = prepared(tmp_path, sentence_encoder, *changes)
        assert inputs.probe is not None
        baseline = fit_baselines(context, inputs, untrained_encoder(context, inputs)).fitted["frozen_encoder"]
        fitted.append(baseline.predictions)
    assert list(fitted[0]) == ["validation", "test"]
    assert all((fitted[0][split] == fitted[1][split]).all() for split in fitted[0])


@pytest.mark.parametrize("overrides", [[], ["peft.r=2"]])
def test_the_checkpoint_is_loaded_once_as_it_was_before_training(
    overrides: list[str], sentence_encoder: Path, tmp_path: Path
) -> None:
    checkpoint = Path(shutil.copytree(sentence_encoder, tmp_path / "incomplete"))
    weights = load_file(checkpoint / "model.safetensors")
    missing = "encoder.layer.1.output.dense.weight"  # drawn at random, with the seed of the run
    kept = {name: weight for name, weight in weights.items() if not name.endswith(missing)}
    assert len(kept) == len(weights) - 1
    save_file(kept, checkpoint / "model.safetensors", {"format": "pt"})
    context, inputs = prepared(tmp_path, checkpoint, "model.allow_missing_weights=true", *overrides)
    state = torch.random.get_rng_state()
    encoder = untrained_encoder(context, inputs)
    loaded = encoder()
    assert loaded is not None
    assert loaded is encoder()
    assert state.equal(torch.random.get_rng_state())
    options: dict[str, Any] = {"batch_size": 8, "accelerator": context.accelerator}
    before, after = (pooled_states(c, inputs.splits["train"], **options) for c in (inputs.classifier, loaded))
    assert_equal_up_to_rounding(torch.from_numpy(after), before)


def test_a_random_head_and_a_resumed_run_compute_nothing(
    sentence_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifier_init, "fit_linear_probe", lambda *args, **kwargs: pytest.fail("computed"))
    context, inputs = prepared(tmp_path, sentence_encoder, "model.classifier_init=random")
    assert context.recipe.model.classifier_init == "random"
    bias = inputs.classifier.base.get_submodule("pooled_classifier").bias
    assert not bias.any()
    context, _ = prepared(tmp_path, sentence_encoder, resuming=True)
    assert context.recipe.model.classifier_init == "linear_probe"
    context, _ = prepared(tmp_path, sentence_encoder, "model.pooling=head")
    assert context.recipe.model.classifier_init == "random"


def test_where_a_probe_is_not_possible(sentence_encoder: Path, tmp_path: Path) -> None:
    message = r"model\.classifier_init is linear_probe, but model\.pooling is head, .*; set it to random"
    with pytest.raises(ModelError, match=message):
        prepared(tmp_path, sentence_encoder, "model.classifier_init=linear_probe", "model.pooling=head")
    context, inputs = prepared(tmp_path, sentence_encoder)
    for changes, reason in (
        ({"new_parameters": ()}, "the classification head of the checkpoint is kept"),
        ({"source": None}, "the encoder has random weights"),
    ):
        kept = replace(inputs, classifier=replace(inputs.classifier, **changes))
        with pytest.raises(ModelError, match=reason):
            init_classifier(context, kept, resuming=False)


def test_the_probe_is_copied_into_the_layer_that_peft_trains(sentence_encoder: Path) -> None:
    classifier = tiny_classifier(sentence_encoder, lora=Lora(2, 4, 0.0, ROLES))
    assert pooling_of(classifier.base.config) == "mean"
    probe = Probe(np.full((2, 24), 2, np.float32), np.array([3, 4], np.float32))
    set_probe(classifier, probe)
    layer: Any = classifier.base.get_submodule("pooled_classifier")
    assert (layer.modules_to_save["default"].weight == 2).all()
    assert layer.modules_to_save["default"].bias.tolist() == [3, 4]


@pytest.fixture(scope="module")
def pooled_run(sentence_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a pooled classifier."""
    few = {"num_train_epochs": 1}
    return finished(tmp_path_factory.mktemp("pooled-run"), content(sentence_encoder, training=few))


def test_every_command_reads_a_run_with_a_pooled_classifier(
    pooled_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(pooled_run, tmp_path / "run"))
    model = yaml.safe_load((run / "recipe.yaml").read_text())["model"]
    assert (model["pooling"], model["classifier_init"]) == ("mean", "linear_probe")
    assert pooling_of(load_classifier(run).base.config) == "mean"
    (tmp_path / "texts.csv").write_text("sentence\nthe cat sat\na dog\n")
    assert main(["evaluate", str(run)]) == 0
    assert main(["prune", str(run), "--heads", "0.1"]) == 0
    assert main(["merge", str(run)]) == 0
    assert main(["export", str(run), "--quantize", "int8"]) == 0
    printed = []
    for folder in (run, run / "merged", run / "onnx-int8"):
        capsys.readouterr()
        assert main(["predict", str(folder), str(tmp_path / "texts.csv"), "--output", str(tmp_path / "out.csv")]) == 0
        printed.append((tmp_path / "out.csv").read_text())
        (tmp_path / "out.csv").unlink()
    assert printed[0] == printed[1]
    labels = [[line.split(",")[1] for line in text.splitlines()] for text in printed]
    assert labels[0] == labels[2]
    card = (run / "README.md").read_text()
    assert "trust_remote_code=True" in card
    assert "Transformers alone cannot load" not in card
    assert main(["publish", str(run), "--repo", "me/pooled", "--dry-run"]) == 0
    assert "pooled_classifier.py" in capsys.readouterr().out
