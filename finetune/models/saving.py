"""Save a classifier to a folder that `loading.load_classifier` reads, wherever the folder is moved."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import peft
import torch

from finetune.errors import ModelError
from finetune.models.classifier import Classifier
from finetune.models.comparison import check_same_logits, logits_of
from finetune.models.lora import as_plain_lora
from finetune.runs.atomic_files import write_text

INFO_FILE = "classifier.json"  # next to the weights: what config.json has no key for


def save_classifier(classifier: Classifier, folder: Path) -> None:
    """Write weights (all, or the adapter), config with labels, tokenizer, and where the base checkpoint is.

    Raises:
        ModelError: the adapters do not belong to the checkpoint's own weights; see `with_plain_adapters`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model, base = classifier.model, classifier.base
    if classifier.initial:
        raise ModelError("adapters that changed the weights under them must be rewritten before they are saved")
    if isinstance(model, peft.PeftModel):
        # Embeddings are never changed here, so peft need not compare the vocabulary with the one on the hub.
        model.save_pretrained(str(folder), save_embedding_layers=False)
        base.config.architectures = [type(base).__name__]
        base.config.save_pretrained(folder)
        folder.joinpath("README.md").unlink(missing_ok=True)  # the run folder has its own model card
    else:
        base.save_pretrained(folder)
    classifier.tokenizer.save_pretrained(folder)
    source = classifier.source
    info = {
        "max_length": classifier.max_length,
        "source": source
        and {
            "name": source.name,
            "revision": source.revision,
            "dtype": source.dtype,
            "attn_implementation": source.attn_implementation,
        },
        "base_checksum": classifier.base_checksum,
        "text_columns": list(classifier.text_columns),
        "thresholds": classifier.thresholds,
        "temperature": classifier.temperature,
    }
    write_text(folder / INFO_FILE, json.dumps(info, indent=1) + "\n")


def with_plain_adapters(classifier: Classifier, texts: Sequence[Sequence[str]], device: torch.device) -> Classifier:
    """Rewrite the adapters in place so that they apply to the checkpoint's own weights, and return the classifier.

    Raises:
        ModelError: its logits on a few rows differ afterwards by more than rounding; see `check_same_logits`.
    """
    if not classifier.initial:
        return classifier
    assert isinstance(classifier.model, peft.PeftModel)
    expected = logits_of(classifier, texts, device)
    as_plain_lora(classifier.model, classifier.initial)
    plain = replace(classifier, initial={})
    check_same_logits(logits_of(plain, texts, device), expected, classifier.source, "the rewritten adapter")
    return plain
