"""A classifier that was exported to ONNX: loaded and run with numpy, onnxruntime and tokenizers only.

N texts, B batch, S tokens, C labels
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from finetune.errors import ModelError
from finetune.models.conformal import read_conformal
from finetune.models.outputs import OutputRules
from finetune.recipe.names import ProblemType

if TYPE_CHECKING:
    from finetune.data.long_text import LongText
    from finetune.models.text_batches import EncodedTexts, TextEncoder

MODEL_FILE, CONFIG_FILE, TOKENIZER_FILE = "model.onnx", "config.json", "tokenizer.json"
FORMAT = "finetune-onnx"  # the value of `format` in config.json
INPUT_NAMES = ("input_ids", "attention_mask", "token_type_ids")  # that a model may read
_PROBLEM_TYPES = get_args(ProblemType)
_WINDOW_TEXTS = 8192  # texts that are tokenized and sorted by length together
_OTHER_FOLDER = "export the run again with `finetune export`"


@dataclass(frozen=True)
class OnnxClassifier:
    """A classifier in an exported folder. Several threads may use it at the same time.

    Attributes:
        rules: how logits become probabilities and labels.
        text_columns: names of the one or two text columns in the training data; () if they are unknown.
        max_length: largest number of tokens that the model reads at a time.
        long_text: how longer texts are read.
        encoder: turns texts into batches of token ids.
        session: the `onnxruntime.InferenceSession`.
    """

    rules: OutputRules
    text_columns: tuple[str, ...]
    max_length: int
    long_text: LongText
    encoder: TextEncoder
    session: Any

    def logits(self, columns: list[list[str]], batch_size: int) -> np.ndarray:
        """Return the logits (N, C) of one or two columns of N texts, in float32.

        Raises:
            ModelError: the tokenizer cannot read a text.
        """
        windows = range(0, len(columns[0]), _WINDOW_TEXTS)
        parts = [[column[start : start + _WINDOW_TEXTS] for column in columns] for start in windows]
        logits = [self.encoded_logits(self.encoder.encode(part), batch_size) for part in parts]
        return np.concatenate([np.empty((0, len(self.rules.label_names)), np.float32), *logits])

    def encoded_logits(
        self, encoded: EncodedTexts, batch_size: int, on_batch: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Return the logits (N, C) of texts that `encoder` encoded, in float32.

        Texts of similar length share a batch, longest first, so that little is padded.

        Args:
            on_batch: called with the number of texts after each batch.

        Raises:
            DataError: `batch_size` is below 1.
        """
        from finetune.models.text_batches import check_batch_size

        check_batch_size(batch_size)
        order = np.argsort(-encoded.lengths, kind="stable")
        logits = np.empty((len(order), len(self.rules.label_names)), np.float32)  # of all windows
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            (logits[rows],) = self.session.run(["logits"], self.encoder.batch(encoded, rows))
            if on_batch is not None:
                on_batch(encoded.count_texts(rows))
        return encoded.pool(logits, self.long_text.window_pooling)


def load_onnx(folder: Path) -> OnnxClassifier:
    """Return the classifier in a folder that `finetune export` wrote.

    Raises:
        ModelError: onnxruntime or tokenizers is not installed, or a file is missing or damaged.
    """
    onnxruntime, tokenizers = _library("onnxruntime"), _library("tokenizers")
    from finetune.data.long_text import TokenLimit
    from finetune.data.padding import Padding
    from finetune.models.text_batches import TextEncoder, encode_texts, plain_tokenizer

    config = _read_config(folder / CONFIG_FILE)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = _num_threads()
    # Otherwise onnxruntime keeps a plan of memory for each shape of a batch: 5 MB more after 80 shapes, and no faster.
    options.enable_mem_pattern = False
    try:
        session = onnxruntime.InferenceSession(str(folder / MODEL_FILE), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own classes, which share no base but Exception
        raise _damaged(folder / MODEL_FILE, error) from error
    names = tuple(node.name for node in session.get_inputs())
    if unknown := set(names) - set(INPUT_NAMES):
        raise _damaged(folder / MODEL_FILE, f"unknown inputs {sorted(unknown)}")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    except BaseException as error:  # a damaged file can cause a panic in Rust, which is not an Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise _damaged(folder / TOKENIZER_FILE, error) from error
    plain = plain_tokenizer(tokenizer)
    plain.encode_special_tokens = config.split_special_tokens
    encode = partial(encode_texts, plain, TokenLimit(config.max_length, config.long_text, config.truncation_side))
    padding = Padding(names, config.pad_token_id, config.pad_type_id, config.pad_left)
    return OnnxClassifier(
        config.rules, config.text_columns, config.max_length, config.long_text, TextEncoder(encode, padding), session
    )


@dataclass(frozen=True)
class _Config:
    """The entries of config.json that are needed to run the model."""

    rules: OutputRules
    text_columns: tuple[str, ...]
    max_length: int
    long_text: LongText
    truncation_side: str
    split_special_tokens: bool
    pad_token_id: int
    pad_type_id: int
    pad_left: bool


def _read_config(file: Path) -> _Config:
    """Return the content of config.json; raise ModelError if it is missing or damaged."""
    from finetune.data.long_text import long_text_from

    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise ValueError(f"format is {data['format']!r} and must be {FORMAT!r}")
        names, columns, thresholds = data["label_names"], data["text_columns"], data["thresholds"]
        padding, max_length = data["padding"], data["max_length"]
        numbers = [max_length, padding["token_id"], padding["type_id"]]
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError(f"max_length and padding are {numbers} and must be whole numbers")
        sides = [data["truncation_side"], padding["side"]]
        if not all(side in ("left", "right") for side in sides):
            raise ValueError(f"truncation and padding side are {sides} and must be left or right")
        if not names or not all(isinstance(name, str) for name in (*names, *columns)) or len(columns) > 2:
            raise ValueError("label_names and text_columns must be lists of names")
        if data["problem_type"] not in _PROBLEM_TYPES:
            raise ValueError(f"problem_type is {data['problem_type']!r} and must be one of {', '.join(_PROBLEM_TYPES)}")
        long_text = long_text_from(data)
        rules = OutputRules(
            tuple(names),
            data["problem_type"],
            None if thresholds is None else tuple(None if value is None else float(value) for value in thresholds),
            float(data["temperature"]),
            read_conformal(file.parent, len(names)),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(file, error) from error
    return _Config(
        rules,
        tuple(columns),
        max_length,
        long_text,
        sides[0],
        data.get("split_special_tokens") is True,
        padding["token_id"],
        padding["type_id"],
        sides[1] == "left",
    )


def _num_threads() -> int:
    """Return the number of threads per model: OMP_NUM_THREADS, or the processors this process may use; 0: all."""
    if (value := os.environ.get("OMP_NUM_THREADS", "")).isdigit():
        return int(value)
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    return allowed if allowed < (os.cpu_count() or 1) else 0


def _library(name: str) -> Any:
    """Return a library that is imported only when an exported model is used."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ModelError(
            f"an exported model needs {name}, which is not installed; run `pip install onnxruntime tokenizers`"
        ) from error


def _damaged(file: Path, reason: object) -> ModelError:
    text = f"{type(reason).__name__}: {reason}" if isinstance(reason, BaseException) else str(reason)
    return ModelError(f"{file} is missing or damaged ({' '.join(text.split())[:300]}); {_OTHER_FOLDER}")
