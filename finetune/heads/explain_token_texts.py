"""The tokens of texts as readable text, with their positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from transformers import PreTrainedTokenizerBase

from finetune.data.long_text import TokenLimit, window_positions
from finetune.data.tokenizer_calls import tokenize_in_python
from finetune.models.classifier import Classifier


@dataclass(frozen=True)
class Token:
    """A token as readable text.

    Attributes:
        text: the characters of the text, preceded by ## if the token continues a word; the name of a special token.
        start, end: position in the text; None for special tokens, and for tokenizers without character positions.
        column: 0 or 1, the text of a pair; None for special tokens.
    """

    text: str
    start: int | None = None
    end: int | None = None
    column: int | None = None


def readable_tokens(classifier: Classifier, columns: Sequence[Sequence[str]]) -> list[list[Token]]:
    """Return the tokens of each text, or of each pair of texts, in the order in which the model reads them.

    Of a text with several windows these are the tokens of the first window.

    Args:
        columns: one or two columns of texts.
    """
    tokenizer, fast = classifier.tokenizer, classifier.tokenizer.is_fast
    texts = [list(column) for column in columns]
    limit = TokenLimit(classifier.max_length, classifier.long_text, tokenizer.truncation_side)
    if not fast:
        rows = tokenize_in_python(tokenizer, limit, texts)
        return [[_named(tokenizer, token_id) for token_id in row.windows[0].ids] for row in rows]
    encoded = tokenizer(*texts, truncation=False, return_offsets_mapping=True, padding=False, verbose=False)
    tokens = []
    for row, ids in enumerate(encoded["input_ids"]):
        columns_of_tokens, kept = encoded.sequence_ids(row), list(range(len(ids)))
        if len(ids) > limit.max_length:
            kept = window_positions(columns_of_tokens, limit)[0][0]
        spans = encoded["offset_mapping"][row]
        tokens.append(
            _with_spans(
                tokenizer,
                [column[row] for column in texts],
                [ids[position] for position in kept],
                [spans[position] for position in kept],
                [columns_of_tokens[position] for position in kept],
            )
        )
    return tokens


def _named(tokenizer: PreTrainedTokenizerBase, token_id: int) -> Token:
    """Return a token by its name in the vocabulary."""
    return Token(str(tokenizer.convert_ids_to_tokens(token_id)))


def _with_spans(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    ids: Sequence[int],
    spans: Sequence[tuple[int, int]],
    columns: Sequence[int | None],
) -> list[Token]:
    """Return the tokens of one row with their positions in its texts."""
    tokens: list[Token] = []
    for token_id, (start, end), column in zip(ids, spans, columns, strict=True):
        if column is None:
            tokens.append(_named(tokenizer, token_id))
            continue
        text = texts[column]
        start += len(text[start:end]) - len(text[start:end].lstrip())  # some tokenizers count the space before a word
        visible = text[start:end].rstrip() or _named(tokenizer, token_id).text  # a token can be the space alone
        tokens.append(Token(visible, start, end, column))
    continued = [False, *(_continues(texts, first, second) for first, second in pairwise(tokens))]
    return [replace(t, text=f"##{t.text}") if more else t for t, more in zip(tokens, continued, strict=True)]


def _continues(texts: Sequence[str], first: Token, second: Token) -> bool:
    """Return whether a token continues the word of the token before it."""
    if second.column is None or first.column != second.column or first.end != second.start:
        return False
    text, start = texts[second.column], second.start or 0
    return text[start - 1 : start].isalnum() and text[start : start + 1].isalnum()
