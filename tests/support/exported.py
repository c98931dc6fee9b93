"""Small models of any family exported to ONNX, and the largest difference of their logits from PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from transformers import PreTrainedModel

from finetune.models.architectures import family_of
from finetune.models.attention_sites import attention_sites
from finetune.models.feed_forward_sites import feed_forward_sites
from finetune.models.head_pruning import prune_heads
from finetune.models.neuron_pruning import prune_neurons
from finetune.models.onnx_export import quantize_to_int8, write_onnx
from tests.support.families import random_model

# Neither of these batches has the size or the length of the traced one; several are longer than the local attention,
# the position buckets and the landmarks of the small models.
SHAPES = ((1, 1), (1, 2), (5, 3), (1, 17), (4, 9), (2, 40), (7, 23), (3, 60))
INPUTS = ("input_ids", "attention_mask")


def batch(rows: int, tokens: int) -> dict[str, torch.Tensor]:
    """Return random token ids; each row after the first is one or more tokens shorter than the one before."""
    generator = torch.Generator().manual_seed(rows * tokens)
    ids = torch.randint(3, 30, (rows, tokens), generator=generator)
    lengths = (tokens - torch.arange(rows) * max(1, tokens // (2 * rows))).clamp(min=1)
    mask = (torch.arange(tokens)[None] < lengths[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def export_family(family: str, folder: Path, *, pruned: bool = False, int8: bool = False) -> tuple[float, float]:
    """Export a small random model; return the largest difference of its logits over SHAPES, and the largest logit.

    Args:
        pruned: whether to prune it first; see `prune_layers`.
    """
    model = random_model(family).eval()
    if pruned:
        prune_layers(model)
    expected = {shape: _logits(model, batch(*shape)) for shape in SHAPES}
    write_onnx(model, batch(3, 11), folder / "model.onnx")
    file = folder / "model.onnx"
    if int8:
        quantize_to_int8(file, folder / "int8.onnx")
        file = folder / "int8.onnx"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    used = [node.name for node in session.get_inputs()]
    differences = []
    for shape, logits in expected.items():
        inputs = batch(*shape)
        (exported,) = session.run(["logits"], {name: inputs[name].numpy() for name in used})
        assert exported.shape == logits.shape
        differences.append(float(np.abs(exported - logits).max()))
    return max(differences), max(float(np.abs(logits).max()) for logits in expected.values())


def prune_layers(model: PreTrainedModel) -> None:
    """Prune some heads and all neurons of the first layer, and all heads and some neurons of the last, if they can be.

    Layers that share weights with one of them are pruned with it.
    """
    family, heads, neurons = family_of(model.config), {}, {}
    if not family.why_not_prunable(model.config):
        sites = attention_sites(model)
        for site in sites:
            size = site.num_heads // site.num_key_value_heads
            if site.output == sites[-1].output:
                heads[site.layer] = range(site.num_heads)
            elif site.output == sites[0].output and site.num_heads > size:
                heads[site.layer] = range(size)
    if not family.feed_forward.why_not_prunable(model.config):
        networks = feed_forward_sites(model)
        for network in networks:
            if network.output == networks[0].output:
                neurons[network.layer] = range(network.num_neurons)
            elif network.output == networks[-1].output:
                neurons[network.layer] = range(0, network.num_neurons, 3)
    prune_heads(model, heads)
    prune_neurons(model, neurons)


@torch.no_grad()
def _logits(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    logits: np.ndarray = model(**inputs).logits.float().numpy()
    return logits
