"""The description of every split, and findings about tokens: finetune/data/quality.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from finetune.data import quality
from finetune.data.long_text import TRUNCATE, LongText
from finetune.data.quality import SplitTokens, data_quality, measure_tokens
from finetune.data.splits import LabeledSplits, encode_splits, read_labeled
from finetune.models.pretrained import Source, load_tokenizer
from finetune.recipe.data_section import DataSection
from finetune.runs.data_quality import DataQuality, Finding
from finetune.runs.token_lengths import length_quantiles

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
WORDS = ("cat", "dog", "mat", "floor")
TRAIN = [
    {"sentence": f"the {one} sat on the {two} {'now ' * number}", "label": "xy"[number % 2]}
    for one in WORDS
    for two in WORDS
    for number in (1, 2)
]


@pytest.fixture(scope="module")
def tokenizer(tiny_bert: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(Source(str(tiny_bert)))


def labeled_rows(rows: list[dict[str, object]], problem_type: str = SINGLE, **keys: object) -> LabeledSplits:
    data = DataSection.model_validate({"train_rows": rows, "validation_size": None, **keys})
    return read_labeled(data, problem_type, None, seed=0)


def measured(
    labeled: LabeledSplits,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int = 16,
    limit: float = 512,
    long_text: LongText = TRUNCATE,
) -> DataQuality:
    tokens = {
        name: measure_tokens(raw, tokenizer, labeled.text_columns, max_length, long_text)
        for name, raw in labeled.raw.items()
    }
    return data_quality(labeled, tokens, tokenizer, max_length, limit, long_text)


def kinds(result: DataQuality) -> dict[str, Finding]:
    return {finding.kind: finding for finding in result.findings}


def test_the_tokens_are_those_of_training(tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [*TRAIN, {"sentence": "a zebra sat " * 9, "label": "x"}]
    labeled = labeled_rows(rows)
    split = encode_splits(labeled, tokenizer, 12).encoded["train"]
    monkeypatch.setattr(quality, "_BLOCK_ROWS", 7)
    tokens = measure_tokens(labeled.raw["train"], tokenizer, ["sentence"], 12)
    assert tokens.lengths.tolist() == split.true_lengths.tolist()
    assert tokens.lengths.max() > 12
    assert (tokens.truncated_share, tokens.unknown_share) == (split.truncated, split.unknown)
    assert tokens.unknown_share > 0


def test_the_splits_are_described(tokenizer: PreTrainedTokenizerBase) -> None:
    test = [{"sentence": "the floor is clean", "label": "x"}]
    result = measured(labeled_rows(TRAIN, test_rows=test), tokenizer)
    assert list(result.splits) == ["train", "test"]
    train = result.splits["train"]
    assert (train.rows, train.label_counts) == (32, {"x": 16, "y": 16})
    lengths = np.array([len(tokenizer(str(row["sentence"])).input_ids) for row in TRAIN])
    tokens = train.tokens
    assert list(length_quantiles(lengths).values()) == [
        tokens.median, tokens.p90, tokens.p95, tokens.p99, tokens.longest,
    ]  # fmt: skip
    counts, _ = np.histogram(lengths, np.array(tokens.bin_edges) + 0.5)
    assert tokens.bin_rows == counts.tolist()
    assert sum(tokens.bin_rows) == 32
    assert [finding.kind for finding in result.findings] == ["few_scored_rows"]


def test_label_sets_and_values_are_described(tokenizer: PreTrainedTokenizerBase) -> None:
    sets = [{**row, "label": label} for row, label in zip(TRAIN, [["x", "y"], ["x"], [], ["y"]] * 8, strict=True)]
    found = measured(labeled_rows(sets, MULTI), tokenizer).splits["train"]
    assert found.label_set_sizes is not None
    assert vars(found.label_set_sizes) == {"mean": 1.0, "largest": 2, "rows_without_label": 8}
    values = [{**row, "label": number} for number, row in enumerate(TRAIN)]
    found = measured(labeled_rows(values, REGRESSION), tokenizer).splits["train"]
    assert found.label_counts == {}
    assert found.values is not None
    assert (found.values.lowest, found.values.mean, found.values.highest) == (0, 15.5, 31)
    assert found.values.standard_deviation == pytest.approx(9.23, abs=0.01)


@pytest.mark.parametrize(
    ("limit", "hint"),
    [
        (512, "raise data.max_length to 32, or set data.long_text"),
        (8, "the model takes no longer rows, so set data.long_text"),
    ],
)
def test_many_truncated_rows(limit: float, hint: str, tokenizer: PreTrainedTokenizerBase) -> None:
    long = [{"sentence": "the cat sat " * 8 + row["sentence"], "label": row["label"]} for row in TRAIN[:2]]
    found = kinds(measured(labeled_rows([*TRAIN, *long]), tokenizer, 15, limit))["truncated"]
    assert found.rows == 2
    assert found.message.startswith("5.9% of the train rows are longer than data.max_length")
    assert found.message.endswith(hint)
    assert "truncated" not in kinds(measured(labeled_rows([*TRAIN, long[0]]), tokenizer, 15))


@pytest.mark.parametrize(
    ("long_text", "message"),
    [
        (
            LongText("head_tail"),
            "longer than data.max_length: the model does not see their middle. To change that, r",
        ),
        (LongText("window", max_windows=1), "do not fit in data.max_windows (1) windows: the model does not see the r"),
        (LongText("window", max_windows=2), ""),
    ],
)
def test_what_is_not_read_of_long_rows(long_text: LongText, message: str, tokenizer: PreTrainedTokenizerBase) -> None:
    long = [{"sentence": "the cat sat " * 8 + row["sentence"], "label": row["label"]} for row in TRAIN[:2]]
    found = kinds(measured(labeled_rows([*TRAIN, *long]), tokenizer, 20, 512, long_text))
    assert message in found["truncated"].message if message else "truncated" not in found


def test_a_language_that_the_tokenizer_does_not_know(tokenizer: PreTrainedTokenizerBase) -> None:
    chinese = [{**row, "sentence": f"\u8fd9 \u90e8 \u7535 \u5f71 {row['sentence']}"} for row in TRAIN[:20]]
    words = sum(len(tokenizer(str(row["sentence"])).input_ids) for row in TRAIN)
    found = kinds(measured(labeled_rows([*TRAIN[20:], *chinese]), tokenizer, 32))["unknown_tokens"]
    assert found.message.startswith(f"{80 / (words + 80):.0%} of the train tokens are unknown to the tokenizer")
    assert [group[0].text[:3] for group in found.examples] == ["\u8fd9 \u90e8"] * 3


def test_texts_without_a_token(tokenizer: PreTrainedTokenizerBase) -> None:
    labeled = labeled_rows([*TRAIN, {"sentence": "\u200b\u200d", "label": "x"}])
    tokens = {"train": SplitTokens(np.r_[np.full(32, 9), 0], 0.0, 0.0)}  # BERT's normalizer removes these characters
    found = kinds(data_quality(labeled, tokens, tokenizer, 16, 512))["empty_texts"]
    assert (found.rows, found.examples[0][0].row) == (1, 33)


def test_rows_that_are_names_of_labels_are_left_out(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [{**row, "label": {"x": "happy end", "y": "sad end"}[str(row["label"])]} for row in TRAIN]
    labeled = labeled_rows(rows, label_name_rows=True)
    assert len(labeled.labels["train"]) == 34
    tokens = {"train": SplitTokens(np.r_[np.full(32, 9), 99, 99], 0.0, 0.0)}
    found = data_quality(labeled, tokens, tokenizer, 16, 512).splits["train"]
    assert (found.rows, found.tokens.longest, found.label_counts) == (32, 9, {"happy end": 16, "sad end": 16})


def test_many_rows_are_not_compared(tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "MAX_COMPARED_ROWS", 31)
    result = measured(labeled_rows(TRAIN), tokenizer)
    assert result.unchecked == ["Nearly equal texts were not searched, because there are more than 31 rows."]
