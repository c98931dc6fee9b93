from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForSequenceClassification, BertModel

from finetune.errors import ModelError
from finetune.models.attention_sites import attention_sites
from finetune.models.classifier import Classifier
from finetune.models.comparison import check_reload, logits_of
from finetune.models.loading import load_classifier
from finetune.models.lora import Lora, fused_roles_note
from finetune.models.merging import merge_classifier
from finetune.models.pretrained import Source, load_tokenizer
from finetune.models.saving import save_classifier, with_plain_adapters
from finetune.recipe.training_section import TrainingSection
from finetune.training.build import Hyperparameters, build_trainer
from finetune.training.optimizer import build_optimizer
from tests.support.helpers import ROLES, assert_equal_up_to_rounding, encoded, plan, tiny_classifier

PLAIN = Lora(r=2, lora_alpha=4, lora_dropout=0.0, roles=ROLES)
TEXTS = [("the cat sat",), ("a dog chased the mat on the floor",)]
CPU = torch.device("cpu")
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "olora": {"init_lora_weights": "olora"},
    "pissa": {"init_lora_weights": "pissa"},
    "one layer": {"layers": [1]},
    "ranks": {"rank_pattern": {"query": 4, "1.value": 3}},
}


def trained(checkpoint: Path, lora: Lora, accelerator: Accelerator) -> Classifier:
    """Return a classifier after three training steps."""
    torch.manual_seed(0)
    built = tiny_classifier(checkpoint, lora=lora)
    settings = TrainingSection(learning_rate=1e-2)
    trainer = build_trainer(built, encoded(built), plan(total_steps=3), Hyperparameters(settings, seed=0), accelerator)
    for micro_batches, rows in trainer.epoch_steps():
        trainer.optimizer_step(micro_batches, rows)
    return built


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_trains_and_reloads(
    name: str, tiny_masked_lm: Path, accelerator: Accelerator, tmp_path: Path
) -> None:
    built = trained(tiny_masked_lm, replace(PLAIN, **OPTIONS[name]), accelerator)
    # PiSSA and OLoRA subtract the initial adapter from the weight under it.
    assert len(built.initial) == (8 if name in ("pissa", "olora") else 0)
    built = with_plain_adapters(built, TEXTS, CPU)
    save_classifier(built, tmp_path)
    torch.manual_seed(50)
    check_reload(built, load_classifier(tmp_path), TEXTS, CPU)
    adapted = sum(isinstance(m, peft.tuners.lora.LoraLayer) for m in built.base.modules())
    assert adapted == (4 if name == "one layer" else 8)


CHANGED = {
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "pissa rslora ranks": {
        "init_lora_weights": "pissa",
        "use_rslora": True,
        "rank_pattern": {"query": 4, "1.value": 3},
    },
    "olora dora": {"init_lora_weights": "olora", "use_dora": True},
    "pissa one layer": {"init_lora_weights": "pissa", "layers": [1]},
    "olora ranks": {"init_lora_weights": "olora", "rank_pattern": {f"0.{role}": 3 for role in ROLES}},
}


@pytest.mark.parametrize("name", ["plain", *CHANGED])
def test_peft_with_the_unchanged_base_gives_the_same_logits(
    name: str, tiny_masked_lm: Path, accelerator: Accelerator, tmp_path: Path
) -> None:
    built = trained(tiny_masked_lm, replace(PLAIN, **CHANGED.get(name, {})), accelerator)
    expected = logits_of(built, TEXTS, CPU)
    save_classifier(with_plain_adapters(built, TEXTS, CPU), tmp_path)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_masked_lm, num_labels=2)
    with_peft = replace(built, model=peft.PeftModel.from_pretrained(base, str(tmp_path)))
    # float32 sums in another order, of a weight that was split by SVD or QR: measured 2e-6 on logits of size 1.
    torch.testing.assert_close(logits_of(with_peft, TEXTS, CPU), expected, atol=1e-4, rtol=1e-4)


def test_adapters_on_changed_weights_must_be_rewritten_before_saving(tiny_bert: Path, tmp_path: Path) -> None:
    built = tiny_classifier(tiny_bert, lora=replace(PLAIN, init_lora_weights="olora"))
    with pytest.raises(ModelError, match="must be rewritten before they are saved"):
        save_classifier(built, tmp_path)
    wrong = replace(built, initial=dict(list(built.initial.items())[1:]))
    with pytest.raises(ModelError, match="only 7 of 8 adapters can be rewritten"):
        with_plain_adapters(wrong, TEXTS, CPU)


@pytest.mark.parametrize("name", OPTIONS)
def test_merged_weights_have_no_adapters_and_equal_logits(
    name: str, tiny_masked_lm: Path, accelerator: Accelerator, tmp_path: Path
) -> None:
    built = trained(tiny_masked_lm, replace(PLAIN, **OPTIONS[name]), accelerator)
    expected = logits_of(built, TEXTS, CPU)
    assert merge_classifier(built, tmp_path, TEXTS) < 1e-4
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert not [key for key in plain.state_dict() if "lora" in key]
    with_merged = replace(built, model=plain)
    assert_equal_up_to_rounding(logits_of(with_merged, TEXTS, CPU), expected)
    assert plain.config.id2label == {0: "no", 1: "yes"}


def test_options_have_their_effect(tiny_bert: Path) -> None:
    layers = {
        name: next(m for m in tiny_classifier(tiny_bert, lora=replace(PLAIN, **options)).base.modules()
                   if isinstance(m, peft.tuners.lora.LoraLayer))
        for name, options in OPTIONS.items()
    }  # fmt: skip
    assert layers["plain"].scaling["default"] == 4 / 2
    assert layers["rslora"].scaling["default"] == pytest.approx(4 / 2**0.5)
    assert layers["dora"].use_dora["default"]
    assert layers["ranks"].r["default"] == 4
    assert float(layers["plain"].lora_B["default"].weight.detach().abs().max()) == 0
    assert float(layers["pissa"].lora_B["default"].weight.detach().abs().max()) > 0


def test_ranks_per_layer_override_ranks_per_role(tiny_bert: Path) -> None:
    lora = replace(PLAIN, rank_pattern={"1.value": 3, "value": 5})
    base = tiny_classifier(tiny_bert, lora=lora).base
    ranks = [base.get_submodule(site.value).r["default"] for site in attention_sites(base)]
    assert ranks == [5, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [2]}, r"peft\.layers_to_transform: there is no layer 2; layers are 0 to 1"),
        ({"rank_pattern": {"dense": 3}}, r"peft\.rank_pattern: 'dense' is not an adapted role"),
        ({"rank_pattern": {"7.query": 3}}, r"peft\.rank_pattern: '7\.query' is not an adapted role"),
        ({"layers": [0], "rank_pattern": {"1.query": 3}}, r"peft\.rank_pattern: '1\.query' is not an adapted role"),
    ],
)
def test_unknown_layers_and_roles_are_rejected(tiny_bert: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        tiny_classifier(tiny_bert, lora=replace(PLAIN, **options))


def test_loraplus_sets_a_separate_learning_rate_for_b(tiny_bert: Path) -> None:
    built = tiny_classifier(tiny_bert, lora=PLAIN)
    trained = {name: p for name, p in built.model.named_parameters() if p.requires_grad}
    groups = build_optimizer(trained, TrainingSection(learning_rate=1e-3), 16.0).param_groups
    names = {id(p): name for name, p in built.model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in groups for p in group["params"]}
    assert len(rates) == 8 * 2 + 2
    assert all(rate == (0.016 if "lora_B" in name else 0.001) for name, rate in rates.items())


@pytest.mark.parametrize("lora", [None, PLAIN], ids=["full", "lora"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_trained_weights_are_float32_on_a_base_of_lower_precision(
    tiny_masked_lm: Path, lora: Lora | None, dtype: torch.dtype, accelerator: Accelerator, tmp_path: Path
) -> None:
    half = tmp_path / "half"
    BertModel.from_pretrained(tiny_masked_lm, dtype=dtype).save_pretrained(half)
    load_tokenizer(Source(str(tiny_masked_lm))).save_pretrained(half)
    from finetune.models.building import Labels, pretrained_classifier

    name = str(dtype).removeprefix("torch.")
    source = Source(str(half), dtype=name)
    built = pretrained_classifier(
        source,
        load_tokenizer(source),
        Labels(("no", "yes"), "single_label_classification"),
        max_length=16,
        lora=lora,
    )
    frozen = {p.dtype for p in built.model.parameters() if not p.requires_grad}
    assert {p.dtype for p in built.model.parameters() if p.requires_grad} == {torch.float32}
    assert frozen >= {dtype} if lora else not frozen
    assert built.notes == (() if lora else (
        f"model.dtype {name} applies to frozen weights under adapters; without adapters weights are float32. "
        "For faster training set training.mixed_precision: bf16.",
    ))  # fmt: skip
    settings = TrainingSection(learning_rate=1e-2)
    trainer = build_trainer(built, encoded(built), plan(total_steps=3), Hyperparameters(settings, seed=0), accelerator)
    for micro_batches, rows in trainer.epoch_steps():
        trainer.optimizer_step(micro_batches, rows)
    save_classifier(built, tmp_path / "model")
    with_merged = load_classifier(tmp_path / "model")
    assert check_reload(built, with_merged, TEXTS, CPU) <= 1e-5
    assert {p.dtype for n, p in with_merged.model.named_parameters() if "modules_to_save" in n or "lora_" in n} <= {
        torch.float32
    }


def test_a_note_names_the_other_roles_of_a_fused_projection(tmp_path: Path) -> None:
    from tests.support.families import build, save_checkpoint

    fused = build(save_checkpoint("modernbert", tmp_path))
    assert fused_roles_note(fused.base, ["query", "output"]) == (
        "query, key, value are one fused projection in this model (Wqkv): adapting query adapts key, value too."
    )
    assert fused_roles_note(fused.base, ROLES) == ""


def test_separate_projections_have_no_note(tiny_bert: Path) -> None:
    assert fused_roles_note(tiny_classifier(tiny_bert).base, ["query"]) == ""
