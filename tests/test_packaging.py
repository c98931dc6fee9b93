"""What the wheel and the source archive contain: pyproject.toml."""

from __future__ import annotations

import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from finetune.version import __version__
from tests.support import ROOT
from tests.support.recipes import RECIPES

PACKAGE = {path.relative_to(ROOT).as_posix() for path in (ROOT / "finetune").rglob("*") if path.is_file()}
PACKAGE = {name for name in PACKAGE if "__pycache__" not in name}
SHIPPED = {path.relative_to(ROOT / "recipes").as_posix() for path in (ROOT / "recipes").rglob("*.yaml")}


def build(source: Path, kind: str, folder: Path) -> Path:
    """Build a wheel or an sdist, offline, with the backend that pyproject.toml names."""
    from hatchling.builders.sdist import SdistBuilder
    from hatchling.builders.wheel import WheelBuilder

    builder = {"wheel": WheelBuilder, "sdist": SdistBuilder}[kind]
    (built,) = builder(str(source)).build(directory=str(folder), versions=["standard"])
    return Path(built)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, "wheel", tmp_path_factory.mktemp("wheel"))


def test_the_wheel_has_the_package_and_the_recipes_only(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == PACKAGE | {f"finetune/recipes/{name}" for name in SHIPPED}
    assert {"finetune/docs/recipes.md", "finetune/report/report.html", "finetune/__main__.py"} < names
    assert {path.name for path in RECIPES} | {"sweeps/heads.yaml"} < SHIPPED


def test_the_metadata_names_versions_that_were_tried(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        folder = f"finetune-{__version__}.dist-info"
        metadata = Parser().parsestr(archive.read(f"{folder}/METADATA").decode())
        assert "finetune = finetune.cli:main" in archive.read(f"{folder}/entry_points.txt").decode()
        assert f"{folder}/licenses/LICENSE" in archive.namelist()
    assert metadata["Version"] == __version__
    classifiers = [text for text in metadata.get_all("Classifier") or [] if "Python ::" in text]
    assert classifiers == ["Programming Language :: Python :: 3.11"]
    assert "Project-URL" not in metadata
    extras = {"minilm", "mlflow", "onnx", "sweep", "tensorboard", "trackio", "wandb", "dev"}
    assert extras <= set(metadata.get_all("Provides-Extra") or [])


def test_the_source_archive_can_build_the_wheel(tmp_path: Path) -> None:
    built = build(ROOT, "sdist", tmp_path)
    with tarfile.open(built) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        archive.extractall(tmp_path, filter="data")
    assert names == PACKAGE | {f"recipes/{name}" for name in SHIPPED} | {
        "LICENSE", "PKG-INFO", "README.md", "pyproject.toml", ".gitignore",
    }  # fmt: skip
    wheel = build(tmp_path / f"finetune-{__version__}", "wheel", tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        assert f"finetune/recipes/{RECIPES[0].name}" in archive.namelist()


def test_every_extra_is_in_the_developers_environment() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (included,) = (name for name in extras["dev"] if name.startswith("finetune["))
    assert sorted(included.removeprefix("finetune[").removesuffix("]").split(",")) == sorted(
        {*extras} - {"dev", "mlflow"}
    )
    assert any(name.startswith("mlflow-skinny") for name in extras["dev"])  # instead of mlflow, which is much larger
