"""The seam for domain decomposition: explicit ghosts give what implicit images give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from kqeq_md.halo import SERIAL
from kqeq_md.model import Model
from kqeq_md.neighbours import Pairs
from kqeq_md.potential import Potential
from kqeq_md.structure import Structure


@dataclass(frozen=True)
class OwnImages:
    """One process that owns a periodic cell and lists images of its own atoms as ghosts."""

    owner: np.ndarray  # of owned atoms and ghosts, shape (n_all,)
    n_local: int

    def forward(self, x_local: np.ndarray) -> np.ndarray:
        return x_local[self.owner]

    def reverse(self, y_all: np.ndarray) -> np.ndarray:
        columns = y_all.reshape(len(y_all), -1).T
        out = np.stack([np.bincount(self.owner, column, minlength=self.n_local) for column in columns], axis=1)
        return out.reshape(self.n_local, *y_all.shape[1:])

    def sum(self, value: np.ndarray) -> np.ndarray:
        return value


def with_ghosts(structure: Structure, cutoff: float, helpers: Any) -> tuple[Pairs, OwnImages]:
    """Every image within the cutoff of any owned atom becomes a ghost; pairs by a loop over owned atoms."""
    r, n = structure.positions, len(structure)
    owner, place = list(range(n)), list(r)
    for shift in helpers.shifts(structure.cell, 2.0 * cutoff):
        for j in range(n):
            if shift.any() and (np.linalg.norm(r[j] + shift - r, axis=1) < cutoff).any():
                owner.append(j)
                place.append(r[j] + shift)
    vectors = np.array(place)[None] - r[:, None]
    distance = np.linalg.norm(vectors, axis=2)
    centre, neighbour = np.nonzero((distance < cutoff) & (distance > 0))
    first = np.concatenate([[0], np.cumsum(np.bincount(centre, minlength=n))])
    return Pairs(first, neighbour, vectors[centre, neighbour]), OwnImages(np.array(owner), n)


def test_serial_halo_is_the_identity() -> None:
    x = np.arange(6.0).reshape(2, 3)
    for method in (SERIAL.forward, SERIAL.reverse, SERIAL.sum):
        assert method(x) is x


@pytest.mark.parametrize("charge", [0.0, 1.0])
@pytest.mark.parametrize("skew", [0.0, 0.3])
def test_explicit_ghosts(strong: Model, charge: float, skew: float, helpers: Any) -> None:
    strain = np.array([[0, skew, 0], [0, 0, skew], [0, 0, 0.1]])
    structure = helpers.rock_salt(rattle=0.3, strain=strain, charge=charge)
    potential = Potential(strong, tolerance=1e-12)  # the second solution starts from the first
    pairs, halo = with_ghosts(structure, strong.cutoff, helpers)
    assert len(halo.owner) > 3 * len(structure)  # a cell below the cutoff: the ghosts outnumber the atoms
    got, wanted = potential.compute(structure, pairs=pairs, halo=halo), potential.compute(structure)
    # the same terms in another order
    assert got.energy == pytest.approx(wanted.energy, rel=1e-13)
    for name in ("charges", "energies", "forces", "virial"):
        expected = getattr(wanted, name)
        np.testing.assert_allclose(getattr(got, name), expected, atol=1e-11 * np.abs(expected).max(), err_msg=name)


CASES = {
    "qeq": ({}, (0, 0, 0)),
    "fragments": ({"charges": "fragments"}, (0.03, -0.05, 0.08)),
    "split": ({"reference_charges": {}}, (0.03, -0.05, 0.08)),
    "split, fixed q0": ({"reference_charges": {"H": 0.4, "O": -0.8}}, (0.03, -0.05, 0.08)),
    "split, learned q0": ({}, (0, 0, 0)),
    "split, learned q0, fragments": ({"fragments": "connectivity"}, (0.03, -0.05, 0.08)),
}


@pytest.mark.parametrize("skew", [0.0, 0.3])
@pytest.mark.parametrize("sorts", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_explicit_ghosts_of_held_charges(
    name: str, sorts: bool, skew: float, water: Model, helpers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a field along all axes; bonds go to ghosts and back, in the order of the caller and in the spatial one."""
    if sorts:
        monkeypatch.setattr("kqeq_md.neighbours.FEWEST_SORTED", 0)
    settings, field = CASES[name]
    strain = np.array([[0, skew, 0], [0, 0, skew], [0, 0, 0.1]])
    structure = helpers.water_box((3, 2, 1), strain=strain, field=field)
    model = helpers.split_model(water, learned=0.1) if name.startswith("split") else water
    potential = Potential(model, tolerance=1e-12, **settings)
    pairs, halo = with_ghosts(structure, potential.cutoff, helpers)
    assert potential.cutoff == (4.2 if name.startswith("split") else 3.6)
    assert len(halo.owner) > 2 * len(structure)
    got, wanted = potential.compute(structure, pairs=pairs, halo=halo), potential.compute(structure)
    assert sorts == (not np.array_equal(potential.equilibrate(structure).order, np.arange(len(structure))))
    # the same terms in another order; the second solution starts from the first
    assert got.energy == pytest.approx(wanted.energy, rel=1e-12)
    for quantity in ("charges", "energies", "forces", "virial", "dipole", "reference_residual"):
        expected = getattr(wanted, quantity)
        assert (expected is None) == (getattr(got, quantity) is None)
        if expected is not None:
            atol = 1e-10 * np.abs(expected).max()
            np.testing.assert_allclose(getattr(got, quantity), expected, atol=atol, err_msg=quantity)
