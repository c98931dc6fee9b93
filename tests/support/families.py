"""Small random models of every family: their configs, checkpoints and classifiers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from finetune.data.rows import RawSplit
from finetune.data.tokenization import EncodedSplit, encode_split, word_tokenizer
from finetune.models import toy_classifier
from finetune.models.architectures import FAMILIES
from finetune.models.building import Labels, pretrained_classifier
from finetune.models.classifier import Classifier
from finetune.models.lora import Lora
from finetune.models.pretrained import Source, load_tokenizer
from finetune.recipe.training_section import TrainingSection
from finetune.training.build import Hyperparameters, build_trainer
from tests.conftest import SENTENCES
from tests.support.helpers import plan

LABELS = ("zeta", "alpha", "no", "mid", "beta")
TEXTS = [("the cat sat on",), ("a dog chased the",)]  # of equal length, because Nyströmformer fails on padding

_SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "initializer_range": 0.3,  # large enough for attention to be nonlinear, so that heads differ
}
_XLM = {
    "emb_dim": 24,
    "n_layers": 2,
    "n_heads": 3,
    "max_position_embeddings": 64,
    "pad_index": 0,
    "embed_init_std": 0.3,
}
CONFIGS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(FAMILIES, _SIZES),
    "albert": _SIZES | {"embedding_size": 16, "num_hidden_layers": 4, "num_hidden_groups": 2},
    "big_bird": _SIZES | {"attention_type": "original_full"},
    "convbert": _SIZES | {"embedding_size": 16, "head_ratio": 1},
    "deberta": _SIZES | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "deberta-v2": _SIZES
    | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8, "share_att_key": True}
    | {"norm_rel_ebd": "layer_norm"},
    "distilbert": {
        "dim": 24,
        "n_layers": 2,
        "n_heads": 3,
        "hidden_dim": 32,
        "pad_token_id": 0,
        "initializer_range": 0.3,
    },
    "electra": _SIZES | {"embedding_size": 16},
    "esm": _SIZES | {"mask_token_id": 2},
    "eurobert": _SIZES | {"num_key_value_heads": 1, "head_dim": 8},
    "flaubert": _XLM,
    "mobilebert": _SIZES | {"embedding_size": 16, "intra_bottleneck_size": 12, "true_hidden_size": 12},
    "modernbert": _SIZES
    | {"local_attention": 8, "cls_token_id": 1, "sep_token_id": 1, "bos_token_id": 1, "eos_token_id": 1},
    "multi_head_classifier": {"num_hidden_layers": 2, "num_attention_heads": 3},
    "nystromformer": _SIZES | {"num_landmarks": 4, "segment_means_seq_len": 4, "conv_kernel_size": 3},
    "rembert": _SIZES | {"input_embedding_size": 16, "output_embedding_size": 16},
    "roformer": _SIZES | {"embedding_size": 16},
    "squeezebert": _SIZES | {"embedding_size": 24},
    "xlm": _XLM,
    "xmod": _SIZES | {"languages": ["en_XX"], "default_language": "en_XX"},
}
SHAPES = {"albert": (4, 3), "convbert": (2, 6)}  # layers x heads, if not 2 x 3
NO_LORA = {"ibert": "peft has no LoRA for its quantized linear layers"}
NO_MASKED_LM = {"multi_head_classifier": "is a classifier only"}


def save_checkpoint(
    family: str,
    folder: Path,
    auto_class: type[AutoModel] | type[AutoModelForMaskedLM] = AutoModel,
    **changes: object,
) -> Path:
    """Save a small random model of the family, with `changes` to its config, and a tokenizer; return the folder."""
    toy_classifier.register()
    tokenizer = word_tokenizer(datasets.Dataset.from_dict({"sentence": SENTENCES}), 40)
    torch.manual_seed(1)
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **(CONFIGS[family] | changes))
    build_model = toy_classifier.MultiHeadClassifier if family == "multi_head_classifier" else auto_class.from_config
    build_model(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def build(folder: Path, lora: Lora | None = None) -> Classifier:
    """Return a classifier with five labels on a saved checkpoint."""
    torch.manual_seed(2)
    source = Source(str(folder))
    tokenizer = load_tokenizer(source)
    return pretrained_classifier(
        source, tokenizer, Labels(LABELS, "single_label_classification"), max_length=16, lora=lora
    )


def random_model(family: str, **changes: object) -> PreTrainedModel:
    """Return a random transformers classifier for 30 token ids and three labels."""
    toy_classifier.register()
    torch.manual_seed(1)
    config = AutoConfig.for_model(family, vocab_size=30, num_labels=3, **(CONFIGS[family] | changes))
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
    return model


def split_of(classifier: Classifier) -> EncodedSplit:
    """Return four rows, each of the two TEXTS twice."""
    rows = RawSplit(datasets.Dataset.from_dict({"sentence": [text for (text,) in TEXTS * 2]}), "rows")
    return encode_split(rows, np.array([0, 1, 2, 3]), classifier.tokenizer, ["sentence"], 16)


def train_three_steps(classifier: Classifier, accelerator: Accelerator, **options: Any) -> None:
    """Train the classifier on the four rows for three optimizer steps."""
    settings = TrainingSection(learning_rate=1e-2, **options)
    trainer = build_trainer(
        classifier,
        split_of(classifier),
        plan(steps_per_epoch=3, total_steps=3),
        Hyperparameters(settings, seed=0),
        accelerator,
    )
    for _ in range(2):
        for micro_batches, rows in trainer.epoch_steps():
            trainer.optimizer_step(micro_batches, rows)
