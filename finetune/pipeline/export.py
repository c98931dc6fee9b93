"""The command `export`: write a trained classifier as a folder that onnxruntime and tokenizers can serve alone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from finetune.errors import DataError, ModelError
from finetune.evaluation.paired_differences import paired_differences
from finetune.models.classifier import Classifier
from finetune.models.lora import merge_adapters
from finetune.models.onnx_classifier import MODEL_FILE, OnnxClassifier, load_onnx
from finetune.models.onnx_export import check_exportable, check_onnx_installed, quantize_to_int8, write_onnx
from finetune.models.outputs import OutputRules
from finetune.models.pretrained import quiet_libraries
from finetune.pipeline.export_folder import Export, Int8Comparison, MetricComparison, Parity, write_folder
from finetune.pipeline.export_rows import EvaluationRows, read_rows
from finetune.pipeline.finished_run import finished_folder, finished_recipe, load_saved_classifier
from finetune.pipeline.load_classifier import load_classifier
from finetune.progress import stage
from finetune.recipe.schema import Recipe
from finetune.runs.locks import locked_folder
from finetune.runs.new_dirs import atomic_new_dir, lock_new_dir
from finetune.runs.run_folder import RunFolder
from finetune.runs.series import chosen_run, is_series

_BATCH_SIZES = (1, 7, 32)
_PARITY_ROWS = 96
# Largest difference from PyTorch, relative to the largest logit (at least 1). Measured over all families with small
# random models: at most 9e-6 (mobilebert, the deepest), 1e-6 for all others.
_TOLERANCE = 1e-4
_EXAMPLES = ("one short text", "another text, which is a little longer than the first", "a third")


@dataclass(frozen=True)
class _Trained:
    """A trained classifier, and the finished run with the rows to compare it on; None if there is none."""

    classifier: Classifier
    run: RunFolder | None
    recipe: Recipe | None


def export(
    path: str | Path, overrides: Sequence[str] = (), *, int8: bool = False, output: Path | None = None
) -> tuple[Path, Export]:
    """Export the classifier of a run, a series or a folder such as `RUN/pruned`; return the new folder and the results.

    Args:
        overrides: to the run's recipe, as `section.key=value`.
        int8: quantize the weights.
        output: the folder to write; None: `onnx` or `onnx-int8` in the folder of the classifier.

    Raises:
        FinetuneError: there is no trained classifier, it cannot be exported, the exported model differs from PyTorch by
            more than the tolerance, or the output folder is not empty.
    """
    check_onnx_installed()
    quiet_libraries()
    source = Path(path).absolute()
    if source.name == "model":  # of a run, or of a pruned model
        source = source.parent
    default = RunFolder(source).onnx_int8 if int8 else RunFolder(source).onnx
    target = (output or default).absolute()
    if is_series(source):
        source = chosen_run(source).path
    with ExitStack() as stack:
        stack.enter_context(lock_new_dir(target))
        if RunFolder(source).recipe.exists():
            stack.enter_context(locked_folder(finished_folder(source).path, read_only_ok=output is not None))
        trained = _load(source, overrides)
        check_exportable(trained.classifier.base, trained.classifier.tokenizer, trained.classifier.max_length)
        rows = read_rows(trained.run, trained.classifier.rules) if trained.run else None
        temporary = stack.enter_context(atomic_new_dir(target))
        return target, _export(trained, rows, temporary, int8)


def _load(source: Path, overrides: Sequence[str]) -> _Trained:
    """Return the classifier of a run or of another folder, which may be in a run folder."""
    if RunFolder(source).recipe.exists():
        run = finished_folder(source)
        recipe = finished_recipe(run, overrides, read_data=False)
        return _with_text_columns(_Trained(load_saved_classifier(run, recipe, overrides), run, recipe))
    if overrides:
        raise DataError(
            f"{source} has no recipe that '{overrides[0]}' could change; leave it out, or name a run folder"
        )
    classifier = load_classifier(source)
    parents = [RunFolder(parent) for parent in (source.parent, source.parent.parent)]
    parent_run = next((parent for parent in parents if parent.recipe.exists() and parent.predictions.exists()), None)
    parent_recipe = finished_recipe(parent_run, read_data=False) if parent_run else None
    return _with_text_columns(_Trained(classifier, parent_run, parent_recipe))


def _with_text_columns(trained: _Trained) -> _Trained:
    """Return the classifier with the text columns of its recipe, which earlier versions did not save with the model."""
    if trained.classifier.text_columns or trained.recipe is None:
        return trained
    columns = tuple(trained.recipe.data.text_columns())
    return replace(trained, classifier=replace(trained.classifier, text_columns=columns))


def _export(trained: _Trained, rows: EvaluationRows | None, folder: Path, int8: bool) -> Export:
    """Write the exported classifier to a folder, and compare it with PyTorch and, for int8, with float32."""
    classifier = trained.classifier
    classifier.model.float().eval()
    columns = _parity_texts(classifier, rows)
    with stage("computing logits with PyTorch"):
        expected = [classifier.logits(part, size) for size, part in _batches(columns)]
    model = merge_adapters(classifier.model)
    file = folder / MODEL_FILE
    with stage("exporting to ONNX"):
        write_onnx(model, _trace_inputs(classifier.tokenizer, pairs=len(columns) == 2), file)
    write_folder(classifier, folder)
    exported = load_onnx(folder)
    with stage("comparing with PyTorch"):
        parity = _check_parity(exported, columns, expected)
    comparison = None
    if int8:
        with stage("quantizing to int8"):
            quantize_to_int8(file, folder / "int8.onnx")
        (folder / "int8.onnx").replace(file)
        if rows is not None and trained.recipe is not None:
            comparison = _compare_int8(exported, load_onnx(folder), rows, trained.recipe)
    result = Export("int8" if int8 else "float32", file.stat().st_size, parity, comparison)
    write_folder(classifier, folder, result)
    return result


def _trace_inputs(tokenizer: PreTrainedTokenizerBase, *, pairs: bool) -> dict[str, torch.Tensor]:
    """Return a padded batch of three texts, or of three pairs."""
    columns = [list(_EXAMPLES), list(_EXAMPLES[::-1])][: 1 + pairs]
    return dict(tokenizer(*columns, truncation=True, max_length=16, padding=True, return_tensors="pt"))


def _parity_texts(classifier: Classifier, rows: EvaluationRows | None) -> list[list[str]]:
    """Return texts to compare: evaluation rows of all lengths, one word, and a text that is cut to `max_length`."""
    examples = [list(_EXAMPLES) for _ in classifier.text_columns or ("text",)]
    columns = examples if rows is None else rows.columns
    lengths = classifier.encoder.encode(columns).text_lengths
    by_length = np.argsort(lengths, kind="stable")
    chosen = by_length[np.unique(np.linspace(0, len(lengths) - 1, _PARITY_ROWS).round().astype(int))]
    joined = [" ".join(column[: classifier.max_length]) for column in columns]
    repeats = classifier.max_length // max(1, *(len(text.split()) for text in joined)) + 1
    return [
        [*(column[index] for index in chosen), text.split(" ")[0], " ".join([text] * repeats)]
        for column, text in zip(columns, joined, strict=True)
    ]


def _batches(columns: list[list[str]]) -> list[tuple[int, list[list[str]]]]:
    """Return each batch size with the texts to run it on: fewer of them one by one."""
    return [(size, columns if size > 1 else [column[::4] + column[-2:] for column in columns]) for size in _BATCH_SIZES]


def _check_parity(exported: OnnxClassifier, columns: list[list[str]], expected: Sequence[np.ndarray]) -> Parity:
    """Return how far the exported model is from PyTorch's logits.

    Raises:
        ModelError: the largest difference exceeds the tolerance.
    """
    logits = [exported.logits(part, size) for size, part in _batches(columns)]
    difference = max(float(np.abs(a - b).max()) for a, b in zip(logits, expected, strict=True))
    tolerance = _TOLERANCE * max(1.0, *(float(np.abs(part).max()) for part in expected))
    if not difference <= tolerance:
        raise ModelError(
            f"the logits of the exported model differ from PyTorch's by {difference:.2g}, and at most {tolerance:.2g} "
            "is accepted; nothing was written; please report it"
        )
    lengths = exported.encoder.encode(columns).text_lengths
    return Parity(difference, tolerance, len(lengths), int(lengths.min()), int(lengths.max()), _BATCH_SIZES)


def _compare_int8(
    exported: OnnxClassifier, quantized: OnnxClassifier, rows: EvaluationRows, recipe: Recipe
) -> Int8Comparison:
    """Return the scores of float32 and int8 on the evaluation rows, with paired intervals of their differences."""
    size, probabilities = recipe.evaluation.per_device_eval_batch_size, []
    rules: OutputRules = exported.rules
    for name, model in (("float32", exported), ("int8", quantized)):
        with stage(f"scoring {name} on {len(rows.labels)} {rows.split} rows"):
            probabilities.append(rules.probabilities(model.logits(rows.columns, size)))
    first, second = (np.asarray(rules.decisions(part), rows.labels.dtype) for part in probabilities)
    names = recipe.toolkit_metrics()
    differences = paired_differences((first, second), rows.labels, names, num_classes=len(rules.label_names))
    scores = [rows.scores(model, rules.problem_type, len(rules.label_names)) for model in (first, second)]
    same = (first == second) if first.ndim == 1 else (first == second).all(-1)
    return Int8Comparison(
        split=rows.split,
        rows=len(rows.labels),
        same_predictions=None if rules.problem_type == "regression" else float(same.mean()),
        largest_difference=float(np.abs(probabilities[0] - probabilities[1]).max()),
        metrics={name: MetricComparison(scores[0][name], scores[1][name], differences[name]) for name in names},
    )
