from __future__ import annotations

import copy
import json
import shutil
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from transformers import AutoModel, BertConfig, BertModel

from finetune import session
from finetune.cli import main
from finetune.errors import ModelError, RecipeError, TrainingError
from finetune.families import attention_sites
from finetune.heads.gradients import gradient
from finetune.heads.sample import Sample, sample_rows
from finetune.lora import Lora, adapted_modules, add_lora
from finetune.modeling import Classifier
from finetune.preparation import allot_ranks, prepare
from finetune.progress import TrainingProgress
from finetune.ranks import ranks_by_importance, rehearsal_plan, rehearse_ranks, written_ranks
from finetune.recipe import TrainingSection, load_recipe
from finetune.results import LayerRanks, read_json, write_json
from finetune.run import train
from finetune.saving import load_classifier
from tests.conftest import SENTENCES
from tests.helpers import ROLES, encoded, plan, tiny_classifier
from tests.test_families import build, checkpoint
from tests.test_run import ROOT, start

UNIFORM = Lora(r=4, lora_alpha=8, lora_dropout=0.0, roles=ROLES)
IMPORTANCE = st.lists(st.floats(0, 1e6) | st.floats(1e-12, 1e-6), min_size=1, max_size=30)


def adapter_parameters(classifier: Classifier) -> int:
    return sum(p.numel() for name, p in classifier.model.named_parameters() if "lora_" in name)


def adapters(classifier: Classifier) -> list[Any]:
    return [m for m in classifier.base.modules() if isinstance(m, peft.tuners.lora.LoraLayer)]


@given(importance=IMPORTANCE, r=st.integers(1, 64))
def test_ranks_add_up_are_at_least_one_and_follow_importance(importance: list[float], r: int) -> None:
    ranks = ranks_by_importance(importance, r)
    assert sum(ranks) == len(importance) * r
    assert min(ranks) >= 1
    order = np.argsort(importance, kind="stable")
    ordered = [(importance[i], ranks[i]) for i in order]
    for (low, fewer), (high, more) in pairwise(ordered):
        assert fewer <= more or low == high


@given(importance=IMPORTANCE, r=st.integers(1, 16), data=st.data())
def test_unequal_layers_stay_within_the_cost_of_uniform_ranks(
    importance: list[float], r: int, data: st.DataObject
) -> None:
    costs = data.draw(st.lists(st.integers(1, 2000), min_size=len(importance), max_size=len(importance)))
    ranks = ranks_by_importance(importance, r, costs)
    spent = sum(rank * cost for rank, cost in zip(ranks, costs, strict=True))
    assert min(ranks) >= 1
    assert r * sum(costs) - max(costs) < spent <= r * sum(costs)


@pytest.mark.parametrize(
    ("importance", "r", "ranks"),
    [
        ([1, 1, 1], 4, [4, 4, 4]),
        ([0, 0, 0], 4, [4, 4, 4]),
        ([1, 2, 3], 2, [1, 2, 3]),
        ([0, 0, 1], 4, [1, 1, 10]),
        ([1, 1, 1, 5], 2, [1, 1, 1, 5]),
        ([2, 2, 1], 1, [1, 1, 1]),
        ([3, 3, 1], 3, [4, 4, 1]),  # shares 27/7, 27/7, 9/7
        ([1, 1, 1.5], 3, [3, 2, 4]),  # shares 18/7, 18/7, 27/7: remainders 4/7, 4/7, 6/7
    ],
)
def test_ranks_by_hand(importance: list[float], r: int, ranks: list[int]) -> None:
    assert ranks_by_importance(importance, r) == ranks


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -0.1])
def test_importance_that_shares_nothing_out_is_refused(wrong: float) -> None:
    with pytest.raises(ModelError, match=r"rank_pattern: by_importance: .*finite and not negative; lower training"):
        ranks_by_importance([1.0, wrong], 2)


@pytest.mark.parametrize(("total", "steps"), [(1000, 100), (201, 21), (50, 20), (7, 7)])
def test_the_rehearsal_is_a_tenth_and_at_least_twenty_steps(total: int, steps: int) -> None:
    found = rehearsal_plan(plan(total_steps=total, warmup_steps=total // 2, save_every=0, patience=3))
    assert (found.total_steps, found.eval_every, found.save_every, found.patience) == (steps, None, None, None)
    assert found.warmup_steps == pytest.approx(steps / 2, abs=1)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}], ids=["lora", "dora", "rslora"])
def test_other_ranks_have_as_many_parameters_and_the_same_scale(tiny_bert: Path, options: dict[str, Any]) -> None:
    uniform = tiny_classifier(tiny_bert, lora=Lora(**{**vars(UNIFORM), **options}))
    shared_out = tiny_classifier(tiny_bert, lora=Lora(**{**vars(UNIFORM), **options, "layer_ranks": {0: 1, 1: 7}}))
    assert [m.r["default"] for m in adapters(shared_out)] == [1] * 4 + [7] * 4
    assert shared_out.parameter_counts() == uniform.parameter_counts()
    assert (
        adapter_parameters(shared_out)
        == adapter_parameters(uniform)
        == 8 * 4 * 48 + (8 * 24 if options.get("use_dora") else 0)
    )
    scales = [m.scaling["default"] for m in (*adapters(uniform), *adapters(shared_out))]
    assert len(scales) == 16
    assert scales == pytest.approx([8 / (2 if options.get("use_rslora") else 4)] * 16)


def test_a_rank_for_a_layer_that_is_not_adapted_is_refused(tiny_bert: Path) -> None:
    with pytest.raises(ModelError, match="rank is given for layer 1, which is not adapted"):
        tiny_classifier(tiny_bert, lora=Lora(**{**vars(UNIFORM), "layers": [0], "layer_ranks": {1: 3}}))


def rehearsed(
    classifier: Classifier, accelerator: Accelerator, *, r: int = 4, layers: Sequence[int] | None = None
) -> LayerRanks:
    console = Console(quiet=True)
    with TrainingProgress(console) as progress:
        return rehearse_ranks(
            classifier, encoded(classifier), plan(total_steps=5, eval_every=None), TrainingSection(learning_rate=1e-2),
            r=r, roles=ROLES, layers=layers, loraplus_lr_ratio=None, seed=0, rows=4, batch_size=3,
            accelerator=accelerator, progress=progress,
        )  # fmt: skip


def test_importance_is_that_of_the_layers_heads_after_the_rehearsal(tiny_bert: Path, accelerator: Accelerator) -> None:
    torch.manual_seed(0)
    classifier = tiny_classifier(tiny_bert, lora=UNIFORM)
    before = {name: p.detach().clone() for name, p in classifier.model.named_parameters() if p.requires_grad}
    found = rehearsed(classifier, accelerator)
    assert all(not before[n].equal(p) for n, p in classifier.model.named_parameters() if n in before)  # it was trained
    split = encoded(classifier)
    sample = Sample(classifier, split, "train", np.array(sample_rows(len(split), 4, 0)), 2, accelerator)
    assert found.importance == pytest.approx(gradient(sample).values.mean(1).tolist(), rel=1e-4)
    assert found.ranks == ranks_by_importance(found.importance, 4)
    assert (found.r, found.steps, found.rows, sum(found.by_layer().values())) == (4, 5, 4, 8)


def test_the_same_seed_finds_the_same_ranks(tiny_bert: Path, accelerator: Accelerator) -> None:
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        found.append(rehearsed(tiny_classifier(tiny_bert, lora=UNIFORM), accelerator))
    assert found[0] == found[1]


def test_layers_that_are_not_adapted_have_no_rank(tiny_bert: Path, accelerator: Accelerator) -> None:
    classifier = tiny_classifier(tiny_bert, lora=Lora(**{**vars(UNIFORM), "layers": [1]}))
    found = rehearsed(classifier, accelerator, layers=[1])
    assert found.ranks == [None, 4]
    assert found.by_layer() == {1: 4}


@pytest.mark.parametrize(("family", "layers"), [("albert", 4), ("modernbert", 2)])
def test_shared_and_fused_projections_count_once(
    family: str, layers: int, tmp_path: Path, accelerator: Accelerator
) -> None:
    folder = checkpoint(family, AutoModel, tmp_path)
    uniform = build(folder, UNIFORM)
    found = rehearsed(uniform, accelerator)
    assert len(found.ranks) == layers
    again = build(folder, Lora(**{**vars(UNIFORM), "layer_ranks": found.by_layer()}))
    assert adapter_parameters(again) == adapter_parameters(uniform)
    modules = adapted_modules(again.base, ROLES, None)
    for layer, paths in modules.items():
        assert {again.base.get_submodule(path).r["default"] for path in paths} == {found.ranks[layer]}
    if family == "albert":  # two groups of two layers
        assert found.ranks[0] == found.ranks[1]
        assert found.ranks[2] == found.ranks[3]
        assert found.ranks[0] + found.ranks[2] == 8


def test_written_ranks_of_another_setting_are_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "ranks.json", LayerRanks(4, [3, 5], [1.0, 2.0], 20, 4))
    assert written_ranks(tmp_path / "ranks.json", 4, 2).ranks == [3, 5]
    for r, layers in ((8, 2), (4, 3)):
        with pytest.raises(
            TrainingError, match=rf"for peft.r 4 and 2 layers, but this run has peft.r {r} and {layers}"
        ):
            written_ranks(tmp_path / "ranks.json", r, layers)
    with pytest.raises(TrainingError, match=r"no ranks.json .*set peft.rank_pattern as it was"):
        written_ranks(tmp_path / "no" / "ranks.json", 4, 2)


@pytest.fixture
def recipe_file(tiny_bert: Path, tmp_path: Path) -> Path:
    rows = json.dumps([{"sentence": text, "label": "yes" if n % 2 else "no"} for n, text in enumerate(SENTENCES)])
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"model: {{model_name_or_path: {tiny_bert}}}\n"
        f"data: {{train_rows: {rows}, validation_rows: {rows}, max_length: 16}}\n"
        "peft: {r: 3, rank_pattern: by_importance, lora_dropout: 0.0}\n"
        "training: {num_train_epochs: 4, per_device_train_batch_size: 2, learning_rate: 1e-2, "
        "use_cpu: true, num_threads: 1}\n"
        "evaluation: {metrics: [accuracy], bootstrap_samples: 100}\n"
        "head_importance: null\n"
    )
    return path


def test_a_run_says_writes_and_keeps_its_ranks(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe(recipe_file, [f"output_dir={tmp_path / 'run'}"])
    folder = train(recipe)
    said = capsys.readouterr().out
    ranks = read_json(folder.ranks, LayerRanks)
    assert sum(ranks.by_layer().values()) == 2 * 3
    assert (ranks.steps, ranks.rows) == (12, 6)  # fewer steps than twenty: all
    assert "first uniform ranks for 12 steps" in said
    assert f"first to last: {ranks.ranks[0]}, {ranks.ranks[1]} (uniform: 3" in said
    assert load_recipe(folder.recipe).peft == recipe.peft
    classifier = load_classifier(folder.model)
    found = [classifier.base.get_submodule(site.query).r["default"] for site in attention_sites(classifier.base)]
    assert found == ranks.ranks
    assert [m.scaling["default"] for m in adapters(classifier)] == pytest.approx([16 / 3] * 8)
    uniform = train(load_recipe(recipe_file, [f"output_dir={tmp_path / 'uniform'}", "peft.rank_pattern={}"]))
    assert not uniform.ranks.exists()
    counts = [json.loads(run.training.read_text())["trainable_parameters"] for run in (folder, uniform)]
    assert counts[0] == counts[1]
    train(load_recipe(recipe_file, [f"output_dir={tmp_path / 'again'}"]))
    for name in ("ranks.json", "scores.json"):
        assert (tmp_path / "again" / name).read_text() == (tmp_path / "run" / name).read_text()


def test_a_resumed_run_takes_the_written_ranks(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = [f"output_dir={tmp_path / 'run'}"]
    folder = train(load_recipe(recipe_file, ask))
    whole = folder.scores.read_text()
    shutil.rmtree(max(folder.checkpoints.iterdir()))
    folder.scores.unlink()
    monkeypatch.setattr("finetune.preparation.rehearse_ranks", lambda *args, **kwargs: pytest.fail("rehearsed again"))
    capsys.readouterr()
    before = folder.ranks.read_text()
    train(load_recipe(recipe_file, [*ask, "checkpoint.resume_from_checkpoint=auto"]))
    said = capsys.readouterr().out
    assert "step 9 of 12" in said
    assert f"as written in {folder.ranks}" in said
    assert folder.scores.read_text() == whole
    assert folder.ranks.read_text() == before
    # From a checkpoint by name into another folder: the ranks go with it.
    elsewhere = [
        f"output_dir={tmp_path / 'other'}",
        f"checkpoint.resume_from_checkpoint={min(folder.checkpoints.iterdir())}",
    ]
    assert train(load_recipe(recipe_file, elsewhere)).ranks.read_text() == before
    with pytest.raises(TrainingError, match=r"ranks for peft.r 3 and 2 layers, but this run has peft.r 4"):
        train(load_recipe(recipe_file, [*ask, "checkpoint.resume_from_checkpoint=auto", "peft.r=4"]))


def test_the_run_starts_anew_with_the_head_of_any_run(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    heads = []
    for by_importance in (False, True):
        accelerator, console = session.start(recipe, trackers=False)
        material = prepare(recipe, accelerator)
        if by_importance:
            with TrainingProgress(console) as progress:
                material, ranks = allot_ranks(
                    recipe, material, plan(), None, rows=4, accelerator=accelerator, progress=progress
                )
            assert ranks.steps == 6
        heads.append([p for name, p in material.classifier.model.named_parameters() if "modules_to_save" in name])
    assert len(heads[0]) == len(heads[1]) >= 2
    assert all(left.equal(right) for left, right in zip(*heads, strict=True))


def test_a_dry_run_rehearses_one_step_and_leaves_nothing(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(recipe_file), "--dry-run", f"output_dir={tmp_path / 'dry'}"]) == 0
    said = capsys.readouterr().out
    assert "after 1 steps" in said
    assert "Dry run passed" in said
    assert not (tmp_path / "dry").exists()


def test_two_processes_train_with_the_same_ranks(recipe_file: Path, tiny_bert: Path, tmp_path: Path) -> None:
    bert = tmp_path / "bert"
    shutil.copytree(tiny_bert, bert)
    config = json.loads((bert / "config.json").read_text())
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # each process drops other units
    (bert / "config.json").write_text(json.dumps(config | still))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    model = f"model.model_name_or_path={bert}"
    ask = [recipe_file, model, "training.per_device_train_batch_size=1", "output_dir=two"]
    done = start([*launch, ROOT / "finetune" / "run.py", *ask], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    one = train(load_recipe(recipe_file, [model, f"output_dir={tmp_path / 'one'}"]))
    two, one_ranks = read_json(tmp_path / "two" / "ranks.json", LayerRanks), read_json(one.ranks, LayerRanks)
    assert two.ranks == one_ranks.ranks
    assert two.importance == pytest.approx(one_ranks.importance, rel=1e-3)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            "by_importanc",
            r"rank_pattern .*given 'by_importanc'; must be .*'by_importance'.*did you mean 'by_importance'",
        ),
        ("3", r"peft.rank_pattern .*given 3; must be a mapping or given 3; must be 'by_importance'"),
        ("{query: 0}", r"rank_pattern.query .*given 0; must be greater than or equal to 1"),
    ],
)
def test_wrong_values_are_refused(recipe_file: Path, pattern: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(recipe_file, [f"peft.rank_pattern={pattern}"])
    assert "has a mistake:" in str(caught.value)  # one, although there are two ways to be right


def test_unequal_layers_keep_to_the_parameters_of_uniform_ranks() -> None:
    torch.manual_seed(0)
    model = BertModel(
        BertConfig(vocab_size=20, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=32)
    )
    for name in ("query", "key", "value"):  # as if two of three heads had been cut out of the first layer
        setattr(model.encoder.layer[0].attention.self, name, torch.nn.Linear(24, 8))
    model.encoder.layer[0].attention.output.dense = torch.nn.Linear(8, 24)
    model.config.pruned_heads = {0: [0, 1]}
    sizes = []
    for layer_ranks in ({}, {0: 2, 1: 5}):
        lora = Lora(**{**vars(UNIFORM), "layer_ranks": layer_ranks})
        adapted = add_lora(copy.deepcopy(model), lora, [], location="", revision="main")
        sizes.append(sum(p.numel() for name, p in adapted.named_parameters() if "lora_" in name))
    # One rank takes 4 * (24 + 8) and 4 * (24 + 24) parameters; r = 4 of each, shared out as 1 to 2: 2.5 and 5.
    assert ranks_by_importance([1.0, 2.0], 4, [4 * 32, 4 * 48]) == [2, 5]
    assert sizes == [4 * (4 * 32 + 4 * 48), 2 * 4 * 32 + 5 * 4 * 48]
