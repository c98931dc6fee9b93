from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from finetune.cli import main
from finetune.data.tokenization import EncodedSplit
from finetune.evaluation.prediction import predict
from finetune.heads.pruning import heads_to_prune, pruned_classifier
from finetune.models.attention_sites import attention_sites
from finetune.models.classifier import Classifier
from finetune.models.comparison import logits_of
from finetune.models.loading import load_classifier
from finetune.pipeline.choose_heads import PATIENCE, STEP, most_within, sample_of
from finetune.pipeline.finished_run import FinishedRun
from finetune.pipeline.prune import prune
from finetune.pipeline.recovery import recovery_finetune
from finetune.runs.head_results import HeadAnalysis, PruningResult
from finetune.runs.json_files import read_json
from finetune.training.build import build_trainer
from finetune.training.trainer import Trainer
from tests.support import ROOT
from tests.support.finished_runs import HEADS, LAYERS, SCRATCH, contents, finished, read_back, recipe, rows
from tests.support.helpers import FLOAT32, TRAINED, assert_equal_up_to_rounding

TEXTS = [("the cat sat on the mat",), ("a dog chased it now",), ("clean floor",)]
CPU = torch.device("cpu")


@pytest.fixture
def run(small_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_run, tmp_path / "run"))


@pytest.fixture
def adapted(lora_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(lora_run, tmp_path / "run"))


def cut(run: Path, *options: str) -> PruningResult:
    assert main(["prune", str(run), *options]) == 0
    assert not list(run.glob(".*"))  # nothing is left aside
    return read_json(run / "pruned" / "pruning.json", PruningResult)


def without_columns(classifier: Classifier, heads: dict[str, list[int]]) -> Tensor:
    """Logits of the whole model, adapters merged, with the heads' columns of the output projection set to 0."""
    model = pruned_classifier(classifier, {})
    touched = 0
    for site in attention_sites(model.base):
        weight = model.base.get_submodule(site.output).weight
        assert isinstance(weight, Tensor)
        width = weight.shape[1] // site.num_heads
        for head in heads.get(str(site.layer), []):
            weight.data[:, head * width : (head + 1) * width] = 0
            touched += 1
    assert touched == sum(map(len, heads.values())) > 0
    return logits_of(model, TEXTS, CPU)


def accuracy(run: FinishedRun, classifier: Classifier, split: str) -> float:
    found = predict(classifier, run.inputs.splits[split], batch_size=64, accelerator=run.context.accelerator)
    return found.metrics()["accuracy"]


def test_a_share_is_cut_out_and_computes_what_the_gated_model_does(run: Path) -> None:
    before = contents(run)
    found = cut(run, "--share", "0.5")
    order = read_json(run / "heads.json", HeadAnalysis).methods[0].order
    expected = heads_to_prune(order, attention_sites(load_classifier(run / "model").base), 0.5)
    assert found.heads == {str(layer): heads for layer, heads in sorted(expected.items())}
    assert found.share == 0.5
    assert "a share of 0.5 by gradient on 48 train rows" in found.chosen_by
    left = load_classifier(run / "pruned" / "model")
    assert [site.num_heads for site in attention_sites(left.base)] == [
        HEADS - len(found.heads.get(str(layer), [])) for layer in range(LAYERS)
    ]
    whole = without_columns(load_classifier(run / "model"), found.heads)
    assert_equal_up_to_rounding(logits_of(left, TEXTS, CPU), whole)  # sums over fewer columns
    assert found.difference < FLOAT32 * float(whole.abs().max())
    assert found.before.parameters > found.after.parameters
    assert found.before.model_bytes > found.after.model_bytes
    assert found.scores_before["test"]["accuracy"] == pytest.approx(
        json.loads(before["scores.json"])["test"]["metrics"]["accuracy"]["value"]
    )
    assert found.scores_after.keys() == {"validation", "test"}
    assert found.scores_healed is None
    assert {name: text for name, text in contents(run).items() if not name.startswith("pruned")} == before


def test_a_pruned_model_with_adapters_is_read_by_another_process_and_by_transformers(adapted: Path) -> None:
    found = cut(adapted, "--heads", "0.1,1.0,1.2")
    assert found.heads == {"0": [1], "1": [0, 2]}
    assert found.chosen_by == "by name: 0.1, 1.0, 1.2"
    own = load_classifier(adapted / "model")
    assert isinstance(own.model, peft.PeftModel)
    expected = without_columns(own, found.heads)
    program = (
        "import sys, json, torch; from pathlib import Path\n"
        "from finetune.models.loading import load_classifier\nfrom finetune.models.comparison import logits_of\n"
        f"found = load_classifier(Path(sys.argv[1])); print(type(found.model).__name__)\n"
        f"print(json.dumps(logits_of(found, {TEXTS!r}, torch.device('cpu')).tolist()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(adapted / "pruned" / "model")], cwd=ROOT, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    name, logits = done.stdout.splitlines()
    assert name == "BertForSequenceClassification"
    read = torch.tensor(json.loads(logits))
    assert_equal_up_to_rounding(read, expected)  # adapters merged and columns cut, in another order
    plain = AutoModelForSequenceClassification.from_pretrained(adapted / "pruned" / "zeroed").eval()
    inputs = AutoTokenizer.from_pretrained(adapted / "pruned" / "zeroed")(
        [text for (text,) in TEXTS], padding=True, return_tensors="pt"
    )
    assert plain.config.num_attention_heads == 3
    assert not plain.bert.encoder.layer[0].attention.self.query.weight[8:16].any()
    assert_equal_up_to_rounding(plain(**inputs).logits, expected)


def test_as_many_go_as_validation_rows_allow(run: Path) -> None:
    found = cut(run, "--keep-within", "0.05")
    opened = read_back(run)
    classifier = opened.inputs.classifier
    order = read_json(run / "heads.json", HeadAnalysis).methods[0].order
    tried: list[dict[int, list[int]]] = []
    for step in range(1, round(1 / STEP)):
        heads = heads_to_prune(order, attention_sites(classifier.base), step * STEP)
        if heads and heads not in tried:
            tried.append(heads)
    assert len(tried) == LAYERS * HEADS - LAYERS
    # By real cuts, not by gates.
    scores = [accuracy(opened, pruned_classifier(classifier, heads), "validation") for heads in tried]
    chosen = tried.index({int(layer): heads for layer, heads in found.heads.items()})
    room = accuracy(opened, classifier, "validation") - 0.05 - 1e-9
    assert scores[chosen] >= room
    assert chosen + 1 < len(tried)
    assert all(score < room for score in scores[chosen + 1 : chosen + 1 + PATIENCE])
    assert found.scores_after["validation"]["accuracy"] == pytest.approx(scores[chosen])


def test_a_curve_may_dip_but_not_for_long(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = read_back(run)
    sample = sample_of(opened, "validation")
    order = read_json(run / "heads.json", HeadAnalysis).methods[0].order
    for scores, kept in (([0.8, 0.5, 0.7, 0.5, 0.5, 0.5], 3), ([0.8, 0.5, 0.5, 0.5, 0.9], 1), ([0.69], 0)):
        left = iter([0.8, *scores, *[0.0] * 9])
        monkeypatch.setattr(
            "finetune.pipeline.choose_heads.scorer", lambda sample, metric, left=left: lambda gates: next(left)
        )
        removed, whole = most_within(sample, order, "accuracy", 0.1)
        assert (sum(map(len, removed.values())), whole) == (kept, 0.8)


def test_test_rows_choose_nothing(run: Path) -> None:
    plain = cut(run, "--keep-within", "0.05")
    order = read_json(run / "heads.json", HeadAnalysis).methods[0].order
    by_test, _ = most_within(sample_of(read_back(run), "test"), order, "accuracy", 0.05)
    assert sum(map(len, by_test.values())) > sum(map(len, plain.heads.values())) > 0  # they would allow more
    shutil.rmtree(run / "pruned")
    said = yaml.safe_load((run / "recipe.yaml").read_text())
    said["data"]["test_rows"] = rows(40, 3, flipped=True)
    (run / "recipe.yaml").write_text(yaml.safe_dump(said))
    flipped = cut(run, "--keep-within", "0.05")
    assert flipped.scores_before["test"]["accuracy"] == pytest.approx(1 - plain.scores_before["test"]["accuracy"])
    assert flipped.heads == plain.heads


def test_a_ranking_by_test_rows_is_made_again_on_training_rows(run: Path) -> None:
    held = json.loads((run / "heads.json").read_text())
    for method in held["methods"]:
        method["split"] = "test"
        method["order"] = method["order"][::-1]  # would keep what the real order removes first
    (run / "heads.json").write_text(json.dumps(held))
    said = yaml.safe_load((run / "recipe.yaml").read_text())
    said["head_importance"]["split"] = "test"
    (run / "recipe.yaml").write_text(yaml.safe_dump(said))
    found = cut(run, "--share", "0.5")
    assert "gradient on 48 train rows" in found.chosen_by
    right = [tuple(head) for head in held["methods"][0]["order"][::-1]]
    sites = attention_sites(load_classifier(run / "model").base)
    assert found.heads == {str(layer): heads for layer, heads in sorted(heads_to_prune(right, sites, 0.5).items())}


def test_another_method_is_taken_from_the_analysis_or_measured(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def measure(sample: Any, method: str, **_: Any) -> Any:
        measured.append(method)
        return read_json(run / "heads.json", HeadAnalysis).methods[1]

    monkeypatch.setattr("finetune.pipeline.choose_heads.measure_importance", measure)
    assert "fisher on 48 train rows" in cut(run, "--share", "0.3", "--method", "fisher").chosen_by
    assert measured == []
    shutil.rmtree(run / "pruned")
    cut(run, "--share", "0.3", "--method", "entropy")
    assert measured == ["entropy"]


def test_healing_trains_all_that_the_run_trained(run: Path) -> None:
    found = cut(run, "--share", "0.5", "--heal", "3")
    assert found.heal_epochs == 3
    assert found.scores_healed is not None
    assert found.scores_healed.keys() == found.scores_after.keys() == {"validation", "test"}
    opened = read_back(run)
    heads = {int(layer): gone for layer, gone in found.heads.items()}
    before = pruned_classifier(opened.inputs.classifier, heads).base.state_dict()
    healed = load_classifier(run / "pruned" / "model")
    after = healed.base.state_dict()
    assert before.keys() == after.keys()
    same = [name for name in before if before[name].equal(after[name])]
    assert same == []
    train = opened.inputs.splits["train"]
    losses = [
        predict(model, train, batch_size=64, accelerator=opened.context.accelerator).metrics()["loss"]
        for model in (pruned_classifier(opened.inputs.classifier, heads), healed)
    ]
    assert losses[1] < losses[0]  # measured: 0.04 after 0.37
    assert not (run / "checkpoints").exists()


def test_healing_computes_frozen_layers_once_and_compiles_the_others(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    still = Path(shutil.copytree(tiny_bert, tmp_path / "bert"))
    config = json.loads((still / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # frozen layers are cached without
    (still / "config.json").write_text(json.dumps(config))
    frozen = {"freeze_embeddings": True, "freeze_layers": 1, "num_train_epochs": 1, "adam_epsilon": 0.1}
    run = finished(tmp_path, recipe({"model_name_or_path": str(still)}, training=frozen), "head_importance=null")
    cached, compiled, healed = [], [], []

    def build(classifier: Classifier, split: EncodedSplit, *rest: Any, **options: Any) -> Trainer:
        cached.append(split.states is not None)
        return build_trainer(classifier, split, *rest, **options)

    def compile_from(model: object, device: object, *, first: int) -> Any:
        compiled.append(first)
        return nullcontext()

    monkeypatch.setattr("finetune.pipeline.recovery.build_trainer", build)
    monkeypatch.setattr("finetune.pipeline.prepare.compiled_layers", compile_from)
    for changes in ([], ["training.cache_frozen_layers=true", "training.torch_compile=true"]):
        opened = read_back(run, *changes)
        pruned = pruned_classifier(opened.inputs.classifier, {0: [1], 1: [2]})
        before = {name: weight.clone() for name, weight in pruned.base.state_dict().items()}
        healed.append(recovery_finetune(opened, pruned, 2).base.state_dict())
    assert (cached, compiled) == ([False, True], [1])
    assert healed[0].keys() == healed[1].keys() == before.keys()
    assert max(float((before[name] - healed[0][name]).abs().max()) for name in before) > 1e-2
    for name, weight in healed[0].items():  # states of a row are computed in another batch
        torch.testing.assert_close(healed[1][name], weight, atol=TRAINED, rtol=0)


def test_healing_with_lora_trains_new_adapters_and_the_head_and_merges_them(adapted: Path) -> None:
    found = cut(adapted, "--heads", "0.0,1.1", "--heal", "2")
    opened = read_back(adapted)
    heads = {int(layer): gone for layer, gone in found.heads.items()}
    before = pruned_classifier(opened.inputs.classifier, heads).base.state_dict()
    healed = load_classifier(adapted / "pruned" / "model")
    assert not isinstance(healed.model, peft.PeftModel)
    after = healed.base.state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not before[name].equal(after[name])}
    adapters = {f"bert.encoder.layer.{n}.attention.self.{role}.weight" for n in range(2) for role in ("query", "value")}
    assert changed == adapters | {"classifier.weight", "classifier.bias"}
    change = (
        after["bert.encoder.layer.0.attention.self.query.weight"]
        - before["bert.encoder.layer.0.attention.self.query.weight"]
    )
    assert torch.linalg.matrix_rank(change, rtol=1e-4) == 2  # the recipe's rank: adapters, not full weights


def test_what_pruning_tells_comes_back(run: Path) -> None:
    found = prune(run, heads=[(1, 3)], output=run.parent / "new" / "place")
    assert read_json(run.parent / "new" / "place" / "pruning.json", PruningResult) == found
    assert {path.name for path in (run.parent / "new" / "place").iterdir()} == {"model", "zeroed", "pruning.json"}
    assert [path.name for path in (run.parent / "new").iterdir()] == ["place"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--share", "0"], "share is 0; it must be above 0 and below 1, as a share of all heads"),
        (["--share", "1.5"], "share is 1.5; it must be above 0"),
        (["--share", "-0.1"], "share is -0.1; it must be above 0"),
        (["--share", "nan"], "share is nan; it must be above 0"),
        (["--keep-within", "nan"], "keep_within is nan; it must be a difference in score, 0 or more"),
        (["--keep-within", "-1"], "keep_within is -1; it must be a difference"),
        (["--share", "0.5", "--heal", "-1"], "heal is -1; it must be a number of epochs, 0 or more"),
        (
            ["--share", "0.01"],
            "nothing to prune: a share of 0.01 by gradient on 48 train rows; increase",
        ),
        (["--heads", "9.9"], "there is no layer 9; layers are 0 to 1"),
        (["--heads", "1.9"], "layer 1 has no head 9; its heads are 0 to 3"),
        (["--heads", "0.2,1.1,0.2"], "heads names 0.2 twice; name each head once"),
        (["--heads", "0.0,0.1,0.2,0.3"], "layer 0 would lose all its 4 heads; keep at least one"),
        (["--share", "0.5", "--method", "gradeint"], "method is 'gradeint'; it must be one of gradient, .*did you"),
        (
            ["--heads", "0.1", "--method", "gradient"],
            "method ranks the heads to choose from, but heads names them",
        ),
    ],
)
def test_a_mistake_is_one_message_and_nothing_is_written(
    small_run: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    before = contents(small_run)
    assert main(["prune", str(small_run), *options]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert shown.out in ("", "1 process, cpu\n")
    assert re.search(said, shown.err), shown.err
    assert contents(small_run) == before
    assert not (small_run / "pruned").exists()


@pytest.mark.parametrize("heads", ["x", "0", "0.1.2", "", "0.1,"])
def test_a_list_of_heads_that_is_none_is_wrong_usage(
    small_run: Path, capsys: pytest.CaptureFixture[str], heads: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["prune", str(small_run), "--heads", heads])
    assert ended.value.code == 2
    assert f"'{heads}' is not a list of heads; write layer.head, such as 0.3,2.7" in capsys.readouterr().err


def test_a_folder_that_is_taken_is_left_alone(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = contents(tmp_path)
    for taken in (tmp_path / "taken", tmp_path / "file", run):
        assert main(["prune", str(run), "--share", "0.5", "--output", str(taken)]) == 2
        assert f"{taken} already exists and is not empty; name another folder with --output" in capsys.readouterr().err
    assert main(["prune", str(run), "--share", "0.5", "--output", str(tmp_path / "file" / "below")]) == 2
    assert "cannot be written: Not a directory; name another folder" in capsys.readouterr().err
    assert contents(tmp_path) == before
    (tmp_path / "empty").mkdir()
    assert main(["prune", str(run), "--share", "0.5", "--output", str(tmp_path / "empty")]) == 0


def test_what_fails_while_it_writes_leaves_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> float:
        assert (run / ".pruned.tmp" / "model").is_dir()  # half of it is there
        raise RuntimeError("no space")

    monkeypatch.setattr("finetune.pipeline.prune.write_zeroed", fail)
    before = contents(run)
    with pytest.raises(RuntimeError, match="no space"):
        main(["prune", str(run), "--share", "0.5"])
    assert contents(run) == before
    assert not list(run.glob("*pruned*")) + list(run.glob(".*"))


def test_a_folder_without_a_finished_run_is_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "training.json").unlink()
    for folder, reason in ((run, "no training.json"), (tmp_path / "nowhere", "there is no such folder")):
        assert main(["prune", str(folder), "--share", "0.5"]) == 2
        assert f"{folder} is not a finished run ({reason})" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()


def test_a_run_without_validation_rows_or_analysis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = recipe(
        SCRATCH,
        data={"validation_rows": None, "test_rows": None},
        evaluation={"eval_strategy": "no"},
        training={"num_train_epochs": 1},
    )
    content["head_importance"] = None
    run = finished(tmp_path, content)
    before = contents(run)
    assert main(["prune", str(run), "--keep-within", "0.1"]) == 2
    assert "keep_within needs validation rows, and the run has none; use share" in capsys.readouterr().err
    assert contents(run) == before
    found = cut(run, "--share", "0.5", "--method", "gradient")
    assert "a share of 0.5 by gradient on 48 train rows" in found.chosen_by
    assert found.scores_before == found.scores_after == {}


def test_a_family_whose_heads_stay_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {
        "vocab_size": 40, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16,
        "max_position_embeddings": 32, "embedding_size": 16, "head_ratio": 2, "conv_kernel_size": 3,
    }  # fmt: skip
    content = recipe(
        {"model_type": "convbert", "config_overrides": sizes},
        training={"num_train_epochs": 1},
        head_importance={"method": "gradient", "random_orders": 0, "curve_split": None},
    )
    run = finished(tmp_path, content)
    before = contents(run)
    assert main(["prune", str(run), "--share", "0.5"]) == 2
    assert "heads of a 'convbert' model can be masked, but not pruned:" in capsys.readouterr().err
    assert contents(run) == before


def test_of_an_error_less_is_better(tmp_path: Path) -> None:
    numbers = [{**row, "label": float(len(str(row["sentence"])))} for row in rows(24, 1)]
    content = recipe(
        SCRATCH,
        task={"problem_type": "regression"},
        data={"train_rows": numbers, "validation_rows": numbers, "test_rows": None},
        evaluation={"metrics": ["mean_squared_error"]},
        training={"num_train_epochs": 1},
        head_importance={"method": "gradient", "random_orders": 0},
    )
    del content["task"]["label_names"]
    run = finished(tmp_path, content)
    whole = read_json(run / "heads.json", HeadAnalysis).truth
    assert whole is not None
    found = cut(run, "--keep-within", "1000")
    assert sum(map(len, found.heads.values())) == LAYERS * HEADS - LAYERS
    error = found.scores_before["validation"]["mean_squared_error"]
    assert f"within 1000 of {error:.4f}, by gradient" in found.chosen_by  # not of minus so much
    assert error == pytest.approx(-whole.whole, rel=FLOAT32)
