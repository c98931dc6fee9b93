"""Save a classifier to a folder that `loading.load_classifier` reads, wherever the folder is moved."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import peft
import torch

from finetune.errors import ModelError
from finetune.models.adapter_files import save_adapter, trained_modules
from finetune.models.classifier import Classifier
from finetune.models.comparison import check_same_logits, logits_of
from finetune.models.conformal import write_conformal
from finetune.models.cross_encoder_files import write_cross_encoder_files
from finetune.models.lora import as_plain_lora
from finetune.models.pooling import pooling_of
from finetune.models.pruned_config import is_pruned, write_pruned_type
from finetune.runs.atomic_files import write_text
from finetune.runs.pruned_files import BASE_IS_PRUNED, INFO_FILE


def save_classifier(classifier: Classifier, folder: Path) -> None:
    """Write weights (all, or the adapter), labels, tokenizer, and where the base checkpoint is.

    An adapter's folder has no config.json: transformers would then look for all weights there.

    Raises:
        ModelError: the adapters do not belong to the checkpoint's own weights; see `with_plain_adapters`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = classifier.model
    if classifier.initial:
        raise ModelError("adapters that changed the weights under them must be rewritten before they are saved")
    source = classifier.source
    if isinstance(model, peft.PeftModel):
        assert source is not None  # only a checkpoint gets adapters
        save_adapter(model, source, folder)
    else:
        classifier.base.save_pretrained(folder)
        if is_pruned(classifier.base.config):
            write_pruned_type(folder)
    _save_tokenizer(classifier, folder)
    write_cross_encoder_files(classifier, folder)
    info = {
        "label_names": classifier.label_names,
        "problem_type": classifier.problem_type,
        "pooling": pooling_of(classifier.base.config),
        "max_length": classifier.max_length,
        "source": source
        and {
            "name": source.name,
            "revision": source.revision,
            "dtype": source.dtype,
            "attn_implementation": source.attn_implementation,
        },
        "base_checksum": classifier.base_checksum,
        BASE_IS_PRUNED: isinstance(model, peft.PeftModel) and is_pruned(classifier.base.config),
        "trained_modules": trained_modules(model) if isinstance(model, peft.PeftModel) else None,
        "text_columns": list(classifier.text_columns),
        "thresholds": classifier.thresholds,
        "temperature": classifier.temperature,
        "long_text": asdict(classifier.long_text),
    }
    write_text(folder / INFO_FILE, json.dumps(info, indent=1) + "\n")
    if classifier.conformal is not None:
        write_conformal(classifier.conformal, folder)


def _save_tokenizer(classifier: Classifier, folder: Path) -> None:
    """Write the tokenizer, with the length to which texts are cut: other libraries then cut them like `predict`."""
    if classifier.tokenizer.is_fast:
        side = classifier.tokenizer.truncation_side
        classifier.tokenizer.backend_tokenizer.enable_truncation(classifier.max_length, direction=side)
        classifier.tokenizer.backend_tokenizer.no_padding()
    classifier.tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    entries = json.loads(file.read_text(encoding="utf-8"))
    lengths_and_inputs = {
        "model_max_length": classifier.max_length,
        "model_input_names": list(classifier.tokenizer.model_input_names),
    }
    write_text(file, json.dumps(entries | lengths_and_inputs, indent=2, ensure_ascii=False))


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
