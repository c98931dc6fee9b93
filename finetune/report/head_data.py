"""The data of the head sections that scripts of the page read, embedded as compressed JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from finetune.report.embedding import embedded
from finetune.report.explanation_data import explanation_elements
from finetune.report.head_maps import HeadMap, change_maps, head_maps
from finetune.report.run_record import RunRecord
from finetune.runs.head_names import HeadNames


def head_elements(record: RunRecord) -> Markup:
    """Return the elements with the data of the head sections; empty if the heads were not analyzed."""
    if record.heads is None:
        return Markup("")
    content = {
        "ranking": [[cell.layer, cell.head] for cell in record.heads.methods[0].most_important_first()],
        "maps": [_map_data(each) for each in head_maps(record.heads)],
        "changes": [_map_data(each) for each in change_maps(record.heads)],
        "partners": _partners(record.heads.names),
    }
    maps = embedded("head-data", json.dumps(content, separators=(",", ":"), allow_nan=False).encode())
    return Markup("\n").join([maps, explanation_elements(record.explanations, record.predictions)])


def _partners(names: HeadNames | None) -> dict[str, str]:
    """Return the partner of each redundant head, both as "layer.head"."""
    named = [] if names is None else names.named
    return {f"{each.layer}.{each.head}": "{}.{}".format(*each.partner) for each in named if each.partner}


def _map_data(head_map: HeadMap) -> dict[str, Any]:
    cells: Sequence[Sequence[object]] = [
        [cell and [cell.text, cell.level, int(cell.uncertain), cell.title] for cell in row] for row in head_map.cells
    ]
    return {
        "key": head_map.key, "name": head_map.name, "note": head_map.note, "legend": head_map.legend,
        "signed": head_map.signed(), "hatched": head_map.hatched, "cells": cells,
    }  # fmt: skip
