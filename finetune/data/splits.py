"""From the recipe's data section to encoded splits and their summaries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from finetune.data.holdout import held_out, kept_for_training
from finetune.data.labels import check_training_labels, encode_labels, label_counts, label_names, refuse_unseen
from finetune.data.loading import read_splits, rows_also_in
from finetune.data.rows import RawSplit
from finetune.data.tokenization import EncodedSplit, encode_split
from finetune.recipe import DataSection
from finetune.runs.results import SplitSummary


@dataclass(frozen=True)
class LabelledSplits:
    """Rows of each split with their labels, and the label names in the order of the ids."""

    raw: dict[str, RawSplit]
    labels: dict[str, np.ndarray]
    label_names: list[str]


def read_labelled(
    data: DataSection,
    problem_type: str,
    declared: Sequence[str] | None,
    seed: int,
    suggested: Sequence[str] | None = None,
) -> LabelledSplits:
    """Read, check and label every split; hold out validation rows and cut to the sample limits if asked.

    Raises:
        DataError: anything is wrong with a file, a row or a label.
    """
    raw = read_splits(data, problem_type, declared)
    column, train = data.label_column, raw["train"]
    names = label_names(train, column, problem_type, declared, suggested)
    ids_allowed = declared is not None or train.class_names is not None
    check_training_labels(train, column, problem_type, names, ids_allowed=ids_allowed)
    labels = {
        split: encode_labels(rows, column, problem_type, names, ids_allowed=ids_allowed) for split, rows in raw.items()
    }
    for split, rows in raw.items():
        if problem_type == "single_label_classification":
            refuse_unseen(rows, labels[split], labels["train"], names)
    if "validation" not in raw and data.validation_size:
        kept = held_out(labels["train"], data.validation_size, seed)
        rest = np.setdiff1d(np.arange(len(labels["train"])), kept)
        ids = labels["train"]
        raw |= {"train": train.select(rest), "validation": replace(train.select(kept), dropped=0)}
        labels |= {"train": ids[rest], "validation": ids[kept]}
    for split in raw:
        most = data.max_train_samples if split == "train" else data.max_eval_samples
        if most is not None and most < len(labels[split]):
            # Drawn, not cut from the front: published files are often sorted by label.
            if split == "train":
                keep = kept_for_training(labels[split], most, seed)
            else:
                keep = np.sort(np.random.default_rng(seed).choice(len(labels[split]), most, replace=False))
            raw[split], labels[split] = raw[split].select(keep), labels[split][keep]
    return LabelledSplits(raw, labels, names)


def text_columns(data: DataSection) -> list[str]:
    """Return the one or two columns that the model reads."""
    return [data.text_column, *([data.text_pair_column] if data.text_pair_column else [])]


def encode_splits(
    splits: LabelledSplits, tokenizer: PreTrainedTokenizerBase, data: DataSection
) -> dict[str, EncodedSplit]:
    """Return every split as token ids."""
    columns = text_columns(data)
    return {
        split: encode_split(raw, splits.labels[split], tokenizer, columns, data.max_length)
        for split, raw in splits.raw.items()
    }


def training_texts(splits: LabelledSplits, data: DataSection) -> datasets.Dataset:
    """Return the text columns of the training rows."""
    return splits.raw["train"].rows.select_columns(text_columns(data))


def summarise(
    splits: LabelledSplits, encoded: Mapping[str, EncodedSplit], data: DataSection
) -> dict[str, SplitSummary]:
    """Return what each split holds, and how much of it training has seen."""
    train = splits.raw["train"]
    return {
        split: SplitSummary(
            rows=len(part),
            label_counts=label_counts(part.labels, splits.label_names),
            tokens_median=float(np.median(part.lengths)),
            tokens_longest=int(part.lengths.max()),
            truncated_share=part.truncated,
            unknown_share=part.unknown,
            rows_also_in_train=0 if split == "train" else rows_also_in(splits.raw[split], train, text_columns(data)),
            unlabeled_rows_dropped=splits.raw[split].dropped,
        )
        for split, part in encoded.items()
    }
