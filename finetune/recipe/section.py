"""The base class of recipe sections, types that several sections use, and the check for exactly one source."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Auto = Literal["auto"]  # the number is chosen when the rows and the model are known
Strategy = Literal["epoch", "steps", "no"]

# The alternative sources of the model and of the rows: each group of keys is one source, whose first key is required.
# A recipe names one source. An override that names another source replaces it (see loader.py).
SOURCES: dict[str, tuple[tuple[str, ...], ...]] = {
    "model": (("model_name_or_path", "revision"), ("model_type", "config_overrides")),
    "data": (
        ("dataset_name", "dataset_config_name", "dataset_revision"),
        ("train_file", "validation_file", "test_file"),
        ("train_rows", "validation_rows", "test_rows"),
    ),
}


class Section(BaseModel):
    """A section of the recipe: immutable, strictly typed, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


def require_one_source(section: str, values: Section) -> None:
    """Raise ValueError unless the section names exactly one of its sources."""
    named = [keys[0] for keys in SOURCES[section] if any(getattr(values, key) for key in keys if key != "revision")]
    if len(named) > 1:
        raise ValueError(f"{' and '.join(named)} are both given; give one source and remove the other")
    if not named or not getattr(values, named[0]):
        raise ValueError(f"no source is given; set one of {', '.join(keys[0] for keys in SOURCES[section])}")


def default_strategy(values: object, name: Literal["eval", "save"]) -> object:
    """Return the section's values, with strategy `steps` if they have a number of steps and no strategy."""
    if isinstance(values, dict) and f"{name}_steps" in values and f"{name}_strategy" not in values:
        return {**values, f"{name}_strategy": "steps"}
    return values
