"""Locks that allow one writer per folder. The operating system releases a lock when its process ends, even if killed.

The lock is `flock` (a byte range on Windows). Only one process can hold it, even if several start at the same moment or
on different machines that share the disk. The lock file names the process that holds the lock, and is removed when the
lock is released. A killed process leaves its lock file behind, but no lock: the file does not block other processes.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from finetune.errors import TrainingError
from finetune.runs.atomic_files import report_write_errors

LOCK = ".finetune.lock"
_BUSY_ERRORS = {errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK, errno.EDEADLK}
_UNSUPPORTED_ERRORS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
_READ_ONLY_ERRORS = {errno.EACCES, errno.EPERM, errno.EROFS}
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)  # a symbolic link could lead to any file, which would be truncated
_ATTEMPTS = 10  # to read the lock file, because its holder may not have written to it yet
_MAX_COMMAND_LENGTH = 300
MAX_WAIT_SECONDS = 300.0  # a process that copies a model holds the lock
_MAX_MISSING = 100  # times that the folder of a lock file can be removed before the lock is taken


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock."""

    pid: int
    host: str
    command: str
    since: str


@contextmanager
def locked_folder(folder: Path, *, read_only_ok: bool = False) -> Iterator[None]:
    """Hold the lock of a folder; the folder is created if it does not exist, and removed at the end if it is empty.

    Args:
        read_only_ok: continue without a lock if the folder is read-only, for a command that only reads it.

    Raises:
        TrainingError: another process holds the lock (the message says which), or the folder cannot be written.
    """
    with locked_file(folder / LOCK, folder, read_only_ok=read_only_ok):
        yield


@contextmanager
def locked_file(file: Path, target: Path, *, read_only_ok: bool = False) -> Iterator[None]:
    """Hold the lock of a lock file, as `locked_folder` does; messages name `target` as the folder being written."""
    created: list[Path] = []
    handle: int | None = None
    try:
        try:
            with report_write_errors(target):
                created = [path for path in file.parents if not path.exists()]
                handle = _acquire(file, target)
        except TrainingError as error:
            cause = error.__cause__
            if not (read_only_ok and isinstance(cause, OSError) and cause.errno in _READ_ONLY_ERRORS):
                raise
        yield
    finally:
        if handle is not None:
            _release(file, handle)
        for path in created:
            with suppress(OSError):  # it is not empty
                path.rmdir()


@contextmanager
def lock_if_free(file: Path, target: Path) -> Iterator[bool]:
    """Yield True and hold the lock of a lock file, or yield False if another process holds it.

    Raises:
        TrainingError: the folder cannot be written.
    """
    with ExitStack() as stack:
        is_free = True
        try:
            stack.enter_context(locked_file(file, target))
        except TrainingError as error:
            if not (isinstance(error.__cause__, OSError) and error.__cause__.errno in _BUSY_ERRORS):
                raise
            is_free = False
        yield is_free


@contextmanager
def wait_for_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; wait while another process holds it, for a short time each.

    Raises:
        TrainingError: another process holds it for MAX_WAIT_SECONDS, or the folder cannot be written.
    """
    deadline = time.monotonic() + MAX_WAIT_SECONDS
    while True:
        with lock_if_free(folder / LOCK, folder) as is_free:
            if is_free:
                yield
                return
            if time.monotonic() > deadline:
                raise TrainingError(_busy_message(folder / LOCK, folder))
        time.sleep(0.05)


def _acquire(file: Path, target: Path) -> int:
    """Take the lock of `file`, write this process into it, and return its open handle."""
    missing = 0
    while True:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(file, os.O_RDWR | os.O_CREAT | _NOFOLLOW, 0o666)
        except FileNotFoundError:  # the process that created the folder has just removed it
            missing += 1
            if missing == _MAX_MISSING:  # a folder that accepts no file, such as /proc
                raise
            continue
        try:
            _lock(handle)
        except OSError as error:
            if error.errno in _BUSY_ERRORS:
                os.close(handle)
                raise TrainingError(_busy_message(file, target)) from error
            if error.errno not in _UNSUPPORTED_ERRORS:
                os.close(handle)
                raise
            print(f"{target} is on a disk without file locks: no other process may write there.", file=sys.stderr)
        if _is_same_file(handle, file):
            break
        os.close(handle)  # the previous holder has just removed this file; another process may have created a new one
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])[:_MAX_COMMAND_LENGTH]
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    os.ftruncate(handle, 0)
    os.write(handle, json.dumps(asdict(Holder(os.getpid(), socket.gethostname(), command, since))).encode())
    return handle


def _is_same_file(handle: int, file: Path) -> bool:
    """Return whether an open file is still the one at this path."""
    try:
        return os.path.samestat(os.fstat(handle), file.stat())
    except FileNotFoundError:
        return False


def _busy_message(file: Path, target: Path) -> str:
    """Return the message that another process is writing `target`."""
    who = "another process"
    for _ in range(_ATTEMPTS):
        try:
            holder = Holder(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            time.sleep(0.1)
            continue
        who = f"process {holder.pid} on {holder.host} since {holder.since} ({holder.command})"
        break
    return f"{target} is being written by {who}; wait until it ends, or name another folder"


if sys.platform == "win32":
    import msvcrt

    _LOCK_OFFSET = 2**30  # a locked byte cannot be read, so the lock is beyond the content

    def _lock(handle: int) -> None:
        os.lseek(handle, _LOCK_OFFSET, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        os.lseek(handle, 0, os.SEEK_SET)

    def _release(file: Path, handle: int) -> None:
        os.close(handle)
        with suppress(OSError):  # another process has the file open
            file.unlink()

else:
    import fcntl

    def _lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _release(file: Path, handle: int) -> None:
        with suppress(OSError):
            file.unlink()  # before the lock is released: no other process can hold the lock of this file
        os.close(handle)
