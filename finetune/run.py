"""The launcher: `accelerate launch finetune/run.py RECIPE [section.key=value ...] [--dry-run]`, from any folder.

In an installed package: `accelerate launch -m finetune.run RECIPE`.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:
        # Started by path, so Python put this folder first on sys.path; importing the package needs its parent.
        sys.path[0] = str(Path(__file__).resolve().parents[1])
    from finetune.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))
