"""Segment ids of pairs, with a small tokenizer of each family's own class."""

from __future__ import annotations

import json
from inspect import signature
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import transformers
from transformers import PreTrainedTokenizerBase
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from finetune.data.batching import load_batches
from finetune.data.rows import RawSplit
from finetune.data.tokenization import encode_split
from finetune.models.architectures import FAMILIES
from finetune.models.inference import text_encoder
from finetune.models.pretrained import Source, load_tokenizer
from tests.support.families import random_model

SPECIAL = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<pad>", "<unk>", "<s>", "</s>", "<mask>", "<cls>", "<eos>"),
    *("<sep>", "</s>NOTUSED", "<unk>NOTUSED"),
]
WORDS = ["the", "cat", "sat", "a", "dog"]
NO_TOKENIZER = {  # family -> why it has no row in TYPES
    "eurobert": "transformers names no tokenizer class",
    "flaubert": "its tokenizer needs sacremoses",
    "modernbert": "transformers names no tokenizer class",
    "multi_head_classifier": "it is built with finetune's own word tokenizer",
    "roformer": "its tokenizer needs rjieba",
    "xlm": "its tokenizer needs sacremoses",
    "xlm-roberta-xl": "transformers names no tokenizer class",
}
CLASSES = {"nystromformer": "AlbertTokenizer"}  # of published checkpoints, where transformers names none
UNIGRAM = {  # classes that take pieces with scores
    *("AlbertTokenizer", "BigBirdTokenizer", "CamembertTokenizer", "DebertaV2Tokenizer", "RemBertTokenizer"),
    "XLMRobertaTokenizer",
}
# The two texts of a pair have segment ids 0 and 1; all other families get none, or have no table of them.
BERT_LIKE = {
    *("albert", "bert", "convbert", "electra", "ernie", "layoutlm", "megatron-bert", "mobilebert", "nomic_bert"),
    *("nystromformer", "rembert", "squeezebert"),
}


def small_tokenizer(family: str, folder: Path) -> PreTrainedTokenizerBase:
    """Return a tokenizer of the family's class for five words."""
    tokenizer_class = getattr(transformers, CLASSES.get(family) or str(TOKENIZER_MAPPING_NAMES[family]))
    names = [*SPECIAL, *(f"{prefix}{word}" for prefix in ("", "Ġ", "▁") for word in WORDS)]
    vocab = {name: index for index, name in enumerate(names)}
    arguments = signature(tokenizer_class.__init__).parameters
    if "vocab" not in arguments:
        (folder / "vocab.txt").write_text("\n".join(names), encoding="utf-8")
        tokenizer: PreTrainedTokenizerBase = tokenizer_class(str(folder / "vocab.txt"))
    elif "merges" in arguments:
        tokenizer = tokenizer_class(vocab=vocab, merges=[])
    else:
        pieces = [(name, -float(index)) for index, name in enumerate([*names, *map(str, range(80))])]
        tokenizer = tokenizer_class(vocab=pieces if tokenizer_class.__name__ in UNIGRAM else vocab)
    return tokenizer


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - NO_TOKENIZER.keys()))
def test_pairs_have_segment_ids_where_the_family_reads_them(family: str, tmp_path: Path) -> None:
    small_tokenizer(family, tmp_path).save_pretrained(tmp_path)
    model = random_model(family).eval()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    tokenizer = load_tokenizer(Source(str(tmp_path)), pairs=True)
    columns = {"first": ["the cat sat", "the cat"], "second": ["a dog", "the dog sat"]}
    raw = RawSplit(datasets.Dataset.from_dict(columns), "rows")
    split = encode_split(raw, np.arange(2), tokenizer, ["first", "second"], 16)
    (batch,) = load_batches(split, [np.arange(2)], tokenizer, device=torch.device("cpu"))
    types = batch.inputs.get("token_type_ids")
    reads_types = "token_type_ids" in signature(type(model).forward).parameters and model.config.type_vocab_size > 1
    if family in BERT_LIKE:
        assert reads_types
        assert types is not None
        second = [ids.index(1) for ids in types.tolist()]
        tokens = [tokenizer.convert_ids_to_tokens(ids) for ids in split.rows["input_ids"]]
        words = [[token.strip("▁") for token in row[at:]] for row, at in zip(tokens, second, strict=True)]
        assert [" ".join(word for word in row if word in WORDS) for row in words] == columns["second"]
        assert all(set(ids[:at]) == {0} for ids, at in zip(types.tolist(), second, strict=True))
    else:
        assert types is None or not reads_types or not types.any()
    inputs = {**batch.inputs, "input_ids": batch.inputs["input_ids"].clamp(max=29)}
    assert model(**inputs).logits.isfinite().all()
    encoder = text_encoder(tokenizer, 16)
    predicted = encoder.batch(encoder.encode(list(columns.values())), np.arange(2))
    assert predicted.keys() == batch.inputs.keys()
    for name, values in predicted.items():
        np.testing.assert_array_equal(values, batch.inputs[name].numpy())


def test_every_family_is_in_the_table_or_has_a_reason() -> None:
    assert BERT_LIKE | NO_TOKENIZER.keys() < FAMILIES.keys()
    assert not BERT_LIKE & NO_TOKENIZER.keys()
