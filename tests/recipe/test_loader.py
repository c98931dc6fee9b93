from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from finetune.cli import main
from finetune.errors import RecipeError
from finetune.recipe import METRICS, Recipe, dump_recipe, load_recipe
from finetune.recipe.loader import MAX_BYTES
from finetune.recipe.schema_validation import FOREIGN_NAMES
from finetune.recipe.validation import metric_problems
from tests.support import ROOT

WriteRecipe = Callable[[str], Path]

SHIPPED = sorted(ROOT.joinpath("recipes").glob("*.yaml"))
ROWS = "[{sentence: a b, label: x}, {sentence: c d, label: y}]"
MINIMAL = f"model: {{model_name_or_path: some/model}}\ndata: {{train_rows: {ROWS}, validation_rows: {ROWS}}}\n"


def test_every_shipped_recipe_is_right() -> None:
    loaded = [load_recipe(path) for path in SHIPPED]
    assert len(loaded) == 4
    assert [Path(recipe.output_dir).name for recipe in loaded] == [path.stem for path in SHIPPED]


def test_six_mistakes_are_told_at_once(write_recipe: WriteRecipe) -> None:
    path = write_recipe(
        """\
seed: 1
model: {model_name_or_path: some/model}
data:
  train_file: nowhere.csv
training:
  learning_rat: 1e-3
  num_train_epochs: three
  warmup_ratio: 0.1
  weight_decay: 0.1
  weight_decay: 0.2
peft: {r: -1}
"""
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    head, *lines = str(caught.value).splitlines()
    assert head == f"{path} has 6 mistakes:"
    expected = {
        r"training.weight_decay (line 9)": "given again on line 10",
        r"data.train_file (line 4)": "no such file 'nowhere.csv'",
        r"training.learning_rat (line 6)": "unknown key; did you mean 'learning_rate'?",
        r"training.num_train_epochs (line 7)": "given 'three'; must be a whole number",
        r"training.warmup_ratio (line 8)": "here it is training.warmup_steps",
        r"peft.r (line 11)": "given -1; must be greater than or equal to 1",
    }
    assert len(lines) == 6
    assert [line.split("(line ")[1].split(")")[0] for line in lines] == ["4", "6", "7", "8", "9", "11"]
    for where, text in expected.items():
        assert any(line.strip().startswith(where) and text in line for line in lines), (where, lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {model_name_or_path: a}\n", r"data: is missing"),
        (MINIMAL + "training: {use_cpu: true, mixed_precision: fp16}\n", r"fp16 needs a GPU"),
        (MINIMAL.replace("validation_rows", "test_rows"), r"data .*no validation rows to evaluate on"),
        (MINIMAL + "training: {learning_rate: .inf}\n", r"learning_rate .*finite"),
        (MINIMAL.replace("validation_rows:", "label_column: sentence, validation_rows:"), r"must differ, got sentence"),
        (MINIMAL.replace("validation_rows:", "validation_size: 0.1, validation_rows:"), r"validation_size holds out"),
        ("a: &x [*x]\n", r"an alias that holds itself"),
        ("a: !!float abc\n", r"line 1 is not YAML that can be read: the tag !!float does not fit"),
        (MINIMAL + "logging: {report_to: wandb.ai}\n", r"given 'wandb.ai'; must be"),
        (MINIMAL + "trainng: {}\n", r"trainng \(line 3\): unknown key; did you mean 'training'"),
        (MINIMAL + "learning_rate: 1\n", r"learning_rate .*belongs in training"),
        (MINIMAL + "training: {mixed_precision: bf17}\n", r"'bf17'; must be 'no', 'bf16', 'fp16' or 'auto'; did"),
        (MINIMAL + "training: {warmup_steps: 1.5}\n", r"training .*warmup_steps is 1.5; give a whole number, or a f"),
        (MINIMAL + "training: {learning_rate: true}\n", r"training.learning_rate .*given true; must be a number"),
        (MINIMAL + "training:\n", r"training .*is empty \(null\), but it must be a section of keys; fill it in, or"),
        (MINIMAL + "task: {problem_type:}\n", r"is empty \(null\), but it must be 'single_label_classification', "),
        (MINIMAL + "evaluation: {metrics: []}\n", r"metrics .*given \[\]; must have at least one item"),
        (MINIMAL + "training: 3\n", r"training .*must be a section of keys"),
        (MINIMAL + "peft: {target_modules: [query, dense]}\n", r"peft.target_modules.1 .*given 'dense'"),
        (MINIMAL + "evaluation: {metrics: [acuracy]}\n", r"metrics.0 .*did you mean 'accuracy'"),
        (MINIMAL + "evaluation: {metric_for_best_model: f1}\n", r"metric_for_best_model .*given 'f1'; must be one of"),
        (MINIMAL + "task: {label_names: [a, a]}\n", r"task .*at least two different names"),
        (MINIMAL + "task: {label_names: [a, b]}\ntraining: {class_weights: {c: 2.0}}\n", r"class_weights.c .*no label"),
        (MINIMAL + "logging: {report_to: wandb}\n", r"report_to .*'wandb' is not installed"),
        (MINIMAL.replace("some/model", "a, model_type: bert"), r"model .*model_name_or_path and model_type are both"),
        (MINIMAL + "peft: {}\ntraining: {freeze_layers: 2}\n", r"freeze_layers .*LoRA trains its adapters alone"),
        (
            MINIMAL + "training: {freeze_layers: 2, cache_frozen_layers: true}\n",
            r"cache_frozen_layers .*needs freeze_embeddings: true and freeze_layers of 1 or more",
        ),
        (
            MINIMAL + "training: {freeze_embeddings: true, cache_frozen_layers: true}\n",
            r"cache_frozen_layers .*needs freeze_embeddings: true and freeze_layers of 1 or more",
        ),
        (MINIMAL + "peft: {}\ntraining: {cache_frozen_layers: true}\n", r"cache_frozen_layers .*LoRA adapts every"),
        (
            MINIMAL.replace("model_name_or_path: some/model", "model_type: bert")
            + "training: {freeze_embeddings: true, freeze_layers: 1, cache_frozen_layers: true}\n",
            r"cache_frozen_layers .*a new model has nothing worth freezing",
        ),
        (MINIMAL + "peft: {rank_pattern: 3}\n", r"peft.rank_pattern .*given 3; must be a mapping"),
        (MINIMAL + "peft: {rank_pattern: by_importanc}\n", r"rank_pattern .*given 'by_importanc'; must be a mapping"),
        (MINIMAL + "peft: {rank_pattern: {query: 0}}\n", r"rank_pattern.query .*given 0; must be greater than or equ"),
        (MINIMAL + "peft: {init_lora_weights: zeros}\n", r"peft.init_lora_weights .*given 'zeros'"),
        ("model: {}\ndata: {}\n", r"model .*no source is given"),
        (
            MINIMAL + "task: {problem_type: regression}\nhead_importance: {method: iterative_ablation_accuracy}\n",
            r"head_importance.method .*accuracy needs classes, and this is a regression; ask for ablation_loss or",
        ),
        ("- a\n", r"holds no sections"),
        ("a: [1\n", r"line 2 is not YAML"),
        ("a: !!python/object:os.system 1\n", r"line 1 is not YAML that can be read: the tag !!python/object:os.system"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_repair(write_recipe: WriteRecipe, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(write_recipe(text))


def test_ranks_by_importance_were_removed(write_recipe: WriteRecipe, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_recipe(MINIMAL + "peft: {rank_pattern: by_importance}\n")
    assert main(["check", str(path)]) == 2
    head, line = capsys.readouterr().err.splitlines()
    assert head == f"error: {path} has a mistake:"
    assert line == (
        "  peft.rank_pattern (line 3): by_importance was removed because it was no better than a uniform rank; remove "
        "rank_pattern, or give a mapping such as {3.query: 16}. For a trained run, edit its recipe.yaml: the ranks are "
        "in model/adapter_config.json, under rank_pattern"
    )


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("training: {save_strategy: epoch}", "training.save_strategy (line 3): unknown key; it belongs in checkpoint"),
        ("training: {seed: 1}", "training.seed (line 3): unknown key; it belongs in the top level"),
        ("evaluation: {eval_batch_size: 1}", "unknown key; here it is evaluation.per_device_eval_batch_size"),
        ("training: {gradient_checkpointing: true}", "unknown key; nothing to set: activations are kept"),
        ("training: {save_totl_limit: 1}", "unknown key; did you mean 'checkpoint.save_total_limit'?"),
        ("training: {learning_rte: 1}", "unknown key; did you mean 'learning_rate'?"),
        ("training: {warmup: 1}", "unknown key; did you mean 'warmup_steps'?"),
        ("training: {deepspeed: a}", "training.deepspeed (line 3): unknown key"),
        ("training: {data_seed: 1}", "training.data_seed (line 3): unknown key"),
        ("training: {hub_strategy: a}", "training.hub_strategy (line 3): unknown key"),
        ("peft: {exclude_modules: a}", "peft.exclude_modules (line 3): unknown key"),
        ("'str': 1", "str (line 3): unknown key"),
        ('"\\e[1m[\\n": 1', r"\x1b[1m[\n (line 3): unknown key"),
        ("evaluation: {metrics: [f1]}", "choose the mean over classes that you mean: f1_macro, f1_micro, f1_weighted"),
        ("evaluation: {metrics: [precision]}", "precision, recall and F1 of each class are always in scores.json"),
        (
            "evaluation: {metric_for_best_model: eval_f1}",
            "given 'eval_f1'; must be one of accuracy, f1_macro, f1_micro",
        ),
        ("evaluation: {metric_for_best_model: eval_loss}", "did you mean 'loss'?"),
        ("evaluation: {metrics: [mcc]}", "did you mean 'matthews_correlation'?"),
        (
            "task: {problem_type: multi_label_classification}\nevaluation: {metrics: [accuracy]}",
            "did you mean 'subset_accuracy'?",
        ),
        ("task: {problem_type: regression}\nevaluation: {metrics: [mse]}", "did you mean 'mean_squared_error'?"),
    ],
)
def test_a_hint_points_to_the_right_section(write_recipe: WriteRecipe, text: str, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write_recipe(f"{MINIMAL}{text}\n"))
    _, line = str(caught.value).splitlines()
    assert hint in line
    assert line.endswith(hint) or not hint.endswith("key")  # no hint is no false hint


def test_of_very_many_mistakes_the_first_are_described(write_recipe: WriteRecipe) -> None:
    names = [f"learning_rat{number}" for number in range(3_000)]
    texts = [
        "training:\n" + "".join(f"  {name}: 1\n" for name in names),
        f"evaluation: {{metrics: [{', '.join(names)}]}}\n",
        f"task: {{label_names: [a, b]}}\ntraining: {{class_weights: {{{': 1.0, '.join(names)}: 1.0}}}}\n",
        "seed: 1\n" * 3_000,
    ]
    for text in texts:
        with pytest.raises(RecipeError) as caught:
            load_recipe(write_recipe(MINIMAL + text))
        head, *lines = str(caught.value).splitlines()
        assert head.endswith("has more than 50 mistakes, of which 50:")
        assert len(lines) == 50
        assert max(map(len, lines)) < 1000


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("output_dir", '"a\\0b"', "contains a NUL character"),
        ("output_dir", "x" * 300, "is too long for the file system"),
        ("output_dir", "~nosuchuser/x", "a user that does not exist"),
        ("output_dir", "''", "is empty; name a path"),
        ("output_dir", "loop", "symbolic links that point at each other"),
        ("output_dir", "file.csv", "is a file; name a folder"),
        ("output_dir", "file.csv/out", "cannot be created, because"),
        ("data.train_file", "~nosuchuser/x.csv", "a user that does not exist"),
        ("data.validation_file", "x" * 300 + ".csv", "is too long for the file system"),
        ("data.test_file", '"a\\0.csv"', "contains a NUL character"),
        ("data.train_file", "file.csv/x.csv", "no such file 'file.csv/x.csv'"),
        ("data.dataset_name", "~nosuchuser/x", "a user that does not exist"),
        ("data.dataset_name", "./nowhere", "there is no folder './nowhere'"),
        ("model.model_name_or_path", "~nosuchuser/x", "a user that does not exist"),
        ("model.model_name_or_path", "x" * 300, "is too long for the file system"),
        ("model.model_name_or_path", "/nowhere/model", "there is no folder '/nowhere/model'"),
        ("checkpoint.resume_from_checkpoint", "x" * 300, "is too long for the file system"),
        ("checkpoint.resume_from_checkpoint", "nowhere", "there is no folder 'nowhere'"),
    ],
)
def test_paths_that_cannot_be_used_are_named(
    write_recipe: WriteRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str, value: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    Path("file.csv").write_text("sentence,label\na,b\n")
    section, _, name = key.rpartition(".")
    line = f"{section}: {{{name}: {value}}}\n" if section else f"{name}: {value}\n"
    others = "" if section == "model" else "model: {model_name_or_path: some/model}\n"
    others += "" if section == "data" else f"data: {{train_rows: {ROWS}, validation_rows: {ROWS}}}\n"
    with pytest.raises(RecipeError, match=rf"{key} \(line 1\): .*{re.escape(reason)}"):
        load_recipe(write_recipe(line + others))
    with pytest.raises(RecipeError, match=rf"{key} \(override\): .*{re.escape(reason)}"):
        load_recipe(write_recipe(MINIMAL), [f"{key}={value}", "data.validation_rows=null", "data.validation_size=0.5"])


def test_a_recipe_that_is_far_too_large_is_refused(write_recipe: WriteRecipe) -> None:
    path = write_recipe(MINIMAL + "seed: '" + "1" * MAX_BYTES + "'\n")
    with pytest.raises(RecipeError, match=r"has 20,000,\d+ bytes, and a recipe has 20,000,000 at most; put rows into"):
        load_recipe(path)


def test_names_of_other_tools_get_a_hint(write_recipe: WriteRecipe) -> None:
    asked = ("warmup_ratio", "group_by_length", "evaluation_strategy", "lora_r", "lora_rank", "epochs", "batch_size")
    asked += ("lr", "base_model", "max_seq_length", "cutoff_len")
    assert set(asked) <= set(FOREIGN_NAMES)
    path = write_recipe(MINIMAL + "training:\n" + "".join(f"  {name}: 1\n" for name in FOREIGN_NAMES))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == len(FOREIGN_NAMES)
    for name, here in FOREIGN_NAMES.items():
        assert sum(f"training.{name} (" in line and here in line for line in lines) == 1


def test_hints_name_keys_that_exist() -> None:
    keys = {f"{name}.{key}" for name, field in Recipe.model_fields.items() for key in _fields(field.annotation)}
    told = [hint.split()[0].rstrip(":") for hint in FOREIGN_NAMES.values() if not hint.startswith("nothing")]
    assert len(told) > 20
    assert set(told) <= keys


def _fields(annotation: object) -> list[str]:
    kinds = [annotation, *getattr(annotation, "__args__", ())]
    return [key for kind in kinds for key in getattr(kind, "model_fields", {})]


def test_yaml_traps_are_closed(write_recipe: WriteRecipe) -> None:
    text = MINIMAL + "task: {label_names: [no, yes]}\ntraining: {mixed_precision: no, learning_rate: 2e-5}\n"
    recipe = load_recipe(write_recipe(text))
    assert recipe.task.label_names == ["no", "yes"]
    assert recipe.training.mixed_precision == "no"
    assert recipe.training.learning_rate == 2e-5


def test_label_names_are_words_whatever_they_look_like(write_recipe: WriteRecipe) -> None:
    recipe = load_recipe(write_recipe(MINIMAL), ["task.label_names=[true, 1, 1.50, null]"])
    assert recipe.task.label_names == ["true", "1", "1.50", "null"]


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("training.learning_rate=3e-4", lambda r: r.training.learning_rate == 3e-4),
        ("training.mixed_precision=no", lambda r: r.training.mixed_precision == "no"),
        ("peft.r=4", lambda r: r.peft.r == 4),
        ("peft=null", lambda r: r.peft is None),
        ("data.max_train_samples=", lambda r: r.data.max_train_samples is None),
        ("evaluation.metrics=[accuracy]", lambda r: r.evaluation.metrics == ["accuracy"]),
        ("output_dir=/elsewhere", lambda r: r.output_dir == "/elsewhere"),
    ],
)
def test_overrides_are_typed_as_in_the_file(
    write_recipe: WriteRecipe, override: str, read: Callable[[Recipe], bool]
) -> None:
    assert read(load_recipe(write_recipe(MINIMAL), [override]))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.learning_rate", r"override 'training.learning_rate' is not of the form"),
        ("a" + ".a" * 10_000 + "=1", r"override 'a\.a.* is not of the form"),
        ("training.learnin_rate=1", r"training.learnin_rate \(override\): unknown key; did you mean"),
        ("training.learning_rate=fast", r"training.learning_rate \(override\): given 'fast'"),
        ("training.learning_rate=[1", r"not YAML"),
        ("seed=&a [*a]", r"seed .*an alias that holds itself"),
        ("seed=" + "[" * 1000, r"seed .*nested more than 50 deep"),
        ('seed="\\UFFFFFFFF"', r"seed .*an escape or a directive that cannot be read"),
        ("seed=!!timestamp foo", r"seed .*the tag !!timestamp does not fit"),
        ("seed=\ud800", r"seed \(override\): the value .*ud800. is not allowed"),
        ("seed=\0", r"seed.*the character '.x00' is not allowed"),
        ("data.train_rows.0.label=1", r"an item of a list cannot be changed by itself"),
    ],
)
def test_a_wrong_override_is_named(write_recipe: WriteRecipe, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(write_recipe(MINIMAL), [override])


def test_an_override_of_the_source_replaces_the_other_source(tmp_path: Path) -> None:
    rows = tmp_path / "train.csv"
    rows.write_text("sentence,label\na,b\n")
    changes = [
        f"data.train_file={rows}",
        "data.validation_rows=null",
        "data.validation_size=0.5",
        "model.model_type=bert",
    ]
    recipe = load_recipe(SHIPPED[0].parent / "sst2.yaml", changes)
    assert (recipe.data.dataset_name, recipe.data.train_file) == (None, str(rows))
    assert (recipe.model.model_name_or_path, recipe.model.model_type) == (None, "bert")


def test_a_folder_of_rows_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "train.CSV").write_text("sentence,label\na,b\n")
    monkeypatch.chdir(tmp_path)
    sst2 = SHIPPED[0].parent / "sst2.yaml"
    for name in ("./rows", "rows"):
        assert load_recipe(sst2, [f"data.dataset_name={name}"]).data.dataset_name == str(tmp_path / "rows")
    assert load_recipe(sst2, ["data.dataset_name=some/rows"]).data.dataset_name == "some/rows"
    with pytest.raises(RecipeError, match=r"data\.dataset_name .*'train\.CSV' is a file; name it as data\.train_file"):
        load_recipe(sst2, ["data.dataset_name=train.CSV"])
    with pytest.raises(
        RecipeError, match=r"data\.train_file .*'rows' is a folder; name one file, or the folder as data"
    ):
        load_recipe(sst2, ["data.train_file=rows", "data.validation_size=0.5"])
    changes = ["data.train_file=train.CSV", "data.validation_size=0.5"]
    assert load_recipe(sst2, changes).data.train_file == str(tmp_path / "train.CSV")


def test_the_resolved_recipe_reads_back_the_same(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(MINIMAL), ["task.label_names=[no, on]", "output_dir=there"])
    again = tmp_path / "resolved.yaml"
    again.write_text(dump_recipe(recipe))
    assert load_recipe(again) == recipe
    assert "weight_decay: 0.01" in again.read_text()  # defaults are written out
    assert Path(recipe.output_dir).is_absolute()
    # Readers of YAML 1.1 must see the words as well.
    assert yaml.safe_load(again.read_text())["task"]["label_names"] == ["no", "on"]


@given(
    rate=st.floats(1e-12, 1e3),
    seed=st.integers(0, 2**32 - 1),
    names=st.lists(st.text(min_size=1), min_size=2, unique=True),
)
def test_any_values_survive_the_round_trip(
    tmp_path_factory: pytest.TempPathFactory, rate: float, seed: int, names: list[str]
) -> None:
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(MINIMAL)
    recipe = load_recipe(path)
    changed = recipe.model_copy(
        update={
            "seed": seed,
            "training": recipe.training.model_copy(update={"learning_rate": rate}),
            "task": recipe.task.model_copy(update={"label_names": names}),
        }
    )
    path.write_text(dump_recipe(changed), encoding="utf-8")
    assert load_recipe(path) == changed


def test_a_recipe_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no recipe .*there\.yaml"):
        load_recipe(tmp_path / "there.yaml")
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("seed: 1 # é".encode("latin-1"))
    with pytest.raises(RecipeError, match=r"not UTF-8 \(byte 10\)"):
        load_recipe(latin)


@pytest.mark.parametrize("problem_type", sorted(METRICS))
def test_metrics_are_checked_by_problem_type(problem_type: str) -> None:
    right = {"task": {"problem_type": problem_type}, "evaluation": {"metrics": list(METRICS[problem_type])}}
    assert not list(metric_problems(right))
    wrong = {"task": {"problem_type": problem_type}, "evaluation": {"metrics": ["nothing"]}}
    assert [problem.location for problem in metric_problems(wrong)] == [("evaluation", "metrics", 0)]


@pytest.mark.parametrize("command", [["check", str(SHIPPED[0])], ["schema"], ["--help"]])
def test_light_commands_do_not_import_torch(command: list[str]) -> None:
    program = (
        "import sys\nfrom finetune.cli import main\n"
        f"try:\n    code = main({command!r})\nexcept SystemExit as ended:\n    code = ended.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'code {code}, imported {heavy}' if code or heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
