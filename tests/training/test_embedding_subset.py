"""Training the embeddings of those words alone that training rows hold: every family, and what becomes of the rest."""

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
from finetune.recipe import TrainingSection
from finetune.training import build as build_module
from finetune.training.build import Hyperparameters, build_trainer
from finetune.training.embedding_subset import make_embedding_subset
from finetune.training.trainer import Evaluation, Trainer
from tests.conftest import SENTENCES
from tests.support.families import random_model
from tests.support.helpers import ROLES, TRAINED, encoded, plan, tiny_classifier

CPU = torch.device("cpu")
ROWS = [[3, 4, 9, 4, 17], [21, 4, 0, 3], [5, 1, 28, 9, 9]]  # some models pad with 0, others with 1
# Families whose table of words is none of torch's own: ibert's is quantised.
WHOLE = {"ibert"}


def split_of(rows: list[list[int]]) -> EncodedSplit:
    lengths, numbers = np.array([len(row) for row in rows]), np.arange(len(rows))
    table = datasets.Dataset.from_dict({"input_ids": rows})
    return EncodedSplit(table, numbers, lengths, 0.0, table, "rows", numbers)


def logits_of(model: PreTrainedModel) -> Tensor:
    ids = torch.tensor([row + [0] * (5 - len(row)) for row in ROWS])
    seen = torch.tensor([[1] * len(row) + [0] * (5 - len(row)) for row in ROWS])
    return model(input_ids=ids, attention_mask=seen).logits


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_logits_and_gradients_are_those_of_the_whole_table(family: str) -> None:
    model = random_model(family).eval().double()
    expected = logits_of(model)
    expected.square().sum().backward()
    whole = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    words = make_embedding_subset(model, split_of(ROWS), 0, CPU)
    assert (words is None) == (family in WHOLE)
    if words is None:
        return
    padding = {model.get_input_embeddings().padding_idx} - {None}
    assert set(words.ids.tolist()) == {word for row in ROWS for word in row} | {0} | padding
    with words.in_use():
        logits = logits_of(model)
    logits.square().sum().backward()
    assert torch.equal(logits, expected)
    (name,) = [name for name, p in model.named_parameters() if p is words.weight]
    gradient = whole.pop(name)
    assert words.weight.grad is None
    assert not gradient[sorted(set(range(30)) - set(words.ids.tolist()))].any()
    assert torch.allclose(words.rows.grad, gradient[words.ids], rtol=1e-12, atol=1e-12)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == whole.keys()
    assert all(torch.allclose(found[name], whole[name], rtol=1e-12, atol=1e-12) for name in whole)


def test_the_model_has_the_trained_rows_once_they_are_written_back() -> None:
    model = random_model("bert").eval()
    words = make_embedding_subset(model, split_of(ROWS), 2, CPU)
    assert words.ids.tolist() == [0, 1, 2, 3, 4, 5, 9, 17, 21, 28]
    before = words.weight.detach().clone()
    with torch.no_grad():
        words.rows += 1
    assert torch.equal(words.weight, before)
    for weight_decay_factor in (0.5, 0.25, 0.25):
        words.write_back(weight_decay_factor)
        expected = before * weight_decay_factor
        expected[words.ids] = before[words.ids] + 1
        assert torch.equal(words.weight, expected)
    with torch.no_grad():
        words.rows.zero_()
    words.load(0.25)
    assert torch.equal(words.rows, before[words.ids] + 1)
    with pytest.raises(TrainingError, match="started from other embeddings than those of the model"):
        words.load(0.5)
    with pytest.raises(IndexError), words.in_use():  # another word has no place
        model(input_ids=torch.tensor([[3, 6]]))


def test_what_the_model_pads_with_is_among_them() -> None:
    module = random_model("bert").get_input_embeddings()
    module.padding_idx = 7
    model = random_model("bert")
    model.set_input_embeddings(module)
    words = make_embedding_subset(model, split_of(ROWS), 2, CPU)
    assert words is not None
    assert {2, 7} < set(words.ids.tolist())


@pytest.mark.parametrize("device", ["cuda", "mps", "xpu", "meta"])
def test_on_an_accelerator_the_whole_table_is_trained(device: str) -> None:
    model = random_model("bert")
    assert make_embedding_subset(model, split_of(ROWS), 0, CPU) is not None
    assert make_embedding_subset(model, split_of(ROWS), 0, torch.device(device)) is None


def test_code_that_comes_with_a_checkpoint_keeps_its_table(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("bert")
    monkeypatch.setattr(type(model), "__module__", "transformers_modules.someone.modeling")
    assert make_embedding_subset(model, split_of(ROWS), 0, CPU) is None


def test_nothing_is_done_where_the_table_is_not_trained_or_shared(tiny_bert: Path) -> None:
    assert (
        make_embedding_subset(tiny_classifier(tiny_bert, lora=Lora(2, 4, 0.0, ROLES)).base, split_of(ROWS), 0, CPU)
        is None
    )
    model = random_model("bert")
    model.tied = torch.nn.Linear(24, 30, bias=False)
    model.tied.weight = model.get_input_embeddings().weight
    assert make_embedding_subset(model, split_of(ROWS), 0, CPU) is None


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_the_same_is_trained_as_with_the_whole_table(
    tiny_bert: Path, accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weight_decay: float
) -> None:
    # See plain_steps.py for the epsilon. With this rate, decay takes a hundredth from a weight.
    training = TrainingSection(learning_rate=1e-2, weight_decay=weight_decay, adam_epsilon=0.1)
    trained: list[list[Tensor]] = []

    def train() -> Trainer:
        torch.manual_seed(7)  # of the head
        classifier, states = tiny_classifier(tiny_bert), []
        split = encoded(classifier, SENTENCES[:3])
        trainer = build_trainer(classifier, split, plan(batch_size=1), Hyperparameters(training, seed=0), accelerator)
        weight = classifier.base.get_input_embeddings().weight

        def evaluate() -> dict[str, float]:
            states.append(weight.detach().clone())
            return {"loss": -float(len(states))}  # the last is the best

        states.append(weight.detach().clone())
        trainer.fit(tmp_path, evaluation=Evaluation(evaluate))
        assert torch.equal(weight, states[-1])
        trained.append(states)
        return trainer

    words = train().stepper.model.embeddings
    monkeypatch.setattr(build_module, "make_embedding_subset", lambda *_: None)
    assert train().stepper.model.embeddings is None
    assert words is not None
    others = sorted(set(range(len(words.weight))) - set(words.ids.tolist()))
    assert len(others) > 3
    (before, middle, after), whole = trained
    assert torch.equal(before, whole[0])
    for own, theirs in zip((middle, after), whole[1:], strict=True):
        assert torch.allclose(own, theirs, rtol=0, atol=TRAINED)
        assert torch.equal(own[others], before[others]) == (weight_decay == 0)
    assert (after[words.ids[1:]] != middle[words.ids[1:]]).any(1).all()
