"""Training only the embeddings of the training split's tokens gives the same result as training the full table."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from finetune.data.tokenization import EncodedSplit
from finetune.errors import TrainingError
from finetune.models.architectures import FAMILIES
from finetune.models.lora import Lora
from finetune.recipe.training_section import TrainingSection
from finetune.training import build as build_module
from finetune.training.build import Hyperparameters, build_trainer
from finetune.training.embedding_subset import make_embedding_subset
from finetune.training.trainer import Evaluation, Trainer
from tests.conftest import SENTENCES
from tests.support.families import random_model
from tests.support.helpers import ROLES, TRAINED, encoded, plan, tiny_classifier

CPU = torch.device("cpu")
ROWS = [[3, 4, 9, 4, 17], [21, 4, 0, 3], [5, 1, 28, 9, 9]]  # some models pad with 0, others with 1
# Families whose embedding table is not torch's nn.Embedding: ibert's is quantized.
FULL_TABLE = {"ibert"}


def split_of(rows: list[list[int]]) -> EncodedSplit:
    lengths, indices = np.array([len(row) for row in rows]), np.arange(len(rows))
    table = datasets.Dataset.from_dict({"input_ids": rows})
    return EncodedSplit(table, indices, lengths, 0.0, table, "rows", indices, true_lengths=lengths)


def logits_of(model: PreTrainedModel) -> Tensor:
    ids = torch.tensor([row + [0] * (5 - len(row)) for row in ROWS])
    mask = torch.tensor([[1] * len(row) + [0] * (5 - len(row)) for row in ROWS])
    return model(input_ids=ids, attention_mask=mask).logits


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_logits_and_gradients_equal_those_of_the_full_table(family: str) -> None:
    model = random_model(family).eval().double()
    expected = logits_of(model)
    expected.square().sum().backward()
    expected_gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    subset = make_embedding_subset(model, split_of(ROWS), 0, CPU)
    assert (subset is None) == (family in FULL_TABLE)
    if subset is None:
        return
    padding = {model.get_input_embeddings().padding_idx} - {None}
    assert set(subset.ids.tolist()) == {token for row in ROWS for token in row} | {0} | padding
    with subset.in_use():
        logits = logits_of(model)
    logits.square().sum().backward()
    assert torch.equal(logits, expected)
    (name,) = [name for name, p in model.named_parameters() if p is subset.weight]
    gradient = expected_gradients.pop(name)
    assert subset.weight.grad is None
    assert not gradient[sorted(set(range(30)) - set(subset.ids.tolist()))].any()
    assert torch.allclose(subset.rows.grad, gradient[subset.ids], rtol=1e-12, atol=1e-12)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert gradients.keys() == expected_gradients.keys()
    assert all(torch.allclose(gradients[name], expected_gradients[name], rtol=1e-12, atol=1e-12) for name in gradients)


def test_write_back_and_load_copy_the_trained_embeddings() -> None:
    model = random_model("bert").eval()
    subset = make_embedding_subset(model, split_of(ROWS), 2, CPU)
    assert subset.ids.tolist() == [0, 1, 2, 3, 4, 5, 9, 17, 21, 28]
    before = subset.weight.detach().clone()
    with torch.no_grad():
        subset.rows += 1
    assert torch.equal(subset.weight, before)
    for weight_decay_factor in (0.5, 0.25, 0.25):
        subset.write_back(weight_decay_factor)
        expected = before * weight_decay_factor
        expected[subset.ids] = before[subset.ids] + 1
        assert torch.equal(subset.weight, expected)
    with torch.no_grad():
        subset.rows.zero_()
    subset.load(0.25)
    assert torch.equal(subset.rows, before[subset.ids] + 1)
    with pytest.raises(TrainingError, match="started from other embeddings than those of the model"):
        subset.load(0.5)
    with pytest.raises(IndexError), subset.in_use():  # a token outside the subset
        model(input_ids=torch.tensor([[3, 6]]))


def test_the_padding_tokens_of_tokenizer_and_model_are_in_the_subset() -> None:
    module = random_model("bert").get_input_embeddings()
    module.padding_idx = 7
    model = random_model("bert")
    model.set_input_embeddings(module)
    subset = make_embedding_subset(model, split_of(ROWS), 2, CPU)
    assert subset is not None
    assert {2, 7} < set(subset.ids.tolist())


@pytest.mark.parametrize("device", ["cuda", "mps", "xpu", "meta"])
def test_the_full_table_is_trained_on_an_accelerator(device: str) -> None:
    model = random_model("bert")
    assert make_embedding_subset(model, split_of(ROWS), 0, CPU) is not None
    assert make_embedding_subset(model, split_of(ROWS), 0, torch.device(device)) is None


def test_remote_code_keeps_its_full_table(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("bert")
    monkeypatch.setattr(type(model), "__module__", "transformers_modules.someone.modeling")
    assert make_embedding_subset(model, split_of(ROWS), 0, CPU) is None


def test_frozen_and_shared_tables_have_no_subset(tiny_bert: Path) -> None:
    assert (
        make_embedding_subset(tiny_classifier(tiny_bert, lora=Lora(2, 4, 0.0, ROLES)).base, split_of(ROWS), 0, CPU)
        is None
    )
    model = random_model("bert")
    model.tied = torch.nn.Linear(24, 30, bias=False)
    model.tied.weight = model.get_input_embeddings().weight
    assert make_embedding_subset(model, split_of(ROWS), 0, CPU) is None


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_training_equals_that_of_the_full_table(
    tiny_bert: Path, accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weight_decay: float
) -> None:
    # See plain_steps.py for the epsilon. With this learning rate, decay reduces a weight by about one percent.
    training = TrainingSection(learning_rate=1e-2, weight_decay=weight_decay, adam_epsilon=0.1)
    trained: list[list[Tensor]] = []

    def train() -> Trainer:
        torch.manual_seed(7)  # for the classification head
        classifier, states = tiny_classifier(tiny_bert), []
        split = encoded(classifier, SENTENCES[:3])
        trainer = build_trainer(classifier, split, plan(batch_size=1), Hyperparameters(training, seed=0), accelerator)
        weight = classifier.base.get_input_embeddings().weight

        def evaluate() -> dict[str, float]:
            states.append(weight.detach().clone())
            return {"loss": -float(len(states))}  # the last evaluation is the best

        states.append(weight.detach().clone())
        trainer.fit(tmp_path, evaluation=Evaluation(evaluate))
        assert torch.equal(weight, states[-1])
        trained.append(states)
        return trainer

    subset = train().stepper.model.embeddings
    monkeypatch.setattr(build_module, "make_embedding_subset", lambda *_: None)
    assert train().stepper.model.embeddings is None
    assert subset is not None
    unused = sorted(set(range(len(subset.weight))) - set(subset.ids.tolist()))
    assert len(unused) > 3
    (before, middle, after), full = trained
    assert torch.equal(before, full[0])
    for subset_weight, full_weight in zip((middle, after), full[1:], strict=True):
        assert torch.allclose(subset_weight, full_weight, rtol=0, atol=TRAINED)
        assert torch.equal(subset_weight[unused], before[unused]) == (weight_decay == 0)
    assert (after[subset.ids[1:]] != middle[subset.ids[1:]]).any(1).all()
