"""Wheel and source distribution: what is in them, and that the wheel works where nothing else is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from email import message_from_string
from pathlib import Path, PurePath

import pytest

from kqeq_md import __version__
from kqeq_md.demo import FILES
from kqeq_md.models import SHIPPED

ROOT = Path(__file__).parent.parent
HOMES = {"kqeq_md": "kqeq_md", "lammps_plugin": "kqeq_md/lammps_plugin", "ipi_driver": "kqeq_md/ipi_driver"}
"""Folders of the tree that are installed whole, and as what."""

BESIDE = ("README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "LICENSES", "MANIFEST.in", "pyproject.toml")
MOST = 15e6
"""Bytes of either file; the four models take 7.7 MB."""


@dataclass
class Built:
    """Paths of files, and the names in them; those in the source distribution without its top folder."""

    wheel: Path
    sources: Path
    in_wheel: set[str]
    in_sources: set[str]

    def text(self, name: str) -> str:
        """Of a file in the wheel."""
        with zipfile.ZipFile(self.wheel) as archive:
            return archive.read(name).decode()


def in_tree(folder: str) -> set[str]:
    """Files below a folder of the tree but what Python has compiled."""
    paths = (path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file())
    return {str(path) for path in paths if "__pycache__" not in path.parts}


def build(kind: str, tree: Path, out: Path) -> Path:
    """ "wheel" or "sdist" of the sources in `tree`."""
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The source distribution of the tree, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("packaging")
    tree, out, unpacked = folder / "tree", folder / "out", folder / "unpacked"
    for name in (*HOMES, *BESIDE, "examples", "tests", "docs"):
        place = ROOT / name
        if place.is_dir():
            shutil.copytree(place, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif place.is_file():
            shutil.copy(place, tree)
    out.mkdir()
    sources = build("sdist", tree, out)
    with tarfile.open(sources) as archive:
        names = {str(PurePath(*PurePath(item.name).parts[1:])) for item in archive if item.isfile()}
        archive.extractall(unpacked, filter="data")
    wheel = build("wheel", unpacked / f"kqeq_md-{__version__}", out)
    with zipfile.ZipFile(wheel) as archive:
        return Built(wheel, sources, set(archive.namelist()), names)


def test_the_wheel_holds_the_packages_as_they_stand(built: Built) -> None:
    """Sources of the plugin, models and `py.typed` too; a new room that pyproject.toml does not list is missed."""
    wanted = {home + name.removeprefix(folder) for folder, home in HOMES.items() for name in in_tree(folder)}
    examples = {name for name in built.in_wheel if name.startswith("kqeq_md/examples/")}
    found = {name for name in built.in_wheel if not name.startswith(f"kqeq_md-{__version__}.dist-info/")}
    assert found - examples == wanted
    assert {f"kqeq_md/models/{path.name}" for path in SHIPPED.values()} | {"kqeq_md/py.typed"} < found
    assert {f"kqeq_md/examples/{name}" for name in FILES} < examples
    assert {name.removeprefix("kqeq_md/") for name in examples} <= in_tree("examples")


def test_the_source_distribution_holds_what_the_wheel_is_made_of(built: Built) -> None:
    """And texts for its reader; neither tests nor training data."""
    wanted = {name for folder in HOMES for name in in_tree(folder)}
    wanted |= {name.removeprefix("kqeq_md/") for name in built.in_wheel if name.startswith("kqeq_md/examples/")}
    wanted |= {name for place in BESIDE for name in (in_tree(place) or {place})}
    made = {name for name in built.in_sources if name.startswith("kqeq_md.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert built.in_sources - made == wanted


def test_both_are_small(built: Built) -> None:
    assert max(path.stat().st_size for path in (built.wheel, built.sources)) < MOST


def test_what_the_wheel_says_of_itself(built: Built) -> None:
    folder = f"kqeq_md-{__version__}.dist-info"
    said = message_from_string(built.text(f"{folder}/METADATA"))
    assert said["Version"] == __version__
    assert said["License-Expression"] == "MIT AND GPL-2.0-or-later"
    assert said["Requires-Python"] == ">=3.10"
    assert {f"{folder}/licenses/{name}" for name in ("LICENSE", *in_tree("LICENSES"))} < built.in_wheel
    commands = re.findall(r"^([\w-]+) = kqeq_md", built.text(f"{folder}/entry_points.txt"), re.M)
    assert {"kqeq", "kqeq-ipi", "kqeq-mdi", "kqeq-lmp"} <= set(commands)


def test_the_citation_names_this_version() -> None:
    lines = (ROOT / "CITATION.cff").read_text().splitlines()
    assert f"version: {__version__}" in lines
    assert re.search(rf"^## {re.escape(__version__)}( \(unreleased\))?$", (ROOT / "CHANGELOG.md").read_text(), re.M)


@pytest.mark.slow
def test_the_wheel_alone_runs_the_demo(built: Built, tmp_path: Path) -> None:
    """In a new environment, by `pip install` and the README's command."""
    bin_folder = tmp_path / "venv" / "bin"
    for command in (
        [sys.executable, "-m", "venv", str(tmp_path / "venv")],
        [str(bin_folder / "pip"), "install", f"{built.wheel}[all]"],
        [str(bin_folder / "kqeq"), "demo"],
    ):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=3600)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert json.loads((tmp_path / "kqeq_demo" / "demo.json").read_text())["melt_charge_na"][0] > 0
