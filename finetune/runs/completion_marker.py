"""The COMPLETE marker of a folder, which distinguishes an intact folder from an unfinished or damaged one.

The marker is the last file that is written to the folder. It contains the kind and version of the folder, and the size
and SHA-256 checksum of every other file.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from finetune.runs.atomic_files import fsync_path

COMPLETE_MARKER = "COMPLETE"


def mark_complete(folder: Path, kind: str, version: int) -> None:
    """Flush all files of a folder to the disk, then write the marker."""
    files = {}
    for file in sorted(folder.iterdir()):
        fsync_path(file)
        files[file.name] = {"bytes": file.stat().st_size, "sha256": _checksum(file)}
    marker = folder / COMPLETE_MARKER
    marker.write_text(json.dumps({"kind": kind, "version": version, "files": files}, indent=1) + "\n")
    fsync_path(marker)
    fsync_path(folder)


def find_damage(folder: Path, kind: str, version: int) -> str | None:
    """Return why a folder is not a complete and intact one of this kind and version, or None if it is."""
    if not folder.is_dir():
        return "there is no such folder"
    marker = folder / COMPLETE_MARKER
    if not marker.is_file():
        return f"it has no {COMPLETE_MARKER} marker, so it was never finished"
    try:
        content = json.loads(marker.read_text(encoding="utf-8"))
        actual, files = (content["kind"], content["version"]), dict(content["files"])
        sizes = {name: int(entry["bytes"]) for name, entry in files.items()}
        checksums = {name: str(entry["sha256"]) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError):
        return f"its {COMPLETE_MARKER} marker cannot be read: damaged, or of another version"
    if actual != (kind, version):
        return f"it is a {actual[0]} of version {actual[1]}; expected a {kind} of version {version}"
    for name, size in sizes.items():
        file = folder / name
        try:
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} bytes instead of {size}"
            if _checksum(file) != checksums[name]:
                return f"{name} was changed: its checksum is wrong"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None


def _checksum(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
