"""Recipes and overrides with a few wrong values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import yaml
from hypothesis import strategies as st
from pydantic import BaseModel

from finetune.recipe.schema import Recipe
from tests.support.finished_runs import SCRATCH

BASE: dict[str, Any] = {
    "output_dir": "out",
    "model": SCRATCH,
    "data": {"train_file": "rows.csv", "validation_file": "rows.csv", "max_length": 16},
    "training": {"max_steps": 2, "per_device_train_batch_size": 4, "use_cpu": True, "num_threads": 1},
    "evaluation": {"bootstrap_samples": 100},
    "checkpoint": {"save_strategy": "no"},
    "head_importance": {"method": "gradient", "max_samples": 4, "curve_samples": 4, "random_orders": 1},
}

# Values for a recipe or an override, as YAML text.
VALUES = [
    "1", "0", "-1", "2", "7", "0.5", "1e-3", "-0.0", "1e999", "1e308", ".nan", ".inf", "9" * 30, "9" * 5000, "true",
    "null", "", "''", "x", "x" * 300, "é", "😀", "[]", "{}", "[1, 2]", "[x]", "[null]", "[[x]]", "{a: 1}",
    "{a: {b: [1]}}", "{1: 2}", "{[a]: 1}", "{{a: 1}: 1}", "a, b", "rows.csv", "nowhere.csv", ".", "..", "/",
    "/dev/null", "rows.csv/x", "~nosuchuser/x", "~/nowhere", "loop", "loop/x", '"a\\0b"', '"\\ud800"', '"\\e[31m"',
    '"a\\nb"', '"\\UFFFFFFFF"', '"\\x"', "!!int [1]", "!!int x", "!!bool foo", "!!float abc", "!!timestamp foo",
    "!!set {a}", "!!omap [a: 1]", "!!binary '='", "!!python/object/apply:os.getcwd []", "!foo bar", "!<x> y",
    "&a [*a]", "&a x", "*undefined", "[" * 300, "{a: " * 300, "- a", "? a", "a: b: c", "|", ">-\n  x", "%x", "@x",
    "`x`", "'", '"', "# x", "2020-01-01", "12:30:00", "0x1F", "1_000", "query", "linear", "accuracy",
    "[accuracy, f1]", "f1_macro", "loss", "bf16", "fp16", "auto", "no", "steps", "epoch", "regression",
    "multi_label_classification", "gradient", "train", "test", "validation", "bert", "some/model", "<<",
]  # fmt: skip
# Small values, so that every model built from them fits into memory.
NUMBERS = [
    "0",
    "1",
    "2",
    "3",
    "4",
    "7",
    "16",
    "100",
    "0.0",
    "0.1",
    "0.5",
    "0.999",
    "1.0",
    "1.5",
    "1e-30",
    "1e3",
    "1e30",
]
MODELS = [
    "bert", "albert", "distilbert", "gpt2", "t5", "multi_head_classifier", "deberta-v2", "nonsense", "roberta", "vit",
]  # fmt: skip


STARTS = ["!!set", "%YAML 9.9", "---", "...", "&a", "%TAG ! x", "\ufeff", "- x"]


def _section(name: str) -> type[BaseModel]:
    """Return the schema of a section; "" is the recipe itself."""
    if not name:
        return Recipe
    annotation = Recipe.model_fields[name].annotation
    classes = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
    return next(kind for kind in classes if issubclass(kind, BaseModel))


SECTIONS = [
    *("model", "task", "data", "peft", "training", "evaluation", "outputs"),
    *("checkpoint", "logging", "head_importance"),
]
KEYS = [*Recipe.model_fields, *(f"{name}.{key}" for name in SECTIONS for key in _section(name).model_fields)]


@st.composite
def recipe_texts(draw: st.DrawFn) -> bytes:
    """Draw the text of a recipe: with a few wrong values, truncated, or arbitrary."""
    lines = yaml.safe_dump(BASE, sort_keys=False).splitlines()
    for _ in range(draw(st.integers(1, 3))):
        index = draw(st.integers(0, len(lines) - 1))
        indent = lines[index][: len(lines[index]) - len(lines[index].lstrip())]
        key = lines[index].partition(":")[0].strip()
        value = draw(st.sampled_from(VALUES))
        match draw(st.integers(0, 7)):
            case 0 | 1 | 2:
                lines[index] = f"{indent}{key}: {value}"
            case 3:
                name = draw(st.sampled_from([*KEYS, *VALUES])).rpartition(".")[2]
                lines.insert(index, f"{indent}{name}: {value}")
            case 4:
                lines.insert(index, lines[index])
            case 5:
                lines[index] = indent + draw(st.text(max_size=20))
            case 6:
                lines.insert(0, draw(st.sampled_from(STARTS)))
            case _:
                del lines[index]
        lines = lines or ["a: 1"]
    text = "\n".join(lines).encode("utf-8", "surrogatepass")
    match draw(st.integers(0, 9)):
        case 0:
            return text[: draw(st.integers(0, len(text)))]
        case 1:
            index = draw(st.integers(0, len(text)))
            return text[:index] + draw(st.binary(max_size=8)) + text[index:]
        case 2:
            return draw(st.binary(max_size=80)) if draw(st.booleans()) else draw(st.text(max_size=80)).encode()
    return text


@st.composite
def overrides(draw: st.DrawFn) -> list[str]:
    """Draw arguments that change a recipe."""
    results = []
    for _ in range(draw(st.integers(1, 4))):
        key = draw(st.sampled_from(KEYS))
        if draw(st.integers(0, 5)) == 0:
            arbitrary = draw(st.text(max_size=9))
            key = draw(st.sampled_from([key[:-1], f"{key}.x", key.replace(".", ".."), f"{key}_", arbitrary]))
        value = draw(st.sampled_from(VALUES)) if draw(st.integers(0, 4)) else draw(st.text(max_size=20))
        results.append(f"{key}={value}" if draw(st.integers(0, 20)) else key)
    return results


@st.composite
def settings_of_a_run(draw: st.DrawFn) -> list[str]:
    """Draw overrides that are mostly valid, so that a run can start."""
    config = ["vocab_size", "hidden_size", "num_attention_heads", "num_hidden_layers", "head_dim", "intermediate_size"]
    config += ["hidden_dropout_prob", "max_position_embeddings", "pad_token_id", "num_labels", "nonsense", "hidden_act"]
    results = []
    for _ in range(draw(st.integers(1, 2))):
        match draw(st.integers(0, 4)):
            case 0:
                key = f"model.config_overrides.{draw(st.sampled_from(config))}"
                results.append(f"{key}={draw(st.sampled_from([*NUMBERS, '-1', 'gelu', 'true', 'x']))}")
            case 1:
                results.append(f"model.model_type={draw(st.sampled_from(MODELS))}")
            case _:
                section = draw(st.sampled_from([name for name in SECTIONS if name not in ("model", "peft", "logging")]))
                key = draw(st.sampled_from(list(_section(section).model_fields)))
                words = [*_example_values(_section(section).model_fields[key].annotation)]
                if key not in (
                    "bootstrap_samples",
                    "num_threads",
                    "integration_steps",
                    "torch_compile",
                ):  # these only cost time
                    results.append(f"{section}.{key}={draw(st.sampled_from(words))}")
    return results


def _example_values(annotation: Any) -> Iterator[str]:
    """Yield values that match the type of a key, or almost match it."""
    plain = {bool: ["true", "false"], int: NUMBERS[:8], float: NUMBERS, str: ["sentence", "label", "other", "x"]}
    if isinstance(annotation, type):
        yield from plain.get(annotation, ["null"])
    for part in get_args(annotation):
        yield from [part] if isinstance(part, str) else _example_values(part)
