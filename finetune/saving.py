"""Save a classifier, read it back, and prove that it is the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import peft
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig

from finetune.errors import ModelError
from finetune.freezing import keep_float32
from finetune.lora import base_weights, merge_adapters, set_base_weights
from finetune.modeling import Classifier, Source, load_tokenizer, loading, new_parameters, refuse_foreign
from finetune.results import write_text
from finetune.slicing import classifier_class

_ABOUT = "classifier.json"  # beside the weights: what config.json has no place for
_CHANGED = "base_weights.safetensors"  # weights under the adapters that an initialisation changed


def save_classifier(classifier: Classifier, folder: Path) -> None:
    """Write the classifier: full weights or adapter, config with labels, tokenizer, and where the base is from."""
    folder.mkdir(parents=True, exist_ok=True)
    model, base = classifier.model, classifier.base
    if isinstance(model, peft.PeftModel):
        # No look at the hub for the base's vocabulary: embeddings are never changed here.
        model.save_pretrained(str(folder), save_embedding_layers=False)
        changed = {name: base_weights(base)[name].contiguous() for name in classifier.changed_base}
        if changed:
            save_file(changed, folder / _CHANGED)
        base.config.architectures = [type(base).__name__]
        base.config.save_pretrained(folder)
        folder.joinpath("README.md").unlink(missing_ok=True)  # the run folder's own card says more
    else:
        base.save_pretrained(folder)
    classifier.tokenizer.save_pretrained(folder)
    source = classifier.source
    about = {
        "max_length": classifier.max_length,
        "source": source and vars(source),
        "changed_base": classifier.changed_base,
    }
    write_text(folder / _ABOUT, json.dumps(about, indent=1) + "\n")


def load_classifier(folder: Path) -> Classifier:
    """Return the classifier that `save_classifier` wrote, wherever the folder lies now.

    Raises:
        ModelError: the folder does not hold one, or its base model cannot be found.
    """
    try:
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        source = Source(**about["source"]) if about["source"] else None
        changed = list(about["changed_base"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder} holds no classifier that was saved here ({error}); name a run's model folder"
        ) from error
    here = Source(str(folder)) if source is None else replace(source, name=str(folder), revision="main")
    tokenizer = load_tokenizer(here)
    with loading(here):
        config = AutoConfig.from_pretrained(folder)
    adapter = (folder / "adapter_config.json").is_file()
    weights = source if adapter and source else here
    with loading(weights):
        model, info = classifier_class(config).from_pretrained(
            weights.location(),
            config=config,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # the base may carry another task's head, which the adapter replaces
            **weights.loading_options(),
        )
        new = new_parameters(info)
        refuse_foreign(model, new, weights)
        if new and not adapter:
            raise ModelError(f"{folder} holds no weights of the right size for {new[0]}; save the classifier again")
        if adapter:
            keep_float32(model, peft.LoraConfig.from_pretrained(str(folder)).modules_to_save or ())
            model = peft.PeftModel.from_pretrained(model, str(folder))
    loaded = Classifier(model.eval(), tokenizer, int(about["max_length"]), source, changed_base=tuple(changed))
    if changed:
        set_base_weights(loaded.base, load_file(folder / _CHANGED))
    return loaded


def merge_classifier(classifier: Classifier, folder: Path, texts: Sequence[Sequence[str]]) -> float:
    """Write plain weights, adapters merged in, that stock transformers reads; return the largest logit difference.

    The classifier's model is used up. Where heads were cut out of it, `load_classifier`'s class is needed to read it.

    Raises:
        ModelError: peft cannot merge these adapters, or what `from_pretrained` reads back gives logits that differ
            by more than 1e-3 of the largest (float32; lower precisions round a merged weight once more, 3e-2).
    """
    device = torch.device("cpu")
    expected = logits_of(classifier, texts, device)
    model = merge_adapters(classifier.model)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    classifier.tokenizer.save_pretrained(folder)
    source = (
        Source(str(folder))
        if classifier.source is None
        else replace(classifier.source, name=str(folder), revision="main")
    )
    with loading(source):
        plain = classifier_class(model.config).from_pretrained(folder, **source.loading_options())
    found = logits_of(replace(classifier, model=plain), texts, device)
    difference, room = float((found - expected).abs().max()), 1e-3 if source.dtype == "float32" else 3e-2
    if not difference <= room * max(1.0, float(expected.abs().max())):
        raise ModelError(f"the merged model's logits differ by {difference:g}; please report it")
    return difference


@torch.no_grad()
def logits_of(classifier: Classifier, texts: Sequence[Sequence[str]], device: torch.device) -> Tensor:
    """Return logits (B, C) of a few rows in evaluation mode; each row is a text or a pair."""
    columns = [list(column) for column in zip(*texts, strict=True)]
    inputs = classifier.tokenizer(
        *columns, truncation=True, max_length=classifier.max_length, padding=True, return_tensors="pt"
    )
    model, training = classifier.model, classifier.model.training
    model.to(device).eval()
    logits: Tensor = model(**{name: tensor.to(device) for name, tensor in inputs.items()}).logits.float().cpu()
    model.train(training)
    return logits


def _weights_in_use(model: nn.Module) -> dict[str, Tensor]:
    """Return all weights but peft's idle copies of the modules that it trains whole."""
    return {name: tensor for name, tensor in model.state_dict().items() if ".original_module." not in name}


def check_reload(
    trained: Classifier, reloaded: Classifier, texts: Sequence[Sequence[str]], device: torch.device
) -> float:
    """Return the largest difference of their logits on a few rows, once all weights are known to be equal.

    Equal weights at another place in memory may be added up in another order (measured here: 1e-9), and
    accelerators' kernels need not repeat to the bit; 1e-5 leaves room for both.

    Raises:
        ModelError: a weight is missing or not equal to the bit, or the logits differ by more than 1e-5.
    """
    first, second = (_weights_in_use(classifier.model) for classifier in (trained, reloaded))
    odd = sorted(first.keys() ^ second.keys())
    odd += [name for name in first.keys() & second.keys() if not first[name].cpu().equal(second[name].cpu())]
    if odd:
        raise ModelError(f"the saved model differs from the trained one in {', '.join(odd[:3])}; please report it")
    logits = [logits_of(classifier, texts, device) for classifier in (trained, reloaded)]
    difference = float((logits[0] - logits[1]).abs().max())
    if not difference <= 1e-5:
        raise ModelError(
            f"the saved model gives other logits than the trained one, by {difference:g}; please report it"
        )
    return difference
