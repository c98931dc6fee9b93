"""The JSON schemas of recipe files and sweep files, for editors: `finetune schema`.

That of recipes accepts every recipe that `finetune check` accepts, and rejects what can be rejected without Python and
without the disk: unknown keys, wrong types and values, and keys that do not fit together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune.recipe.loaded_metrics import PATH_PATTERN
from finetune.recipe.named_metrics import NUMBERED, SKLEARN_METRICS
from finetune.recipe.names import METRICS
from finetune.recipe.schema import MIN_SEEDS, Recipe
from finetune.recipe.section import SOURCES
from finetune.recipe.sweep_schema import Sweep

Schema = dict[str, Any]

EMPTY: Schema = {"enum": [None, "", [], {}]}  # a key with one of these values counts as not given
GIVEN: Schema = {"not": EMPTY}
ABOVE_0: Schema = {"type": "number", "exclusiveMinimum": 0}
_NUMBER: Schema = {"type": "number"}
_VALIDATION = {"validation_file": GIVEN, "validation_rows": GIVEN, "validation_size": _NUMBER}


def recipe_schema() -> Schema:
    """Return the JSON schema (draft 2020-12) of a recipe file."""
    schema = _without_titles(Recipe.model_json_schema())
    sections = schema["$defs"]
    schema["required"].remove("output_dir")  # the loader fills it in from the name of the file
    schema["properties"]["output_dir"]["minLength"] = 1
    schema["properties"]["seeds"]["anyOf"][0] |= {"minItems": MIN_SEEDS, "uniqueItems": True}
    _add_section_rules(sections)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "finetune recipe",
        **schema,
        "allOf": [*_metric_rules(), *_rules_across_sections()],
    }


def sweep_schema() -> Schema:
    """Return the JSON schema (draft 2020-12) of a sweep file; `space` and `overrides` accept any recipe keys."""
    schema = _without_titles(Sweep.model_json_schema())
    schema["required"].remove("output_dir")  # as for recipes
    schema["properties"]["space"]["minProperties"] = 1
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "finetune sweep", **schema}


def _without_titles(schema: Any) -> Any:
    """Return the schema without pydantic's titles, which only repeat the names of the keys."""
    if isinstance(schema, list):
        return [_without_titles(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: _without_titles(part) for name, part in schema.items() if name != "title" or not isinstance(part, str)
    }


def _add_section_rules(sections: Mapping[str, Schema]) -> None:
    """Add what the loader accepts beyond the types of the keys, and the rules about several keys of one section."""
    for section, name in (("model", "ModelSection"), ("data", "DataSection")):
        sections[name]["anyOf"] = _one_source(SOURCES[section])
    # The loader reads label names as text, whatever they look like in YAML.
    names = sections["TaskSection"]["properties"]["label_names"]["anyOf"][0]
    sections["TaskSection"]["properties"]["label_names"]["anyOf"].append({"type": "string", "minLength": 1})
    names |= {"items": {"type": ["string", "number", "boolean", "null"]}, "minItems": 2}
    data, task, model = sections["DataSection"], sections["TaskSection"], sections["ModelSection"]
    data["allOf"] = [
        _never(_has(validation_size=_NUMBER, **{key: GIVEN})) for key in ("validation_file", "validation_rows")
    ]
    task["allOf"] = [_never(_has(problem_type={"const": "regression"}, label_names={"type": ["array", "string"]}))]
    model["allOf"] = [
        _never(_has(model_type=GIVEN, dtype={"not": {"const": "float32"}})),
        _never(_has(model_type=GIVEN, attn_implementation=GIVEN)),
    ]
    warmup = sections["TrainingSection"]["properties"]["warmup_steps"]
    warmup["allOf"] = [_any_of({"exclusiveMaximum": 1}, {"multipleOf": 1})]
    heads = sections["HeadImportanceSection"]
    heads["properties"]["method"]["oneOf"][2]["uniqueItems"] = True
    no_curve: Schema = {"curve_split": {"const": None}}
    heads["allOf"] = [
        _never(_has(leave_one_out={"const": True}, **no_curve)),
        _never(_has(name_heads={"const": True}, **no_curve)),
    ]


def _one_source(groups: tuple[tuple[str, ...], ...]) -> list[Schema]:
    """Return one alternative per source: its first key is given, and no key of another source."""
    return [
        {
            "required": [group[0]],
            "properties": {
                group[0]: GIVEN,
                **{key: EMPTY for other in groups if other is not group for key in other if key != "revision"},
            },
        }
        for group in groups
    ]


def _has(**keys: Schema) -> Schema:
    """Return the schema of a mapping with all of these keys, whose values fit their schemas."""
    return {"type": "object", "required": list(keys), "properties": keys}


def _never(schema: Schema) -> Schema:
    return {"not": schema}


def _any_of(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def _metric_rules() -> list[Schema]:
    """Return the rule of each problem type: only its metrics may be named, or metrics that are loaded from a path."""
    rules = []
    for problem_type, metrics in METRICS.items():
        known = [*metrics, *SKLEARN_METRICS[problem_type]]
        numbered = [{"type": "string", "pattern": f"^{pattern}$"} for pattern, _ in NUMBERED[problem_type].values()]
        path: Schema = {"type": "string", "pattern": PATH_PATTERN}
        best = _any_of({"enum": [*known, "loss", None]}, *numbered)
        names = {"metrics": {"items": _any_of({"enum": known}, *numbered, path)}}
        loads = {"type": "object", "required": ["metrics"], "properties": {"metrics": {"contains": path}}}
        rule = {"properties": names, **_any_of({"properties": {"metric_for_best_model": best}}, loads)}
        condition = _has(task=_has(problem_type={"const": problem_type}))
        if problem_type == next(iter(METRICS)):  # the default, so its rule also applies where none is given
            condition = _any_of(condition, _never(_has(task=_has(problem_type={}))))
        rules.append({"if": condition, "then": {"properties": {"evaluation": rule}}})
    return rules


def _rules_across_sections() -> list[Schema]:
    """Return the rules about keys of several sections; validation.py has the same rules with messages."""
    regression, adapters = _has(task=_has(problem_type={"const": "regression"})), _has(peft={"type": "object"})
    new_model = _has(model=_has(model_type=GIVEN))
    never_evaluates = _has(evaluation=_has(eval_strategy={"const": "no"}))
    has_validation = _any_of(
        *(_has(data=_has(**{key: value})) for key, value in _VALIDATION.items()),
        _has(data=_has(dataset_name=GIVEN) | _never(_has(validation_split=EMPTY))),
    )
    holds_out_none = _has(data=_has(validation_size={"const": None}))
    frozen: Schema = {"freeze_embeddings": {"const": True}, "freeze_layers": {"type": "integer", "minimum": 1}}
    caches = _has(training=_has(cache_frozen_layers={"const": True}))
    not_single_label = _has(task=_has(problem_type={"enum": [n for n in METRICS if not n.startswith("single")]}))
    multi_label = _has(task=_has(problem_type={"const": "multi_label_classification"}))
    single_label_only: Schema = {
        "class_weights": GIVEN,
        "label_smoothing_factor": ABOVE_0,
        "contrastive_weight": ABOVE_0,
    }
    names_accuracy: Schema = {"type": "string", "pattern": "ablation_accuracy"}
    by_accuracy = _any_of(names_accuracy, _has(name=names_accuracy))
    forbidden = [
        [adapters, new_model],
        *([adapters, _has(training=_has(**{key: value}))] for key, value in frozen.items()),
        [adapters, caches],
        [_any_of(adapters, new_model), _has(training=_has(reinit_layers=ABOVE_0))],
        [new_model, caches],
        [_has(training=_has(mixed_precision={"const": "fp16"}, use_cpu={"const": True}))],
        [_has(training=_has(mixed_precision={"const": "int8"}, torch_compile={"const": True}))],
        [
            _has(training=_has(mixed_precision={"const": "int8"})),
            _has(model=_has(dtype={"not": {"const": "float32"}})),
        ],
        [_has(evaluation=_has(eval_strategy={"const": "no"}, early_stopping_patience={"type": "integer"}))],
        *([not_single_label, _has(training=_has(**{key: value}))] for key, value in single_label_only.items()),
        [_never(multi_label), _has(training=_has(pos_weight=GIVEN))],
        [regression, _has(training=_has(focal_gamma=ABOVE_0))],
        [_has(training=_has(focal_gamma=ABOVE_0, label_smoothing_factor=ABOVE_0))],
        [_has(training=_has(contrastive_weight=ABOVE_0, train_sampling_strategy={"const": "sequential"}))],
        [_has(training=_has(gradient_checkpointing={"const": True}, torch_compile={"const": True}))],
        [_has(training=_has(contrastive_weight=ABOVE_0, per_device_train_batch_size={"const": 1}))],
        [regression, _has(outputs=_has(temperature={"type": "number"}))],
        [regression, _has(head_importance=_has(method=by_accuracy))],
        [regression, _has(head_importance=_has(method={"type": "array", "contains": by_accuracy}))],
        [
            _has(seeds={"type": "array"}),
            _has(checkpoint=_has(resume_from_checkpoint={"not": {"enum": [None, "auto"]}})),
        ],
        [_never(has_validation), never_evaluates, _has(head_importance=_has(split={"const": "validation"}))],
    ]
    return [
        *(_never({"allOf": parts}) for parts in forbidden),
        _any_of(never_evaluates, has_validation, _never(holds_out_none)),
        _any_of(_never(caches), _has(training=_has(**frozen))),
    ]
