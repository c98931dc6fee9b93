"""What is remarkable about the rows of all splits: their texts, labels and tokens.

N rows
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from finetune.data.labels import label_counts
from finetune.data.long_text import TRUNCATE, LongText, TokenizedRow
from finetune.data.quality_labels import label_findings
from finetune.data.quality_texts import MAX_COMPARED_ROWS, SplitTexts, text_findings
from finetune.data.rows import RawSplit
from finetune.data.splits import LabeledSplits
from finetune.data.tokenization import row_tokenizer
from finetune.progress import stage
from finetune.runs.data_quality import (
    WARNING,
    DataQuality,
    Finding,
    LabelSetSizes,
    RowExample,
    SplitQuality,
    TokenLengths,
    ValueRange,
)
from finetune.runs.results import MAX_TRUNCATED_SHARE, MAX_UNKNOWN_SHARE, unknown_message
from finetune.runs.token_lengths import length_quantiles, truncation_hint, usual_length

_BLOCK_ROWS = 1000  # rows that are tokenized at a time
_EXAMPLE_ROWS = 1000  # the first rows, in which examples of unknown tokens are searched
_EXAMPLES = 3
_BINS = 8  # of the histogram of lengths


@dataclass(frozen=True)
class SplitTokens:
    """The tokens of a split.

    Attributes:
        lengths: tokens per row before truncation, (N,).
        truncated_share: share of the rows that are truncated.
        unknown_share: share of the tokens that the tokenizer does not know.
    """

    lengths: np.ndarray
    truncated_share: float
    unknown_share: float


def measure_tokens(
    raw: RawSplit,
    tokenizer: PreTrainedTokenizerBase,
    columns: Sequence[str],
    max_length: int,
    long_text: LongText = TRUNCATE,
) -> SplitTokens:
    """Return the numbers of tokens of all rows, as training tokenizes them, in blocks."""
    read_rows = row_tokenizer(tokenizer, max_length, long_text)
    lengths: list[int] = []
    truncated = unknown = kept = 0
    texts = raw.rows.select_columns(list(columns))
    with stage(f"tokenizing {raw.source}", total=len(texts)) as running:
        for block in texts.iter(batch_size=_BLOCK_ROWS):
            rows = read_rows([block[name] for name in columns])
            lengths += (row.true_length for row in rows)
            truncated += sum(row.truncated for row in rows)
            unknown += sum(_count_unknown(row, tokenizer) for row in rows)
            kept += sum(map(_count_tokens, rows))
            running.advance(len(rows))
    return SplitTokens(np.array(lengths), truncated / max(1, len(texts)), unknown / max(1, kept))


def data_quality(
    labeled: LabeledSplits,
    tokens: Mapping[str, SplitTokens],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    token_limit: float,
    long_text: LongText = TRUNCATE,
) -> DataQuality:
    """Return the findings about the rows of all splits, and a description of each split.

    Args:
        tokens: by split.
        token_limit: the largest `max_length` that the model takes; infinity if none is known.
    """
    splits = {name: _split_texts(labeled, name) for name in sorted(labeled.raw, key="train validation test".find)}
    labels = {name: labeled.labels[name][: len(split.labels)] for name, split in splits.items()}
    tokens = {
        name: replace(tokens[name], lengths=tokens[name].lengths[: len(split.labels)]) for name, split in splits.items()
    }
    described = {name: _describe(labels[name], labeled.label_names, tokens[name]) for name in splits}
    fitting = {name: usual_length(split.tokens.p99, token_limit) for name, split in described.items()}
    truncated = {
        name: f"{long_text.unread_part()}. To change that, {truncation_hint(max_length, fitting[name], long_text.mode)}"
        for name in splits
    }
    is_regression = labels["train"].dtype.kind == "f"
    rows = sum(len(split.labels) for split in splits.values())
    with stage("comparing texts"):
        findings = [
            *(
                finding
                for name in splits
                for finding in _token_findings(splits[name], tokens[name], tokenizer, max_length, truncated[name])
            ),
            *label_findings(splits, labels, labeled.label_names),
            *text_findings(splits, "values" if is_regression else "labels", compare_all=rows <= MAX_COMPARED_ROWS),
        ]
    unchecked = []
    if rows > MAX_COMPARED_ROWS:
        unchecked.append(
            f"Nearly equal texts were not searched, because there are more than {MAX_COMPARED_ROWS:,} rows."
        )
    return DataQuality(max_length, fitting["train"], described, findings, unchecked)


def _split_texts(labeled: LabeledSplits, name: str) -> SplitTexts:
    """Return the rows of a split with labels in words, without the rows that are names of labels."""
    raw, labels = labeled.raw[name], labeled.labels[name]
    if name == "train" and labeled.has_label_names:
        kept = np.arange(len(labels) - len(labeled.label_names))
        raw, labels = raw.select(kept), labels[kept]
    names = np.array(labeled.label_names, dtype=object)
    if labels.ndim == 2:
        words = [", ".join(names[row.astype(bool)]) for row in labels]
    else:
        words = [f"{value:g}" for value in labels] if labels.dtype.kind == "f" else names[labels].tolist()
    return SplitTexts(name, raw, labeled.text_columns, words)


def _describe(labels: np.ndarray, names: Sequence[str], tokens: SplitTokens) -> SplitQuality:
    """Return the description of a split."""
    sizes = labels.sum(1) if labels.ndim == 2 else None
    is_regression = labels.dtype.kind == "f"
    return SplitQuality(
        rows=len(labels),
        label_counts=label_counts(labels, names),
        tokens=_token_lengths(tokens.lengths),
        truncated_share=tokens.truncated_share,
        unknown_share=tokens.unknown_share,
        label_set_sizes=None
        if sizes is None
        else LabelSetSizes(float(sizes.mean()), int(sizes.max()), int((sizes == 0).sum())),
        values=ValueRange(float(labels.min()), float(labels.mean()), float(labels.std()), float(labels.max()))
        if is_regression
        else None,
    )


def _token_lengths(lengths: np.ndarray) -> TokenLengths:
    """Return quantiles and a histogram of the tokens per row; the quantiles are lengths that occur."""
    median, p90, p95, p99, longest = length_quantiles(lengths).values()
    width = max(1, -(-longest // _BINS))
    edges = np.arange(0, longest + width, width)
    rows = np.bincount(np.maximum(lengths - 1, 0) // width, minlength=len(edges) - 1)
    return TokenLengths(median, p90, p95, p99, longest, edges.tolist(), rows.tolist())


def _token_findings(
    split: SplitTexts, tokens: SplitTokens, tokenizer: PreTrainedTokenizerBase, max_length: int, truncated: str
) -> list[Finding]:
    """Return the findings about the tokens of a split: truncated rows, unknown tokens, rows without tokens.

    Args:
        truncated: what the model does not see of truncated rows, and what to do about it.
    """
    findings = []
    if tokens.truncated_share > MAX_TRUNCATED_SHARE:
        longest = np.argsort(-tokens.lengths, kind="stable")[:1]
        message = f"{tokens.truncated_share:.1%} of the {split.name} rows {truncated}"
        count = round(tokens.truncated_share * len(tokens.lengths))
        findings.append(Finding("truncated", WARNING, split.name, count, message, [[split.example(int(longest[0]))]]))
    if tokens.unknown_share > MAX_UNKNOWN_SHARE:
        message = unknown_message(tokens.unknown_share, split.name)
        examples = _rows_with_unknown(split, tokenizer, max_length)
        findings.append(Finding("unknown_tokens", WARNING, split.name, len(tokens.lengths), message, examples))
    empty = np.flatnonzero(tokens.lengths <= tokenizer.num_special_tokens_to_add(pair=len(split.columns) == 2))
    if len(empty):
        rows_have = "rows have" if len(empty) > 1 else "row has"
        message = (
            f"{len(empty):,} {split.name} {rows_have} no token, because the tokenizer removes all characters of the "
            "text: remove what cannot be read"
        )
        examples = [[split.example(int(row))] for row in empty[:_EXAMPLES]]
        findings.append(Finding("empty_texts", WARNING, split.name, len(empty), message, examples))
    return findings


def _rows_with_unknown(
    split: SplitTexts, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[list[RowExample]]:
    """Return those of the first rows that have the highest share of unknown tokens."""
    block = split.raw.rows.select_columns(list(split.columns))[:_EXAMPLE_ROWS]
    rows = row_tokenizer(tokenizer, max_length)([block[name] for name in split.columns])
    shares = np.array([_count_unknown(row, tokenizer) / max(1, _count_tokens(row)) for row in rows])
    worst = np.argsort(-shares, kind="stable")[:_EXAMPLES]
    return [[split.example(int(row))] for row in worst]


def _count_tokens(row: TokenizedRow) -> int:
    return sum(len(window.ids) for window in row.windows)


def _count_unknown(row: TokenizedRow, tokenizer: PreTrainedTokenizerBase) -> int:
    return sum(window.ids.count(tokenizer.unk_token_id) for window in row.windows)
