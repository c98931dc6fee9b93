"""The splits of a run: rows read from the recipe's data section, labeled, tokenized and summarized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from finetune.data.holdout import held_out_share, sample_training_rows, sample_validation_rows
from finetune.data.label_name_rows import adds_label_names, with_label_names
from finetune.data.labels import label_counts
from finetune.data.loading import read_splits
from finetune.data.long_text import TRUNCATE, LongText
from finetune.data.overlap import count_shared_rows
from finetune.data.rows import RawSplit
from finetune.data.split_labels import encode_split_labels
from finetune.data.text_keys import text_keys
from finetune.data.tokenization import EncodedSplit, encode_split
from finetune.errors import DataError
from finetune.recipe.data_section import DataSection
from finetune.runs.results import SplitSummary
from finetune.runs.token_lengths import length_quantiles, truncation_hint, usual_length


@dataclass(frozen=True)
class LabeledSplits:
    """The rows of every split with their labels.

    Attributes:
        raw: split name -> rows.
        labels: split name -> class ids (N,), 0/1 label sets (N, C) or values (N,).
        label_names: in the order of the class ids.
        text_columns: the one or two columns that the model reads.
        has_label_names: whether the names of the labels are the last training rows.
        held_out: the share of the training rows that was held out for validation, None if none was.
        notes: how the labels were read, where this is a choice.
    """

    raw: dict[str, RawSplit]
    labels: dict[str, np.ndarray]
    label_names: list[str]
    text_columns: list[str]
    has_label_names: bool = False
    held_out: float | None = None
    notes: tuple[str, ...] = ()

    def training_texts(self) -> datasets.Dataset:
        """Return the text columns of the training rows."""
        return self.raw["train"].rows.select_columns(self.text_columns)


@dataclass(frozen=True)
class EncodedSplits:
    """Every split as token ids, and its summary, by split name."""

    encoded: dict[str, EncodedSplit]
    summaries: dict[str, SplitSummary]


def load_splits(
    data: DataSection,
    problem_type: str,
    label_names: Sequence[str] | None,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
    *,
    required: Mapping[str, str],
) -> EncodedSplits:
    """Return every split of the data section as token ids, with labels and summaries.

    Where the tokenizer depends on the rows, call `read_labeled` and `encode_splits` instead.

    Args:
        label_names: the declared label names, or None to take them from the training rows.
        required: split name -> error message if there is no such split.

    Raises:
        DataError: a file, a row or a label is wrong, or a required split is missing.
    """
    labeled = read_labeled(data, problem_type, label_names, seed, required=required)
    return encode_splits(labeled, tokenizer, data.max_length, long_text_of(data))


def read_labeled(
    data: DataSection,
    problem_type: str,
    declared: Sequence[str] | None,
    seed: int,
    *,
    suggested: Sequence[str] | None = None,
    required: Mapping[str, str] | None = None,
) -> LabeledSplits:
    """Return the rows and labels of every split, after all checks.

    Validation rows are held out of the training rows if the data section says so, large splits are sampled down to its
    limits, and the names of the labels may be added to the training rows (see label_name_rows.py).

    Args:
        declared: the label names of the recipe, or None to take them from the training rows.
        suggested: label names in the preferred order; used if the training rows have exactly these labels.
        required: split name -> error message if there is no such split.

    Raises:
        DataError: a file, a row or a label is wrong, or a required split is missing.
    """
    declared = declared or data.label_columns
    raw = read_splits(data, problem_type, declared)
    notes = tuple(note for split in raw.values() for note in split.notes)
    names, labels = encode_split_labels(raw, data.label_column, problem_type, declared, suggested)
    held_out = None if "validation" in raw else held_out_share(data.validation_size, len(labels["train"]))
    if held_out is not None:
        train_keys = text_keys(raw["train"], data.text_columns()) if data.group_equal_texts else None
        _hold_out_validation(raw, labels, sample_validation_rows(labels["train"], held_out, seed, train_keys))
    _sample_down(raw, labels, data, seed)
    for split, message in (required or {}).items():
        if split not in raw:
            raise DataError(message)
    adds_names = adds_label_names(data, problem_type, names, len(labels["train"]))
    if adds_names:
        raw["train"], labels["train"] = with_label_names(raw["train"], labels["train"], names, data)
    return LabeledSplits(raw, labels, names, data.text_columns(), adds_names, held_out, notes)


def _hold_out_validation(raw: dict[str, RawSplit], labels: dict[str, np.ndarray], held_out: np.ndarray) -> None:
    """Move the training rows at these positions to a new validation split."""
    train, train_labels = raw["train"], labels["train"]
    rest = np.setdiff1d(np.arange(len(train_labels)), held_out)
    raw |= {"train": train.select(rest), "validation": replace(train.select(held_out), dropped=0)}
    labels |= {"train": train_labels[rest], "validation": train_labels[held_out]}


def _sample_down(raw: dict[str, RawSplit], labels: dict[str, np.ndarray], data: DataSection, seed: int) -> None:
    """Reduce each split to its limit of rows.

    The rows are drawn at random, not taken from the beginning, because published files are often sorted by label.
    """
    for split in raw:
        limit = data.max_train_samples if split == "train" else data.max_eval_samples
        if limit is None or limit >= len(labels[split]):
            continue
        if split == "train":
            kept = sample_training_rows(labels[split], limit, seed)
        else:
            kept = np.sort(np.random.default_rng(seed).choice(len(labels[split]), limit, replace=False))
        raw[split], labels[split] = raw[split].select(kept), labels[split][kept]


def long_text_of(data: DataSection) -> LongText:
    """Return how the data section says that long texts are read."""
    return LongText(data.long_text, data.window_stride, data.window_pooling, data.max_windows)


def encode_splits(
    labeled: LabeledSplits, tokenizer: PreTrainedTokenizerBase, max_length: int, long_text: LongText = TRUNCATE
) -> EncodedSplits:
    """Return every split as token ids, with its summary."""
    encoded = {
        split: encode_split(raw, labeled.labels[split], tokenizer, labeled.text_columns, max_length, long_text)
        for split, raw in labeled.raw.items()
    }
    limit = tokenizer.model_max_length
    summaries = {}
    for split, rows in encoded.items():
        fitting = usual_length(length_quantiles(rows.true_lengths)["99"], limit)
        hint = truncation_hint(max_length, fitting, long_text.mode) if rows.truncated else ""
        summaries[split] = _summarize(labeled, split, rows, hint)
    return EncodedSplits(encoded, summaries)


def _summarize(labeled: LabeledSplits, split: str, encoded: EncodedSplit, truncation_hint: str) -> SplitSummary:
    """Return counts and shares that describe a split, such as how many of its rows are also training rows.

    Args:
        truncation_hint: what to do about truncated rows.
    """
    raw, train = labeled.raw[split], labeled.raw["train"]
    return SplitSummary(
        rows=len(encoded),
        label_counts=label_counts(encoded.labels, labeled.label_names),
        tokens_median=float(np.median(encoded.lengths)),
        tokens_longest=int(encoded.lengths.max()),
        truncated_share=encoded.truncated,
        unknown_share=encoded.unknown,
        rows_also_in_train=0 if split == "train" else count_shared_rows(raw, train, labeled.text_columns),
        unlabeled_rows_dropped=raw.dropped,
        label_name_rows=len(labeled.label_names) if split == "train" and labeled.has_label_names else 0,
        true_lengths=length_quantiles(encoded.true_lengths),
        truncation_hint=truncation_hint,
    )
