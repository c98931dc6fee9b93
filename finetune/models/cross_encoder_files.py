"""Files with which the CrossEncoder of sentence-transformers opens a saved classifier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetune.models.classifier import Classifier
from finetune.runs.atomic_files import write_text

# A CrossEncoder would apply a sigmoid to a regression's values, and nothing to the logits of several labels. For
# single-label classification `predict(..., apply_softmax=True)` gives probabilities; a softmax here would be a second.
_ACTIVATIONS = {
    "single_label_classification": "torch.nn.modules.linear.Identity",
    "multi_label_classification": "torch.nn.modules.activation.Sigmoid",
    "regression": "torch.nn.modules.linear.Identity",
}


def write_cross_encoder_files(classifier: Classifier, folder: Path) -> None:
    """Write the description of a CrossEncoder next to a classifier's weights: labels, activation, maximum length."""
    files: dict[str, Any] = {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
        ],
        "config_sentence_transformers.json": {
            "model_type": "CrossEncoder",
            "activation_fn": _ACTIVATIONS[classifier.problem_type],
        },
        "sentence_bert_config.json": {
            "transformer_task": "sequence-classification",
            "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
            "module_output_name": "scores",
            "processor_kwargs": {"model_max_length": classifier.max_length},
            # For an adapter: its base has other labels.
            "config_kwargs": {
                "num_labels": len(classifier.label_names),
                "id2label": dict(enumerate(classifier.label_names)),
                "label2id": {name: index for index, name in enumerate(classifier.label_names)},
                "problem_type": classifier.problem_type,
            },
        },
    }
    for name, content in files.items():
        write_text(folder / name, json.dumps(content, indent=1) + "\n")
