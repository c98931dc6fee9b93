from __future__ import annotations

import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, EsmTokenizer, PreTrainedTokenizerBase

from finetune.data.long_text import TokenLimit
from finetune.errors import ModelError
from finetune.models.inference import text_encoder
from finetune.models.text_batches import encode_texts
from tests.conftest import SENTENCES

MAX_LENGTH = 8
COLUMNS = {"texts": [SENTENCES], "pairs": [SENTENCES, SENTENCES[::-1]]}


@pytest.fixture(scope="module", params=["right", "left"])
def tokenizer(request: pytest.FixtureRequest, tiny_bert: Path) -> PreTrainedTokenizerBase:
    """A tokenizer with special tokens and segment ids, which pads and truncates on one side."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tiny_bert)
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer.padding_side = tokenizer.truncation_side = request.param
    return tokenizer


@pytest.mark.parametrize("columns", COLUMNS.values(), ids=COLUMNS)
def test_batches_equal_those_of_transformers(tokenizer: PreTrainedTokenizerBase, columns: list[list[str]]) -> None:
    encoder = text_encoder(tokenizer, MAX_LENGTH)
    encoded = encoder.encode(columns)
    full = tokenizer(*columns)["input_ids"]
    assert encoded.truncated == sum(len(ids) > MAX_LENGTH for ids in full) > 0
    for rows in ([0, 1, 2, 3, 4, 5], [4], [5, 0]):
        chosen = [[column[row] for row in rows] for column in columns]
        expected = tokenizer(*chosen, truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="np")
        batch = encoder.batch(encoded, np.array(rows))
        assert batch.keys() == expected.keys()
        for name, values in batch.items():
            np.testing.assert_array_equal(values, expected[name])
            assert values.dtype == np.int64


def test_a_tokenizer_in_python_gives_the_token_ids_of_transformers(tmp_path: Path) -> None:
    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join(["<cls>", "<pad>", "<eos>", "<unk>", "<mask>", *words]), encoding="utf-8")
    tokenizer = EsmTokenizer(str(file))
    assert not tokenizer.is_fast
    encoder = text_encoder(tokenizer, MAX_LENGTH)
    for columns in COLUMNS.values():
        encoded = encoder.encode(columns)
        expected = tokenizer(*columns, truncation=True, max_length=MAX_LENGTH)
        assert encoded.ids.tolist() == [token for ids in expected["input_ids"] for token in ids]
        assert encoded.lengths.tolist() == [len(ids) for ids in expected["input_ids"]]
        assert encoded.truncated == sum(len(ids) > MAX_LENGTH for ids in tokenizer(*columns)["input_ids"]) > 0


def test_the_tokenizer_itself_keeps_its_settings(tokenizer: PreTrainedTokenizerBase) -> None:
    before = tokenizer.backend_tokenizer.to_str()
    encoder = text_encoder(tokenizer, MAX_LENGTH)
    assert len(encoder.encode([SENTENCES]).ids) > 0
    assert tokenizer.backend_tokenizer.to_str() == before


def test_an_encoder_can_be_sent_to_another_process(tokenizer: PreTrainedTokenizerBase) -> None:
    encoder = text_encoder(tokenizer, MAX_LENGTH)
    copied = pickle.loads(pickle.dumps(encoder))
    np.testing.assert_array_equal(copied.encode([SENTENCES]).ids, encoder.encode([SENTENCES]).ids)


def test_a_text_that_the_tokenizer_cannot_read_gives_one_error_message() -> None:
    damaged = Tokenizer(models.WordLevel({"a": 0}, unk_token="[UNK]"))
    with pytest.raises(ModelError, match=re.escape("tokenizer cannot read a text")):
        encode_texts(damaged, TokenLimit(8), [["b"]])


def test_importing_the_module_loads_no_torch() -> None:
    program = (
        "import sys, finetune.models.text_batches; print({'torch', 'transformers', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
