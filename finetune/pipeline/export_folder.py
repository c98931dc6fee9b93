"""The files of an exported folder, without the model: config.json, tokenizer.json, serve.py and README.md."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from finetune.data.long_text import TRUNCATE, LongText
from finetune.models.classifier import Classifier
from finetune.models.conformal import write_conformal
from finetune.models.onnx_classifier import CONFIG_FILE, FORMAT, TOKENIZER_FILE
from finetune.models.outputs import OutputRules
from finetune.models.text_batches import plain_tokenizer
from finetune.runs.atomic_files import write_text
from finetune.runs.results import MetricValue, format_number
from finetune.version import __version__


@dataclass(frozen=True)
class Parity:
    """How far the exported float32 model is from PyTorch.

    Attributes:
        difference: the largest difference of a logit.
        tolerance: the largest difference that is accepted.
        texts, shortest, longest: the number of texts, and their lengths in tokens.
        batch_sizes: the batch sizes that were compared.
    """

    difference: float
    tolerance: float
    texts: int
    shortest: int
    longest: int
    batch_sizes: tuple[int, ...]


@dataclass(frozen=True)
class MetricComparison:
    """A metric of float32 and int8, and int8 minus float32 with its paired interval."""

    float32: float | None
    int8: float | None
    difference: MetricValue


@dataclass(frozen=True)
class Int8Comparison:
    """The int8 model compared with the float32 model on the evaluation rows.

    Attributes:
        same_predictions: share of rows with the same predicted label or labels; None for regression.
        largest_difference: of a probability, or of a predicted value for regression.
    """

    split: str
    rows: int
    same_predictions: float | None
    largest_difference: float
    metrics: dict[str, MetricComparison]


@dataclass(frozen=True)
class Export:
    """What an export wrote and measured.

    Attributes:
        precision: of the weights, float32 or int8.
        size: bytes of the model file.
        int8: None for float32, or if the run has no evaluation rows.
    """

    precision: str
    size: int
    parity: Parity
    int8: Int8Comparison | None

    def lines(self) -> Iterator[str]:
        """Yield the result as lines of text."""
        parity, sizes = self.parity, ", ".join(map(str, self.parity.batch_sizes))
        model = "float32 model" if self.precision == "int8" else "model"
        yield f"model.onnx: {self.precision}, {self.size / 1e6:.1f} MB."
        yield (
            f"Largest difference of a logit between the {model} and PyTorch: {parity.difference:.1g} (at most "
            f"{parity.tolerance:.1g} is accepted), on {parity.texts} texts of {parity.shortest} to {parity.longest} "
            f"tokens in batches of {sizes}."
        )
        if self.precision == "float32":
            return
        if self.int8 is None:
            yield "The run has no evaluation rows, so the accuracy of int8 was not measured."
            return
        comparison = self.int8
        same = (
            ""
            if comparison.same_predictions is None
            else f"the same prediction for {comparison.same_predictions:.1%}, "
        )
        kind = "value" if comparison.same_predictions is None else "probability"
        yield (
            f"int8 compared with float32 on {comparison.rows} {comparison.split} rows: {same}largest difference of a "
            f"{kind} {comparison.largest_difference:.2g}."
        )
        for name, metric in comparison.metrics.items():
            interval = metric.difference.interval()
            yield (
                f"{name}: float32 {format_number(metric.float32)}, int8 {format_number(metric.int8)}, difference "
                f"{_signed(metric.difference.value)}{f' {interval} (95 % paired interval)' if interval else ''}."
            )


def write_folder(classifier: Classifier, folder: Path, result: Export | None = None) -> None:
    """Write every file of the folder except the model; README.md only with the result."""
    tokenizer, pairs = classifier.tokenizer, len(classifier.text_columns) == 2
    side = str(tokenizer.truncation_side)
    backend = plain_tokenizer(tokenizer.backend_tokenizer)
    length, long_text = classifier.max_length, classifier.long_text
    half = (length - backend.num_special_tokens_to_add(pairs)) // 2
    stride = min(long_text.stride(length), half) if long_text.windows and not pairs else 0
    backend.enable_truncation(length, stride=stride, strategy="longest_first", direction=side)
    padding = {
        "side": str(tokenizer.padding_side),
        "token_id": tokenizer.pad_token_id,
        "token": str(tokenizer.pad_token),
        "type_id": tokenizer.pad_token_type_id,
    }
    backend.enable_padding(
        direction=padding["side"],
        pad_id=padding["token_id"],
        pad_token=padding["token"],
        pad_type_id=padding["type_id"],
    )
    write_text(folder / TOKENIZER_FILE, backend.to_str(pretty=True))
    rules = classifier.rules
    config: dict[str, Any] = {
        "format": FORMAT,
        "model_type": str(classifier.base.config.model_type),
        "problem_type": rules.problem_type,
        "label_names": list(rules.label_names),
        "thresholds": rules.thresholds,
        "temperature": rules.temperature,
        "text_columns": list(classifier.text_columns),
        "max_length": classifier.max_length,
        "long_text": asdict(classifier.long_text),
        "truncation_side": side,
        "split_special_tokens": bool(tokenizer.split_special_tokens),
        "padding": padding,
        "exported_with": {"finetune": __version__}
        | {name: version(name) for name in ("torch", "transformers", "onnx", "onnxruntime", "tokenizers")},
        "export": None if result is None else asdict(result),
    }
    write_text(folder / CONFIG_FILE, json.dumps(config, indent=1, ensure_ascii=False) + "\n")
    if classifier.conformal is not None:
        write_conformal(classifier.conformal, folder)
    write_text(folder / "serve.py", _serve_script(rules, long_text, pairs=pairs))
    if result is not None:
        write_text(folder / "README.md", _readme(classifier, result, pairs=pairs))


def _signed(value: float | None) -> str:
    return "undefined" if value is None else f"{round(value, 3) + 0.0:+.3f}"  # + 0.0: no "-0.000"


_SERVE = '''\
"""Classify {inputs}: python serve.py {arguments}"""
import json, sys, numpy as np, onnxruntime
from pathlib import Path
from tokenizers import Tokenizer

folder = Path(__file__).parent
config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))  # truncates and pads
tokenizer.encode_special_tokens = config["split_special_tokens"]
session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])

encodings = tokenizer.encode_batch({texts} or sys.exit(__doc__))
{long_text}fields = {{"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}}
inputs = {{node.name: [getattr(e, fields[node.name]) for e in encodings] for node in session.get_inputs()}}
(logits,) = session.run(["logits"], {{name: np.array(rows, np.int64) for name, rows in inputs.items()}})
{pooling}{output}
'''
# How the example reads a text that is longer than max_length: its windows, or not at all.
_WINDOWS = """\
windows = [[e, *e.overflowing][:config["long_text"]["max_windows"]] for e in encodings]
encodings, first = [e for text in windows for e in text], np.cumsum([0, *map(len, windows)])
"""
_TOO_LONG = """\
if any(e.overflowing for e in encodings):
    sys.exit("a text is too long for this example; use `finetune predict`")
"""
_POOLING = {
    "mean": "logits = np.add.reduceat(logits, first[:-1]) / np.diff(first)[:, None]\n",
    "max": "logits = np.maximum.reduceat(logits, first[:-1])\n",
}
# Problem type -> the last lines, from logits to printed predictions.
_OUTPUTS = {
    "single_label_classification": """\
probabilities = np.exp((logits - logits.max(axis=1, keepdims=True)) / config["temperature"])
for row in probabilities / probabilities.sum(axis=1, keepdims=True):
    print(config["label_names"][row.argmax()], round(float(row.max()), 4))""",
    "multi_label_classification": """\
thresholds = config["thresholds"] or [0.5] * len(config["label_names"])
for row in 1 / (1 + np.exp(-logits / config["temperature"])):
    print([(name, round(float(p), 4)) for name, p, t in zip(config["label_names"], row, thresholds) if p > t])""",
    "regression": """\
for (value,) in logits:
    print(round(float(value), 4))""",
}


# The last line for one label per row where a label has a threshold.
_ABOVE_THRESHOLDS = """\
    others = [i for i, t in enumerate(config["thresholds"]) if t is None] or range(len(row))
    above = [i for i, t in enumerate(config["thresholds"]) if t is not None and row[i] > t]
    print(config["label_names"][i := max(above or others, key=row.__getitem__)], round(float(row[i]), 4))"""


def _serve_script(rules: OutputRules, long_text: LongText = TRUNCATE, *, pairs: bool) -> str:
    """Return the example that serves the folder without finetune."""
    output = _OUTPUTS[rules.problem_type]
    if rules.problem_type == "single_label_classification" and rules.thresholds is not None:
        output = output.rpartition("\n")[0] + "\n" + _ABOVE_THRESHOLDS
    windows = long_text.windows and not pairs
    return _SERVE.format(
        inputs="pairs of texts" if pairs else "texts",
        arguments=f"{'FIRST SECOND' if pairs else 'TEXT'} ...",
        texts="list(zip(sys.argv[1::2], sys.argv[2::2]))" if pairs else "sys.argv[1:]",
        long_text=_WINDOWS if windows else "" if long_text.mode == "truncate" else _TOO_LONG,
        pooling=_POOLING[long_text.window_pooling] if windows else "",
        output=output,
    )


def _readme(classifier: Classifier, result: Export, *, pairs: bool) -> str:
    """Return the README of the folder."""
    figures = "\n".join(f"- {line}" for line in result.lines())
    int8 = (
        "\nWeights are quantized to 7 of 8 bits with one scale per output channel, activations to 8 bits while the "
        "model runs. 7 bits, because on processors without VNNI instructions onnxruntime's 16-bit sums saturate with "
        "8-bit weights; with 7 bits they do not saturate on any processor.\n"
        if result.precision == "int8"
        else ""
    )
    columns = " and ".join(f"`{name}`" for name in classifier.text_columns) or "one text"
    conformal = "" if classifier.conformal is None else "| `conformal.json` | for `finetune predict --coverage` |\n"
    part = classifier.long_text.read_part(classifier.max_length)
    arguments = '"first text" "second text"' if pairs else '"a text" "another text"'
    return f"""\
# {classifier.base.config.model_type} classifier, ONNX {result.precision}

Exported by finetune {__version__}. Problem type: {classifier.problem_type}; {len(classifier.label_names)} labels, in
`config.json`. Input: {columns}; of longer texts the model reads {part}.

## Figures

{figures}
{int8}
## Use

    pip install onnxruntime tokenizers
    python serve.py {arguments}

or `finetune predict THIS_FOLDER FILE`, which needs neither PyTorch nor transformers.

| file | content |
|---|---|
| `model.onnx` | the model: `input_ids`, `attention_mask` and, for some models, `token_type_ids` in; `logits` out |
| `tokenizer.json` | the tokenizer, which truncates and pads |
| `config.json` | labels, problem type, thresholds, temperature, text columns, lengths, padding, and the figures above |
{conformal}| `serve.py` | the example above |
"""
