"""Folders that a command writes for a finished run, such as a merged or a pruned model."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune.errors import DataError
from finetune.runs.atomic_files import report_write_errors, share_files
from finetune.runs.locks import locked_file


@contextmanager
def lock_new_dir(target: Path) -> Iterator[None]:
    """Hold the lock of a folder that the block creates.

    Raises:
        DataError: the folder already exists and is not empty, or cannot be created.
        TrainingError: another process is writing it.
    """
    check_dir_is_free(target)
    with locked_file(target.with_name(f".{target.name}.lock"), target):
        check_dir_is_free(target)
        yield


def check_dir_is_free(target: Path) -> None:
    """Raise DataError if a folder that is to be created exists and is not empty, or cannot be created."""
    try:
        taken = target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir())))
        parent = next(path for path in target.parents if path.exists())
        if not parent.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    except OSError as error:
        raise _cannot_write(target, error) from error
    if taken:
        raise DataError(f"{target} already exists and is not empty; name another folder with --output")


@contextmanager
def atomic_new_dir(target: Path) -> Iterator[Path]:
    """Yield a temporary folder to write to; it is renamed to `target` at the end, and removed on any error.

    Raises:
        DataError: `target` exists and is not empty, or cannot be created.
        TrainingError: the disk is full.
    """
    check_dir_is_free(target)
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # left from a process that was killed
        temporary.mkdir(parents=True)
    except OSError as error:
        raise _cannot_write(target, error) from error
    try:
        with report_write_errors(target):
            yield temporary
            share_files(temporary)
            temporary.replace(target)  # replaces an empty folder
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _cannot_write(target: Path, error: OSError) -> DataError:
    return DataError(f"{target} cannot be written: {error.strerror}; name another folder with --output")
