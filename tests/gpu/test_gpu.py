"""The pipeline on a CUDA GPU, with small models and no network. Run by `make test-gpu`, which fails without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import Tensor

from finetune.cli import main
from finetune.data.batching import load_batches
from finetune.heads import explain
from finetune.heads.gated_forward import GatedRows, check_all_ones, gate_gradients
from finetune.models.comparison import logits_of
from finetune.models.loading import load_classifier
from finetune.models.speedups import sped_up
from finetune.out_of_memory import halve_rows, is_out_of_memory
from finetune.recipe.training_section import TrainingSection
from finetune.training.build import Hyperparameters, build_trainer
from tests.conftest import SENTENCES
from tests.support import ROOT
from tests.support.finished_runs import SCRATCH, finished, recipe
from tests.support.helpers import encoded, plan, tiny_classifier

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA GPU on this machine"),
]
CPU, GPU = torch.device("cpu"), torch.device("cuda")
ON_GPU = {"use_cpu": False}
METHODS = [
    "gradient",
    "fisher",
    "integrated_gradients",
    "ablation_loss",
    "shapley",
    "gates",
    "learned_order",
    "entropy",
]
TEXTS = [("the cat sat on the mat",), ("a dog chased it",)]


def weights_of(run: Path) -> dict[str, Tensor]:
    (file,) = (path for path in (run / "model").glob("*.safetensors"))
    return load_file(file)


def read(run: Path, name: str) -> Any:
    return json.loads((run / name).read_text())


def check_run(run: Path) -> None:
    """Assert that a finished run was trained on the GPU and that its loss decreased."""
    assert read(run, "environment.json")["device"] == torch.cuda.get_device_name()
    assert read(run, "training.json")["speed"]["peak_memory_mb"] > 0
    assert read(run, "training.json")["trained_dtype"] == "float32"
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert len(losses) > 1
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.8 * losses[0]
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_the_toy_classifier(tmp_path: Path) -> None:
    run = finished(tmp_path, recipe(SCRATCH, training=ON_GPU, logging={"logging_steps": 6}))
    check_run(run)
    classifier = load_classifier(run / "model")
    # Other kernels, the same float32: the tolerance is a hundred times the rounding of so small a model.
    torch.testing.assert_close(
        logits_of(classifier, TEXTS, GPU), logits_of(classifier, TEXTS, CPU), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("precision", ["no", "fp16", "bf16"])
@pytest.mark.parametrize("lora", [False, True])
def test_each_precision(bert_without_dropout: Path, tmp_path: Path, precision: str, lora: bool) -> None:
    # With dropout, so small a model learns these rows with some seeds only; without, the loss falls below 0.1 of its
    # first value with each of 6 seeds on a CPU.
    content = recipe(
        {"model_name_or_path": str(bert_without_dropout)},
        training={**ON_GPU, "mixed_precision": precision, "learning_rate": 3e-3, "num_train_epochs": 20},
        logging={"logging_steps": 24},
    )
    if lora:
        content["peft"] = {"r": 4, "target_modules": ["query", "key", "value", "output"]}
    check_run(finished(tmp_path, content))


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    # The attention of the small classifier uses matrix products; fused kernels of torch sum in no fixed order.
    content = recipe(
        SCRATCH,
        training=ON_GPU,
        checkpoint={"save_strategy": "steps", "save_steps": 5, "save_total_limit": None},
        head_importance={"method": "gradient", "random_orders": 0},
    )
    uninterrupted = finished(tmp_path / "uninterrupted", content)
    checkpoint = uninterrupted / "checkpoints" / "step-000020"
    resumed = finished(tmp_path / "resumed", content, f"checkpoint.resume_from_checkpoint={checkpoint}")
    expected, actual = weights_of(uninterrupted), weights_of(resumed)
    assert actual.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in actual.items())


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_every_method_ranks_heads(tiny_bert: Path, tmp_path: Path, precision: str) -> None:
    content = recipe(
        {"model_name_or_path": str(tiny_bert)},
        training={**ON_GPU, "mixed_precision": precision},
        head_importance={"method": METHODS, "random_orders": 1},
    )
    run = finished(tmp_path, content)
    assert (run / "explanations.parquet").is_file()
    methods = read(run, "heads.json")["methods"]
    assert [scores["method"] for scores in methods] == METHODS
    for scores in methods:
        assert np.isfinite(np.array(scores["values"], dtype=float)).all(), scores["method"]


def test_gate_gradients_equal_those_of_the_cpu(tiny_bert: Path) -> None:
    torch.manual_seed(0)
    classifier, tables = tiny_classifier(tiny_bert), []
    split = encoded(classifier)
    for device in (GPU, CPU):
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(cpu=device == CPU)
        assert accelerator.device.type == device.type
        sample = GatedRows(classifier, split, "validation", np.arange(len(split)), 6, accelerator)
        check_all_ones(sample)
        tables.append(gate_gradients(sample))
    assert np.abs(tables[1]).max() > 1e-3
    np.testing.assert_allclose(*tables, atol=1e-4 * np.abs(tables[1]).max())


def test_explanations_equal_those_of_the_cpu(tiny_bert: Path) -> None:
    torch.manual_seed(0)
    classifier, results = tiny_classifier(tiny_bert), []
    for device in (GPU, CPU):
        classifier.model.to(device)
        inputs = explain.tokenized(classifier, [SENTENCES])
        assert inputs["input_ids"].device.type == device.type
        attributions = explain.token_attributions(classifier, inputs, steps=4, max_steps=4)
        maps = explain.attention_of(classifier, inputs)
        results.append(
            {
                "exact": explain.head_effects(classifier, inputs),
                "first-order": explain.first_order_head_effects(classifier, inputs),
                "tokens": np.concatenate([row.values for row in attributions]),
                "attention": np.concatenate([weights.ravel() for row in maps for weights in row.values()]),
            }
        )
    for name, expected in results[1].items():
        np.testing.assert_allclose(results[0][name], expected, atol=1e-3 * np.abs(expected).max(), err_msg=name)


def test_heads_are_pruned(tiny_bert: Path, tmp_path: Path) -> None:
    run = finished(tmp_path, recipe({"model_name_or_path": str(tiny_bert)}, training=ON_GPU))
    assert main(["prune", str(run), "--share", "0.5"]) == 0
    pruned = load_classifier(next(run.glob("pruned*/model")))
    assert sum(map(len, pruned.base.config.pruned_heads.values())) == 3
    assert logits_of(pruned, TEXTS, GPU).isfinite().all()


def test_batches_and_steps_are_on_the_gpu(tiny_bert: Path) -> None:
    classifier, accelerator = tiny_classifier(tiny_bert), Accelerator()
    split = encoded(classifier)
    trainer = build_trainer(
        classifier, split, plan(), Hyperparameters(TrainingSection(learning_rate=1e-3), seed=0), accelerator
    )
    assert trainer.stepper.model.embeddings is None  # a word outside the subset would be a device-side assert
    cpu = list(load_batches(split, [np.array([0, 5])], classifier.tokenizer, device=CPU))
    for batch, cpu_batch in zip(
        load_batches(split, [np.array([0, 5])], classifier.tokenizer, device=GPU), cpu, strict=True
    ):
        assert all(torch.equal(tensor.cpu(), cpu_batch.inputs[name]) for name, tensor in batch.inputs.items())
        assert {tensor.device.type for tensor in (*batch.inputs.values(), batch.labels, batch.weights)} == {"cuda"}
    for micro_batches, rows in trainer.epoch_steps():
        trainer.optimizer_step(micro_batches, rows)
    assert np.isfinite(trainer.log_entry()["loss"])


@pytest.mark.parametrize("precision", ["no", "fp16", "bf16"])
def test_a_step_does_not_wait_for_the_gpu(tiny_bert: Path, precision: str) -> None:
    classifier, accelerator = tiny_classifier(tiny_bert), Accelerator(mixed_precision=precision)
    hyperparameters = Hyperparameters(TrainingSection(learning_rate=1e-3), seed=0)
    schedule = plan(accumulation=3, steps_per_epoch=1)
    trainer = build_trainer(classifier, encoded(classifier), schedule, hyperparameters, accelerator)
    with sped_up(classifier, accelerator):
        for number in range(3):
            # The first epoch may wait: it reserves memory and loads kernels. After a step, loss and norm of the step
            # before are read, whose copy is complete or is waited for with an event, which this mode permits.
            torch.cuda.set_sync_debug_mode("error" if number else "default")
            try:
                for micro_batches, rows in trainer.epoch_steps():
                    trainer.optimizer_step(micro_batches, rows)
            finally:
                torch.cuda.set_sync_debug_mode("default")
    assert trainer.state.step == 3
    assert np.isfinite(trainer.log_entry()["loss"])


def test_memory_that_runs_out_is_recognized_and_freed() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(10**15, device=GPU)
    assert is_out_of_memory(error.value)
    assert halve_rows(8, "here") == 4


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="torch finds fewer than two CUDA GPUs on this machine")
def test_two_gpus_take_the_same_steps_as_one(bert_without_dropout: Path, tmp_path: Path) -> None:
    # A large epsilon, so that the rounding of a gradient near 0 remains rounding in the weights (see plain_steps.py).
    training = {**ON_GPU, "per_device_train_batch_size": 2, "max_steps": 12, "adam_epsilon": 0.1}
    content = recipe({"model_name_or_path": str(bert_without_dropout)}, training=training)
    content["head_importance"] = None
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(ROOT / "finetune" / "run.py"), str(path), f"output_dir={tmp_path / 'two'}"]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 processes, cuda" in done.stdout
    single_run = finished(tmp_path / "one", content, "training.per_device_train_batch_size=4")
    expected, actual = weights_of(single_run), weights_of(tmp_path / "two")
    assert actual.keys() == expected.keys()
    for name, weight in actual.items():  # two CPU processes differ by 2.4e-7 after the same number of steps
        torch.testing.assert_close(weight, expected[name], atol=1e-5, rtol=0)
