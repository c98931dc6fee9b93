"""Checks of paths given by the user, so that an unusable one is reported before anything is computed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

# Longer than any path that a run writes inside its folder.
_LONGEST_SUBPATH = Path("x" * 60, "x" * 60)
_REASONS = {
    errno.ENAMETOOLONG: "is too long for the file system (most allow 255 bytes per name); shorten it",
    errno.ELOOP: "contains symbolic links that point at each other; correct the links",
}


def path_problem(path: str | Path) -> str | None:
    """Return why a path cannot be used, with the fix, or None if it can; the path does not have to exist."""
    text = os.fspath(path)
    if not text:
        return "is empty; name a path"
    if "\0" in text:
        return "contains a NUL character, which no path can; remove it"
    try:
        os.fsencode(text)
        full_path = absolute_path(text)
        _check_stat(full_path / _LONGEST_SUBPATH)
        existing = _nearest_existing(full_path)
        for name in full_path.relative_to(
            existing
        ).parts:  # one at a time: stat of a longer path stops at the first missing folder
            _check_stat(existing / name)
    except UnicodeEncodeError:
        return "contains characters that no path can; remove them"
    except RuntimeError:
        return "names the home folder of a user that does not exist; correct it, or write the path from the root"
    except OSError as error:
        return _REASONS.get(error.errno or 0, f"cannot be used: {error.strerror}; correct it, or its permissions")
    return None


def _check_stat(path: Path) -> None:
    """Raise OSError if the file system rejects the path; a path that does not exist is accepted."""
    try:
        path.stat()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise


def _nearest_existing(path: Path) -> Path:
    """Return the path if it exists, else its nearest parent that does."""
    return next(candidate for candidate in (path, *path.parents) if os.path.lexists(candidate))


def new_dir_problem(path: str | Path) -> str | None:
    """Return why no folder can be created at a path, with the fix, or None; an existing folder is no problem."""
    problem = path_problem(path)
    if problem is not None:
        return problem
    full_path = absolute_path(path)
    existing = _nearest_existing(full_path)
    if not existing.is_dir():
        if existing == full_path:
            return "is a file; name a folder"
        return f"cannot be created, because {existing} is not a folder; name another"
    if not os.access(existing, os.W_OK | os.X_OK):
        return f"cannot be written, because you have no write permission in {existing}; name another"
    return None


def absolute_path(path: str | Path) -> Path:
    """Return the absolute path, with `~` expanded.

    Raises:
        RuntimeError: the user named after `~` does not exist.
    """
    return Path(path).expanduser().absolute()
