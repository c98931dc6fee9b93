from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.demo.explorer import Explorer, Heads
from finetune.errors import DataError, ModelError
from finetune.heads.explain import target_scores
from finetune.heads.pruning import pruned_classifier
from finetune.models.classifier import Classifier
from tests.models.test_head_gates import bert, bert_lora, small
from tests.support.helpers import FLOAT32, assert_equal_up_to_rounding, tiny_classifier

TEXT = ("the dog chased the cat",)
OFF: Heads = frozenset({(0, 1), (1, 0)})


def pruned(checkpoint: Path) -> Classifier:
    return pruned_classifier(bert(checkpoint), {0: [2]})


def half(checkpoint: Path) -> Classifier:
    classifier = bert(checkpoint)
    classifier.model.bfloat16()
    return classifier


def with_problem(problem_type: str) -> Callable[[Path], Classifier]:
    def build(checkpoint: Path) -> Classifier:
        labels = ("value",) if problem_type == "regression" else ("no", "yes")
        classifier = tiny_classifier(checkpoint, labels=labels)
        classifier.base.config.problem_type = problem_type
        return classifier

    build.__name__ = problem_type
    return build


BUILDERS = [
    bert, bert_lora, small, pruned, half, with_problem("multi_label_classification"), with_problem("regression"),
]  # fmt: skip


@pytest.fixture(params=BUILDERS, ids=lambda build: build.__name__)
def classifier(request: pytest.FixtureRequest, tiny_bert: Path) -> Classifier:
    built: Classifier = request.param(tiny_bert)
    built.model.eval()
    return built


def gated_probabilities(classifier: Classifier, texts: tuple[str, ...], off: Heads) -> list[float]:
    with classifier.heads_off(sorted(off)):
        logits = classifier.logits([[text] for text in texts], batch_size=1)
    return [float(value) for value in classifier.rules.probabilities(logits)[0]]


def test_heads_off_give_what_the_python_gate_gives(classifier: Classifier) -> None:
    prediction = Explorer(classifier).predict(TEXT, OFF)
    # The last bits of a matrix product depend on where its operands are in memory; bfloat16 has 8 bits.
    rounding = FLOAT32 if next(classifier.model.parameters()).dtype == torch.float32 else 0.02
    assert_equal_up_to_rounding(prediction.heads_off, gated_probabilities(classifier, TEXT, OFF), rounding)
    assert_equal_up_to_rounding(prediction.all_heads, gated_probabilities(classifier, TEXT, frozenset()), rounding)
    changes = np.subtract(prediction.all_heads, prediction.heads_off)
    assert np.abs(changes).max() > 2 * rounding * np.abs(prediction.all_heads).max()
    decided = classifier.predict(list(TEXT))[0].label
    if classifier.problem_type == "regression":
        assert prediction.decided_all_heads == []
        assert_equal_up_to_rounding(prediction.all_heads, [decided])
    else:
        names = [classifier.label_names[label] for label in prediction.decided_all_heads]
        assert names == (list(decided) if isinstance(decided, tuple) else [decided])


def test_effects_are_those_of_one_more_head_off(classifier: Classifier) -> None:
    explanation = Explorer(classifier).explain(TEXT, OFF)
    target = torch.tensor([explanation.target])

    def score(off: Heads) -> float:
        with classifier.heads_off(sorted(off)):
            logits = torch.from_numpy(classifier.logits([[text] for text in TEXT], batch_size=1))
        return float(target_scores(logits, target, classifier.problem_type))

    measured = {
        (layer, head): effect
        for layer, row in enumerate(explanation.effects)
        for head, effect in enumerate(row)
        if effect is not None
    }
    assert measured.keys() == Explorer(classifier).heads - OFF
    if next(classifier.model.parameters()).dtype == torch.float32:
        expected = [score(OFF) - score(OFF | {head}) for head in measured]
        # Differences of scores: the tolerance is relative to the scores.
        np.testing.assert_allclose(list(measured.values()), expected, rtol=0, atol=1e-4 * max(1, abs(score(OFF))))
        assert explanation.attributions.score == pytest.approx(score(OFF), rel=1e-4)
    attributions = explanation.attributions
    gap = sum(attributions.values) - (attributions.score - attributions.baseline_score)
    assert gap == pytest.approx(attributions.completeness_gap, abs=1e-6)
    assert len(attributions.values) == len(explanation.tokens)


def test_estimated_effects_and_attention_use_the_heads_that_are_on(tiny_bert: Path) -> None:
    explorer = Explorer(bert(tiny_bert))
    explorer.classifier.model.eval()
    estimated = explorer.explain(TEXT, OFF, exact=False)
    assert estimated.effects[0][1] is None
    assert estimated.effects != explorer.explain(TEXT, exact=False).effects
    label = 1 - estimated.target
    other = explorer.explain(TEXT, OFF, target=label)
    assert other.target == label
    # The log-odds of the second of two labels are minus those of the first.
    assert_equal_up_to_rounding(other.attributions.values, np.negative(estimated.attributions.values))
    with pytest.raises(ModelError, match="there is no label 2; the labels are 0 to 1"):
        explorer.explain(TEXT, target=2)
    maps = [explorer.attention(TEXT, (1, 2), off) for off in (frozenset(), OFF)]
    assert maps[0].tokens == estimated.tokens
    for attention in maps:
        assert_equal_up_to_rounding(np.sum(attention.weights, axis=1), np.ones(len(attention.tokens)), of_largest=1e-3)
    changes = np.subtract(maps[0].weights, maps[1].weights)
    assert np.abs(changes).max() > 1e-2  # head (0, 1) is below layer 1
    below = [explorer.attention(TEXT, (0, 0), off).weights for off in (frozenset(), OFF)]
    assert_equal_up_to_rounding(below[0], below[1], of_largest=2e-4)  # the weights have four decimals


def test_people_do_not_disturb_each_other(tiny_bert: Path) -> None:
    explorer = Explorer(bert(tiny_bert))
    explorer.classifier.model.eval()
    heads = sorted(explorer.heads)
    expected = np.array([gated_probabilities(explorer.classifier, TEXT, frozenset({head})) for head in heads])
    differences = np.abs(expected[:, None] - expected)[~np.eye(len(heads), dtype=bool)].max(-1)
    assert differences.min() > 10 * FLOAT32  # so that the heads of another person would be noticed

    def person(head: tuple[int, int]) -> list[list[float]]:
        found = []
        for number in range(8):
            found.append(explorer.predict(TEXT, frozenset({head})).heads_off)
            if number % 4 == 0:
                explorer.explain(TEXT, frozenset({head}), exact=False)
                explorer.attention(TEXT, head, frozenset({head}))
        return found

    with ThreadPoolExecutor(len(heads)) as people:
        assert_equal_up_to_rounding(list(people.map(person, heads)), np.repeat(expected[:, None], 8, axis=1))
    hooks = [hook for module in explorer.classifier.model.modules() for hook in module._forward_pre_hooks]
    assert hooks == []


def test_long_texts_are_truncated_and_wrong_requests_are_errors(tiny_bert: Path) -> None:
    explorer = Explorer(small(tiny_bert))
    explorer.classifier.model.eval()
    long = explorer.predict(("cat " * 25_000,))
    assert (long.tokens, long.truncated) == (16, True)
    assert not explorer.predict(TEXT).truncated
    for call in (lambda: explorer.predict(TEXT, frozenset({(0, 3)})), lambda: explorer.attention(TEXT, (2, 0))):
        with pytest.raises(ModelError, match=r"there is no head .\..; the heads per layer are 3, 3"):
            call()
    with pytest.raises(DataError, match="the text has no tokens; write at least one word"):
        explorer.predict((" ",))


def test_pairs(tiny_bert: Path) -> None:
    classifier = replace(bert(tiny_bert), text_columns=("first", "second"))
    classifier.model.eval()
    pair = ("the cat sat", "a dog sat")
    explorer = Explorer(classifier)
    assert_equal_up_to_rounding(explorer.predict(pair, OFF).heads_off, gated_probabilities(classifier, pair, OFF))
    assert len(explorer.explain(pair).tokens) == explorer.predict(pair).tokens == 6
