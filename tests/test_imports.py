"""Imports without the garbage collector, and what the commands import: the gain in start-up time without timing."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

import finetune
from finetune.imports import collector_paused
from tests.support import ROOT


@pytest.fixture(autouse=True)
def collector_on():
    gc.enable()
    yield
    gc.unfreeze()
    gc.enable()


@pytest.mark.parametrize("freeze", [False, True])
def test_the_collector_is_off_inside_and_on_again_after_an_error(freeze):
    before = gc.get_freeze_count()
    states = []

    def fail():
        with collector_paused(freeze=freeze):
            states.append(gc.isenabled())
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    assert states == [False]
    assert gc.isenabled()
    assert (gc.get_freeze_count() > before) == freeze


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    with collector_paused():
        pass
    assert not gc.isenabled()


def test_a_public_name_is_imported_with_the_collector_off_and_nothing_of_the_program_is_frozen(monkeypatch):
    states, before = [], gc.get_freeze_count()
    monkeypatch.delitem(vars(finetune), "load_recipe", raising=False)
    monkeypatch.setattr(finetune, "import_module", lambda name: states.append(gc.isenabled()) or sys)
    monkeypatch.setattr(sys, "load_recipe", len, raising=False)
    assert finetune.load_recipe is len
    del vars(finetune)["load_recipe"]
    assert states == [False]
    assert gc.isenabled()
    assert gc.get_freeze_count() == before


def test_prediction_imports_no_library_that_only_training_needs():
    """The modules of `finetune predict` with a PyTorch model, and of `load_classifier` in Python."""
    program = (
        "import sys, finetune.pipeline.torch_predictor\n"
        "unused = {'peft', 'datasets', 'evaluate', 'sklearn.base', 'finetune.training.trainer', 'finetune.report'}\n"
        "print(sorted(unused & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.stdout == "[]\n", result.stderr
