"""The keys of the recipe's section `outputs`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from finetune.recipe.section import Section


class OutputsSection(Section):
    """How the logits of the trained model become probabilities and predicted labels."""

    temperature: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="Number by which the logits are divided before they become probabilities, which changes no "
        "decision; null is 1.",
    )
