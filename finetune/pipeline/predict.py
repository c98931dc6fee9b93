"""The command `predict`: label the rows of a file. Imports PyTorch only for a model that is not exported.

N rows of a window, C labels
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from finetune.data.cell_values import Column
from finetune.data.input_rows import STANDARD_INPUT, InputFile, Window, open_input, read_windows
from finetune.data.long_text import LongText
from finetune.errors import DataError, printable
from finetune.models.outputs import OutputRules
from finetune.models.text_batches import EncodedTexts, TextEncoder
from finetune.pipeline.prediction_columns import ColumnOptions, check_names, checked_rules, prediction_columns
from finetune.pipeline.prediction_output import Output, Target, choose_target, open_output
from finetune.progress import Stage, stage

T = TypeVar("T")
WINDOW_BATCHES = 64  # batches whose rows are tokenized and sorted by length together, per process


class TextClassifier(Protocol):
    """What prediction needs of a model: the PyTorch `Classifier` and the exported `OnnxClassifier` have it."""

    @property
    def rules(self) -> OutputRules: ...  # noqa: D102
    @property
    def text_columns(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def max_length(self) -> int: ...  # noqa: D102
    @property
    def long_text(self) -> LongText: ...  # noqa: D102
    @property
    def encoder(self) -> TextEncoder: ...  # noqa: D102
    def encoded_logits(  # noqa: D102
        self, encoded: EncodedTexts, batch_size: int, on_batch: Callable[[int], None] | None = None
    ) -> np.ndarray: ...


@dataclass(frozen=True)
class PredictOptions:
    """The options of the command.

    Attributes:
        source: the file to read, or "-" for standard input.
        input_format, delimiter: of the file; None: by the ending of its name, and the separator in its header.
        text_columns: the one or two text columns; (): those of the training data.
        output: the file to write; None: standard output.
        output_format: None: by the ending of the file name.
        columns: which columns are added.
        batch_size: rows per forward pass; None: 32 on a CPU and 256 on a GPU.
        precision: "no" (float32), "bf16" for processors and GPUs with instructions for it, "int8" for other CPUs.
        base, trust_remote_code: where the base model of an adapter is (None: where it was), whether to run its code.
    """

    source: Path = Path("-")
    input_format: str | None = None
    text_columns: Sequence[str] = ()
    output: Path | None = None
    output_format: str | None = None
    columns: ColumnOptions = field(default_factory=ColumnOptions)
    batch_size: int | None = None
    precision: str = "no"
    base: str | None = None
    trust_remote_code: bool = False
    delimiter: str | None = None


class Processes(Protocol):
    """The processes that predict together, and the position of this one among them."""

    @property
    def index(self) -> int: ...  # noqa: D102
    @property
    def count(self) -> int: ...  # noqa: D102
    def gather(self, function: Callable[[], T]) -> list[T]:
        """Call a function on every process and return all results in their order; an error is raised on all."""


class SingleProcess:
    """One process, without a launcher."""

    index, count = 0, 1

    def gather(self, function: Callable[[], T]) -> list[T]:
        """Return the result of the function."""
        return [function()]


@dataclass(frozen=True)
class Predictor:
    """A loaded model, its default batch size, and the processes that run it."""

    classifier: TextClassifier
    batch_size: int
    processes: Processes


@dataclass(frozen=True)
class ScoredWindow:
    """A window of rows with their logits (N, C), and how many of the rows were truncated."""

    window: Window
    logits: np.ndarray
    truncated: int


@dataclass
class Counts:
    """How many rows were written, and how many of them were truncated to the model's maximum length."""

    rows: int = 0
    truncated: int = 0


def is_exported(model: Path) -> bool:
    """Return whether a folder holds an exported model, which needs no PyTorch."""
    return (model / "model.onnx").is_file()


def check_request(model: Path, options: PredictOptions) -> None:
    """Raise DataError for a mistake that can be found before the model is loaded."""
    if not model.is_dir():
        raise DataError(f"there is no folder {model}; name a run folder, such as runs/toy")
    if options.batch_size is not None and options.batch_size < 1:
        raise DataError(f"--batch-size is {options.batch_size}; it must be at least 1")
    if len(options.text_columns) > 2:
        raise DataError(f"--text-column is given {len(options.text_columns)} times; a model reads one or two columns")
    choose_target(options.output, options.output_format, options.source)
    if options.precision != "no" and is_exported(model):
        raise DataError(f"--{options.precision} is for PyTorch models; an exported one has a fixed format; remove it")
    if (options.base is not None or options.trust_remote_code) and is_exported(model):
        raise DataError(
            "--base and --trust-remote-code are for PyTorch models; an exported one has no base, remove them"
        )
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1 and is_exported(model):
        raise DataError(f"an exported model runs in one process, and the launcher started {processes}; use no launcher")
    if options.source == Path("-") or options.source.is_fifo():  # can be read only once
        if processes > 1:
            name = STANDARD_INPUT if options.source == Path("-") else f"the pipe {options.source}"
            raise DataError(f"{name} can be read by one process only; name a file, or predict without a launcher")
        return
    with open_input(options.source, options.input_format, options.delimiter) as file:
        if columns := _text_columns(_saved_text_columns(model), options):
            next(read_windows(file, columns, 100))


def _saved_text_columns(model: Path) -> tuple[str, ...]:
    """Return the text columns in a model folder's files, without loading the model; () if they cannot be read."""
    for file in (model / "config.json", model / "classifier.json", model / "model" / "classifier.json"):
        try:
            names = json.loads(file.read_text(encoding="utf-8"))["text_columns"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return tuple(names)
    return ()


def predict(model: Path, options: PredictOptions) -> Counts:
    """Label the rows of a file, write them, and return their number.

    Args:
        model: a run folder, the folder of a model in it, or the folder of an exported model.

    Raises:
        FinetuneError: the model, the file, a row or an option is wrong, or the output cannot be written. No file is
            written then.
    """
    check_request(model, options)
    target = choose_target(options.output, options.output_format, options.source)
    with (
        open_input(options.source, options.input_format, options.delimiter) as file,
        _predictor(model, options) as predictor,
    ):
        classifier = predictor.classifier
        rules = checked_rules(classifier.rules, options.columns)
        columns = _text_columns(classifier.text_columns, options) or [Column("text", "--text-column")]
        counts = _predict_file(file, columns, target, predictor, rules, options)
    if predictor.processes.index == 0:
        _report(counts, classifier, target)
    return counts


def _report(counts: Counts, classifier: TextClassifier, target: Target) -> None:
    """Print on standard error how many rows were truncated and written; standard output has only the rows."""
    if counts.truncated:
        note = classifier.long_text.truncation_note(counts.truncated, counts.rows, classifier.max_length)
        print(note, file=sys.stderr)
    if target.path is not None:
        print(f"{counts.rows:,} rows with predictions: {printable(str(target.path))}", file=sys.stderr)


@contextmanager
def _predictor(model: Path, options: PredictOptions) -> Iterator[Predictor]:
    """Load the model."""
    if is_exported(model):
        from finetune.models.onnx_classifier import load_onnx

        yield Predictor(load_onnx(model), options.batch_size or 32, SingleProcess())
        return
    from finetune.pipeline.torch_predictor import torch_predictor

    with torch_predictor(model, options) as predictor:
        yield predictor


def _text_columns(saved: Sequence[str], options: PredictOptions) -> list[Column]:
    """Return the text columns: those of the option, or those of the training data.

    Raises:
        DataError: the option names another number of columns.
    """
    names = options.text_columns or saved
    if saved and len(names) != len(saved):
        raise DataError(
            f"--text-column names {len(names)} column{'s' if len(names) > 1 else ''}, but the model was trained on "
            f"{len(saved)} ({' and '.join(saved)}); give it {'twice' if len(saved) > 1 else 'once'}"
        )
    return [Column(name, "--text-column") for name in names]


def _predict_file(
    file: InputFile,
    columns: Sequence[Column],
    target: Target,
    predictor: Predictor,
    rules: OutputRules,
    options: PredictOptions,
) -> Counts:
    """Label all rows, window by window, and return their number; the first process writes them."""
    processes, counts = predictor.processes, Counts()
    name, outputs = STANDARD_INPUT if options.source == Path("-") else str(options.source), list[Output]()
    with ExitStack() as stack:

        def open_on_main_process() -> None:
            if processes.index == 0:
                outputs.append(stack.enter_context(open_output(target, [column.name for column in columns])))

        processes.gather(open_on_main_process)
        running = Stage(f"predicting {name}", file.estimated_rows())
        if target.path is not None or not sys.stdout.isatty():  # rows in a terminal are progress enough
            running = stack.enter_context(stage(running.description, running.total))
        windows = read_windows(file, columns, WINDOW_BATCHES * predictor.batch_size * processes.count)
        for scored in _scored_windows(windows, predictor, running):

            def write(scored: ScoredWindow = scored) -> bool:
                """Write on the first process; return whether the reader of the output has ended."""
                added = prediction_columns(rules, scored.logits, options.columns)
                check_names(scored.window.names(), added.schema.names, name)
                for output in outputs:
                    output.write(scored.window, added)
                return any(output.closed for output in outputs)

            if any(processes.gather(write)):
                break
            counts.rows += len(scored.window)
            counts.truncated += scored.truncated
        processes.gather(stack.close)
    return counts


def _scored_windows(windows: Iterator[Window], predictor: Predictor, running: Stage) -> Iterator[ScoredWindow]:
    """Yield every window with its logits. All processes read the file, and each scores a part of every window."""
    processes, classifier = predictor.processes, predictor.classifier
    current: list[Window] = []

    def score() -> tuple[np.ndarray, int] | None:
        """Return the logits of this process's rows of the next window, and how many were truncated."""
        current[:] = islice(windows, 1)
        if not current:
            return None
        part = [column[processes.index :: processes.count] for column in current[0].texts]
        if not part[0]:
            return np.zeros((0, 0), np.float32), 0
        encoded = classifier.encoder.encode(part)
        logits = classifier.encoded_logits(
            encoded, predictor.batch_size, lambda rows: running.advance(rows * processes.count)
        )
        return logits, encoded.truncated

    while parts := [part for part in processes.gather(score) if part is not None]:
        logits = np.empty((len(current[0]), parts[0][0].shape[1]), np.float32)
        for index, (part, _) in enumerate(parts):
            if len(part):
                logits[index :: processes.count] = part
        yield ScoredWindow(current[0], logits, sum(truncated for _, truncated in parts))
