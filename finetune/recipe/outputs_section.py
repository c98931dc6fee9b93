"""The keys of the recipe's section `outputs`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune.recipe.section import Section


class OutputsSection(Section):
    """How the logits of the trained model become probabilities and predicted labels."""

    temperature: Literal["auto"] | Annotated[float, Field(ge=0.05, le=20)] | None = Field(
        "auto",
        description="Number by which the logits are divided before they become probabilities, which changes no "
        "decision. auto fits it to the validation rows, and applies it if that lowers the log loss on held-out folds "
        "of them; null is 1.",
    )
