from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import Accelerator

from finetune import distributed
from finetune.distributed import gather_results, local_main_process_first, on_main_process
from finetune.errors import DataError, FinetuneError, ModelError, RecipeError, TrainingError


def process(index: int) -> Any:
    return SimpleNamespace(
        process_index=index, is_main_process=index == 0, is_local_main_process=index == 0, num_processes=2
    )


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The objects that the processes have gathered so far; a later process receives those of the earlier ones."""
    sent: list[Any] = []

    def gather(objects: list[Any]) -> list[Any]:
        sent.extend(objects)
        return list(sent)

    monkeypatch.setattr(distributed, "gather_object", gather)
    return sent


@pytest.mark.parametrize("error", [DataError, ModelError, RecipeError, TrainingError])
@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_one_process_is_raised_on_all(
    gathered: list[Any], error: type[FinetuneError], failing: int
) -> None:
    def fail() -> None:
        raise error("row 3 is empty")

    with pytest.raises(error, match=r"^row 3 is empty$"):
        gather_results(process(failing), fail)
    with pytest.raises(error, match=r"^row 3 is empty$" if failing == 0 else r"^row 3 is empty \(on process 1\)$"):
        gather_results(process(1 - failing), lambda: None)
    assert len(gathered) == 2


def test_an_unexpected_error_is_raised_unchanged_on_its_own_process(gathered: list[Any]) -> None:
    def fail() -> None:
        raise KeyError("loss")

    with pytest.raises(KeyError):
        on_main_process(process(0), fail)
    with pytest.raises(TrainingError, match="process 0 failed with KeyError: 'loss'; it prints the traceback"):
        on_main_process(process(1), fail)
    assert len(gathered) == 2


def test_an_error_of_the_local_main_process_is_raised_before_the_others_start(gathered: list[Any]) -> None:
    def fail() -> None:
        raise DataError("no such column")

    calls: list[int] = []
    with pytest.raises(DataError, match="no such column"):
        local_main_process_first(process(0), fail)
    with pytest.raises(DataError, match="no such column"):
        local_main_process_first(process(1), lambda: calls.append(1))
    assert calls == []


def test_only_the_main_process_calls_the_function(accelerator: Accelerator) -> None:
    calls: list[int] = []
    on_main_process(accelerator, lambda: calls.append(1))
    on_main_process(process(1), lambda: calls.append(2))
    assert calls == [1]
    assert gather_results(accelerator, lambda: 3) == [3]
    assert local_main_process_first(accelerator, lambda: 4) == 4
