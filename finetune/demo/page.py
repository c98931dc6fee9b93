"""The page of `finetune demo`: one HTML document with its scripts and data, in the frame of the reports."""

from __future__ import annotations

import json
from importlib.resources import files

from jinja2 import ChoiceLoader, PackageLoader
from markupsafe import Markup

from finetune.demo.opened_model import OpenedModel
from finetune.models.outputs import DEFAULT_THRESHOLD
from finetune.report.embedding import embedded
from finetune.report.page import templates

SCRIPTS = ("calls.js", "predictions.js", "grid.js", "tokens.js", "edits.js", "columns.js", "demo.js")

_FAST_PARAMETERS = 4e9  # parameters times heads, up to which exact effects of heads are the default on a CPU


def render_page(opened: OpenedModel) -> str:
    """Return the page of a model."""
    loader = ChoiceLoader([PackageLoader("finetune.demo", ""), PackageLoader("finetune.report", "")])
    environment = templates().overlay(loader=loader)
    scripts = [Markup((files("finetune.demo") / "scripts" / name).read_text(encoding="utf-8")) for name in SCRIPTS]
    data = embedded("model", json.dumps(_description(opened)).encode())
    template = environment.get_template("demo.html")
    return template.render(name=opened.name, facts=_facts(opened), data=data, scripts=scripts)


def _description(opened: OpenedModel) -> dict[str, object]:
    """Return what the scripts need to know about the model."""
    classifier = opened.classifier
    rules = classifier.rules
    multi_label = rules.problem_type == "multi_label_classification"
    return {
        "labels": rules.label_names,
        "problemType": rules.problem_type,
        "thresholds": rules.thresholds or [DEFAULT_THRESHOLD if multi_label else None] * len(rules.label_names),
        "textColumns": classifier.text_columns or ["text"],
        "maxLength": classifier.max_length,
        "numHeads": opened.num_heads,
        "rankings": [
            {"method": ranking.method, "rows": ranking.rows, "split": ranking.split, "order": ranking.order}
            for ranking in opened.rankings
        ],
        "exactEffects": _exact_effects_are_fast(opened),
        "noRankings": opened.no_rankings,
        "examples": [
            {"texts": row.texts, "split": row.split, "label": row.label, "predicted": row.predicted}
            for row in opened.examples
        ],
    }


def _exact_effects_are_fast(opened: OpenedModel) -> bool:
    """Return whether one forward pass per head is fast enough for every change of a text."""
    _, parameters = opened.classifier.parameter_counts()
    on_cpu = next(opened.classifier.model.parameters()).device.type == "cpu"
    return not on_cpu or parameters * sum(opened.num_heads) <= _FAST_PARAMETERS


def _facts(opened: OpenedModel) -> str:
    """Return a line about the model, such as "bert, 6 layers, 72 heads, 22.7 M parameters, cpu"."""
    classifier = opened.classifier
    _, parameters = classifier.parameter_counts()
    return (
        f"{classifier.base.config.model_type}, {len(opened.num_heads)} layers, {sum(opened.num_heads)} heads, "
        f"{parameters / 1e6:.1f} M parameters, {next(classifier.model.parameters()).device.type}"
    )
