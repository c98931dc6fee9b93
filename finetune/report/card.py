"""The model card, rendered from the results of a run: front matter for the hub, and text for people."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial

from jinja2 import Environment, PackageLoader, StrictUndefined

from finetune.recipe.hub_names import hub_id
from finetune.recipe.portable import last_part
from finetune.recipe.schema import Recipe
from finetune.recipe.section import Section
from finetune.report.card_metadata import CardSubject, front_matter
from finetune.report.run_record import RunRecord
from finetune.report.training_log import training_log
from finetune.runs.head_results import HeadAnalysis
from finetune.runs.results import MetricValue, format_number
from finetune.runs.series import SeriesResult

_MAX_TEXT = 300  # characters of an example
_SIGNIFICANT = 0.05
_MARKDOWN = re.compile(r"([\\`*_\[\]|~#])")
# Shown in every card; other training keys are shown where they differ from the default.
_ALWAYS_SHOWN = (
    "num_train_epochs",
    "per_device_train_batch_size",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
)


def render_card(record: RunRecord, subject: CardSubject, series: SeriesResult | None = None) -> str:
    """Return the model card as Markdown with front matter.

    Args:
        series: the series of which the run is the chosen one.
    """
    shown = record.shown_split()
    context = {
        "front_matter": front_matter(record, subject),
        "subject": subject,
        "series": series,
        "record": record,
        "recipe": record.recipe,
        "shown": shown,
        "scores": record.scores[shown] if shown else None,
        "labels": list(record.data["train"].label_counts),
        "has_intervals": any(cell.interval() for scores in record.scores.values() for cell in scores.metrics.values()),
        "package": _package(record.recipe) if subject.has_adapter else None,
        "base": _base_link(record.recipe),
        "rows_source": _rows_source(record.recipe),
        "settings": _settings(record.recipe),
        "log": training_log(record.history, record.training.best_step),
        "evaluations": sum("eval_loss" in entry for entry in record.history),
        "half": half_removed(record.heads) if record.heads else None,
        "significant": significant_heads(record.heads) if record.heads else None,
    }
    return _templates().get_template("card.md").render(context).rstrip() + "\n"


@cache  # a template is compiled when it is first used
def _templates() -> Environment:
    templates = Environment(
        loader=PackageLoader("finetune.report", ""), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    templates.filters.update(
        interval=interval_or_dash,
        number=format_number,
        signed_interval=_signed_interval,
        escape_markdown=escape_markdown,
        code=as_code,
        json=partial(json.dumps, ensure_ascii=False),
        shell_quote=shlex.quote,
    )
    return templates


def interval_or_dash(cell: MetricValue) -> str:
    """Return "[0.862, 0.905]", or a dash if there is no interval."""
    return cell.interval() or "–"


def format_difference(value: float | None) -> str:
    """Return a difference with its sign, such as "+0.0312", or "undefined" for None."""
    return "undefined" if value is None else f"{value:+.4f}"


def _signed_interval(cell: MetricValue) -> str:
    """Return "+0.0312 [0.010, 0.052]", or the difference alone if there is no interval."""
    return f"{format_difference(cell.value)} {cell.interval()}".rstrip()


def model_name(recipe: Recipe) -> str:
    """Return the name of the pretrained model, or the model type of a model trained from scratch."""
    return recipe.model.model_name_or_path or f"{recipe.model.model_type} (from scratch)"


def escape_markdown(text: str) -> str:
    """Return a text that Markdown shows as it is, on one line of a table; a long text is cut."""
    line = " ".join(text.split())
    cut = f"{line[:_MAX_TEXT]} ..." if len(line) > _MAX_TEXT else line
    return _MARKDOWN.sub(r"\\\1", cut).replace("<", "&lt;")


def as_code(text: str) -> str:
    """Return a label or the name of a column as Markdown code on one line."""
    line = " ".join(text.split())
    return f"`` {line} ``" if "`" in line else f"`{line}`"


def _base_link(recipe: Recipe) -> str:
    """Return the base checkpoint as Markdown, with a link if it is on the hub."""
    name = recipe.model.model_name_or_path
    if name is None:
        return f"random weights (a new `{recipe.model.model_type}` model)"
    if base := hub_id(name):
        revision = "" if recipe.model.revision == "main" else f" (revision `{recipe.model.revision}`)"
        return f"[{base}](https://huggingface.co/{base}){revision}"
    return f"the local checkpoint `{last_part(name)}`"


def _package(recipe: Recipe) -> str | None:
    """Return the Python package that contains the base checkpoint, as `pip` names it; None if it is in none."""
    name = recipe.model.model_name_or_path or ""
    is_packaged = name.startswith("package:")
    return name.removeprefix("package:").partition("/")[0].replace("_", "-") if is_packaged else None


def _rows_source(recipe: Recipe) -> str:
    """Return where the rows come from, as Markdown; of a local file or folder only the name."""
    data = recipe.data
    if dataset := hub_id(data.dataset_name):
        config = f", configuration `{data.dataset_config_name}`" if data.dataset_config_name else ""
        return f"the dataset [{dataset}](https://huggingface.co/datasets/{dataset}){config}"
    if files := data.local_files():
        names = dict.fromkeys(last_part(file) for entries in files.values() for file in entries)
        return f"local files ({', '.join(f'`{name}`' for name in names)})"
    return f"the local folder `{last_part(data.dataset_name)}`" if data.dataset_name else "rows in the recipe"


def _settings(recipe: Recipe) -> Mapping[str, object]:
    """Return the settings that describe the training: those always shown, and those that differ from the default."""
    training = _changed(recipe.training, _ALWAYS_SHOWN)
    adapters = {f"peft.{key}": value for key, value in _changed(recipe.peft, ("r", "lora_alpha", "target_modules"))}
    task = {"max_length": recipe.data.max_length, "seed": recipe.seed}
    return {key: _as_text(value) for key, value in (dict(training) | task | adapters).items()}


def _changed(section: Section | None, always: tuple[str, ...]) -> list[tuple[str, object]]:
    """Return the keys in `always`, and those whose value is not the default."""
    fields = {} if section is None else type(section).model_fields
    values = [(key, getattr(section, key), field.default) for key, field in fields.items()]
    return [(key, value) for key, value, default in values if key in always or value != default]


def _as_text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


@dataclass(frozen=True)
class HalfRemoved:
    """The score without about half of the heads, removed in the order of the leading method and in random order."""

    share: float
    score: float
    random_low: float | None
    random_high: float | None


def half_removed(heads: HeadAnalysis) -> HalfRemoved | None:
    """Return the point of the pruning curve nearest to half of the heads; None if there is no curve."""
    curves = heads.truth
    if curves is None:
        return None
    index = min(range(len(curves.shares)), key=lambda number: abs(curves.shares[number] - 0.5))
    band = curves.random
    low, high = (None, None) if band is None else (band.low[index], band.high[index])
    return HalfRemoved(curves.shares[index], curves.curves[0].scores[index], low, high)


def significant_heads(heads: HeadAnalysis) -> list[str] | None:
    """Return the heads whose removal alone changes the predictions significantly; None if this was not tested."""
    if heads.leave_one_out is None:
        return None
    tests = sorted(heads.leave_one_out.tests, key=lambda test: test.p_value)
    return [
        f"{test.layer}.{test.head} ({test.change:+.4f} [{test.low:+.4f}, {test.high:+.4f}])"
        for test in tests
        if test.p_holm < _SIGNIFICANT
    ]
