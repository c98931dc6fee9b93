"""One vector per row from the encoder: finetune/models/pooled_states.py."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from finetune.models.pooled_states import pooled_states
from tests.conftest import SENTENCES
from tests.support.families import CONFIGS, build, save_checkpoint
from tests.support.helpers import assert_equal_up_to_rounding, encoded, tiny_classifier


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_states_are_those_of_rows_without_padding(
    tiny_bert: Path, accelerator: Accelerator, pooling: Literal["mean", "cls"]
) -> None:
    classifier = tiny_classifier(tiny_bert)
    split = encoded(classifier)
    classifier.model.train()
    states = pooled_states(classifier, split, pooling=pooling, batch_size=4, accelerator=accelerator)
    assert classifier.model.training
    assert states.dtype.name == "float32"
    classifier.model.eval()
    with torch.no_grad():
        tokens = [classifier.base.bert(torch.tensor([ids]))[0][0] for ids in split.rows["input_ids"]]
    expected = torch.stack([part.mean(0) if pooling == "mean" else part[0] for part in tokens])
    assert_equal_up_to_rounding(states, expected)
    assert not classifier.base.bert._forward_hooks


@pytest.mark.parametrize("family", ["multi_head_classifier", "albert", "modernbert", "squeezebert", "xlm"])
def test_every_kind_of_encoder_has_states(family: str, tmp_path: Path, accelerator: Accelerator) -> None:
    classifier = build(save_checkpoint(family, tmp_path))
    states = pooled_states(classifier, encoded(classifier), batch_size=6, accelerator=accelerator)
    width = CONFIGS[family].get("hidden_size", CONFIGS[family].get("emb_dim", 16))
    assert states.shape == (len(SENTENCES), width)
    assert states.std(axis=0).min() > 0


def test_padding_on_the_left_is_skipped(tiny_bert: Path, accelerator: Accelerator) -> None:
    classifier = tiny_classifier(tiny_bert)
    classifier.tokenizer.padding_side = "left"
    tables = classifier.base.bert.embeddings
    nn.init.zeros_(tables.position_embeddings.weight)  # so that the position of a token does not matter
    split = encoded(classifier)
    together, alone = (
        pooled_states(classifier, split, pooling="cls", batch_size=size, accelerator=accelerator) for size in (6, 1)
    )
    assert_equal_up_to_rounding(together, alone)


@pytest.mark.parametrize("processes", [2, 5])
def test_any_number_of_processes_gives_the_same_states(
    tiny_bert: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    classifier = tiny_classifier(tiny_bert)
    split = encoded(classifier)  # 6 rows in 3 batches: with 5 processes, two have nothing to do
    expected = pooled_states(classifier, split, batch_size=2, accelerator=accelerator)
    reports: list[Any] = []

    def gather(report: list[Any]) -> list[Any]:
        """Return the results of all processes once the last one has reported."""
        reports.extend(report)
        if len(reports) < processes:
            raise StopIteration
        return reports

    monkeypatch.setattr("finetune.distributed.gather_object", gather)
    for index in range(processes):
        stub = SimpleNamespace(
            device=accelerator.device,
            process_index=index,
            num_processes=processes,
            autocast=accelerator.autocast,
        )
        with suppress(StopIteration):
            states = pooled_states(classifier, split, batch_size=2, accelerator=stub)
    assert np.array_equal(states, expected)


def test_running_out_of_memory_halves_the_batch(
    tiny_bert: Path, accelerator: Accelerator, capsys: pytest.CaptureFixture[str]
) -> None:
    classifier = tiny_classifier(tiny_bert)
    split = encoded(classifier)
    expected = pooled_states(classifier, split, batch_size=6, accelerator=accelerator)

    def fail_above_two_rows(_: nn.Module, __: tuple[object, ...], inputs: dict[str, torch.Tensor]) -> None:
        if len(inputs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    classifier.model.register_forward_pre_hook(fail_above_two_rows, with_kwargs=True)
    states = pooled_states(classifier, split, batch_size=5, accelerator=accelerator)
    assert_equal_up_to_rounding(states, expected)
    assert capsys.readouterr().err == "Out of memory in encoding: continuing with 2 rows at a time.\n"
