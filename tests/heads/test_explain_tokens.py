from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from finetune.heads import explain
from finetune.heads.explain_tokens import MAX_STEPS, _path_points
from finetune.models.classifier import Classifier
from tests.conftest import SENTENCES
from tests.models.test_head_gates import bert_lora
from tests.support.helpers import assert_equal_up_to_rounding, tiny_classifier
from tests.support.known_head import known_head


class BagOfWords(nn.Module):
    """A linear model of the embeddings: the mean over tokens of one number per word."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.embedding, self.linear = nn.Embedding(words, 4), nn.Linear(4, 1)
        self.device = torch.device("cpu")

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        mask = attention_mask[..., None]
        return SimpleNamespace(logits=self.linear((self.embedding(input_ids) * mask).sum(1) / mask.sum(1)))


def inputs_of(classifier: Any, texts: list[str] = SENTENCES) -> dict[str, Tensor]:
    encoding: dict[str, Tensor] = classifier.tokenizer(texts, padding=True, return_tensors="pt").data
    return {name: encoding[name] for name in ("input_ids", "attention_mask")}


def test_the_attributions_of_a_linear_model_are_its_terms(tiny_bert: Path) -> None:
    tokenizer = tiny_classifier(tiny_bert).tokenizer
    torch.manual_seed(0)
    model = BagOfWords(len(tokenizer))
    classifier: Any = SimpleNamespace(base=model, tokenizer=tokenizer, problem_type="regression")
    inputs = inputs_of(classifier)
    for steps in (1, 12):
        results = explain.token_attributions(classifier, inputs, steps=steps, max_steps=steps)
        assert len(results) == 6
        for row, result in enumerate(results):
            ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()]
            word, baseline = model.embedding(ids), model.embedding(torch.tensor(tokenizer.pad_token_id))
            expected = ((word - baseline) @ model.linear.weight[0] / len(ids)).detach()
            weight = _path_points(steps)[1].mean()  # the weights of one point do not sum to 1 yet: they are an integral
            assert_equal_up_to_rounding(result.values, expected * weight)
            if steps == 12:
                assert abs(result.completeness_gap) < 2e-3 * sum(map(abs, result.values))


def test_more_points_close_the_completeness_gap(tiny_bert: Path) -> None:
    classifier = bert_lora(tiny_bert)
    inputs = inputs_of(classifier)
    gaps = []
    for steps in (4, 12, 36, 108):
        results = explain.token_attributions(classifier, inputs, steps=steps, max_steps=steps)
        assert {result.steps for result in results} == {steps}
        gaps.append(np.mean([abs(result.completeness_gap) for result in results]))
        for result in results:  # padding has no share: the tokens alone give the gap
            difference = result.score - result.baseline_score
            assert result.completeness_gap == pytest.approx(sum(result.values) - difference, abs=1e-6)
    assert gaps[0] > gaps[1] > gaps[2] > 2 * gaps[3]
    size = np.mean([abs(result.score - result.baseline_score) for result in results])
    assert gaps[3] < 0.05 * size


def test_rows_with_a_large_gap_get_more_points(tiny_bert: Path) -> None:
    classifier = bert_lora(tiny_bert)
    inputs = inputs_of(classifier)
    refined = explain.token_attributions(classifier, inputs, steps=4)
    assert len({result.steps for result in refined}) > 1
    assert all(result.is_complete() or result.steps == MAX_STEPS for result in refined)
    for row, result in enumerate(refined):  # the earlier points are not computed again, and the sum is the same
        direct = explain.token_attributions(classifier, inputs, steps=result.steps, max_steps=result.steps)[row]
        assert_equal_up_to_rounding(result.values, direct.values)


def test_the_batch_changes_only_rounding(tiny_bert: Path) -> None:
    classifier = bert_lora(tiny_bert)
    together = explain.token_attributions(classifier, inputs_of(classifier), steps=4, max_steps=4)
    for text, result in zip(SENTENCES, together, strict=True):
        (alone,) = explain.token_attributions(classifier, inputs_of(classifier, [text]), steps=4, max_steps=4)
        assert_equal_up_to_rounding(result.values, alone.values)
        assert len(result.values) == len(text.split())


def test_special_tokens_are_part_of_the_baseline(tiny_bert: Path) -> None:
    classifier = tiny_classifier(tiny_bert)
    classifier.tokenizer.cls_token = "the"  # as if this word were special
    assert sum("the" in text.lower().split() for text in SENTENCES) > 1
    results = explain.token_attributions(classifier, inputs_of(classifier), steps=4, max_steps=4)
    for text, result in zip(SENTENCES, results, strict=True):
        for word, value in zip(text.lower().split(), result.values, strict=True):
            assert (value == 0) == (word == "the")


@pytest.mark.parametrize("baseline", ["pad", "mask"])
def test_the_planted_word_carries_the_score(baseline: str) -> None:
    sample = known_head()
    classifier: Classifier = sample.classifier
    classifier.tokenizer.mask_token = "[UNK]"
    texts = list(sample.split.texts["sentence"])
    results = explain.token_attributions(classifier, inputs_of(classifier, texts), baseline=baseline)
    assert len(results) == 64
    for text, result in zip(texts, results, strict=True):
        planted = [word in ("good", "bad") for word in text.split()].index(True)
        shares = np.abs(result.values)
        assert shares.argmax() == planted
        assert result.values[planted] > 0
        assert shares[planted] > 0.6 * shares.sum()
