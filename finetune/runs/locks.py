"""One writer per folder: a lock file that the operating system releases when its process ends, however it ends.

The lock is `flock` (a byte range on Windows), which is taken at one moment by one process alone, also where two start
together, and on disks that several machines share. The file names its holder, and is removed when the lock is released;
the file of a process that was killed stays, holds no lock and keeps nobody out.
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
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from finetune.errors import TrainingError
from finetune.runs.atomic_files import report_write_errors

LOCK = ".finetune.lock"
_HELD = {errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK, errno.EDEADLK}
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
_READ_ONLY = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # in a folder that somebody else made it may lead to any file, to be emptied
_TRIES = 10  # of reading the holder, who may have locked the file and not written to it yet
_LONGEST_COMMAND = 300


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock."""

    pid: int
    host: str
    command: str
    since: str


@contextmanager
def locked_folder(folder: Path, *, read_only_ok: bool = False) -> Iterator[None]:
    """Hold the lock of a folder, which is made if there is none, and removed again if nothing was put there.

    Args:
        read_only_ok: do without the lock where the folder cannot be written, for work that only reads there.

    Raises:
        TrainingError: another process holds the lock (the message says which), or the folder cannot be written.
    """
    with locked_file(folder / LOCK, folder, read_only_ok=read_only_ok):
        yield


@contextmanager
def locked_file(file: Path, target: Path, *, read_only_ok: bool = False) -> Iterator[None]:
    """Hold the lock that `file` stands for, as `locked_folder` does; messages name `target` as what is written."""
    made: list[Path] = []
    handle: int | None = None
    try:
        try:
            with report_write_errors(target):
                made = [path for path in file.parents if not path.exists()]
                handle = _acquire(file, target)
        except TrainingError as error:
            cause = error.__cause__
            if not (read_only_ok and isinstance(cause, OSError) and cause.errno in _READ_ONLY):
                raise
        yield
    finally:
        if handle is not None:
            _release(file, handle)
        for path in made:
            with suppress(OSError):  # it is not empty
                path.rmdir()


def _acquire(file: Path, target: Path) -> int:
    """Return an open handle that holds the lock of `file`, which names this process."""
    while True:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(file, os.O_RDWR | os.O_CREAT | _NO_LINK, 0o666)
        except FileNotFoundError:  # the process that made the folder has just removed it
            continue
        try:
            _lock(handle)
        except OSError as error:
            if error.errno in _HELD:
                os.close(handle)
                raise TrainingError(_busy(file, target)) from error
            if error.errno not in _NO_LOCKS:
                os.close(handle)
                raise
            print(f"{target} lies on a disk without file locks: let no other process write there.", file=sys.stderr)
        if _is_at(handle, file):
            break
        os.close(handle)  # the holder before has just removed this file, and another may have made a new one
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])[:_LONGEST_COMMAND]
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    os.ftruncate(handle, 0)
    os.write(handle, json.dumps(asdict(Holder(os.getpid(), socket.gethostname(), command, since))).encode())
    return handle


def _is_at(handle: int, file: Path) -> bool:
    """Return whether an open file is the one that lies at this path now."""
    try:
        return os.path.samestat(os.fstat(handle), file.stat())
    except FileNotFoundError:
        return False


def _busy(file: Path, target: Path) -> str:
    """Return that `target` is being written, and by whom."""
    who = "another process"
    for _ in range(_TRIES):
        try:
            holder = Holder(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            time.sleep(0.1)
            continue
        who = f"process {holder.pid} on {holder.host} since {holder.since} ({holder.command})"
        break
    return f"{target} is being written by {who}; wait until it has ended, or name another folder"


if sys.platform == "win32":
    import msvcrt

    _FAR = 2**30  # a locked byte cannot be read, so one beyond the content

    def _lock(handle: int) -> None:
        os.lseek(handle, _FAR, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        os.lseek(handle, 0, os.SEEK_SET)

    def _release(file: Path, handle: int) -> None:
        os.close(handle)
        with suppress(OSError):  # another process has opened it
            file.unlink()

else:
    import fcntl

    def _lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _release(file: Path, handle: int) -> None:
        with suppress(OSError):
            file.unlink()  # while the lock is held: no other process can have taken this file's lock
        os.close(handle)
