"""Polarizability, Born charges and dielectric tensor: differences of dipoles, sum rules, closed forms, limits."""

from __future__ import annotations

from dataclasses import replace
from math import erf, pi, sqrt
from typing import Any

import numpy as np
import pytest

from kqeq_md.errors import FieldError
from kqeq_md.model import Model
from kqeq_md.potential import Potential
from kqeq_md.response import compute_with_response, response
from kqeq_md.structure import Structure
from kqeq_md.units import COULOMB_CONSTANT

HELD = ("fragments", "split", "split, fixed q0", "split, learned q0, fragments")
CASES = [
    (kind, material, boundary, field, charge)
    for kind in (*HELD, "qeq", "split, learned q0")
    for material in ("salt", "water")
    for boundary in ("open", "slab", "orthorhombic", "triclinic")
    for field in ("none", "tilted", "normal")
    for charge in (0.0, 1.0)
    if field != "normal" or boundary == "slab"
]
DEFINED = [case for case in CASES if case[2] == "open" or case[0] in HELD]
UNDEFINED = [case for case in CASES if case not in DEFINED and case[3] == "none"]
HALF = [case for case in DEFINED if (case[1] == "water") == (case[4] == 1.0)]
"""For what does not depend on the material: salt where it is neutral, water where it is charged."""


def subjects(cases: list[tuple[Any, ...]]) -> Any:
    return pytest.mark.parametrize("subject", cases, ids=lambda case: "; ".join(map(str, case)), indirect=True)


def dipole(potential: Potential, structure: Structure) -> np.ndarray:
    mu = potential.compute(structure, want=("dipole",)).dipole
    assert mu is not None
    return mu


@subjects(DEFINED)
def test_differences_of_dipoles_and_charges(subject: Any) -> None:
    """At the field of the structure, in which both are linear: differences are exact; along positions five points."""
    still, potential, exact = subject.structure, subject.potential(), subject.potential(accuracy=1e-11)
    got = response(potential, still)
    alpha, change = np.empty((3, 3)), np.empty((len(still), 3))
    for axis in range(3):
        ahead, back = (exact.compute(replace(still, field=still.field + s * np.eye(3)[axis])) for s in (0.5, -0.5))
        alpha[:, axis] = ahead.dipole - back.dipole
        change[:, axis] = ahead.charges - back.charges
    assert np.abs(alpha).max() > 0.02  # e^2 A^2/eV
    np.testing.assert_allclose(got.polarizability, alpha, rtol=0, atol=1e-7 * np.abs(alpha).max())
    np.testing.assert_allclose(got.charges, change, rtol=0, atol=1e-7 * np.abs(change).max())

    rng, h = np.random.default_rng(8), 5e-4
    assert np.abs(got.born_charges).max() > 0.1
    for direction in rng.normal(size=(2, *still.positions.shape)):
        v = direction / np.linalg.norm(direction)
        line = [dipole(exact, replace(still, positions=still.positions + k * h * v)) for k in (-2, -1, 1, 2)]
        wanted = (line[0] - 8 * line[1] + 8 * line[2] - line[3]) / (12 * h)
        moved = np.einsum("iab,ib->a", got.born_charges, v)
        np.testing.assert_allclose(moved, wanted, rtol=0, atol=1e-7 * np.abs(got.born_charges).max())


@subjects(DEFINED)
def test_sum_rules(subject: Any) -> None:
    """A translation moves mu by Q t; alpha is symmetric and positive; a field moves no net charge. To the accuracy."""
    got = response(subject.potential(), subject.structure)
    np.testing.assert_allclose(got.born_charges.sum(axis=0), subject.charge * np.eye(3), atol=1e-8)
    np.testing.assert_allclose(got.polarizability, got.polarizability.T, atol=1e-10)  # rounding
    assert np.linalg.eigvalsh(got.polarizability).min() > -1e-12
    np.testing.assert_allclose(got.charges.sum(axis=0), 0.0, atol=1e-10)
    if subject.kind == "fragments":
        sums = [np.bincount(subject.held["fragments"], column) for column in got.charges.T]
        np.testing.assert_allclose(sums, 0.0, atol=1e-10)
    if subject.structure.boundary == "periodic":
        wanted = np.eye(3) + 4 * pi * 14.399645 * got.polarizability / subject.structure.volume
        np.testing.assert_allclose(got.dielectric, wanted, rtol=1e-6)  # seven digits of kC
    else:
        assert got.dielectric is None


@subjects(HALF)
def test_symmetries(subject: Any, helpers: Any) -> None:
    """Rotation, order of atoms, images; to rounding and what Ewald's sums leave."""
    still, turn, potential = subject.structure, helpers.random_rotation(3), subject.potential()
    one, rng = response(potential, still), np.random.default_rng(9)
    got = response(
        potential, replace(still, positions=still.positions @ turn, cell=still.cell @ turn, field=still.field @ turn)
    )
    np.testing.assert_allclose(got.polarizability, turn.T @ one.polarizability @ turn, atol=1e-9)
    np.testing.assert_allclose(got.born_charges, turn.T @ one.born_charges @ turn, atol=1e-8)

    order, held = rng.permutation(len(still)), subject.held
    if "fragments" in held:
        held["fragments"] = held["fragments"][order]
    images = rng.integers(-2, 3, size=(len(still), 3)) * np.array(still.pbc) @ still.cell
    mixed = replace(still, numbers=still.numbers[order], positions=(still.positions + images)[order])
    got = response(Potential(subject.model, 1e-9, 1e-12, **held), mixed)
    np.testing.assert_allclose(got.polarizability, one.polarizability, atol=1e-10)
    np.testing.assert_allclose(got.born_charges, one.born_charges[order], atol=1e-9)


@subjects([case for case in DEFINED if case[2] == "triclinic" and case[3] == "tilted" and case[4] == 0.0])
def test_supercell(subject: Any) -> None:
    """alpha is extensive, eps and Z are not; in a field along periodic axes."""
    cell, held = subject.structure, subject.held
    if "fragments" in held:
        held.update(fragments=np.concatenate([held["fragments"], held["fragments"] + 4]), fragment_charges=None)
    large = replace(
        cell,
        numbers=np.tile(cell.numbers, 2),
        positions=np.concatenate([cell.positions, cell.positions + cell.cell[1]]),
        cell=np.diag([1, 2, 1]) @ cell.cell,
    )
    one, got = response(subject.potential(), cell), response(Potential(subject.model, 1e-9, 1e-12, **held), large)
    # two Ewald sums of different splitting
    np.testing.assert_allclose(got.polarizability, 2 * one.polarizability, atol=1e-8)
    np.testing.assert_allclose(got.born_charges, np.tile(one.born_charges, (2, 1, 1)), atol=1e-8)
    np.testing.assert_allclose(got.dielectric, one.dielectric, atol=1e-8)


@subjects(UNDEFINED)
def test_response_needs_a_dipole(subject: Any) -> None:
    with pytest.raises(FieldError, match="polarizability and Born charges need a dipole along all axes") as caught:
        response(subject.potential(), subject.structure)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("charges", ["qeq", "split"])
def test_two_atoms_in_closed_form(helpers: Any, strong: Model, charges: str) -> None:
    """alpha = d^2 / H along the bond with H = J_11 + J_22 - 2 J_12, d^2 / (H + 1/c) with a compliance; 0 across it."""
    model, d = helpers.split_model(strong), 2.4
    (eta1, eta2), (s1, s2) = model.hardness, model.gaussian_width
    g = 1 / sqrt(2 * (s1**2 + s2**2))
    h = eta1 + eta2 + COULOMB_CONSTANT * ((1 / s1 + 1 / s2) / sqrt(pi) - 2 * erf(g * d) / d)
    if charges == "split":
        h += 1 / (model.compliance[0, 1] * (1 - (d / model.compliance_cutoff[0, 1]) ** 2) ** 3)
    pair = Structure([11, 17], [[0, 0, 0], [0, 0, d]], field=[0, 0.1, 0.2])
    got = response(Potential(model, charges=charges), pair)
    np.testing.assert_allclose(got.polarizability, np.diag([0, 0, d**2 / h]), atol=1e-13)  # rounding
    np.testing.assert_allclose(got.charges[:, 2], [-d / h, d / h], rtol=1e-12)


def test_nothing_flows_between_fragments(strong: Model) -> None:
    """Along a row of lone atoms there is nothing to polarize; each moves mu by its charge alone."""
    row = Structure([11, 17], [[0, 0, 0], [0, 0, 2.4]])
    got = response(Potential(strong, charges="fragments", fragments=[0, 1], fragment_charges=[1.0, -1.0]), row)
    assert not got.polarizability.any()
    np.testing.assert_allclose(got.born_charges, [np.eye(3), -np.eye(3)], atol=1e-14)


@pytest.mark.parametrize("charges", ["fragments", "split"])
def test_dilute_crystal_obeys_clausius_and_mossotti(water: Model, helpers: Any, charges: str) -> None:
    """1/alpha of the cell = 1/alpha of a molecule - 4 pi kC / 3 V: point dipoles on a cubic lattice in tin foil.

    Octupoles come next; they change the difference by (1 A / 24 A)^2.
    """
    model = helpers.split_model(water)
    one = helpers.water_box(1, pbc=False)
    alone = response(Potential(model, 1e-9, 1e-12, charges=charges), one).polarizability
    cell = replace(one, cell=24.0 * np.eye(3), pbc=True)
    crystal = response(Potential(model, 1e-9, 1e-12, charges=charges), cell)
    lorentz = 4 * pi * COULOMB_CONSTANT / (3 * 24.0**3)
    wanted = np.linalg.solve(np.eye(3) - lorentz * alone, alone)
    largest = np.abs(wanted - alone).max()
    assert largest > 1e-6  # e^2 A^2/eV
    np.testing.assert_allclose(crystal.polarizability, wanted, atol=3e-3 * largest)


def test_many_atoms_between_steps_of_a_trajectory(water: Model, helpers: Any) -> None:
    """Sorted in space, iterated, with a rough mesh; and the trajectory goes on."""
    model = helpers.split_model(water, (0.4, -0.8))
    still = helpers.water_box((7, 7, 7), field=(0.0, 0.03, 0.0))
    used, undisturbed = Potential(model, 1e-6, 1e-9), Potential(model, 1e-6, 1e-9)
    rng = np.random.default_rng(2)
    velocity = 0.01 * rng.normal(size=still.positions.shape)
    frames = [replace(still, positions=still.positions + k * velocity) for k in range(4)]
    for frame in frames[:3]:
        for potential in (used, undisturbed):
            potential.compute(frame)
    got = response(used, frames[2])
    after, wanted = used.compute(frames[3]), undisturbed.compute(frames[3])
    np.testing.assert_allclose(after.charges, wanted.charges, atol=1e-8)  # ten times the tolerance, in e

    np.testing.assert_allclose(got.born_charges.sum(axis=0), 0.0, atol=1e-5)  # accuracy times the root of 1,029 atoms
    ahead, back = (dipole(used, replace(frames[2], field=still.field + [0, 0, s])) for s in (0.5, -0.5))
    np.testing.assert_allclose(got.polarizability[:, 2], ahead - back, atol=1e-6 * np.abs(ahead - back).max())
    atom, h = 500, 1e-2
    line = []
    for k in (-1, 1):
        moved = frames[2].positions.copy()
        moved[atom, 0] += k * h
        line.append(dipole(used, replace(frames[2], positions=moved)))
    # differences of second order: h^2 / 6 times third derivatives of some e/A^2
    np.testing.assert_allclose(got.born_charges[atom, :, 0], (line[1] - line[0]) / (2 * h), atol=2e-3)


@pytest.mark.parametrize("kind", ["cluster", "crystal"])
def test_both_at_once(kind: str, model: Model, helpers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `compute` and `response` say, from one equilibration."""
    if kind == "cluster":
        structure, options = helpers.cluster(charge=1.0, field=(0.0, 0.01, 0.05)), {}
    else:
        structure, options = helpers.salt_box(2), {"charges": "fragments"}
    result, answer = Potential(model, **options).compute(structure), response(Potential(model, **options), structure)
    counted: list[int] = []
    right = Potential.equilibrate
    monkeypatch.setattr(Potential, "equilibrate", lambda *args: counted.append(1) or right(*args))
    both = compute_with_response(Potential(model, **options), structure)
    assert counted == [1]
    for name in ("energy", "charges", "forces", "virial", "dipole"):
        np.testing.assert_array_equal(getattr(both[0], name), getattr(result, name))
    for name in ("polarizability", "born_charges", "charges"):
        np.testing.assert_array_equal(getattr(both[1], name), getattr(answer, name))
