from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from finetune.errors import ModelError
from finetune.pipeline.prepare import prepare, try_longest_row
from finetune.pipeline.session import start
from finetune.pipeline.train import train
from finetune.recipe.loader import load_recipe
from finetune.recipe.schema import Recipe
from finetune.runs.run_folder import RunFolder
from tests.support.finished_runs import SCRATCH, recipe
from tests.support.helpers import encoded, tiny_classifier

SMALL = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}


def test_the_longest_row_is_tried_without_side_effects(tiny_bert: Path) -> None:
    classifier = tiny_classifier(tiny_bert)
    splits = {"train": encoded(classifier, ["the cat"], [0]), "validation": encoded(classifier)}
    classifier.model.train()
    before = torch.get_rng_state()
    try_longest_row(classifier, splits)
    assert classifier.model.training
    assert torch.get_rng_state().equal(before)
    assert all(p.grad is None for p in classifier.model.parameters())
    classifier.base.bert.embeddings.position_embeddings = nn.Embedding(12, 24)
    with pytest.raises(
        ModelError, match=r"model '.*' fails on validation row 6, of 13 tokens: IndexError: .*; correct"
    ):
        try_longest_row(classifier, splits)
    try_longest_row(classifier, {"train": splits["train"]})


def test_nonfinite_logits_before_training_are_a_model_error(tiny_bert: Path) -> None:
    classifier = tiny_classifier(tiny_bert)
    classifier.base.bert.encoder.layer[0].output.LayerNorm.eps = float("nan")
    with pytest.raises(ModelError, match=r"gives logits that are not finite for train row 6, before any training; "):
        try_longest_row(classifier, {"train": encoded(classifier)})


def test_an_out_of_memory_error_is_not_a_model_error(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = tiny_classifier(tiny_bert)

    def forward(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("too much")

    monkeypatch.setattr(classifier.model, "forward", forward)
    with pytest.raises(torch.OutOfMemoryError, match="too much"):
        try_longest_row(classifier, {"train": encoded(classifier)})
    classifier.base.config._attn_implementation = "flash_attention_2"  # it needs a GPU
    try_longest_row(classifier, {"train": encoded(classifier)})


@pytest.mark.parametrize(
    ("model_type", "overrides", "message"),
    [
        ("bert", {"type_vocab_size": 0}, r"the model of model\.config_overrides fails on .* row \d+, of \d+ tokens"),
        ("roberta", {"max_position_embeddings": 16}, r"data\.max_length is 16, but 'roberta' takes 15 tokens"),
    ],
)
def test_a_model_that_cannot_run_leaves_no_folder(
    model_type: str, overrides: dict[str, Any], message: str, tmp_path: Path
) -> None:
    content = recipe({"model_type": model_type, "config_overrides": SMALL | overrides})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**content, "output_dir": str(tmp_path / "run")}))
    with pytest.raises(ModelError, match=message):
        train(load_recipe(tmp_path / "recipe.yaml"))
    assert not (tmp_path / "run").exists()


def test_the_metric_for_the_best_model_is_chosen_and_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = recipe(SCRATCH, training={"class_weights": "balanced"}, evaluation={"metrics": None})
    given = Recipe.model_validate({**content, "output_dir": str(tmp_path / "run")})
    context, _, _ = prepare(start(given, RunFolder(tmp_path / "run")))
    assert context.recipe.evaluation.metric_for_best_model == "f1_macro"
    assert "chosen: evaluation.metric_for_best_model f1_macro, because training.class_weights is set." in (
        " ".join(capsys.readouterr().out.split())
    )
