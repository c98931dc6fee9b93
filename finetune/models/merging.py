"""Merge adapters into plain weights that stock transformers reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from finetune.models.classifier import Classifier
from finetune.models.comparison import check_same_logits, logits_of
from finetune.models.lora import merge_adapters
from finetune.models.pretrained import Source, load_config, model_load_errors
from finetune.models.pruned_model import classifier_class
from finetune.models.saving import save_classifier
from finetune.progress import stage


def merge_classifier(classifier: Classifier, folder: Path, texts: Sequence[Sequence[str]]) -> float:
    """Write plain weights with the adapters merged in, and return the largest difference of logits.

    The classifier's model cannot be used afterwards. If heads were pruned, only `load_classifier` can read the folder.

    Raises:
        ModelError: peft cannot merge these adapters, or the logits of the model that `from_pretrained` reads back
            differ by more than rounding; see `check_same_logits`.
    """
    device = torch.device("cpu")
    with stage("merging adapters"):
        expected = logits_of(classifier, texts, device)
        model = merge_adapters(classifier.model)
        save_classifier(replace(classifier, model=model, base_checksum=None, initial={}), folder)
        source = (
            Source(str(folder))
            if classifier.source is None
            else replace(classifier.source, name=str(folder), revision="main", use_safetensors=True)
        )
        with model_load_errors(source):
            config = load_config(source)
            plain = classifier_class(config).from_pretrained(folder, config=config, **source.loading_options())
        logits = logits_of(replace(classifier, model=plain), texts, device)
    return check_same_logits(logits, expected, source, "the merged model")
