from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml

from finetune.cli import main
from finetune.data.tokenization import EncodedSplit
from finetune.evaluation.prediction import predict
from finetune.heads.pruning import pruned_classifier
from finetune.models.classifier import Classifier
from finetune.models.loading import load_classifier
from finetune.pipeline.recovery import recovery_finetune
from finetune.training.build import build_trainer
from finetune.training.trainer import Trainer
from tests.support.finished_runs import contents, finished, read_back, recipe
from tests.support.helpers import TRAINED
from tests.support.pruning import accuracy, prune_run


def test_recovery_trains_the_parameters_that_the_run_trained(run: Path) -> None:
    pruning = prune_run(run, "--share", "0.5", "--heal", "3")
    assert pruning.heal_epochs == 3
    assert pruning.scores_healed is not None
    assert pruning.scores_healed.keys() == pruning.scores_after.keys() == {"validation", "test"}
    finished_run = read_back(run)
    control = recovery_finetune(finished_run, pruned_classifier(finished_run.inputs.classifier, {}), 3)
    assert pruning.scores_control is not None
    assert pruning.scores_control["test"]["accuracy"] == pytest.approx(accuracy(finished_run, control, "test"))
    pairs = {(item.first, item.second) for item in pruning.differences}
    assert pairs == {("before", state) for state in ("after", "healed", "control")} | {("control", "healed")}
    heads = {int(layer): removed for layer, removed in pruning.heads.items()}
    before = pruned_classifier(finished_run.inputs.classifier, heads).base.state_dict()
    recovered = load_classifier(run / "pruned" / "model")
    after = recovered.base.state_dict()
    assert before.keys() == after.keys()
    unchanged = [name for name in before if before[name].equal(after[name])]
    assert unchanged == []
    train = finished_run.inputs.splits["train"]
    losses = [
        predict(model, train, batch_size=64, accelerator=finished_run.context.accelerator).metrics()["loss"]
        for model in (pruned_classifier(finished_run.inputs.classifier, heads), recovered)
    ]
    assert losses[1] < losses[0]  # measured: from 0.37 to 0.04
    assert not (run / "checkpoints").exists()


def test_recovery_caches_frozen_layers_and_compiles_the_others(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Path(shutil.copytree(tiny_bert, tmp_path / "bert"))
    config = json.loads((checkpoint / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # required for caching frozen layers
    (checkpoint / "config.json").write_text(json.dumps(config))
    frozen = {"freeze_embeddings": True, "freeze_layers": 1, "num_train_epochs": 1, "adam_epsilon": 0.1}
    run = finished(tmp_path, recipe({"model_name_or_path": str(checkpoint)}, training=frozen), "head_importance=null")
    cached, compiled, recovered = [], [], []

    def build(classifier: Classifier, split: EncodedSplit, *rest: Any, **options: Any) -> Trainer:
        cached.append(split.states is not None)
        return build_trainer(classifier, split, *rest, **options)

    def compile_from(model: object, device: object, *, first: int) -> Any:
        compiled.append(first)
        return nullcontext()

    monkeypatch.setattr("finetune.pipeline.recovery.build_trainer", build)
    monkeypatch.setattr("finetune.pipeline.prepare.compiled_layers", compile_from)
    for changes in ([], ["training.cache_frozen_layers=true", "training.torch_compile=true"]):
        finished_run = read_back(run, *changes)
        pruned = pruned_classifier(finished_run.inputs.classifier, {0: [1], 1: [2]})
        before = {name: weight.clone() for name, weight in pruned.base.state_dict().items()}
        recovered.append(recovery_finetune(finished_run, pruned, 2).base.state_dict())
    assert (cached, compiled) == ([False, True], [1])
    assert recovered[0].keys() == recovered[1].keys() == before.keys()
    assert max(float((before[name] - recovered[0][name]).abs().max()) for name in before) > 1e-2
    for name, weight in recovered[0].items():  # the cached states of a row come from another batch
        torch.testing.assert_close(recovered[1][name], weight, atol=TRAINED, rtol=0)


def test_recovery_with_lora_trains_and_merges_new_adapters_and_the_classification_head(adapted_run: Path) -> None:
    pruning = prune_run(adapted_run, "--heads", "0.0,1.1", "--heal", "2", "--no-control")
    assert pruning.scores_control is None
    finished_run = read_back(adapted_run)
    heads = {int(layer): removed for layer, removed in pruning.heads.items()}
    before = pruned_classifier(finished_run.inputs.classifier, heads).base.state_dict()
    recovered = load_classifier(adapted_run / "pruned" / "model")
    assert not isinstance(recovered.model, peft.PeftModel)
    after = recovered.base.state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not before[name].equal(after[name])}
    adapters = {f"bert.encoder.layer.{n}.attention.self.{role}.weight" for n in range(2) for role in ("query", "value")}
    assert changed == adapters | {"classifier.weight", "classifier.bias"}
    change = (
        after["bert.encoder.layer.0.attention.self.query.weight"]
        - before["bert.encoder.layer.0.attention.self.query.weight"]
    )
    assert torch.linalg.matrix_rank(change, rtol=1e-4) == 2  # the recipe's rank: adapters, not full weights


def test_adapters_need_a_layer_with_heads(adapted_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, layer = adapted_run / "recipe.yaml", "1.0,1.1,1.2"
    content = yaml.safe_load(file.read_text())
    content["peft"]["rank_pattern"] = {"1.query": 1}  # for a layer without heads
    file.write_text(yaml.safe_dump(content))
    before = contents(adapted_run)
    assert main(["prune", str(adapted_run), "--heads", f"0.0,0.1,0.2,{layer}", "--heal", "1"]) == 2
    message = "the layers that would get adapters have no heads; prune less, or leave out --heal"
    assert message in " ".join(capsys.readouterr().err.split())
    assert contents(adapted_run) == before
    prune_run(adapted_run, "--heads", layer, "--heal", "1", "--no-control")
    printed = " ".join(capsys.readouterr().out.split())
    assert "The pruned model has no prediction sets (--coverage): they were fitted for the unpruned one." in printed


def test_the_pruned_model_learns_the_predictions_of_its_teacher(run: Path) -> None:
    finished_run = read_back(run)
    teacher = pruned_classifier(finished_run.inputs.classifier, {})
    before = {name: weight.clone() for name, weight in teacher.base.state_dict().items()}
    texts = [text for (text,) in finished_run.inputs.sample_texts(48)]
    expected, distances = teacher.logits([texts], 48), []
    for epochs in (0, 3):
        pruned = pruned_classifier(teacher, {0: [0, 1], 1: [2]})
        student = recovery_finetune(finished_run, pruned, epochs, teacher) if epochs else pruned
        distances.append(float(((student.logits([texts], 48) - expected) ** 2).mean()))
    assert distances[1] < 0.5 * distances[0]
    assert all(weight.equal(before[name]) for name, weight in teacher.base.state_dict().items())
