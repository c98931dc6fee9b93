"""Atomic writing: a file or folder is written under a temporary name and then renamed, so it is never half written."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from finetune.errors import TrainingError

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EAGAIN}
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")
_FIX = "free disk space or name another folder, and start again"


@contextmanager
def report_write_errors(path: Path, fix: str = _FIX) -> Iterator[None]:
    """Turn an error that a full or read-only disk raises in the block into one message about `path`.

    Raises:
        TrainingError: writing failed in the block.
    """
    try:
        yield
    except Exception as error:
        if not _is_write_error(error):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise TrainingError(f"cannot write {path}: {reason}; {fix}") from error


def is_about_the_disk(error: BaseException) -> bool:
    """Return whether an error would meet every run: a full disk, or a folder that another process writes to."""
    rust = _RUST_ERROR.search(str(error))
    number = error.errno if isinstance(error, OSError) else int(rust[1]) if rust else None
    if number is not None:
        return number in _DISK_ERRORS
    return _is_write_error(error) or (error.__cause__ is not None and is_about_the_disk(error.__cause__))


def _is_write_error(error: BaseException) -> bool:
    # safetensors and tokenizers raise their own classes with Rust's message; torch.save raises a RuntimeError.
    message = str(error)
    torch_writer = any(text in message for text in ("PytorchStreamWriter", "inline_container", "iostream error"))
    return isinstance(error, OSError) or "(os error " in message or (isinstance(error, RuntimeError) and torch_writer)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it is renamed to `path` at the end, and removed on any error.

    A file that already has the temporary name is removed first: it is left from a process that was killed, or it is a
    symbolic link that somebody else made, and writing through it would overwrite another file.

    Raises:
        TrainingError: the disk is full or read-only.
    """
    with report_write_errors(path):
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.unlink(missing_ok=True)
        try:
            yield temporary
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically.

    Raises:
        TrainingError: the disk is full or read-only.
    """
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_replace_dir(target: Path) -> Iterator[Path]:
    """Yield a temporary folder to write to; it replaces `target` at the end, and is removed on any error.

    The old content of `target` exists, possibly under another name, until the new content is complete.

    Raises:
        TrainingError: the disk is full or read-only.
    """
    temporary, old = (target.with_name(f".{target.name}.{suffix}") for suffix in ("tmp", "old"))
    try:
        with report_write_errors(target):
            shutil.rmtree(temporary, ignore_errors=True)  # left from a process that was killed
            temporary.mkdir(parents=True)
            yield temporary
            share_files(temporary)
            for path in (*temporary.iterdir(), temporary):
                fsync_path(path)
            if target.exists():
                shutil.rmtree(old, ignore_errors=True)
                target.rename(old)
            temporary.replace(target)
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)


def share_files(folder: Path) -> None:
    """Give all files in a new folder the permissions of any new file, which follow the umask as the folder's do.

    Some libraries, such as safetensors, write files that only their owner can read.
    """
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def fsync_path(path: Path) -> None:
    """Flush a file, or a folder's list of files, to the disk.

    Windows cannot open a folder, and flushes a file only through a handle that may write to it.
    """
    windows = sys.platform == "win32"
    if windows and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
