"""Who may import whom, and where physical constants live: read from the sources themselves."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import kqeq_md
import kqeq_md.units

PACKAGE = Path(kqeq_md.__file__).parent
PHYSICS = [
    *(PACKAGE / f"{name}.py" for name in ("structure", "kernel", "short_range", "model", "potential", "process")),
    *(PACKAGE / f"{name}.py" for name in ("errors", "units", "elements", "reference", "local_part", "response")),
    *(PACKAGE / f"{name}.py" for name in ("pair_potential", "compression", "extrapolation")),
    *(PACKAGE / "spectrum" / f"{name}.py" for name in ("absorption", "dipole_files")),
    *(
        path
        for folder in ("neighbours", "ranks", "descriptor", "electrostatics", "charges", "gap_import")
        for path in sorted((PACKAGE / folder).glob("*.py"))
    ),
]
ABOVE = {"train", "lammps_plugin", "ipi_driver", "examples"}
CORE = [path for path in sorted(PACKAGE.rglob("*.py")) if not ABOVE & set(path.parts)]
TABLES = {"elements.py": {"ase.data"}}  # atomic numbers and symbols, and nothing else of ASE


def imported(path: Path, top_level_only: bool = False) -> Iterator[str]:
    """Full names of the modules that a file imports, inside functions too unless told otherwise."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, *roots: str) -> bool:
    return any(name == root or name.startswith(root + ".") for root in roots)


@pytest.mark.parametrize("path", PHYSICS, ids=lambda path: path.stem)
def test_physics_knows_no_engine(path: Path) -> None:
    names = [name for name in imported(path) if not within(name, *TABLES.get(path.name, ()))]
    outside = ("ase", "lammps", "ipi", "openmm", "mdi", "mpi4py", "tblite", "matplotlib", "tqdm", "argparse", "socket")
    upwards = [
        f"kqeq_md.{name}"
        for name in ("ase", "options", "openmm", "mdi", "cli", "demo", "train", "lammps_plugin", "ipi_driver")
    ]
    assert [name for name in names if within(name, *outside, *upwards)] == []


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.stem)
def test_core_never_imports_training(path: Path) -> None:
    """The command line, which runs it on demand, may do so inside its functions."""
    names = imported(path, top_level_only=path.parent.name == "cli")
    assert [name for name in names if within(name, "kqeq_md.train")] == []


def test_low_levels_stand_alone() -> None:
    """No circles: each of these imports only what stands before it."""
    before: list[str] = []
    for name in (
        "errors",
        "machine",
        "archive",
        "units",
        "structure",
        "switch",
        "neighbours",
        "ranks",
        "electrostatics",
        "charges",
        "descriptor",
        "kernel",
        "short_range",
        "pair_potential",
        "model",
        "gap_import",
        "local_part",
        "extrapolation",
        "process",
        "potential",
        "compression",
        "response",
    ):
        home = PACKAGE / name
        for path in sorted(home.glob("*.py")) if home.is_dir() else [home.with_suffix(".py")]:
            ours = [x for x in imported(path) if within(x, "kqeq_md") and not within(x, "kqeq_md.elements")]
            assert [x for x in ours if not within(x, f"kqeq_md.{name}", *before)] == [], path.name
        before.append(f"kqeq_md.{name}")


def test_training_has_no_circles() -> None:
    """Rooms of the training, and modules within each room, in an order in which each imports what stands before it."""
    folder = PACKAGE / "train"
    rooms = graph_of(folder, "kqeq_md.train")
    order = list(TopologicalSorter(rooms).static_order())  # raises where there is a circle
    assert {"data", "fit", "tune", "report", "run"} <= set(order)
    assert not rooms["data"] & {"config", "fit", "tune", "report", "run"}
    assert not rooms["fit"] & {"tune", "report", "run"}
    for room in ("data", "fit", "tune", "report"):
        TopologicalSorter(graph_of(folder / room, f"kqeq_md.train.{room}")).prepare()


def graph_of(folder: Path, package: str) -> dict[str, set[str]]:
    """Which modules and folders of a package import which others of it."""
    graph, depth = dict[str, set[str]](), package.count(".") + 1
    for path in sorted(folder.rglob("*.py")):
        own = path.relative_to(folder).parts[0].removesuffix(".py")
        names = [name.split(".") for name in imported(path, top_level_only=True) if within(name, package)]
        graph.setdefault(own, set()).update(parts[depth] for parts in names if len(parts) > depth)
        graph[own].discard(own)
    del graph["__init__"]
    return graph


def constants(path: Path) -> Iterator[float]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, float):
            yield abs(node.value)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: "/".join(path.parts[-2:]))
def test_constants_live_in_units(path: Path) -> None:
    """No Coulomb constant, hartree, bohr or their inverses and products outside of units.py, to three digits."""
    kc, hartree, bohr = kqeq_md.units.COULOMB_CONSTANT, kqeq_md.units.HARTREE, kqeq_md.units.BOHR
    known = [f for x in (kc, hartree, bohr, hartree / bohr, hartree / bohr**3) for f in (x, 1 / x)]
    found = [c for c in constants(path) if any(abs(c / k - 1) < 1e-3 for k in known)]
    if path.name == "units.py":
        assert {kc, hartree, bohr} <= set(found)  # the search finds them where they are
    else:
        assert found == []


def test_import_is_light() -> None:
    """LAMMPS imports the package at every start to look for plugins."""
    heavy = "[m for m in ('numpy', 'numba', 'scipy', 'ase', 'vesin') if m in sys.modules]"
    run = subprocess.run(
        [sys.executable, "-c", f"import sys, kqeq_md; print({heavy})"], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


def test_names_of_the_package() -> None:
    assert kqeq_md.Potential.__module__ == "kqeq_md.potential"
    assert {kqeq_md.Structure.__module__, kqeq_md.Result.__module__} == {"kqeq_md.structure"}
    with pytest.raises(AttributeError, match="has no attribute 'Potentail'"):
        kqeq_md.Potentail  # noqa: B018
