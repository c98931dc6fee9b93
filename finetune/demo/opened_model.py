"""What the page of `finetune demo` starts from: the model, the rankings of its heads, and rows to try."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from finetune.models.attention_sites import attention_sites
from finetune.models.classifier import Classifier
from finetune.models.cpu_kernels import keep_freed_memory
from finetune.pipeline.launch_checks import threads_per_process
from finetune.pipeline.load_classifier import load_with_text_columns
from finetune.runs.head_results import HeadScores
from finetune.runs.json_files import read_json
from finetune.runs.predictions import PredictedRow, first_predictions, read_predictions, worst_predictions
from finetune.runs.pruning_result import PruningResult
from finetune.runs.run_files import read_heads
from finetune.runs.run_folder import RunFolder, SeriesFolder
from finetune.runs.series import is_series, read_series

Head = tuple[int, int]
_MAX_EXAMPLES = 8  # first rows, and as many wrong ones
_MAX_EXAMPLE_LENGTH = 2000  # characters


@dataclass(frozen=True)
class Ranking:
    """All heads of the model, least important first, by one method."""

    method: str
    split: str
    rows: int
    order: list[Head]


@dataclass(frozen=True)
class OpenedModel:
    """A classifier on its device, and what is known about it.

    Attributes:
        name: the folder, as it is shown.
        num_heads: number of heads per layer, (L,).
        rankings: empty if there are none.
        no_rankings: why there are none, or "".
    """

    name: str
    classifier: Classifier
    num_heads: list[int]
    rankings: list[Ranking]
    no_rankings: str
    examples: list[PredictedRow]

    @property
    def reads_pairs(self) -> bool:
        """Whether the model was trained on pairs of texts."""
        return len(self.classifier.text_columns) == 2


def open_model(path: Path, *, trust_remote_code: bool = False, base: str | None = None) -> OpenedModel:
    """Return the model of a run, a series, or a model folder, on the GPU if there is one.

    Args:
        path: a run folder, the folder of a series, or a model folder in one of them.
        trust_remote_code, base: see `load_classifier`.

    Raises:
        FinetuneError: the folder holds no trained PyTorch model, or a file in it is damaged.
    """
    if torch.accelerator.is_available():
        device = torch.device(torch.accelerator.current_accelerator() or "cpu")
    else:
        device = torch.device("cpu")
        keep_freed_memory()
        torch.set_num_threads(threads_per_process(1))
    classifier = load_with_text_columns(path, trust_remote_code, base)
    for parameter in classifier.model.to(device).parameters():
        parameter.requires_grad_(False)  # gradients are taken with respect to gates and embeddings only
    num_heads = [site.num_heads for site in attention_sites(classifier.base)]
    home = _home(path.absolute())
    run = None if home is None else _run_in(home)
    name = path.absolute().name if home is None else str(path.absolute().relative_to(home.parent))
    if run is None:
        return OpenedModel(name, classifier, num_heads, [], "the model is not in a run folder", [])
    return OpenedModel(name, classifier, num_heads, *_rankings(run, path, num_heads), _examples(run))


def _home(path: Path) -> Path | None:
    """Return the run or series that a model folder is in, None if it is in neither."""
    folders = (path, path.parent, path.parent.parent)
    return next((folder for folder in folders if is_series(folder) or RunFolder(folder).recipe.is_file()), None)


def _run_in(home: Path) -> RunFolder | None:
    """Return the run in a folder; that of a series is the run whose model is the model of the series."""
    if not is_series(home):
        return RunFolder(home)
    seed = read_series(home).chosen_seed
    return None if seed is None else SeriesFolder(home).member(seed)


def _rankings(run: RunFolder, path: Path, num_heads: list[int]) -> tuple[list[Ranking], str]:
    """Return the rankings of a run in the numbering of the model, or why there are none."""
    if not run.heads.is_file():
        return [], f"{run.path.name} has no heads.json; `finetune heads` writes it"
    removed: dict[str, list[int]] = {}
    for folder in (path, path.absolute().parent):
        if (folder / "pruning.json").is_file():
            removed = read_json(folder / "pruning.json", PruningResult).heads
    rankings = [_ranking(scores, removed) for scores in read_heads(run).methods]
    heads = {(layer, head) for layer, count in enumerate(num_heads) for head in range(count)}
    if any(set(ranking.order) != heads for ranking in rankings):
        return [], f"the heads.json of {run.path.name} is of a model with other heads; run `finetune heads` again"
    return rankings, ""


def _ranking(scores: HeadScores, removed: dict[str, list[int]]) -> Ranking:
    """Return a ranking without the removed heads; the remaining heads of a layer are numbered from 0."""
    gone = {(int(layer), head) for layer, heads in removed.items() for head in heads}
    kept = [head for head in sorted(scores.order) if head not in gone]
    numbers: dict[Head, Head] = {}
    for layer, head in kept:
        numbers[layer, head] = (layer, sum(earlier[0] == layer for earlier in numbers))
    order = [numbers[head] for head in scores.order if head in numbers]
    return Ranking(scores.method, scores.split, scores.rows, order)


def _examples(run: RunFolder) -> list[PredictedRow]:
    """Return the first rows of the last held-out split, and the wrongly predicted rows with the highest loss."""
    if not run.predictions.is_file():
        return []
    splits = read_predictions(run)["split"].to_pylist()
    rows = first_predictions(run, splits[-1], _MAX_EXAMPLES) if splits else []
    rows += [row for row in worst_predictions(run, _MAX_EXAMPLES) if row not in rows]
    return [row for row in rows if len(row.text) <= _MAX_EXAMPLE_LENGTH]
