"""The keys of the recipe's section `outputs`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune.recipe.section import Section

Share = Annotated[float, Field(ge=0, le=1)]
TUNED = ("auto", "f1")  # values of thresholds that are tuned on the validation rows; so are TARGETS
TARGETS = ("precision", "recall")


class OutputsSection(Section):
    """How the logits of the trained model become probabilities and predicted labels."""

    temperature: Literal["auto"] | Annotated[float, Field(ge=0.05, le=20)] | None = Field(
        "auto",
        description="Number by which the logits are divided before they become probabilities, which changes no "
        "decision. auto fits it to the validation rows, and applies it if that lowers the log loss on held-out folds "
        "of them; null is 1.",
    )
    thresholds: Literal["auto", "f1"] | Share | dict[str, Share] | None = Field(
        "auto",
        description="Probability above which a label is predicted: a number, a number per label, or tuned on the "
        "validation rows for the highest F1 (f1) or for a {precision: 0.9} or {recall: 0.9}; auto tunes for F1 with "
        "several labels per row if that helps, and null is 0.5, or the most probable label.",
    )
    threshold_label: str | None = Field(
        None,
        description="The class that gets the threshold with one label per row, such as a rare one; it is predicted if "
        "its probability exceeds the threshold, and null gives no class a threshold.",
    )

    def target(self) -> tuple[str, float] | None:
        """Return ("precision", P) or ("recall", R) if thresholds are tuned for one of these."""
        if isinstance(self.thresholds, dict) and len(self.thresholds) == 1:
            ((name, value),) = self.thresholds.items()
            return (name, value) if name in TARGETS else None
        return None

    def needs_validation_rows(self) -> bool:
        """Return whether thresholds must be tuned; `auto` does without where there are no validation rows."""
        return self.thresholds == "f1" or self.target() is not None
