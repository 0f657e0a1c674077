"""The reference data that ships: labels are those of GFN2-xTB, obey their sum rules, and come out of the scripts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = ("train", "test", "bulk_train", "bulk_test")
MODULES = ("sampling", "bulk", "make_data", "make_bulk")


def frames(folder: str, name: str) -> list[Atoms]:
    return ase.io.read(EXAMPLES / folder / f"{name}.xyz", ":", format="extxyz")


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports modules of an example's folder, which have the same names in all of them, and forgets them."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")

    def load(folder: str, name: str) -> ModuleType:
        pytest.importorskip("tblite", reason="the extra `train` is not installed")
        monkeypatch.syspath_prepend(str(EXAMPLES / folder))
        return __import__(name)

    yield load
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("folder", ["train_nacl", "train_water"])
@pytest.mark.parametrize("name", NAMES)
def test_sum_rules(folder: str, name: str) -> None:
    """Forces sum to Q F, charges to Q: six decimals of each of up to 150 atoms leave rounding of 150 x 5e-7."""
    for atoms in frames(folder, name):
        charge, field = atoms.info["total_charge"], np.array(atoms.info["electric_field"])
        np.testing.assert_allclose(atoms.arrays["REF_forces"].sum(axis=0), charge * field, rtol=0, atol=8e-5)
        assert atoms.arrays["REF_charges"].sum() == pytest.approx(charge, abs=8e-5)
        assert np.abs(atoms.arrays["REF_forces"]).max() < 30.0  # eV/Angstrom: what the scripts keep


@pytest.mark.parametrize("folder", ["train_nacl", "train_water"])
def test_no_frame_is_in_two_places(folder: str) -> None:
    seen = [atoms.positions.tobytes() for name in NAMES for atoms in frames(folder, name)]
    charged = [atoms.info["total_charge"] for name in NAMES for atoms in frames(folder, name)]
    assert len(set(zip(seen, charged, strict=True))) == len(seen)


@pytest.mark.parametrize("name", NAMES)
def test_folders_stay_small(name: str) -> None:
    for folder in ("train_nacl", "train_water"):
        assert sum(file.stat().st_size for file in (EXAMPLES / folder).glob("*.xyz")) < 2.5e6


def shared() -> Any:
    """What the scripts share."""
    return pytest.importorskip("kqeq_md.examples.reference_data", reason="the extra `train` is not installed")


def smallest(found: list[Atoms], wanted: Any) -> Atoms:
    return min((atoms for atoms in found if wanted(atoms)), key=len)


def assert_labels(atoms: Atoms, frame: Any) -> None:
    """Six decimals in files; the SCF of another build of tblite ends elsewhere within its threshold of 1e-6 hartree."""
    assert frame.energy == pytest.approx(atoms.info["REF_energy"], abs=1e-4)  # eV
    np.testing.assert_allclose(frame.forces, atoms.arrays["REF_forces"], rtol=0, atol=1e-3)
    np.testing.assert_allclose(frame.charges, atoms.arrays["REF_charges"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(frame.dipole, atoms.info["REF_dipole"], rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("train", lambda atoms: np.any(atoms.info["electric_field"]) and len(atoms) > 6),
        ("train", lambda atoms: atoms.info["total_charge"] == 1),
        ("bulk_train", lambda atoms: atoms.info["name"].startswith("liquid")),
    ],
)
def test_labels_of_water_are_those_of_gfn2(name: str, wanted: Any) -> None:
    atoms = smallest(frames("train_water", name), wanted)
    info = atoms.info
    frame = shared().label(
        "", False, atoms.numbers, atoms.positions, info["total_charge"], np.array(info["electric_field"])
    )
    assert_labels(atoms, frame)


def test_polarizability_of_water_clusters() -> None:
    atoms = smallest(frames("train_water", "test"), lambda atoms: len(atoms) > 3)
    found = shared().polarizability(atoms.numbers, atoms.positions, atoms.info["total_charge"])
    written = np.reshape(atoms.info["REF_polarizability"], (3, 3))
    # a tight SCF leaves 1e-8 e Angstrom in dipoles, a field step of 0.05 V/Angstrom makes 1e-6 of it
    np.testing.assert_allclose(found, written, rtol=0, atol=1e-5)


def test_water_clusters_come_out_of_the_script(scripts: Any) -> None:
    """A single molecule's trajectory is short and not chaotic: rounding stays where it is."""
    make_data = scripts("train_water", "make_data")
    frame = make_data.cluster_frame(0, next(make_data.cluster_jobs()))
    (written,) = [atoms for atoms in frames("train_water", "train") if atoms.info["name"] == frame.name]
    np.testing.assert_allclose(frame.positions, written.positions, rtol=0, atol=1e-4)


def test_spheres_of_liquid_water_are_whole_molecules(scripts: Any) -> None:
    """Also across the faces of the cell; the nearest come first."""
    sampling = scripts("train_water", "sampling")
    x, edge = sampling.lattice_box(3, 1.0, np.random.default_rng(4))
    moved = (x.reshape(-1, 3, 3) + edge * np.random.default_rng(5).integers(-2, 3, size=(27, 1, 3))).reshape(-1, 3)
    found = sampling.nearest_molecules(moved, edge, np.array([0.1, edge, 3.0]), 40).reshape(40, 3, 3)
    bonds = np.linalg.norm(found[:, 1:] - found[:, :1], axis=2)
    np.testing.assert_allclose(bonds, 0.957, rtol=0, atol=1e-3)  # of the shape that is put on the lattice
    away = np.linalg.norm(found[:, 0], axis=1)
    assert np.all(np.diff(away) >= 0)
    assert away[-1] == pytest.approx((0.75 * 40 * 29.9 / np.pi) ** (1 / 3), rel=0.2)  # a sphere of that density
    apart = np.linalg.norm(found[:, None, 0] - found[None, :, 0], axis=2)[np.triu_indices(40, 1)]
    assert apart.min() > 2.5


def test_random_clusters_have_no_close_contacts(scripts: Any) -> None:
    sampling = scripts("train_water", "sampling")
    for kind, atoms in (("water", 18), ("hydronium", 22), ("hydroxide", 20)):
        x = sampling.random_cluster(kind, 6, 3.0, np.random.default_rng(1))
        numbers = sampling.numbers_of(kind, 6)
        assert len(x) == len(numbers) == atoms
        oxygen = x[numbers == 8]
        apart = np.linalg.norm(oxygen[:, None] - oxygen[None], axis=2)[np.triu_indices(len(oxygen), 1)]
        assert apart.min() > 2.6
        assert numbers.sum() - 10 * len(oxygen) == sampling.CHARGE[kind]  # closed shells of ten electrons each


def test_labels_of_a_piece_of_melt_are_those_of_gfn2() -> None:
    atoms = smallest(frames("train_nacl", "bulk_train"), lambda atoms: True)
    frame = shared().label("", False, atoms.numbers, atoms.positions, 0, np.zeros(3))
    assert_labels(atoms, frame)


def test_spheres_of_melt_are_neutral(scripts: Any) -> None:
    make_bulk = scripts("train_nacl", "make_bulk")
    sampling = scripts("train_nacl", "sampling")
    numbers, x = sampling.rock_salt(4, 2.6, 0.1, np.random.default_rng(3))
    edge = 4 * 2.6
    away = x + edge * np.random.default_rng(5).integers(-2, 3, size=x.shape)
    chosen, sphere = make_bulk.neutral_sphere(numbers, away, edge, np.array([1.0, 9.0, 5.0]), 40)
    assert (chosen == sampling.NA).sum() == (chosen == sampling.CL).sum() == 40
    assert sampling.distances(sphere).min() > 1.9  # no ion twice, nor an image on top of another ion
    assert np.linalg.norm(sphere, axis=1).max() < (0.75 * 80 * 2.6**3 / np.pi) ** (1 / 3) + 2.6
