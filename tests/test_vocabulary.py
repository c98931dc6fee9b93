"""Training the embeddings of those words alone that training rows hold: every family, and what becomes of the rest."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel

from finetune.data.encoding import EncodedSplit
from finetune.families import FAMILIES
from finetune.loop import Loop
from finetune.lora import Lora
from finetune.progress import TrainingProgress
from finetune.recipe import TrainingSection
from finetune.scoring import predict
from finetune.training import fit
from finetune.vocabulary import trained_words
from tests.helpers import ROLES, encoded, plan, tiny_classifier
from tests.test_first_token import small

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
    model = small(family).eval().double()
    expected = logits_of(model)
    expected.square().sum().backward()
    whole = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    words = trained_words(model, split_of(ROWS), 0, CPU)
    assert (words is None) == (family in WHOLE)
    if words is None:
        return
    assert words.ids.tolist() == [0, 1, 3, 4, 5, 9, 17, 21, 28]
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
    model = small("bert").eval()
    words = trained_words(model, split_of(ROWS), 2, CPU)
    assert words.ids.tolist() == [0, 1, 2, 3, 4, 5, 9, 17, 21, 28]
    before = words.weight.detach().clone()
    with torch.no_grad():
        words.rows += 1
    assert torch.equal(words.weight, before)
    words.write_back()
    expected = before.clone()
    expected[words.ids] += 1
    assert torch.equal(words.weight, expected)
    with torch.no_grad():
        words.weight.zero_()
    words.read_again()
    assert not words.rows.any()
    with pytest.raises(IndexError), words.in_use():  # another word has no place
        model(input_ids=torch.tensor([[3, 6]]))


def test_nothing_is_done_where_the_table_is_not_trained_or_shared(tiny_bert: Path) -> None:
    assert trained_words(tiny_classifier(tiny_bert, lora=Lora(2, 4, 0.0, ROLES)).base, split_of(ROWS), 0, CPU) is None
    model = small("bert")
    model.tied = torch.nn.Linear(24, 30, bias=False)
    model.tied.weight = model.get_input_embeddings().weight
    assert trained_words(model, split_of(ROWS), 0, CPU) is None


def test_words_of_no_training_row_keep_their_embeddings(
    tiny_bert: Path, accelerator: Accelerator, tmp_path: Path
) -> None:
    classifier = tiny_classifier(tiny_bert)
    split = encoded(classifier)
    weight = classifier.base.get_input_embeddings().weight
    before, seen = weight.detach().clone(), sorted({0, *(word for row in split.rows["input_ids"] for word in row)})
    others = sorted(set(range(len(weight))) - set(seen))
    assert others
    training = TrainingSection(learning_rate=1e-2, weight_decay=0.5)
    loop = Loop(classifier, split, plan(), training, seed=0, accelerator=accelerator)
    evaluated = []

    def evaluate() -> dict[str, float]:
        evaluated.append(weight.detach().clone())
        return {"loss": predict(classifier, split, batch_size=4, accelerator=accelerator).metrics()["loss"]}

    with TrainingProgress(Console(quiet=True)) as progress:
        fit(loop, evaluate=evaluate, progress=progress, checkpoints=tmp_path)
    assert len(evaluated) == 2
    for found, earlier in zip(evaluated, [before, evaluated[0]], strict=True):
        assert torch.equal(found[others], before[others])
        assert (found[seen[1:]] != earlier[seen[1:]]).any(1).all()
