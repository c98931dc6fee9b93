"""The names of data files: their format, their compression, and the files that an entry of the recipe stands for."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from finetune.errors import DataError, shorten
from finetune.paths import absolute_path

FILE_TYPES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".parquet", ".arrow", ".feather")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bzip2", ".xz": "xz"}
ENDINGS = f"{', '.join(FILE_TYPES)} (also compressed, such as .csv{', .csv'.join(COMPRESSIONS)})"
_OTHER_SPLIT = re.compile(r"(?<![a-z])(test|validation|valid|val|dev)(?![a-z])", re.IGNORECASE)
_MAX_SHOWN = 3  # files in one message


def compression(file: Path) -> str | None:
    """Return gzip, zstd, bzip2 or xz by the last ending of the name, or None."""
    return COMPRESSIONS.get(file.suffix.lower())


def uncompressed_name(file: Path) -> Path:
    """Return the path without the ending of a compressed file: `data.csv` for `data.csv.gz`."""
    return file.with_suffix("") if compression(file) else file


def file_format(file: Path) -> str:
    """Return csv, tsv, txt, json, jsonl, parquet or arrow, or another ending of the name that is none of these."""
    ending = uncompressed_name(file).suffix.lstrip(".").lower()
    return "arrow" if ending == "feather" else ending


def is_data_file(file: Path) -> bool:
    """Return whether the name of a file has the ending of a data file."""
    return uncompressed_name(file).suffix.lower() in FILE_TYPES


def expand_files(entries: Sequence[str]) -> list[Path]:
    """Return the files of a split: each entry is a file, a folder with files of one format, or a pattern.

    Raises:
        DataError: a folder or a pattern has no data files, a folder has files of several formats or splits, or a file
            occurs twice.
    """
    files = [file for entry in entries for file in _files_of(entry)]
    twice = next((file for index, file in enumerate(files) if file in files[:index]), None)
    if twice is not None:
        raise DataError(f"{twice} is given twice; remove one of the two")
    return files


def _files_of(entry: str) -> list[Path]:
    path = Path(entry).expanduser()
    if path.is_dir():
        return _files_in(path)
    if path.exists() or glob.escape(entry) == entry:
        return [path]
    matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 - Path.glob needs a relative pattern
    files = sorted(file for file in map(Path, matches) if file.is_file())
    if not files:
        raise DataError(f"no file matches the pattern '{shorten(entry, 120)}'; correct it")
    return files


def _files_in(folder: Path) -> list[Path]:
    """Return the data files directly in a folder, sorted by name."""
    files = sorted(
        file for file in folder.iterdir() if file.is_file() and is_data_file(file) and file_format(file) != "txt"
    )
    files = [file for file in files if not file.name.startswith((".", "_"))]
    if (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file():
        raise DataError(f"the folder {folder} was written by `datasets`; give it as data.dataset_name")
    if not files:
        raise DataError(f"the folder {folder} has no data files; the name of a data file must end in {ENDINGS}")
    formats = sorted({file_format(file) for file in files})
    if len(formats) > 1:
        raise DataError(
            f"the folder {folder} has files of several formats ({', '.join(formats)}); name the files, or give a "
            f"pattern such as {folder}/*.{formats[0]}"
        )
    others = [file for file in files if _OTHER_SPLIT.search(uncompressed_name(file).stem)]
    if others and len(others) < len(files):
        raise DataError(
            f"the folder {folder} has files of several splits, such as {others[0].name}; give it as data.dataset_name, "
            f"or give a pattern such as {folder}/train*"
        )
    return files


def describe_files(files: Sequence[Path]) -> str:
    """Return the names of files for a message: all of a few, otherwise the first one and the number of the others."""
    if len(files) <= _MAX_SHOWN:
        return ", ".join(map(str, files))
    return f"{files[0]} and {len(files) - 1} other files"


def absolute_entries(entries: str | Sequence[str]) -> str | list[str]:
    """Return the entry or the entries of a split with absolute paths."""
    return str(absolute_path(entries)) if isinstance(entries, str) else [str(absolute_path(entry)) for entry in entries]


def one_character(delimiter: str) -> str:
    """Return the separator of a csv file: a character, where `tab` and a backslash with t mean a tab.

    Raises:
        ValueError: it is no single character, or one that cannot separate cells.
    """
    character = "\t" if delimiter in ("tab", "\\t") else delimiter
    if len(character) != 1 or character in '\r\n"\0':
        raise ValueError(f"the delimiter is {delimiter!r}; it must be one character, such as ; or tab")
    return character
