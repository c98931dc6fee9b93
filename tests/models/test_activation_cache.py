from __future__ import annotations

import io
import json
import shutil
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoTokenizer

from finetune.cli import main
from finetune.data.activation_store import FROZEN_STATES, RowStates
from finetune.data.batching import load_batches
from finetune.data.tokenization import EncodedSplit
from finetune.errors import ModelError, TrainingError
from finetune.evaluation.prediction import predict
from finetune.models import activation_cache, speedups
from finetune.models.activation_cache import cached_frozen_layers
from finetune.models.architectures import FAMILIES, family_of
from finetune.models.classifier import Classifier
from finetune.models.freezing import freeze
from finetune.models.frozen_encoder import FrozenEncoder
from finetune.models.speedups import first_token_only
from finetune.recipe import TrainingSection
from finetune.training.build import Hyperparameters, build_trainer
from finetune.training.checkpoints import find_checkpoint
from finetune.training.snapshot import trained_weights
from tests.conftest import SENTENCES
from tests.support.families import build, save_checkpoint
from tests.support.helpers import (
    FLOAT32,
    HANG_SECONDS,
    TRAINED,
    assert_equal_up_to_rounding,
    encoded,
    plan,
    tiny_classifier,
)

CPU = torch.device("cpu")
# Why the other families are refused; albert's layers share weights and cannot be frozen at all.
REFUSED = {
    "convbert": r"its logits differ by",
    "flaubert": r"its logits differ by",
    "nystromformer": r"its logits differ by",
    "squeezebert": r"its layers do not return one state per token",
    "xlm": r"its logits differ by",
}


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of the test's own, to see what is left in it."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def frozen(classifier: Classifier, layers: int = 1) -> Classifier:
    freeze(classifier.base, freeze_embeddings=True, freeze_layers=layers)
    return classifier


def without_dropout(classifier: Classifier) -> Classifier:
    classifier.model.eval()
    classifier.model.train = lambda mode=True: classifier.model  # type: ignore[method-assign]
    return classifier


def cached(classifier: Classifier, layers: int = 1, accelerator: Accelerator | None = None, **options: Any) -> Any:
    """The six sentences with their cache; what is told goes to `told`."""
    options = {"batch_size": 4, "notify": lambda text: None, **options}
    splits = {"train": encoded(classifier), "validation": encoded(classifier)}
    return cached_frozen_layers(classifier, splits, layers, accelerator=accelerator or Accelerator(cpu=True), **options)


def train(
    classifier: Classifier, split: EncodedSplit, accelerator: Accelerator, folder: Path, resume: Path | None = None
) -> dict[str, Tensor]:
    """Train three epochs of two steps of two uneven micro-batches."""
    schedule = plan(accumulation=2, steps_per_epoch=2, epochs=3, total_steps=6, save_every=1)
    settings = TrainingSection(learning_rate=1e-2, adam_epsilon=0.1, train_sampling_strategy="group_by_length")
    trainer = build_trainer(classifier, split, schedule, Hyperparameters(settings, seed=5), accelerator)
    if resume is not None:
        trainer.resume(resume)
    trainer.fit(folder)
    return trained_weights(classifier.model)


def largest_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def refuse_to_run(module: object, *args: Any) -> None:
    raise AssertionError("a frozen module was run")


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - REFUSED.keys() - {"albert"}))
def test_the_same_is_trained_as_without(family: str, accelerator: Accelerator, tmp_path: Path) -> None:
    folder = save_checkpoint(family, tmp_path / "model")
    plain, other = (without_dropout(frozen(build(folder))) for _ in range(2))
    before = trained_weights(plain.model)
    expected = train(plain, encoded(plain), accelerator, tmp_path / "plain")
    path = family_of(other.base.config).layer_path(other.base.config, 0)
    encoder = other.base.base_model
    parts = [module for module in encoder.get_submodule(path).modules() if not list(module.children())]
    with cached(other, accelerator=accelerator) as splits, ExitStack() as stack:
        stack.enter_context(first_token_only(other.base))  # tried on the whole model, before training
        for module in parts:
            stack.callback(module.register_forward_pre_hook(refuse_to_run).remove)
        look_up, size = nn.functional.embedding, other.base.config.vocab_size
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(speedups, "_reads_first_token", lambda *args: False)
        patch.setattr(
            nn.functional,
            "embedding",
            lambda x, w, *a, **k: refuse_to_run(w) if len(w) == size else look_up(x, w, *a, **k),
        )
        found = train(other, splits["train"], accelerator, tmp_path / "cached")
    assert len(parts) > 3
    assert largest_difference(before, expected) > 1e-3
    # States of a row are computed in another batch here, and added up in another order. Weights are up to 2, and a step
    # is a tenth of the gradient (see TRAINED).
    assert largest_difference(found, expected) < TRAINED
    assert other.model.state_dict().keys() == plain.model.state_dict().keys()


@pytest.mark.parametrize("family", sorted(REFUSED))
def test_families_that_cannot_do_without_are_refused(family: str, tmp_path: Path) -> None:
    classifier = frozen(build(save_checkpoint(family, tmp_path / "model")))
    with (
        pytest.raises(ModelError, match=f"this '{family}' model: .*{REFUSED[family]}.*; remove the key"),
        cached(classifier),
    ):
        pass
    assert_untouched(classifier)


def assert_untouched(classifier: Classifier) -> None:
    modules = list(classifier.model.modules())
    assert len(modules) > 10
    assert not [m for m in modules if "forward" in vars(m) or m._forward_pre_hooks or m._forward_hooks]


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("precision", ["float32", "mixed", "bfloat16"])
def test_scores_are_the_same_to_the_bit(tiny_bert: Path, accelerator: Accelerator, layers: int, precision: str) -> None:
    classifier = frozen(tiny_classifier(tiny_bert), layers)
    if precision == "bfloat16":
        classifier.model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16) if precision == "mixed" else nullcontext():
        plain = predict(classifier, encoded(classifier), batch_size=4, accelerator=accelerator)
        with cached(classifier, layers, accelerator) as splits:
            # Computed in the batches in which they are scored.
            found = predict(classifier, splits["validation"], batch_size=4, accelerator=accelerator)
    assert splits["validation"].states.dtype == (torch.bfloat16 if precision == "bfloat16" else torch.float32)
    if layers == 1:
        assert torch.equal(found.logits, plain.logits)
    # Otherwise the cache holds the last layer whole, of which scoring computes the first token alone.
    # bfloat16 keeps 8 bits: 0.004 of a number, and logits are up to 2 here.
    assert_equal_up_to_rounding(found.logits, plain.logits, FLOAT32 if precision == "float32" else 3e-2)


def test_the_check_leaves_mixed_precision_out(
    tiny_bert: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier, check, mixed = frozen(tiny_classifier(tiny_bert)), activation_cache.check, []

    def watched(part: FrozenEncoder, *rest: Any) -> None:
        noted = part.model.register_forward_pre_hook(lambda *_: mixed.append(torch.is_autocast_enabled("cpu")))
        check(part, *rest)
        noted.remove()

    monkeypatch.setattr(activation_cache, "check", watched)
    with torch.autocast("cpu", torch.bfloat16), cached(classifier, accelerator=accelerator, write=False):
        pass
    assert len(mixed) > 6  # the whole batch, and the states of each row
    assert not any(mixed)


def test_nothing_is_left_and_the_size_is_told(tiny_bert: Path, temporary: Path) -> None:
    classifier, told = frozen(tiny_classifier(tiny_bert)), []
    classifier.model.train()
    tokens = int(encoded(classifier).lengths.sum())
    with cached(classifier, notify=told.append) as splits:
        assert not list(temporary.iterdir())  # a file without a name: gone with the process, even if it is killed
        assert splits["train"].states.file.seek(0, 2) == 2 * tokens * 24 * 4
    assert splits["train"].states.file.closed
    assert_untouched(classifier)
    assert classifier.model.training
    assert told == [
        f"Cache of the 1 frozen layers: 12 rows of {tokens / 6:.1f} tokens on average x 24 x 4 bytes = 0.0 MB in "
        f"{temporary}, deleted when training ends."
    ]
    with cached(classifier, write=False) as splits:  # a dry run
        assert splits["train"].states is None
    assert not list(temporary.iterdir())


def test_the_frozen_part_has_no_dropout(tiny_bert: Path) -> None:
    classifier = frozen(tiny_classifier(tiny_bert))
    seen: list[Tensor] = []
    with cached(classifier) as splits:
        layer = classifier.base.bert.encoder.layer[1]
        layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        for _ in range(2):
            (batch,) = load_batches(splits["train"], [np.arange(6)], classifier.tokenizer, device=CPU)
            classifier.model.train()(**batch.inputs)
    assert torch.equal(*seen)


def test_a_resumed_run_ends_with_the_same_bits(tiny_bert: Path, accelerator: Accelerator, tmp_path: Path) -> None:
    def fresh() -> Classifier:
        torch.manual_seed(0)
        return frozen(tiny_classifier(tiny_bert))

    first, second = fresh(), fresh()
    with cached(first, accelerator=accelerator) as splits:
        whole = train(first, splits["train"], accelerator, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    for step in (4, 5, 6):
        shutil.rmtree(tmp_path / "half" / f"step-00000{step}")
    checkpoint = find_checkpoint("auto", tmp_path / "half").folder
    assert checkpoint is not None
    with cached(second, accelerator=accelerator) as splits:
        resumed = train(second, splits["train"], accelerator, tmp_path / "half", checkpoint)
    assert largest_difference(whole, resumed) == 0.0
    assert load_file(checkpoint / "weights.safetensors").keys() == whole.keys()


def test_what_is_trained_below_is_named(tiny_bert: Path) -> None:
    classifier = tiny_classifier(tiny_bert)
    freeze(classifier.base, freeze_embeddings=False, freeze_layers=1)
    with (
        pytest.raises(ModelError, match=r"bert\.embeddings\.word_embeddings\.weight, .* is trained"),
        cached(classifier),
    ):
        pass


def test_a_full_disk_is_one_message(tiny_bert: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = frozen(tiny_classifier(tiny_bert))

    def full(self: RowStates, rows: np.ndarray, states: Tensor) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        usage = shutil.disk_usage(temporary)
        patch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1000))
        with (
            pytest.raises(TrainingError, match=r"takes 0\.0 MB, but .* has 0\.0 MB left; set TMPDIR"),
            cached(classifier),
        ):
            pass
    write, checked = RowStates.write, []

    def first_checked(self: RowStates, rows: np.ndarray, states: Tensor) -> None:
        # The check before writes its few rows to memory.
        checked.append(rows)
        (write if len(checked) <= 6 else full)(self, rows, states)

    monkeypatch.setattr(RowStates, "write", first_checked)
    with (
        pytest.raises(TrainingError, match=r"cannot be written: .*No space left on device; set TMPDIR"),
        cached(classifier),
    ):
        pass
    assert not list(temporary.iterdir())
    assert_untouched(classifier)


def test_states_are_read_as_they_were_written(tiny_bert: Path) -> None:
    classifier = frozen(tiny_classifier(tiny_bert))
    rows = np.array([3, 0, 5])
    with cached(classifier) as splits:
        (batch,) = load_batches(splits["train"], [rows], classifier.tokenizer, device=CPU)
        states = batch.inputs.pop(FROZEN_STATES)
        assert states.shape == (3, int(splits["train"].lengths[rows].max()), 24)
        real = batch.inputs["attention_mask"].bool()
        assert not states[~real].any()
        expected = classifier.base(**batch.inputs, output_hidden_states=True).hidden_states[1]
        assert_equal_up_to_rounding(states[real], expected[real])
        splits["train"].states.file.truncate(100)
        with pytest.raises(TrainingError, match="ends before row 4"):
            list(load_batches(splits["train"], [rows], classifier.tokenizer, device=CPU))


@pytest.mark.parametrize("left", [False, True])
def test_padding_may_be_on_either_side(left: bool) -> None:
    store = RowStates(io.BytesIO(), np.array([7, 9, 12]), 2, torch.bfloat16, left)
    states = torch.randn(2, 5, 2, dtype=torch.bfloat16)
    real = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]).bool()
    real = real.flip(1) if left else real
    store.write(np.array([0, 1]), states)
    assert torch.equal(store.read(np.array([0, 1]), 5), torch.where(real[..., None], states, 0))
    assert torch.equal(store.read(np.array([1]), 3)[0], states[1][real[1]])


def test_padding_that_shifts_positions_is_refused(tiny_bert: Path) -> None:
    classifier = frozen(tiny_classifier(tiny_bert))
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert, padding_side="left")
    with pytest.raises(ModelError, match="its logits differ by"), cached(replace(classifier, tokenizer=tokenizer)):
        pass


@dataclass(frozen=True)
class Process:
    """What one of two processes of a machine sees of Accelerate, in a thread."""

    process_index: int
    wait_for_everyone: Callable[[], object]
    device: torch.device = CPU

    @property
    def local_process_index(self) -> int:
        return self.process_index

    @property
    def is_local_main_process(self) -> bool:
        return self.process_index == 0

    def autocast(self) -> AbstractContextManager[None]:
        return nullcontext()


def test_processes_of_a_machine_share_the_work(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    barrier, said, here = threading.Barrier(2, timeout=HANG_SECONDS), [[], []], threading.local()

    def gather(mine: list[object]) -> list[object]:
        said[here.index] = mine
        barrier.wait()
        both = said[0] + said[1]
        barrier.wait()
        return both

    monkeypatch.setattr(activation_cache, "gather_object", gather)
    written: list[tuple[int, list[int]]] = []
    write = RowStates.write

    def noted(self: RowStates, rows: np.ndarray, states: Tensor) -> None:
        if not isinstance(self.file, io.BytesIO):  # that of the check
            written.append((here.index, rows.tolist()))
        write(self, rows, states)

    monkeypatch.setattr(RowStates, "write", noted)

    def process(index: int) -> list[Tensor]:
        here.index = index
        with cached(classifiers[index], accelerator=Process(index, barrier.wait), batch_size=2) as splits:
            found = [split.states.read(np.arange(6), 16) for split in splits.values()]
            barrier.wait()
            return found

    with ThreadPoolExecutor(2) as pool:
        classifiers = [frozen(tiny_classifier(tiny_bert)) for _ in range(2)]
        first, second = pool.map(process, range(2))
    by_process = [sorted(row for index, rows in written for row in rows if index == own) for own in range(2)]
    assert [len(rows) for rows in by_process] == [8, 4]  # of three batches of each split, two and one
    assert sorted(by_process[0] + by_process[1]) == sorted([*range(6), *range(6)])
    monkeypatch.undo()
    with cached(classifiers[0], batch_size=2) as splits:
        alone = [split.states.read(np.arange(6), 16) for split in splits.values()]
    assert len(first) == len(second) == len(alone) == 2
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(first, second, alone, strict=True))


def test_a_whole_run(tiny_bert: Path, tmp_path: Path, temporary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"sentence": text, "label": "yes" if n % 2 else "no"} for n, text in enumerate(SENTENCES)]
    content = {
        "output_dir": str(tmp_path / "run"),
        "model": {"model_name_or_path": str(tiny_bert)},
        "data": {"train_rows": rows, "validation_rows": rows, "max_length": 16},
        "training": {
            "freeze_embeddings": True, "freeze_layers": 1, "cache_frozen_layers": True, "use_cpu": True,
            "num_threads": 1, "num_train_epochs": 1,
        },
        "head_importance": None,
    }  # fmt: skip
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(content))
    assert main(["train", str(recipe)]) == 0
    assert "Cache of the 1 frozen layers: 12 rows" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "scores.json").read_text())["validation"]["rows"] == 6
    assert not [path for path in temporary.iterdir() if "frozen" in path.name]
