from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from finetune.data.batching import LocalBatch, load_batches, split_batch
from finetune.data.long_text import TRUNCATE
from finetune.data.tokenization import EncodedSplit
from finetune.errors import ModelError
from finetune.evaluation.prediction import predict
from finetune.models.classifier import Classifier
from finetune.models.loading import load_classifier
from finetune.models.lora import Lora
from finetune.models.losses import per_example_loss
from finetune.models.pooled_states import pooled_states
from finetune.models.saving import save_classifier
from finetune.training.objective import Objective
from tests.support.helpers import ROLES, assert_equal_up_to_rounding
from tests.support.windows import LONG_TEXTS, windowed

LORA = Lora(r=2, lora_alpha=4, lora_dropout=0.0, roles=ROLES)
CPU = torch.device("cpu")


def batch_of(split: EncodedSplit, classifier: Classifier) -> LocalBatch:
    (batch,) = load_batches(split, [np.arange(len(split))], classifier.tokenizer, device=CPU)
    return batch


def expected_logits(classifier: Classifier, split: EncodedSplit, pooling: str) -> torch.Tensor:
    """Return the logits of each row from those of each of its windows alone, without padding."""
    result = []
    for row in split.rows:
        windows = torch.tensor(row["input_ids"]).split(row["windows"])
        logits = torch.cat([classifier.base(input_ids=window[None]).logits for window in windows])
        result.append(logits.mean(0) if pooling == "mean" else logits.amax(0))
    return torch.stack(result)


@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_the_logits_of_a_row_are_pooled_from_its_windows(tiny_bert: Path, pooling: str, lora: Lora | None) -> None:
    classifier, split = windowed(tiny_bert, pooling=pooling, lora=lora)
    classifier.model.eval()
    inputs = batch_of(split, classifier).inputs
    with torch.no_grad():
        expected = expected_logits(classifier, split, pooling)
        for model in (classifier.model, classifier.base, copy.deepcopy(classifier.model)):
            assert_equal_up_to_rounding(model(**inputs).logits, expected)
    scored = predict(classifier, split, batch_size=2, accelerator=Accelerator(cpu=True))
    assert_equal_up_to_rounding(scored.logits, expected)
    assert_equal_up_to_rounding(classifier.logits([LONG_TEXTS], 3), expected)
    done: list[int] = []
    classifier.encoded_logits(classifier.encoder.encode([LONG_TEXTS]), 3, done.append)
    assert sum(done) == len(LONG_TEXTS)


def test_a_failed_pass_leaves_no_counts_for_the_next_one(tiny_bert: Path) -> None:
    classifier, split = windowed(tiny_bert)
    inputs = batch_of(split, classifier).inputs
    with pytest.raises(IndexError):
        classifier.model(**{**inputs, "input_ids": inputs["input_ids"] + 1000})
    single = {"input_ids": inputs["input_ids"][:3]}
    assert classifier.model(**single).logits.shape == (3, 2)


def gradient(model: nn.Module, losses: torch.Tensor) -> torch.Tensor:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(losses.sum(), trained, allow_unused=True)
    return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])


def test_training_on_parts_of_a_batch_gives_the_gradient_of_the_batch(tiny_bert: Path) -> None:
    classifier, split = windowed(tiny_bert)
    model, batch = classifier.model.eval(), batch_of(split, classifier)

    def losses(part: LocalBatch) -> torch.Tensor:
        return per_example_loss(model(**part.inputs).logits, part.labels, classifier.problem_type)

    parts = [gradient(model, losses(part)) for part in split_batch(batch, 2)]
    assert len(parts) == 3
    assert_equal_up_to_rounding(sum(parts), gradient(model, losses(batch)), 1e-5)


class _Model:
    """Stands for the model in training."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def logits(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        logits: torch.Tensor = self.module(**inputs).logits
        return logits


def test_the_copies_of_r_drop_keep_their_windows(tiny_bert: Path) -> None:
    classifier, split = windowed(tiny_bert)
    model, batch = _Model(classifier.model.eval()), batch_of(split, classifier)
    plain, copies = (Objective(classifier.problem_type, rdrop_alpha=alpha) for alpha in (0.0, 1.0))
    expected = plain.losses(model, batch)  # type: ignore[arg-type]
    assert_equal_up_to_rounding(copies.losses(model, batch), expected)  # type: ignore[arg-type]  # equal without dropout


def test_the_pooled_state_of_a_row_is_the_mean_of_its_windows(tiny_bert: Path) -> None:
    classifier, split = windowed(tiny_bert)
    states = pooled_states(classifier, split, batch_size=2, accelerator=Accelerator(cpu=True))
    row = split.rows[0]
    with torch.no_grad():
        windows = [
            classifier.base.eval().base_model(input_ids=window[None])[0].mean(1)
            for window in torch.tensor(row["input_ids"]).split(row["windows"])
        ]
    assert len(windows) == 3
    assert_equal_up_to_rounding(states[0], torch.cat(windows).mean(0))


def test_a_saved_classifier_reads_long_texts_as_before(tiny_bert: Path, tmp_path: Path) -> None:
    classifier, _ = windowed(tiny_bert, pooling="max")
    save_classifier(classifier, tmp_path)
    loaded = load_classifier(tmp_path)
    assert loaded.long_text == classifier.long_text
    expected = classifier.logits([LONG_TEXTS], 2)
    assert_equal_up_to_rounding(loaded.logits([LONG_TEXTS], 2), expected)
    file = tmp_path / "classifier.json"
    info = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in info.items() if key != "long_text"}))
    earlier = load_classifier(tmp_path)  # written before there were windows
    assert earlier.long_text == TRUNCATE
    first = replace(classifier, long_text=replace(classifier.long_text, max_windows=1))
    assert_equal_up_to_rounding(earlier.logits([LONG_TEXTS], 2), first.logits([LONG_TEXTS], 2))
    for damaged in ({"mode": "all"}, {"window": 3}, {"window_stride": -1}, {"max_windows": "9"}, []):
        file.write_text(json.dumps(info | {"long_text": damaged}))
        with pytest.raises(ModelError, match="contains no saved classifier"):
            load_classifier(tmp_path)
