"""The Optuna study of a sweep: its storage, and samplers and pruners that decide the same after a process is killed."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, RDBStorage, get_storage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from finetune.errors import FinetuneError, TrainingError
from finetune.pipeline.series_resume import data_checksums
from finetune.recipe.loader import dump_recipe
from finetune.recipe.portable import portable_recipe
from finetune.recipe.sweep_loader import LoadedSweep
from finetune.recipe.sweep_space import ParameterValue, SweepParameter, combinations

_SQLITE_SECONDS = 60  # to wait for another process that writes to the file
_DEFINITION = "definition"  # attribute of the study
# Evaluations, counted from 1, after which the pruner `median` may stop a trial, and trials that it waits for.
_MEDIAN_EVALUATIONS, _MEDIAN_TRIALS = 2, 5


class StorageError(TrainingError):
    """The storage of a sweep cannot be used."""


@contextmanager
def report_storage_errors(storage: str | None) -> Iterator[None]:
    """Raise StorageError, with one message, for any error of Optuna or the database in the block."""
    try:
        yield
    except FinetuneError:
        raise
    except (SQLAlchemyError, optuna.exceptions.OptunaError, ImportError, RuntimeError, ValueError, OSError) as error:
        raise StorageError(_storage_message(storage, error)) from error


def _storage_message(storage: str | None, error: Exception) -> str:
    """Return what is wrong with a storage, without its password, and the fix."""
    if storage is None:
        return f"the sweep's SQLite file cannot be used: {_reason(error)}; free disk space, or name another output_dir"
    try:
        name = make_url(storage).render_as_string(hide_password=True)
    except ArgumentError:
        return f"storage '{storage}' is not a URL such as sqlite:///study.db or postgresql+psycopg://user@host/database"
    if isinstance(error, NoSuchModuleError | ImportError):
        driver = make_url(storage).drivername
        fix = "pip install 'psycopg[binary]', and write postgresql+psycopg://" if driver.startswith("postgres") else ""
        fix = fix or f"install the SQLAlchemy driver of {driver}, or correct the URL"
        return f"storage {name}: the driver '{driver}' is not installed; {fix}"
    return f"storage {name} cannot be used: {_reason(error)}; start the server, or correct the URL"


def _reason(error: BaseException) -> str:
    """Return the first line of the message of the database."""
    original = getattr(error, "orig", None) or (error.__cause__ and getattr(error.__cause__, "orig", None)) or error
    return str(original).strip().splitlines()[0] if str(original).strip() else type(error).__name__


@contextmanager
def open_storage(url: str | None, sqlite_file: Path) -> Iterator[BaseStorage]:
    """Yield the storage at an Optuna URL, or the one in a SQLite file, and close its connections at the end.

    Raises:
        StorageError: the storage cannot be reached.
    """
    is_sqlite = url is None or url.startswith("sqlite")
    arguments = {"connect_args": {"timeout": _SQLITE_SECONDS}} if is_sqlite else {"pool_pre_ping": True}
    with report_storage_errors(url):
        database = RDBStorage(url or f"sqlite:///{sqlite_file}", engine_kwargs=arguments)
    try:
        yield get_storage(database)
    finally:
        database.remove_session()
        database.engine.dispose()


def open_study(sweep: LoadedSweep, storage: BaseStorage) -> Study:
    """Return the study of a sweep, which is created if the storage does not have it.

    Raises:
        StorageError: the storage cannot be reached.
        TrainingError: the study was started with another sweep file or recipe.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with report_storage_errors(sweep.sweep.storage):
        study = optuna.create_study(
            study_name=sweep.name,
            storage=storage,
            sampler=new_sampler(sweep),
            directions=[objective.direction for objective in sweep.objectives],
            load_if_exists=True,
        )
        stored, current = study.user_attrs.get(_DEFINITION), definition(sweep)
        if stored is None:
            study.set_user_attr(_DEFINITION, current)
    if stored is not None and (changed := _changed(stored, current)):
        raise TrainingError(
            f"the study '{sweep.name}' was started with another {', '.join(changed)}; restore it, or name another "
            "output_dir (and another study_name, if the sweep has a storage)"
        )
    return study


def _changed(stored: Mapping[str, str], current: Mapping[str, str]) -> list[str]:
    """Return the keys of a definition with another value; studies of earlier versions do not have all of them."""
    return [key for key, value in current.items() if stored.get(key, value) != value]


def definition(sweep: LoadedSweep) -> dict[str, str]:
    """Return what must not change between two starts of a sweep, as short texts."""
    keys = sweep.sweep
    recipe = dump_recipe(portable_recipe(sweep.example, keep_rows=True).model_copy(update={"output_dir": ""}))
    values = {
        "recipe": recipe,
        "space": str([asdict(parameter) for parameter in sweep.parameters]),
        "objectives": str(sweep.objectives),
        "sampler": f"{keys.sampler} {keys.sampler_seed}",
        "pruner": keys.pruner,
        "seeds": str(keys.seeds),
        "score_test_rows": str(keys.score_test_rows),
        "content of its data files": str(data_checksums(sweep.example.data)),
    }
    return {name: hashlib.sha256(value.encode()).hexdigest()[:16] for name, value in values.items()}


def suggest(trial: Trial, parameter: SweepParameter) -> ParameterValue:
    """Return the value of a parameter in a trial: the stored one, or one that the sampler chooses."""
    name, low, high = parameter.name, parameter.low, parameter.high
    if parameter.choices is not None:
        value: ParameterValue = trial.suggest_categorical(name, parameter.choices)
        return value
    assert low is not None
    assert high is not None
    if parameter.is_integer():
        return trial.suggest_int(name, int(low), int(high), step=int(parameter.step or 1), log=parameter.log)
    return trial.suggest_float(name, low, high, step=parameter.step, log=parameter.log)


class _Sampler(BaseSampler):
    """Chooses each value by a function that knows only the trial and the trials before it, so that it can be repeated.

    Optuna's samplers draw from one random stream, which a killed process does not keep.
    """

    def __init__(self, choose: Callable[[Study, FrozenTrial, str, BaseDistribution], Any]) -> None:
        self._choose = choose

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._choose(study, trial, param_name, param_distribution)


def new_sampler(sweep: LoadedSweep) -> BaseSampler:
    """Return the sampler of a sweep. The same study and trial number give the same values in every process."""
    keys = sweep.sweep
    if keys.sampler == "grid":
        grid = list(combinations(sweep.parameters))
        random.Random(keys.sampler_seed).shuffle(grid)  # so that the first trials cover all values
        return _Sampler(lambda study, trial, name, _: grid[trial.number][name])

    def choose(study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution) -> Any:
        text = f"{keys.sampler_seed} {trial.number} {name}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        inner = RandomSampler(seed) if keys.sampler == "random" else TPESampler(seed=seed)
        return inner.sample_independent(study, trial, name, distribution)

    return _Sampler(choose)


def new_pruner(name: str) -> BasePruner:
    """Return a pruner for one trial. A new one for each trial keeps nothing that a killed process would lose."""
    if name == "median":
        return MedianPruner(n_startup_trials=_MEDIAN_TRIALS, n_warmup_steps=_MEDIAN_EVALUATIONS)
    return HyperbandPruner() if name == "hyperband" else NopPruner()


def _value_of(values: Mapping[int, float], trial: FrozenTrial) -> float:
    return values[trial.number]


def importance(study: Study, sweep: LoadedSweep) -> dict[str, dict[str, float]]:
    """Return the importance of each parameter for each objective (fANOVA, Hutter et al. 2014); {} with few trials."""
    complete = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    if len(complete) < max(5, 2 * len(sweep.parameters)):
        return {}
    result = {}
    for index, objective in enumerate(sweep.objectives):
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=sweep.sweep.sampler_seed)
        values = {trial.number: trial.values[index] for trial in complete}
        try:
            shares = optuna.importance.get_param_importances(
                study, evaluator=evaluator, target=partial(_value_of, values)
            )
        except (RuntimeError, ValueError):  # all trials have the same value
            continue
        result[objective.name] = {name: float(share) for name, share in shares.items()}
    return result
