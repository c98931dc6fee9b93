"""Fixtures that all tests share: small models, rows and finished runs. None needs a network."""

from __future__ import annotations

import gc
import json
import os
import random

os.environ["HF_HUB_OFFLINE"] = "1"  # before any library reads it
# Small models do not run faster with threads, and threads that wait for each other slow down a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from hypothesis import HealthCheck, settings
from transformers import BertConfig, BertForMaskedLM, BertModel

from finetune.data.tokenization import word_tokenizer
from finetune.models.pretrained import quiet_libraries
from tests.support import ROOT
from tests.support.finished_runs import SCRATCH, finished, recipe

# No deadline: a slow machine is not a failure.
settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")

SENTENCES = [
    "the cat sat on the mat",
    "the dog chased the cat",
    "the mat is on the floor",
    "the floor is clean",
    "a dog sat",
    "clean the mat now or the cat will not sit on it again",
]


# Files that start processes or train for long, longest first. Workers begin with them, so that no worker is left alone
# with one of them at the end.
LONG_FILES = (
    "pipeline/test_train.py",
    "test_docs.py",
    "pipeline/test_processes.py",
    "models/test_compilation.py",
    "pipeline/test_learning.py",
    "models/test_architectures.py",
    "training/test_fsdp.py",
    "models/test_head_pruning.py",
    "hostile/test_hostile_inputs.py",
    "pipeline/test_damaged_runs.py",
    "hostile/test_soak.py",
    "heads/test_analysis.py",
    "heads/test_ablation.py",
    "models/test_stock_loaders.py",
    "models/test_hub.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of LONG_FILES first."""
    position = {ROOT / "tests" / name: index for index, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: position.get(item.path, len(position)))


def pytest_collection_finish() -> None:
    """Exclude all objects of the libraries from garbage collection: every run collects, and would visit them all."""
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seed the random generators, so that no test depends on the tests that ran before it in its process."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    quiet_libraries()
    datasets.disable_progress_bars()
    previous = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    yield
    datasets.config.HF_DATASETS_CACHE = previous


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """Restore the number of threads, which a run changes, so that no test depends on earlier tests."""
    previous = torch.get_num_threads()
    yield
    torch.set_num_threads(previous)


@pytest.fixture
def accelerator() -> Accelerator:
    """An accelerator in float32; all accelerators of a process share a state, which another test may have changed."""
    if AcceleratorState._shared_state.get("_mixed_precision") != "no":
        AcceleratorState._reset_state()
    return Accelerator(cpu=True)


def save_tiny_bert(folder: Path, model_class: type[BertModel] | type[BertForMaskedLM]) -> Path:
    """Save a random BERT of 2 layers, 3 heads and width 24 with a word tokenizer, and return its folder."""
    tokenizer = word_tokenizer(datasets.Dataset.from_dict({"sentence": SENTENCES}), 40)
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=32,
        max_position_embeddings=32,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.5,  # large weights, so that the heads differ
    )
    model_class(config).save_pretrained(folder)
    tokenizer.model_max_length = 32
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT encoder of 2 layers, 3 heads, width 24, saved as a checkpoint."""
    return save_tiny_bert(tmp_path_factory.mktemp("tiny-bert"), BertModel)


@pytest.fixture(scope="session")
def tiny_masked_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model saved from the masked-LM class, which has no pooler."""
    return save_tiny_bert(tmp_path_factory.mktemp("tiny-mlm"), BertForMaskedLM)


@pytest.fixture(scope="session")
def bert_without_dropout(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT without dropout, because dropout differs between processes."""
    folder = tmp_path_factory.mktemp("still") / "bert"
    folder.mkdir()
    for file in tiny_bert.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that writes YAML to a file and returns its path."""

    def write(text: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the small classifier, 2 layers of 4 heads; copy it before changing it."""
    return finished(tmp_path_factory.mktemp("small"), recipe(SCRATCH))


@pytest.fixture(scope="session")
def lora_run(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    """A finished run of the tiny BERT, 2 layers of 3 heads, with LoRA; copy it before changing it."""
    adapters = {"r": 2, "target_modules": ["query", "value"], "lora_dropout": 0.0}
    content = recipe({"model_name_or_path": str(tiny_bert)}, peft=adapters, head_importance={"method": "gradient"})
    return finished(tmp_path_factory.mktemp("lora"), content)
