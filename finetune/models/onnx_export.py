"""Write a classifier as an ONNX graph: trace it, fuse its activations, quantize it to int8.

Three libraries do the work: `torch.onnx.export`, the transformer optimizer of onnxruntime, and its `quantize_dynamic`.
How they are used was measured with MiniLM on SST-2 rows, one thread, relative to PyTorch in float32:

- Traced with eager attention by the TorchScript exporter: 2.2 times as fast; by the newer exporter (`dynamo=True`) 1.8
  times, and exporting takes 5 to 20 times as long.
- Fused attention (`MultiHeadAttention`) gains nothing, and fused `SkipLayerNormalization` is 13 % slower. Fused GELU
  makes the int8 model 8 % faster.
- int8: 4.9 times as fast as PyTorch in float32.

B batch, S tokens, C labels
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune.errors import ModelError
from finetune.models.architectures import family_of
from finetune.models.onnx_classifier import INPUT_NAMES

OPSET = 17  # the first with a layer norm operator
# Quantized operators: products with weights, and the tables of embeddings, which are most of the size of small models.
# Products of two activations (in attention) and the small output layers stay in float32.
_QUANTIZED = ("MatMul", "Gather")
_MAX_BYTES = 2**31 - 2**24  # a protobuf message, and so a single ONNX file, is smaller than 2 GiB


def check_exportable(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    """Raise ModelError, with the reason, if a classifier cannot be exported to ONNX."""
    config: Any = model.config
    name = f"a '{config.model_type}' model"
    if reason := family_of(config).why_not_exportable(config, max_length):
        raise ModelError(f"{name} cannot be exported to ONNX: {reason}")
    if not tokenizer.is_fast:
        raise ModelError(
            f"{name} with a {type(tokenizer).__name__} cannot be exported to ONNX: this tokenizer is written in "
            "Python and has no tokenizer.json, which the exported model needs; train from a checkpoint that has one"
        )
    if unknown := set(tokenizer.model_input_names) - set(INPUT_NAMES):
        raise ModelError(f"{name} cannot be exported to ONNX: its tokenizer also returns {', '.join(sorted(unknown))}")
    size = sum(parameter.numel() for parameter in model.parameters()) * 4
    if size > _MAX_BYTES:
        raise ModelError(
            f"{name} with {size / 1e9:.1f} GB of float32 weights cannot be exported to ONNX: an ONNX file holds at "
            "most 2.1 GB; train a smaller model"
        )


def check_onnx_installed() -> None:
    """Raise ModelError unless the packages of the extra `onnx` are installed."""
    missing = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ModelError(f"export needs {' and '.join(missing)}; run `pip install 'finetune[onnx]'`")


def write_onnx(model: PreTrainedModel, inputs: Mapping[str, Tensor], file: Path) -> None:
    """Write a model without adapters to an ONNX file in float32. The model is left in float32 with eager attention.

    Args:
        inputs: a batch (B, S) of the tokenizer, of at least two rows of different lengths, so that neither size and no
            mask without padding becomes a constant of the graph.

    Raises:
        ModelError: the model cannot be traced.
    """
    model.float().eval().set_attn_implementation("eager")
    axes = {name: {0: "batch", 1: "sequence"} for name in inputs} | {"logits": {0: "batch"}}
    with _quiet(), torch.no_grad(), _export_errors(model):
        torch.onnx.export(
            _Logits(model, tuple(inputs)),
            tuple(inputs.values()),
            str(file),
            dynamo=False,
            input_names=list(inputs),
            output_names=["logits"],
            dynamic_axes=axes,
            opset_version=OPSET,
        )
        _fuse_gelu(file)


def quantize_to_int8(file: Path, output: Path) -> int:
    """Quantize the weights of an ONNX file, and return the number of quantized matrix products.

    Weights get 7 of 8 bits (`reduce_range`), with one scale per output channel; activations are quantized to 8 bits
    while the model runs. On processors with AVX2 or AVX-512 but without VNNI, onnxruntime multiplies with an
    instruction whose 16-bit sums saturate with 8-bit weights, and its documentation recommends 7 bits there. With VNNI
    8 bits would be exact too, but the file should give the same results on every processor. The other safe choice,
    unsigned 8-bit weights, was measured at 0.6 of the speed.

    Raises:
        ModelError: the model has more convolutions than products with weights.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # The quantizer turns Gemm, which only the output layers are, into a MatMul of this name.
    output_layers = [f"{node.name}_MatMul" for node in onnx.load(str(file)).graph.node if node.op_type == "Gemm"]
    with _quiet():
        quantize_dynamic(
            str(file),
            str(output),
            nodes_to_exclude=output_layers,
            op_types_to_quantize=list(_QUANTIZED),
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},  # of onnxruntime's own operators
        )
    operators = Counter(node.op_type for node in onnx.load(str(output)).graph.node)
    count = operators["MatMulInteger"]
    if count <= operators["Conv"]:
        raise ModelError(
            f"int8 quantization covers matrix products with weights, and this model has {count} of them and "
            f"{operators['Conv']} convolutions; export it without --quantize"
        )
    return count


class _Logits(nn.Module):
    """A model as a function from tensors, in the order of `names`, to logits: the form that is traced."""

    def __init__(self, model: PreTrainedModel, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: Tensor) -> Tensor:
        logits: Tensor = self.model(**dict(zip(self.names, tensors, strict=True))).logits
        return logits


def _fuse_gelu(file: Path) -> None:
    """Replace the operators of GELU activations in an ONNX file by fused ones."""
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model

    options = FusionOptions("bert")
    options.enable_attention = options.enable_embed_layer_norm = options.enable_skip_layer_norm = False
    options.enable_bias_skip_layer_norm = options.enable_rotary_embeddings = False
    optimize_model(str(file), "bert", opt_level=0, optimization_options=options).save_model_to_file(str(file))


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the notices of the exporter, the optimizer and the quantizer, which users cannot act on.

    They include warnings, raised while the code of a family is traced, about constants in the trace: the exported model
    is compared with PyTorch afterwards, on other batch sizes and lengths.
    """
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # Includes torch's recommendation of the newer exporter, whose graphs are slower.
            warnings.filterwarnings("ignore", category=TracerWarning)
            for category in (UserWarning, DeprecationWarning):
                warnings.filterwarnings("ignore", category=category, module=r"(torch|transformers)\.")
            warnings.filterwarnings(
                "ignore", message="You are using the legacy TorchScript", category=DeprecationWarning
            )
            yield
    finally:
        logging.disable(previous)


@contextmanager
def _export_errors(model: PreTrainedModel) -> Iterator[None]:
    """Turn an error of the exporter or the optimizer into a ModelError that names the family and the reason."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, AttributeError, AssertionError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [""])[0][:300]
        raise ModelError(
            f"a '{model.config.model_type}' model cannot be exported to ONNX: {type(error).__name__}: {reason}"
        ) from error
