"""Export a small random model of every family to ONNX, and print the largest difference of a logit from PyTorch.

Each model is exported in full, and with an attention layer and a feed-forward network removed where they can be.

python -m tests.benchmarks.export_families
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from finetune.errors import ModelError
from finetune.models.architectures import FAMILIES
from finetune.models.pretrained import quiet_libraries
from tests.models.test_onnx_export import TOLERANCE
from tests.support.exported import SHAPES, export_family


def measure(family: str, *, pruned: bool, int8: bool) -> tuple[str, bool]:
    """Return the difference relative to the largest logit, or the reason of a refusal; and whether it is acceptable."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            difference, largest = export_family(family, Path(folder), pruned=pruned, int8=int8)
        except ModelError as error:
            return str(error), int8
    relative = difference / max(1.0, largest)
    return f"{relative:.1e}", int8 or relative <= TOLERANCE


def main() -> int:
    """Print the table of all families; return 1 if a float32 model is refused or differs by more than rounding."""
    quiet_libraries()
    torch.set_num_threads(1)
    table, failed = Table("family", "float32", "int8", "pruned, float32", "pruned, int8"), 0
    for family in sorted(FAMILIES):
        results = [measure(family, pruned=pruned, int8=int8) for pruned in (False, True) for int8 in (False, True)]
        failed += sum(not acceptable for _, acceptable in results)
        table.add_row(family, *(text for text, _ in results))
    shapes = ", ".join(f"{rows} x {tokens}" for rows, tokens in SHAPES)
    console = Console(highlight=False)
    console.print(table)
    console.print(f"Largest difference of a logit from PyTorch, relative to the largest logit, in batches of {shapes}.")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
