"""The command `publish`: write a finished run's model, card, recipe, scores and report to the hub. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune.errors import DataError, FinetuneError, ModelError, did_you_mean
from finetune.models.pooling import POOLED_CODE
from finetune.pipeline.hub import Files, check_repository, upload
from finetune.recipe.hub_names import hub_id
from finetune.recipe.loader import dump_recipe
from finetune.recipe.portable import is_absolute, last_part, portable_recipe, without_paths
from finetune.recipe.schema import Recipe
from finetune.report.card import render_card
from finetune.report.card_metadata import CardSubject
from finetune.report.page import render_report
from finetune.report.run_record import RunRecord, read_record
from finetune.runs.json_files import damaged_file, read_bytes, read_json
from finetune.runs.locks import locked_folder
from finetune.runs.pruned_files import has_pruned_parts
from finetune.runs.pruning_result import PruningResult
from finetune.runs.results import MetricValue, SplitScores
from finetune.runs.run_files import existing_run
from finetune.runs.run_folder import RunFolder

# What can be published -> where it is in the run folder, and the command that writes it.
MODELS = {
    "model": ("model", "train"),
    "merged": ("merged", "merge"),
    "pruned": ("pruned/model", "prune"),
    "zeroed": ("pruned/zeroed", "prune"),
}
_ADAPTER_CONFIG, _BASE_KEY = "adapter_config.json", "base_model_name_or_path"
_PATH_KEY = re.compile(r"(^|_)(name|path|file|dir)$")  # keys of JSON files whose values can be paths
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z]{2,4})?|multilingual|code")
# Deleted from the repository if this upload does not have them: an old adapter next to plain weights would be loaded
# in their place, and rows of an earlier upload must not stay when they are not to be published any more.
_REPLACED = frozenset(
    {
        _ADAPTER_CONFIG,
        "adapter_model.safetensors",
        "config.json",
        "model.safetensors",
        "classifier.json",
        "conformal.json",
        POOLED_CODE,
    }
    | {"heads.json", "predictions.parquet", "scores.json", "report.html", "pruning.json"}
)
_PRUNING = "pruning.json"
_RECIPE_NOTE = "# Paths are names only: of files and folders that are not published with this recipe.\n"


@dataclass(frozen=True)
class Publication:
    """What is published, and where.

    Attributes:
        repository: OWNER/NAME on the hub.
        model: one of MODELS; its files are at the top of the repository.
        private: whether the repository must be private.
        include_texts: whether texts of the rows are published: predictions, examples, rows written in the recipe.
        languages, license: for the front matter of the card.
    """

    repository: str
    model: str = "model"
    private: bool = False
    include_texts: bool = False
    languages: tuple[str, ...] = ()
    license: str | None = None


def publish(path: str | Path, publication: Publication) -> str:
    """Upload a finished run to the hub, and return the address of the repository.

    Raises:
        FinetuneError: the folder contains no finished run, one of its files is damaged, or the upload failed.
    """
    folder = existing_run(Path(path))
    with locked_folder(folder.path, read_only_ok=True):
        files = published_files(folder, publication)
        size = sum(_size(content) for content in files.values())
        print(f"Uploading {len(files)} files, {size / 1e6:.1f} MB, to {publication.repository}.", flush=True)
        return upload(files, publication.repository, private=publication.private, replaced=_REPLACED)


def published_files(folder: RunFolder, publication: Publication) -> Files:
    """Return the files that `publish` uploads, by their name in the repository.

    None of them contains a path of this machine or, unless `include_texts` is set, a text of a row.

    Raises:
        FinetuneError: the run is not finished, one of its files is damaged, the name of the repository or a language is
            invalid, or the model is an adapter whose base checkpoint is not on the hub.
    """
    _check(publication)
    record = read_record(folder)
    files = dict(_model_files(folder, publication.model, record.recipe))
    pruning = _pruning_result(folder) if publication.model in ("pruned", "zeroed") else None
    recipe = portable_recipe(record.recipe, keep_rows=publication.include_texts)
    name = publication.repository.partition("/")[2]
    subject = CardSubject(
        name=name,
        location=publication.repository,
        has_adapter=_ADAPTER_CONFIG in files,
        repository=publication.repository,
        languages=publication.languages,
        license=publication.license,
        pruning=pruning,
        is_pruned=has_pruned_parts(folder.path / MODELS[publication.model][0]),
        heads_are_zeroed=publication.model == "zeroed",
    )
    known = _known_paths(record.recipe, folder)
    record = _portable_record(record, recipe, known)
    if pruning is not None:
        record = _after_pruning(record, pruning)
    elif publication.include_texts:
        files[folder.predictions.name] = folder.predictions
    else:
        record = record.without_texts()
    recipe_text = dump_recipe(recipe)
    files[folder.card.name] = render_card(record, subject).encode()
    files[folder.recipe.name] = (_RECIPE_NOTE + recipe_text).encode()
    if pruning is not None:  # scores, heads and report are those of the model before pruning
        return files | {_PRUNING: folder.pruned / _PRUNING}
    files[folder.report.name] = render_report(record, name, recipe_text).encode()
    if folder.heads.exists():
        files[folder.heads.name] = _changed_json(
            folder.heads, lambda key, text: without_paths(text, known) if key == "warnings" else text
        )
    return files | ({folder.scores.name: folder.scores} if folder.scores.exists() else {})


def print_files(path: str | Path, publication: Publication) -> None:
    """Print the files that `publish` would upload, with their sizes, and the card. Needs no network and no token.

    Raises:
        FinetuneError: see `published_files`.
    """
    files = published_files(existing_run(Path(path)), publication)
    for name, content in sorted(files.items()):
        print(f"{_size(content):>13,} bytes  {name}")
    card = files["README.md"]
    assert isinstance(card, bytes)
    print(f"\n{card.decode()}", end="")


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _check(publication: Publication) -> None:
    """Raise FinetuneError for an invalid name of a repository or language."""
    check_repository(publication.repository)
    for language in publication.languages:
        if not _LANGUAGE.fullmatch(language):
            raise FinetuneError(f"'{language}' is not a language code; write a code of ISO 639, such as en or de")
    if publication.model not in MODELS:
        hint = did_you_mean(publication.model, MODELS)
        raise FinetuneError(
            f"there is no model '{publication.model}' to publish; choose one of {', '.join(MODELS)}{hint}"
        )


def _model_files(folder: RunFolder, model: str, recipe: Recipe) -> Iterator[tuple[str, Path | bytes]]:
    """Yield name and content of each file of the model, without paths of this machine."""
    place, command = MODELS[model]
    source = folder.path / place
    if not any(source.glob("*.safetensors")):
        fix = "finish the run or repeat it" if model == "model" else f"run `finetune {command} {folder.path}` first"
        raise DataError(f"{source} has no weights to publish; {fix}")
    base = hub_id(recipe.model.model_name_or_path)
    if (source / _ADAPTER_CONFIG).is_file() and (reason := _why_not_alone(source, recipe, base)):
        raise ModelError(f"{reason}; run `finetune merge {folder.path}`, and publish with --model merged")
    for file in sorted(source.rglob("*")):
        path = file.relative_to(source)
        if file.is_file() and not any(part.startswith(".") for part in path.parts):
            is_config = file.suffix == ".json" and file.name != "tokenizer.json"
            yield path.as_posix(), _model_config(file, base) if is_config else file


def _why_not_alone(source: Path, recipe: Recipe, base: str | None) -> str:
    """Return why others could not use an adapter, or ""."""
    if base is None:
        name = recipe.model.model_name_or_path
        return f"the adapter in {source} needs its base checkpoint '{name}', which is not on the hub"
    if (source / "config.json").exists():
        return f"the adapter in {source} is of an earlier version: its config.json hides it from other libraries"
    return ""


def _model_config(file: Path, base: str | None) -> Path | bytes:
    """Return a config file of the model, or its content with the names of folders in place of their paths."""

    def change(key: str, text: str) -> str:
        if key == _BASE_KEY and file.name == _ADAPTER_CONFIG and base is not None:
            return base
        return f"./{last_part(text)}" if _PATH_KEY.search(key) and is_absolute(text) else text

    return _changed_json(file, change)


def _changed_json(file: Path, change: Callable[[str, str], str]) -> Path | bytes:
    """Return a JSON file, or its content if `change`, a function of key and text, changes any text in it."""
    content = read_bytes(file)
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise damaged_file(file, str(error)) from error
    changed = _map_texts(document, change)
    return file if changed == document else (json.dumps(changed, indent=2, ensure_ascii=False) + "\n").encode()


def _map_texts(value: Any, change: Callable[[str, str], str], key: str = "") -> Any:
    """Return a JSON value with every text changed; the items of a list have the key of the list."""
    if isinstance(value, dict):
        return {name: _map_texts(item, change, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_map_texts(item, change, key) for item in value]
    return change(key, value) if isinstance(value, str) else value


def _pruning_result(folder: RunFolder) -> PruningResult:
    return read_json(folder.pruned / _PRUNING, PruningResult)


def _after_pruning(record: RunRecord, pruning: PruningResult) -> RunRecord:
    """Return the results with the scores of the pruned model, which have no intervals, and without examples."""
    scores = {
        split: SplitScores(
            rows=record.scores[split].rows,
            loss=float(metrics["loss"] or 0),
            metrics={name: MetricValue(value) for name, value in metrics.items() if name != "loss"},
        )
        for split, metrics in (pruning.scores_healed or pruning.scores_after).items()
        if split in record.scores
    }
    baselines = record.baselines and record.baselines.with_classifier(
        {
            split: {name: value.value for name, value in split_scores.metrics.items()}
            for split, split_scores in scores.items()
        }
    )
    return replace(record.without_texts(), scores=scores, baselines=baselines)


def _known_paths(recipe: Recipe, folder: RunFolder) -> list[str]:
    """Return the paths of this machine that messages in the results can contain."""
    data = recipe.data
    files = [file for entries in data.local_files().values() for file in entries]
    names = [recipe.model.model_name_or_path, data.dataset_name, *files]
    return [str(folder.path), recipe.output_dir, *filter(None, names)]


def _portable_record(record: RunRecord, recipe: Recipe, known: list[str]) -> RunRecord:
    """Return the results with the portable recipe, and with notes that name no path of this machine."""

    def hide(texts: list[str]) -> list[str]:
        return [without_paths(text, known) for text in texts]

    training = replace(record.training, notes=hide(record.training.notes))
    baselines = record.baselines and replace(
        record.baselines, skipped={name: without_paths(text, known) for name, text in record.baselines.skipped.items()}
    )
    heads = record.heads and replace(record.heads, warnings=hide(record.heads.warnings))
    (head_note,) = hide([record.head_note.partition(" Run `finetune")[0]])  # readers of the card do not have the run
    return replace(record, recipe=recipe, training=training, baselines=baselines, heads=heads, head_note=head_note)
