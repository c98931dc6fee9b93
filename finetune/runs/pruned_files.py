"""Whether parts of a saved classifier were removed: what its files say, read without torch."""

from __future__ import annotations

import json
from pathlib import Path

INFO_FILE = "classifier.json"  # next to the weights: what config.json has no key for, and an adapter's labels
PRUNED_HEADS, FEED_FORWARD_SIZES = "pruned_heads", "feed_forward_sizes"  # in config.json
BASE_IS_PRUNED = "base_is_pruned"  # in classifier.json, because an adapter has no config.json


def has_pruned_parts(folder: Path) -> bool:
    """Return whether heads or neurons were removed from a saved classifier, or from the base checkpoint of an adapter.

    Only finetune opens such a classifier. False if the files are missing or damaged.
    """
    for name in ("config.json", INFO_FILE):
        try:
            entries = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(entries, dict) and any(map(entries.get, (PRUNED_HEADS, FEED_FORWARD_SIZES, BASE_IS_PRUNED))):
            return True
    return False
