"""Open saved models with transformers, peft and sentence-transformers in a fresh process that has no finetune.

python tests/support/stock_loaders.py CASES.json RESULTS.json
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

LOADERS = ("pipeline", "AutoModel", "AutoPeftModel", "PeftModel", "CrossEncoder")


@dataclass(frozen=True)
class Case:
    """A saved model to open.

    Attributes:
        name: for the results.
        folder: of the model.
        rows: texts, or pairs of texts.
        problem_type: decides how logits become probabilities.
        base: the base of an adapter, for PeftModel; None without adapters.
        options: keyword arguments that every loader but CrossEncoder passes to the config, such as num_labels.
        trusted: whether code that comes with the model may run.
    """

    name: str
    folder: str
    rows: Sequence[Sequence[str]]
    problem_type: str = "single_label_classification"
    base: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    trusted: bool = False

    def trust(self) -> dict[str, bool]:
        """Return the keyword argument that allows code; without it a process without a terminal refuses it."""
        return {"trust_remote_code": True} if self.trusted else {}


@dataclass(frozen=True)
class Opened:
    """What a loader gave: label names and probabilities (N, C), or the error."""

    labels: list[str]
    probabilities: list[list[float]]
    error: str = ""


def add_to_hub_cache(hub: Path, hub_id: str, folder: Path) -> None:
    """Put a checkpoint into a cache of the hub, where the libraries find it offline by this id."""
    model = hub / f"models--{hub_id.replace('/', '--')}"
    commit = "c" * 40
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(commit)
    shutil.copytree(folder, model / "snapshots" / commit, ignore=shutil.ignore_patterns(".*", "*.md"))


def open_in_a_fresh_process(cases: Sequence[Case], hub: Path, folder: Path) -> dict[str, dict[str, Opened]]:
    """Return by case and loader what a process without finetune gives, offline, with this cache of the hub.

    Args:
        folder: for the files with cases and results.
    """
    files = folder / "cases.json", folder / "results.json"
    files[0].write_text(json.dumps([asdict(case) for case in cases]))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(hub), "PYTHONPATH": ""}
    environment["HF_MODULES_CACHE"] = str(folder / "code")
    command = [sys.executable, "-P", str(Path(__file__).resolve()), *map(str, files)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    results = json.loads(files[1].read_text())
    return {
        name: {loader: Opened(**opened) for loader, opened in by_loader.items()} for name, by_loader in results.items()
    }


def _main(cases_file: str, results_file: str) -> None:
    import peft
    import torch
    from sentence_transformers import CrossEncoder
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, logging, pipeline

    logging.set_verbosity_error()
    logging.disable_progress_bar()

    def from_model(case: Case, model: Any) -> Opened:
        tokenizer = AutoTokenizer.from_pretrained(case.folder)
        columns = [list(column) for column in zip(*case.rows, strict=True)]
        inputs = tokenizer(*columns, truncation=True, padding=True, return_tensors="pt")
        with torch.no_grad():
            logits = model.eval()(**inputs).logits.double()
        probabilities = {
            "single_label_classification": lambda: logits.softmax(-1),
            "multi_label_classification": logits.sigmoid,
            "regression": lambda: logits,
        }[case.problem_type]()
        return Opened(list(model.config.id2label.values()), probabilities.tolist())

    def with_pipeline(case: Case) -> Opened:
        # For an adapter it would take the tokenizer of the base, which cuts texts elsewhere.
        options: Any = {"model": case.folder, "tokenizer": case.folder, "model_kwargs": dict(case.options)}
        options |= case.trust()
        classify = pipeline("text-classification", **options)
        keys = ("text", "text_pair")
        inputs = [dict(zip(keys, row, strict=False)) for row in case.rows]
        labels = list(classify.model.config.id2label.values())
        outputs = [
            {entry["label"]: entry["score"] for entry in row} for row in classify(inputs, top_k=None, truncation=True)
        ]
        return Opened(labels, [[row[label] for label in labels] for row in outputs])

    def with_auto_model(case: Case) -> Opened:
        return from_model(
            case, AutoModelForSequenceClassification.from_pretrained(case.folder, **case.options, **case.trust())
        )

    def with_auto_peft(case: Case) -> Opened:
        return from_model(
            case, peft.AutoPeftModelForSequenceClassification.from_pretrained(case.folder, **case.options)
        )

    def with_peft(case: Case) -> Opened:
        base = AutoModelForSequenceClassification.from_pretrained(case.base or case.folder, **case.options)
        return from_model(case, peft.PeftModel.from_pretrained(base, case.folder))

    def with_cross_encoder(case: Case) -> Opened:
        model = CrossEncoder(case.folder, device="cpu", **case.trust())
        softmax = case.problem_type == "single_label_classification"
        if len(case.rows[0]) == 2:
            scores = model.predict([list(row) for row in case.rows], apply_softmax=softmax)
        else:  # it takes a list of single texts for one pair
            scores = [model.predict(text, apply_softmax=softmax) for (text,) in case.rows]
        rows = torch.as_tensor(scores if len(case.rows[0]) == 2 else [torch.as_tensor(row).tolist() for row in scores])
        return Opened(list(model.config.id2label.values()), rows.reshape(len(case.rows), -1).tolist())

    loaders: Sequence[Callable[[Case], Opened]] = (
        with_pipeline, with_auto_model, with_auto_peft, with_peft, with_cross_encoder,
    )  # fmt: skip
    results: dict[str, dict[str, Any]] = {}
    for case in (Case(**entries) for entries in json.loads(Path(cases_file).read_text())):
        if "id2label" in case.options:  # JSON has no integer keys
            names = {int(key): name for key, name in case.options["id2label"].items()}
            case = replace(case, options={**case.options, "id2label": names})
        results[case.name] = {}
        for name, loader in zip(LOADERS, loaders, strict=True):
            try:
                opened = loader(case)
            except Exception as error:  # any error is a result
                opened = Opened([], [], f"{type(error).__name__}: {' '.join(str(error).split())}")
            results[case.name][name] = asdict(opened)
    assert "finetune" not in sys.modules
    Path(results_file).write_text(json.dumps(results))


if __name__ == "__main__":
    _main(*sys.argv[1:])
