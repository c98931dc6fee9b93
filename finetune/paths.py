"""Paths as users write them: what the system would refuse is found before any work is done with them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

# What a run writes below its folder has names no longer than this.
_ROOM = Path("x" * 60, "x" * 60)
_REASONS = {
    errno.ENAMETOOLONG: "is too long for the file system (most take 255 bytes a name); shorten it",
    errno.ELOOP: "leads through symbolic links that point at one another; correct the links",
}


def path_problem(path: str | Path) -> str | None:
    """Return what keeps anybody from using a path, with its repair, or None; nothing needs to exist there."""
    text = os.fspath(path)
    if not text:
        return "is empty; name a path"
    if "\0" in text:
        return "holds a NUL character, which no path can; remove it"
    try:
        os.fsencode(text)
        whole = absolute_path(text)
        _find(whole / _ROOM)
        around = _nearest(whole)
        for name in whole.relative_to(around).parts:  # of what is not there yet, only the first was looked at
            _find(around / name)
    except UnicodeEncodeError:
        return "holds characters that no path can; remove them"
    except RuntimeError:
        return "names the home folder of a user that does not exist; correct it, or write the path from the root"
    except OSError as error:
        return _REASONS.get(error.errno or 0, f"cannot be used: {error.strerror}; correct it, or its permissions")
    return None


def _find(path: Path) -> None:
    """Raise OSError for a path that cannot be looked at; one where nothing is is fine."""
    try:
        path.stat()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise


def _nearest(path: Path) -> Path:
    """Return the path, or the nearest folder around it, where something is."""
    return next(around for around in (path, *path.parents) if os.path.lexists(around))


def new_dir_problem(path: str | Path) -> str | None:
    """Return what keeps a folder from being made at a path, or None; one that exists already is no fault."""
    fault = path_problem(path)
    if fault is not None:
        return fault
    whole = absolute_path(path)
    around = _nearest(whole)
    if not around.is_dir():
        return (
            f"cannot be made, since {around} is no folder; name another"
            if around != whole
            else "is a file; name a folder"
        )
    if not os.access(around, os.W_OK | os.X_OK):
        return f"cannot be written, since {around} is read-only for you; name another"
    return None


def absolute_path(path: str | Path) -> Path:
    """Return the path from the root, with `~` replaced; RuntimeError where there is no such user."""
    return Path(path).expanduser().absolute()
