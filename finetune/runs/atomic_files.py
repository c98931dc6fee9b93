"""Files that are whole or absent: written aside, brought to disk, and sealed with a checksum each.

A sealed folder holds a mark, `COMPLETE`, written last: the kind and version of the folder, and size and SHA-256 of
every file in it. Without the mark a folder is unfinished; with it, what was cut or altered since is recognised.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune.errors import TrainingError

COMPLETE_MARKER = "COMPLETE"


@contextmanager
def report_write_errors(
    path: Path, repair: str = "make room or name another folder, and start again"
) -> Iterator[None]:
    """Turn what a full disk or a read-only folder raises into one message about `path`.

    Raises:
        TrainingError: writing failed within.
    """
    try:
        yield
    except Exception as error:
        if not _write_failed(error):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise TrainingError(f"cannot write {path}: {reason}; {repair}") from error


def _write_failed(error: Exception) -> bool:
    # safetensors and tokenizers raise errors of their own that end as Rust's do, torch's writer a RuntimeError.
    said = str(error)
    torch_writer = "PytorchStreamWriter" in said or "inline_container" in said
    return isinstance(error, OSError) or "(os error " in said or (isinstance(error, RuntimeError) and torch_writer)


def temporary_path(path: Path) -> Path:
    """Return the place beside `path` where a file is written before it takes the place of `path`.

    What lies there is removed: a killed process left it, or it is a symbolic link in a folder that somebody else made,
    through which another file would be overwritten.
    """
    aside = path.with_name(f".{path.name}.tmp")
    aside.unlink(missing_ok=True)
    return aside


def fsync_path(path: Path) -> None:
    """Return only when a file, or the list of a folder's files, lies on the disk itself.

    Windows opens no folder, and flushes a file only where it may be written to.
    """
    windows = sys.platform == "win32"
    if windows and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def mark_complete(folder: Path, kind: str, version: int) -> None:
    """Bring all files of a folder to disk, and mark it complete."""
    files = {}
    for file in sorted(folder.iterdir()):
        fsync_path(file)
        files[file.name] = {"bytes": file.stat().st_size, "sha256": _checksum(file)}
    mark = folder / COMPLETE_MARKER
    mark.write_text(json.dumps({"kind": kind, "version": version, "files": files}, indent=1) + "\n")
    fsync_path(mark)
    fsync_path(folder)


def find_damage(folder: Path, kind: str, version: int) -> str | None:
    """Return what keeps a folder from being read as a sealed one of this kind and version, None if nothing does."""
    if not folder.is_dir():
        return "there is no such folder"
    if not (folder / COMPLETE_MARKER).is_file():
        return f"it has no {COMPLETE_MARKER} mark, so it was never finished"
    try:
        mark = json.loads((folder / COMPLETE_MARKER).read_text(encoding="utf-8"))
        found, files = (mark["kind"], mark["version"]), dict(mark["files"])
        sizes = {name: int(facts["bytes"]) for name, facts in files.items()}
        sums = {name: str(facts["sha256"]) for name, facts in files.items()}
    except (OSError, ValueError, KeyError, TypeError):
        return f"its {COMPLETE_MARKER} mark cannot be read: damaged, or of another version"
    if found != (kind, version):
        return f"it is a {found[0]} of version {found[1]}, and a {kind} of version {version} is asked for"
    for name, size in sizes.items():
        file = folder / name
        try:
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} bytes instead of {size}"
            if _checksum(file) != sums[name]:
                return f"{name} was altered: its checksum is another"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None


def _checksum(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
