"""Pages that contain nothing but predicted rows, and tables of predictions for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from finetune.report.page import templates
from finetune.report.row_columns import row_elements

_PAGE = """{% extends "base.html" %}
{% block title %}rows{% endblock %}
{% block main %}<h1>rows</h1>
{% if sections %}{% include "sections/slice.html" %}
<section id="errors">{% include "row_table.html" %}</section>{% endif %}
{% endblock %}
{% block data %}{{ rows }}{% endblock %}
{% block code %}
<script>{{ script("rows.js") }}</script>
{% for name in scripts %}
<script>{{ script(name) }}</script>
{% endfor %}
<script>{{ script("text_search.js") }}</script>
<script>{{ script("slices.js") }}</script>
<script>{{ script("row_table.js") }}</script>
<script>{{ script("row_details.js") }}</script>
{% endblock %}
"""


def write_rows_page(
    path: Path,
    table: pa.Table,
    label_names: Sequence[str],
    *,
    shown_split: str = "test",
    scripts: Sequence[str] = (),
    sections: bool = True,
    label_errors: Sequence[int] | None = None,
) -> Path:
    """Write a page with the rows of a table of predictions and further scripts, and return its path.

    Args:
        sections: whether the page also has the slice bar and the table of rows.
        label_errors: positions of the rows whose label is probably wrong.
    """
    elements = row_elements(table, label_names, shown_split, label_errors)
    context = {"rows": elements, "scripts": scripts, "sections": sections}
    path.write_text(templates().from_string(_PAGE).render(context), encoding="utf-8")
    return path


def single_label_table(
    probabilities: np.ndarray, labels: np.ndarray, names: Sequence[str], texts: Sequence[str], split: str = "test"
) -> pa.Table:
    """Return predictions with these probabilities (N, K) and labels (N,)."""
    values = pa.array(names, pa.string())
    chosen = probabilities[np.arange(len(labels)), labels]
    return pa.table(
        {
            "split": [split] * len(labels),
            "row": pa.array(np.arange(1, len(labels) + 1)),
            "text": pa.array(texts, pa.string()),
            "label": values.take(pa.array(labels)),
            "predicted": values.take(pa.array(probabilities.argmax(axis=1))),
            "probabilities": list(probabilities.astype(np.float32)),
            "loss": pa.array(-np.log(chosen), pa.float32()),
        }
    )


def multi_label_table(actual: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> pa.Table:
    """Return predictions of 0/1 label sets, both (N, K), with probabilities on the right side of one half."""
    sets = [[[names[label] for label in row.nonzero()[0]] for row in rows] for rows in (actual, predicted)]
    probabilities = np.where(predicted, 0.9, 0.1)
    return _other_table(sets[0], sets[1], list(probabilities.astype(np.float32)))


def regression_table(actual: np.ndarray, predicted: np.ndarray) -> pa.Table:
    """Return predictions of values, both (N,)."""
    return _other_table(pa.array(actual), pa.array(predicted), list(predicted[:, None].astype(np.float32)))


def _other_table(labels: object, predicted: object, probabilities: list[np.ndarray]) -> pa.Table:
    rows = len(probabilities)
    return pa.table(
        {
            "split": ["test"] * rows,
            "row": pa.array(np.arange(1, rows + 1)),
            "text": [f"text {row}" for row in range(rows)],
            "label": labels,
            "predicted": predicted,
            "probabilities": probabilities,
            "loss": pa.array(np.full(rows, 0.5), pa.float32()),
        }
    )
