from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from finetune.heads.explain_token_texts import Token, readable_tokens
from tests.conftest import SENTENCES
from tests.support.helpers import tiny_classifier


def test_tokens_of_pairs_have_their_positions(tiny_bert: Path) -> None:
    classifier = tiny_classifier(tiny_bert)
    classifier.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A", pair="[UNK] $A [PAD] $B:1", special_tokens=[("[UNK]", 1), ("[PAD]", 0)]
    )
    assert readable_tokens(classifier, [["The CAT sat", "A dog"], ["the Mat", "on"]]) == [
        [
            *(Token("[UNK]"), Token("The", 0, 3, 0), Token("CAT", 4, 7, 0), Token("sat", 8, 11, 0)),
            *(Token("[PAD]"), Token("the", 0, 3, 1), Token("Mat", 4, 7, 1)),
        ],
        [Token("[UNK]"), Token("A", 0, 1, 0), Token("dog", 2, 5, 0), Token("[PAD]"), Token("on", 0, 2, 1)],
    ]
    assert [token.text for token in readable_tokens(classifier, [SENTENCES])[0]] == SENTENCES[0].split()


def test_tokens_within_a_word_begin_with_two_hashes(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = tiny_classifier(tiny_bert)
    spans = {
        "input_ids": [[2, 5, 6, 7, 8, 9, 3]],
        # "un", "able", ",", " to" with its space, the space alone
        "offset_mapping": [[(0, 0), (0, 2), (2, 6), (6, 7), (7, 10), (10, 11), (0, 0)]],
    }

    class Encoding(dict[str, object]):
        def sequence_ids(self, row: int) -> list[int | None]:
            return [None, 0, 0, 0, 0, 0, None]

    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", lambda *args, **kwargs: Encoding(spans))
    tokens = readable_tokens(classifier, [["unable, to "]])[0]
    space = str(classifier.tokenizer.convert_ids_to_tokens(9))
    assert [token.text for token in tokens[1:-1]] == ["un", "##able", ",", "to", space]
    assert (tokens[4].start, tokens[4].end) == (8, 10)
