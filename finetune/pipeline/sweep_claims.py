"""Which process runs which trial: a trial is never run by two processes, and one of a killed process is taken over.

The owner of a trial is stored with it in the same transaction that creates it, so that no trial is without an owner.
"""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from finetune.runs.locks import wait_for_lock

OWNER = "owner"  # attribute of a trial
HEARTBEAT_SECONDS = 60.0
ABANDONED_SECONDS = 600.0  # without a heartbeat, for a process of another machine
_CONFIRM_SECONDS = 2.0  # for a process of another machine that takes over the same trial in the same moment


@dataclass(frozen=True)
class Owner:
    """The process that runs a trial.

    Attributes:
        started: when the process started, which distinguishes it from a later process with the same number.
        seen: time of its last heartbeat, in seconds since 1970.
    """

    host: str
    pid: int
    started: str
    seen: float = field(default_factory=time.time)

    def is_alive(self) -> bool:
        """Return whether the process still runs, as far as this process can know."""
        if self.host == host_name() and self.started:
            return process_start(self.pid) == self.started
        return time.time() - self.seen < ABANDONED_SECONDS

    def is_same(self, other: Owner) -> bool:
        """Return whether both are the same process."""
        return (self.host, self.pid, self.started) == (other.host, other.pid, other.started)


def this_process() -> Owner:
    """Return this process as an owner."""
    return Owner(host_name(), os.getpid(), process_start(os.getpid()) or "")


def host_name() -> str:
    """Return the name of this machine and, on Linux, of the container, whose processes have their own numbers."""
    with suppress(OSError):
        return f"{socket.gethostname()} {Path('/proc/self/ns/pid').readlink()}"
    return socket.gethostname()


def process_start(pid: int) -> str | None:
    """Return when a process of this machine started, None if there is no such process; a zombie has ended."""
    if Path("/proc/self/stat").exists():  # Linux
        try:
            state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if state == "Z" else fields[18]  # starttime, field 22 of proc(5)
    command = ["ps", "-o", "lstart=", "-p", str(pid)]
    with suppress(OSError):
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    return ""


def owner_of(trial: FrozenTrial) -> Owner | None:
    """Return the owner of a trial, None if it was released."""
    content = trial.user_attrs.get(OWNER)
    return Owner(**content) if content else None


@dataclass(frozen=True)
class Claims:
    """Gives trials of one study to this process.

    Attributes:
        folder: folder of the sweep; its lock orders the processes that share a disk.
        planned: number of trials of the study; None: no limit.
    """

    study: Study
    storage: BaseStorage
    folder: Path
    planned: int | None

    def next_trial(self) -> Trial | None:
        """Return a trial that its process has left, otherwise a new one; None if all planned ones are taken."""
        with wait_for_lock(self.folder):
            trials = self.trials()
            for left in trials:
                if left.state == TrialState.RUNNING and self._take_over(left):
                    return Trial(self.study, left._trial_id)
            if self.planned is not None and len(trials) >= self.planned:
                return None
            template = create_trial(state=TrialState.RUNNING, user_attrs={OWNER: asdict(this_process())})
            trial = Trial(self.study, self.storage.create_new_trial(self.study._study_id, template))
        if self.planned is not None and trial.number >= self.planned:  # another machine created the last one
            self.release(trial)
            return None
        return trial

    def trials(self) -> list[FrozenTrial]:
        """Return the trials of the study by number, without those beyond the planned number."""
        trials = self.storage.get_all_trials(self.study._study_id, deepcopy=False)
        trials = [trial for trial in trials if self.planned is None or trial.number < self.planned]
        return sorted(trials, key=lambda trial: trial.number)

    def workers(self) -> int:
        """Return the number of processes that run a trial."""
        owners = [owner_of(trial) for trial in self.trials() if trial.state == TrialState.RUNNING]
        return sum(owner is not None and owner.is_alive() for owner in owners)

    def release(self, trial: Trial) -> None:
        """Let any process take over a trial."""
        self.storage.set_trial_user_attr(trial._trial_id, OWNER, None)

    @contextmanager
    def heartbeat(self, trial: Trial) -> Iterator[None]:
        """Show in the block, by a heartbeat, that this process runs the trial."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(HEARTBEAT_SECONDS):
                with suppress(Exception):  # the next heartbeat may reach the storage again
                    self.storage.set_trial_user_attr(trial._trial_id, OWNER, asdict(this_process()))
            self.storage.remove_session()

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _take_over(self, trial: FrozenTrial) -> bool:
        """Make this process the owner of a trial if its owner has ended; return whether it is the owner."""
        owner, mine = owner_of(trial), this_process()
        if owner is not None and owner.is_alive() and not owner.is_same(mine):  # this process runs no other trial now
            return False
        self.storage.set_trial_user_attr(trial._trial_id, OWNER, asdict(mine))
        if owner is None or owner.host == mine.host:  # the lock excludes all others
            return True
        time.sleep(_CONFIRM_SECONDS)
        current = owner_of(self.storage.get_trial(trial._trial_id))
        return current is not None and current.is_same(mine)
