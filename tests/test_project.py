"""Rules of the project that no other tool checks."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import LONG_FILES
from tests.support import ROOT

LIBRARIES = {"accelerate", "datasets", "evaluate", "jinja2", "numpy", "peft", "rich", "tokenizers", "torch"}
LIBRARIES |= {"transformers", "yaml", "pydantic", "pyarrow", "scipy", "safetensors"}
MODULES = sorted((ROOT / "finetune").rglob("*.py"))
MAX_LINES, MAX_FUNCTION_LINES, MAX_ARGUMENTS = 300, 60, 6
# British spellings, archaic wording, and old names, as whole words or word stems.
REPLACED_WORDS = (
    r"analyse\w*", r"behaviour\w*", r"colour\w*", r"generalis\w*", r"initialis\w*", r"normalis\w*",
    r"optimis(?!tic)\w*", r"neighbour\w*", r"recognis\w*", r"regularis\w*", r"summaris\w*", "labelled", "unlabelled",
    "learnt", "amongst", "whilst", "thereof", "aside", "heeds?", "foretells?", "wish", "whole or", "but for",
    "put to", "shared out", "turned round", "go on", "goes on", "gone on", "went on", "going on", "healing",
    r"rehearse\w*", "what is left", "so that it is", "memory_told", "rows_told", "written_whole", "replaced_whole",
    "heads_wide", "PruningTruth", "Material", "machinery", "Effort", "speaks", "stopped_by", r"tokenis\w*", "besides",
    "told", "anew", "in turns", "for good", "asked", "makes of", "lies",
)  # fmt: skip
# Functions with more arguments, and why.
MANY_ARGUMENTS = {
    "models/cpu_kernels.py attention": "the arguments of torch.nn.functional.scaled_dot_product_attention",
    "models/toy_classifier.py __init__": "the fields of a transformers configuration",
}
# Modules without their own test file, and the test file that covers them.
TESTED_IN = {
    "data/tokenizer_calls.py": "data/test_tokenization.py",
    "models/adapted.py": "models/test_head_pruning_errors.py",
    "__main__.py": "recipe/test_shipped.py",
    "cli/__init__.py": "test_cli.py",
    "cli/recipes.py": "test_cli.py",
    "cli/runs.py": "test_cli.py",
    "cli/serving.py": "test_cli.py",
    "cli/shared.py": "test_cli.py",
    "data/class_names.py": "data/test_typed_rows.py",
    "data/file_signatures.py": "data/test_file_formats.py",
    "data/input_rows.py": "pipeline/test_predict.py",
    "data/label_cells.py": "data/test_label_sets.py",
    "demo/listener.py": "demo/test_app.py",
    "demo/page.py": "demo/test_app.py",
    "demo/serving.py": "demo/test_app.py",
    "evaluation/metric_formulas.py": "evaluation/test_metrics.py",
    "evaluation/loaded_intervals.py": "evaluation/test_named_intervals.py",
    "evaluation/scored_rows.py": "evaluation/test_sklearn_metrics.py",
    "heads/linear_map.py": "heads/test_fast_ablation.py",
    "heads/rank_correlation.py": "heads/test_agreement.py",
    "heads/ranking_statistics.py": "heads/test_stability.py",
    "help.py": "test_docs.py",
    "models/attention_sites.py": "models/test_head_gates.py",
    "models/classifier.py": "models/test_building.py",
    "models/cross_encoder_files.py": "models/test_stock_loaders.py",
    "models/empty_layers.py": "models/test_head_pruning.py",
    "models/encoder_parts.py": "models/test_freezing.py",
    "models/family.py": "models/test_architectures.py",
    "models/feed_forward_sites.py": "models/test_neuron_gates.py",
    "models/initialization.py": "models/test_reinitialized_layers.py",
    "models/frozen_encoder.py": "models/test_activation_cache.py",
    "models/gates.py": "models/test_head_gates.py",
    "models/merging.py": "models/test_lora.py",
    "models/neuron_pruning.py": "models/test_head_pruning.py",
    "models/padding_free_trial.py": "models/test_padding_free.py",
    "models/pruned_config.py": "models/test_pruned_checkpoints.py",
    "models/pruned_model.py": "models/test_head_pruning.py",
    "models/saving.py": "models/test_loading.py",
    "models/tensor_slices.py": "models/test_head_pruning.py",
    "pipeline/build_model.py": "pipeline/test_train.py",
    "pipeline/changed_rows.py": "pipeline/test_compare.py",
    "pipeline/compare_heads.py": "pipeline/test_analyze_heads.py",
    "pipeline/compare_runs.py": "pipeline/test_compare.py",
    "pipeline/context.py": "pipeline/test_session.py",
    "pipeline/dry_run.py": "pipeline/test_train.py",
    "pipeline/evaluate.py": "pipeline/test_finished_run.py",
    "pipeline/head_choice.py": "pipeline/test_prune.py",
    "report/pruning_terminal.py": "report/test_terminal.py",
    "runs/pruning_result.py": "pipeline/test_prune.py",
    "pipeline/load_classifier.py": "test_api.py",
    "pipeline/export_folder.py": "pipeline/test_export.py",
    "pipeline/export_rows.py": "pipeline/test_export.py",
    "pipeline/merge.py": "pipeline/test_finished_run.py",
    "pipeline/prediction_columns.py": "pipeline/test_predict.py",
    "pipeline/prediction_output.py": "pipeline/test_predict.py",
    "pipeline/report.py": "pipeline/test_damaged_runs.py",
    "pipeline/series_processes.py": "pipeline/test_processes.py",
    "pipeline/series_results.py": "pipeline/test_series.py",
    "pipeline/series_resume.py": "pipeline/test_series.py",
    "pipeline/sweep_claims.py": "pipeline/test_sweep.py",
    "pipeline/sweep_study.py": "pipeline/test_sweep.py",
    "pipeline/sweep_summary.py": "pipeline/test_sweep.py",
    "pipeline/sweep_trial.py": "pipeline/test_sweep.py",
    "pipeline/torch_predictor.py": "pipeline/test_predict.py",
    "pipeline/tracker_libraries.py": "pipeline/test_trackers.py",
    "pipeline/train_stage.py": "training/test_trainer.py",
    "data/split_labels.py": "data/test_splits.py",
    "recipe/data_section.py": "recipe/test_schema.py",
    "recipe/evaluation_section.py": "recipe/test_schema.py",
    "recipe/lr_schedules.py": "training/test_lr_schedule.py",
    "recipe/names.py": "heads/test_methods.py",
    "recipe/outputs_section.py": "recipe/test_schema.py",
    "recipe/section.py": "recipe/test_schema.py",
    "recipe/sweep_checks.py": "recipe/test_sweep_loader.py",
    "recipe/sweep_space.py": "recipe/test_sweep_loader.py",
    "recipe/training_section.py": "recipe/test_schema.py",
    "runs/head_names.py": "heads/test_head_names.py",
    "runs/outputs.py": "pipeline/test_fit_outputs.py",
    "report/card_metadata.py": "report/test_card.py",
    "report/comparison_terminal.py": "pipeline/test_compare.py",
    "report/comparison_charts.py": "report/test_comparison_page.py",
    "report/comparison_heads.py": "report/test_comparison_page.py",
    "report/comparison_text.py": "report/test_comparison_page.py",
    "report/row_texts.py": "report/test_row_columns.py",
    "report/sweep_table.py": "pipeline/test_sweep.py",
    "report/run_record.py": "report/test_page.py",
    "report/sweep_figures.py": "report/test_sweep_page.py",
    "report/series_page.py": "pipeline/test_series.py",
    "report/series_summary.py": "pipeline/test_series.py",
    "run.py": "pipeline/test_train.py",
    "training/build.py": "training/test_trainer.py",
    "training/snapshot.py": "training/test_checkpoints.py",
    "training/training_model.py": "training/test_trainer.py",
    "version.py": "test_cli.py",
    "recipe/loaded_metrics.py": "recipe/test_metric_validation.py",
}


def short_name(module: Path) -> str:
    return module.relative_to(ROOT / "finetune").as_posix()


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    """Yield every function and method of the package, as "package/module.py name"."""
    for module in MODULES:
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                yield f"{short_name(module)} {node.name}", node


def test_no_module_takes_the_name_of_a_library() -> None:
    # `finetune/run.py` started by path puts finetune/ first on sys.path for a moment.
    names = {path.stem for path in (ROOT / "finetune").iterdir()} - {"__init__", "__pycache__"}
    assert len(names) > 15
    assert not names & (LIBRARIES | sys.stdlib_module_names)


def test_the_top_level_folder_contains_only_known_files() -> None:
    allowed = {"finetune", "recipes", "tests", "pyproject.toml", "README.md", "Makefile", "LICENSE", "CONTRIBUTING.md"}
    ignored = {"runs", "build", "dist"}
    entries = {path.name for path in ROOT.iterdir() if not path.name.startswith(".") and path.suffix != ".egg-info"}
    assert entries - ignored == allowed


def test_every_module_and_function_is_short() -> None:
    assert len(MODULES) > 100
    lengths = {short_name(module): len(module.read_text(encoding="utf-8").splitlines()) for module in MODULES}
    assert {module: lines for module, lines in lengths.items() if lines > MAX_LINES} == {}
    spans = [(name, (node.end_lineno or 0) - node.lineno + 1) for name, node in functions()]
    assert len(spans) > 600
    assert [(name, lines) for name, lines in spans if lines > MAX_FUNCTION_LINES] == []


def test_no_function_has_many_arguments() -> None:
    exceptions = set()
    for name, node in functions():
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        if sum(argument.arg not in ("self", "cls", "ctx") for argument in arguments) > MAX_ARGUMENTS:
            exceptions.add(name)
    assert exceptions == MANY_ARGUMENTS.keys()


def test_files_that_run_first_exist() -> None:
    assert [name for name in LONG_FILES if not (ROOT / "tests" / name).is_file()] == []


def test_the_tests_mirror_the_packages() -> None:
    without = set()
    for module in MODULES:
        test_file = ROOT / "tests" / module.relative_to(ROOT / "finetune").with_name(f"test_{module.name}")
        if module.name != "__init__.py" and not test_file.is_file():
            without.add(short_name(module))
    assert without <= TESTED_IN.keys() <= {short_name(module) for module in MODULES}
    assert [name for name in TESTED_IN.values() if not (ROOT / "tests" / name).is_file()] == []


def test_replaced_words_do_not_come_back() -> None:
    pattern = re.compile(rf"(?<![A-Za-z])(?:{'|'.join(REPLACED_WORDS)})(?![A-Za-z])", re.IGNORECASE)
    assert pattern.findall("Optimiser; a row, put to one side: go on, optimistic") == ["Optimiser", "put to", "go on"]
    texts = [path for path in (ROOT / "finetune").rglob("*") if path.suffix in (".py", ".md", ".html")]
    texts += [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "recipes").glob("*.yaml")]
    assert len(texts) > 120
    lines = [
        f"{path.relative_to(ROOT)}:{number}: {match}"
        for path in texts
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for match in pattern.findall(line)
    ]
    assert lines == []
