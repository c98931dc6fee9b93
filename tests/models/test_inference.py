from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from finetune.errors import DataError, TrainingError
from finetune.models.classifier import Classifier
from finetune.models.outputs import Prediction
from tests.conftest import SENTENCES
from tests.support.helpers import FLOAT32, tiny_classifier

PAIRS = list(zip(SENTENCES, reversed(SENTENCES), strict=True))


@pytest.fixture
def classifier(tiny_bert: Path) -> Classifier:
    return tiny_classifier(tiny_bert)


def assert_close(actual: list[Prediction], expected: list[Prediction]) -> None:
    assert len(actual) == len(expected) > 0
    for prediction, expected_prediction in zip(actual, expected, strict=True):
        assert prediction.label == expected_prediction.label
        assert prediction.probabilities == pytest.approx(expected_prediction.probabilities, abs=FLOAT32)


@pytest.mark.parametrize("texts", [SENTENCES, PAIRS], ids=["texts", "pairs"])
@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_predictions_equal_those_of_each_text_alone_in_order(
    classifier: Classifier, texts: list[str] | list[tuple[str, str]], batch_size: int
) -> None:
    classifier.model.eval()
    expected = []
    for text in texts:
        fields = [text] if isinstance(text, str) else list(text)
        with torch.no_grad():
            inputs = classifier.tokenizer(*fields, truncation=True, max_length=16, return_tensors="pt")
            expected += classifier.rules.predictions(classifier.model(**inputs).logits.numpy())
    predictions = classifier.predict(texts, batch_size=batch_size)
    assert_close(predictions, expected)
    assert all(sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-6) for prediction in predictions)


def test_a_model_in_training_mode_predicts_without_dropout_and_keeps_its_mode(classifier: Classifier) -> None:
    classifier.model.train()
    first, second = classifier.predict(SENTENCES), classifier.predict(SENTENCES)
    assert first == second
    assert classifier.model.training
    assert all(parameter.grad is None for parameter in classifier.model.parameters())


def test_threads_give_the_same_predictions_as_one_after_another(classifier: Classifier) -> None:
    classifier.model.eval()
    inputs = [SENTENCES[number % 6 :] + SENTENCES[: number % 6] for number in range(24)]
    expected = [classifier.predict(texts, batch_size=4) for texts in inputs]
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda texts: classifier.predict(texts, batch_size=4), inputs))
    assert results == expected
    assert not classifier.model.training


def test_many_texts_keep_their_order(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.models.classifier._WINDOW_TEXTS", 4)
    texts = [SENTENCES[(number * 5 + number // 7) % 6] for number in range(50)]
    by_text = dict(zip(SENTENCES, classifier.predict(SENTENCES), strict=True))
    assert_close(classifier.predict(texts, batch_size=3), [by_text[text] for text in texts])


def test_top_k_limits_the_probabilities(classifier: Classifier) -> None:
    for prediction in classifier.predict(SENTENCES, top_k=1):
        assert list(prediction.probabilities) == [prediction.label]


def test_no_texts_give_no_predictions(classifier: Classifier) -> None:
    assert classifier.predict([]) == []


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("the cat", "predict takes a list of texts, but got the string 'the cat'; write predict([text])"),
        (["the cat", 3], "item 1 of the texts is '3'; it must be a string, as a text must be"),
        ([None], "item 0 of the texts is 'None'; it must be a string"),
        (["the cat", ("a", "b")], "item 1 of the texts is \"('a', 'b')\"; it must be a string"),
        ([("a", "b"), "the cat"], "item 1 of the texts is 'the cat'; it must be a pair of strings"),
        ([("a", "b"), ("a",)], "item 1 of the texts is \"('a',)\"; it must be a pair of strings"),
        ([("a", "b", "c")], "item 0 of the texts is \"('a', 'b', 'c')\"; it must be a pair of strings"),
        ([("a", 1)], "item 0 of the texts is \"('a', 1)\"; it must be a pair of strings"),
    ],
)
def test_other_inputs_give_one_error_message(classifier: Classifier, texts: object, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        classifier.predict(texts)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_has_at_least_one_text(classifier: Classifier, batch_size: int) -> None:
    with pytest.raises(DataError, match=rf"batch_size is {batch_size}; it must be at least 1"):
        classifier.predict(SENTENCES, batch_size=batch_size)


def test_pairs_and_single_texts_are_not_confused(classifier: Classifier) -> None:
    single, pair = (replace(classifier, text_columns=columns) for columns in (("sentence",), ("question", "answer")))
    assert single.predict(SENTENCES) == classifier.predict(SENTENCES)
    assert pair.predict(PAIRS) == classifier.predict(PAIRS)
    with pytest.raises(DataError, match="predict got pairs of texts, but the classifier was trained on sentence; give"):
        single.predict(PAIRS)
    with pytest.raises(DataError, match="predict got texts, but the classifier was trained on question and answer"):
        pair.predict(SENTENCES)


class _SmallMemory(nn.Module):
    """A model that runs out of memory above `max_rows` rows."""

    def __init__(self, model: nn.Module, max_rows: int) -> None:
        super().__init__()
        self.model, self.max_rows, self.sizes = model, max_rows, list[int]()

    def forward(self, **inputs: torch.Tensor) -> object:
        self.sizes.append(len(inputs["input_ids"]))
        if self.sizes[-1] > self.max_rows:
            raise MemoryError
        return self.model(**inputs)


def test_smaller_batches_are_tried_when_memory_runs_out(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = classifier.predict(SENTENCES)
    monkeypatch.setattr(Classifier, "base", property(lambda self: self.model.model))
    small = _SmallMemory(classifier.model, 2)
    assert_close(replace(classifier, model=small).predict(SENTENCES), expected)
    assert small.sizes == [6, 3, 1, 1, 1, 1, 1, 1]
    with pytest.raises(TrainingError, match="out of memory in prediction with one row at a time"):
        replace(classifier, model=_SmallMemory(classifier.model, 0)).predict(SENTENCES)
