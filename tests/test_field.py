"""What a field, a dipole and a stress mean for every charge model at every boundary: derivatives, symmetry, images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kqeq_md.errors import FieldError
from kqeq_md.model import Model
from kqeq_md.potential import Potential
from kqeq_md.structure import Result, Structure

KINDS = ("qeq", "fragments", "split", "split, fixed q0", "split, learned q0", "split, learned q0, fragments")
FREE = ("qeq", "split, learned q0")
"""Charge may flow through a periodic boundary: nothing holds it, or q0 of the whole structure is spread over it."""

CASES = [
    (kind, material, boundary, field, charge)
    for kind in KINDS
    for material in ("salt", "water")
    for boundary in ("open", "slab", "orthorhombic", "triclinic")
    for field in ("none", "tilted", "normal")
    for charge in (0.0, 1.0)
    if field != "normal" or boundary == "slab"
]


def has_energy(kind: str, _: str, boundary: str, field: str, __: float) -> bool:
    """A field along a periodic axis has a meaning where charge is held, one along an open axis has it always."""
    return boundary == "open" or field != "tilted" or kind not in FREE


def has_charged_units(kind: str, _: str, __: str, ___: str, charge: float) -> bool:
    """Atoms with q0, or fragments with a charge; without q0, Q is spread over all atoms."""
    return kind == "split, fixed q0" or charge != 0.0


def has_virial(*case: Any) -> bool:
    """The energy is a function of the strain unless a charged unit stands in a field along a periodic axis."""
    return has_energy(*case) and (case[2] == "open" or case[3] != "tilted" or not has_charged_units(*case))


DEFINED = [case for case in CASES if has_energy(*case)]
HALF = [case for case in DEFINED if (case[1] == "water") == (case[4] == 1.0)]
"""For what does not depend on the material: salt where it is neutral, water where it is charged."""

PERIODIC = [case for case in DEFINED if case[2] != "open"]


def subjects(cases: list[tuple[Any, ...]]) -> Any:
    return pytest.mark.parametrize("subject", cases, ids=lambda case: "; ".join(map(str, case)), indirect=True)


def strained(structure: Structure, deform: np.ndarray) -> Structure:
    """Positions and cell times `deform`; the field stays, but its part along the normal of a slab turns with it."""
    cell, field = structure.cell @ deform, structure.field
    if structure.open_axis is not None:
        cell[structure.open_axis] = 0.0  # perpendicular to the plane, wherever that turns
        turned = Structure([1], [[0, 0, 0]], cell=cell, pbc=structure.pbc).normal
        field = field + (field @ structure.normal) * (turned - structure.normal)
    return replace(structure, positions=structure.positions @ deform, cell=cell, field=field)


EVERYTHING = ("charges", "energies", "forces", "virial", "dipole")


def same(got: Result, wanted: Result, relative: float, names: tuple[str, ...] = EVERYTHING) -> None:
    assert got.energy == pytest.approx(wanted.energy, rel=relative)
    for name in names:
        expected = getattr(wanted, name)
        if expected is None:
            assert getattr(got, name) is None
            continue
        np.testing.assert_allclose(
            getattr(got, name), expected, atol=relative * np.abs(expected).max(), rtol=0, err_msg=name
        )


# --- derivatives: along random directions of all coordinates, which see an error in any of them. Steps of 5e-4 A and
# strains of 1e-4 for terms of 100 eV: rounding leaves 1e-9, the descriptor's tables 1e-10 / 5e-4, Ewald 1e-9 eV/A


@subjects(DEFINED)
def test_forces_and_virial(subject: Any, helpers: Any, request: pytest.FixtureRequest) -> None:
    still, rng = subject.structure, np.random.default_rng(3)
    exact = subject.potential(accuracy=1e-11)  # energies whose truncation error a division by the step leaves small
    got = subject.potential().compute(still)
    largest = np.abs(got.forces).max()
    assert largest > 0.5  # eV/A: large enough for a relative error to mean something

    def slope(move: Any, step: float) -> float:
        return float(helpers.five_point(lambda x: exact.compute(move(x[0]), want=()).energy, np.zeros(1), step)[0])

    for direction in rng.normal(size=(2, *still.positions.shape)):
        v = direction / np.linalg.norm(direction)
        wanted = -slope(lambda x, v=v: replace(still, positions=still.positions + x * v), 5e-4)
        assert (got.forces * v).sum() == pytest.approx(wanted, abs=1e-7 * largest)
    if not has_virial(*request.node.callspec.params["subject"]):
        assert got.virial is None
        return
    largest = np.abs(got.virial).max()
    assert largest > 0.5  # eV
    for shear in rng.normal(size=(3, 3, 3)):
        shear = (shear + shear.T) / np.linalg.norm(shear + shear.T)
        wanted = -slope(lambda x, e=shear: strained(still, np.eye(3) + x * e), 1e-4)
        assert (got.virial * shear).sum() == pytest.approx(wanted, abs=1e-7 * largest)


@subjects(HALF)
def test_dipole_is_the_derivative_in_the_field(subject: Any, helpers: Any) -> None:
    """mu = -dE/dF; E is quadratic in F, so that differences are exact but for rounding of 100 eV / 0.1 V/A."""
    still, potential = subject.structure, subject.potential()
    got = potential.compute(still)
    if subject.boundary != "open" and subject.kind in FREE:
        assert got.dipole is None
        return

    def energy(field: np.ndarray) -> float:
        return potential.compute(replace(still, field=field), want=()).energy

    np.testing.assert_allclose(got.dipole, -helpers.five_point(energy, still.field, 0.1), atol=1e-9)


@subjects(DEFINED)
def test_sums(subject: Any) -> None:
    """sum q = Q, in each fragment too; sum of forces = Q F; energies of atoms add up: to rounding and the accuracy."""
    still, got = subject.structure, subject.potential().compute(subject.structure)
    assert got.charges.sum() == pytest.approx(still.charge, abs=1e-10)
    np.testing.assert_allclose(got.forces.sum(axis=0), still.charge * still.field, atol=1e-8)
    assert got.energies.sum() == pytest.approx(got.energy, rel=1e-12)
    if subject.kind == "fragments":
        sums = np.bincount(subject.held["fragments"], got.charges)
        np.testing.assert_allclose(sums, subject.held["fragment_charges"], atol=1e-10)


# --- symmetries, to rounding and what Ewald's sums leave


@subjects(HALF)
def test_rotation(subject: Any, helpers: Any) -> None:
    still, turn, potential = subject.structure, helpers.random_rotation(3), subject.potential()
    one = potential.compute(still)
    got = potential.compute(
        replace(still, positions=still.positions @ turn, cell=still.cell @ turn, field=still.field @ turn)
    )
    virial = None if one.virial is None else turn.T @ one.virial @ turn
    dipole = None if one.dipole is None else one.dipole @ turn
    same(got, replace(one, forces=one.forces @ turn, virial=virial, dipole=dipole), 1e-9)


@subjects(HALF)
def test_translation(subject: Any) -> None:
    """A charged system in a field gains -Q F.t; nothing else changes."""
    still, t, potential = subject.structure, np.array([3.3, -7.1, 12.4]), subject.potential()
    one, got = potential.compute(still), potential.compute(replace(still, positions=still.positions + t))
    assert got.energy == pytest.approx(one.energy - still.charge * (still.field @ t), abs=1e-9)
    np.testing.assert_allclose(got.charges, one.charges, atol=1e-10)
    np.testing.assert_allclose(got.forces, one.forces, atol=1e-8)
    if one.dipole is not None:
        np.testing.assert_allclose(got.dipole, one.dipole + still.charge * t, atol=1e-9)


@subjects(HALF)
def test_permutation(subject: Any) -> None:
    """A fragment is where its first atom is, which here remains in the same cell."""
    still, order = subject.structure, np.random.default_rng(5).permutation(len(subject.structure))
    held = subject.held
    if "fragments" in held:
        held["fragments"] = held["fragments"][order]
    one = subject.potential().compute(still)
    got = Potential(subject.model, 1e-9, 1e-12, **held).compute(
        replace(still, numbers=still.numbers[order], positions=still.positions[order])
    )
    wanted = replace(one, charges=one.charges[order], energies=one.energies[order], forces=one.forces[order])
    same(got, wanted, 1e-9)


# --- images


@subjects(PERIODIC)
def test_wrapping(subject: Any, request: pytest.FixtureRequest) -> None:
    """Every atom as any of its images: E changes by -Q_u F.T for each charged unit u, and nothing else does.

    A unit is an atom with its q0, or a fragment, which is where its first atom is.
    """
    still, potential = subject.structure, subject.potential()
    integers = np.random.default_rng(6).integers(-2, 3, size=(len(still), 3)) * np.array(still.pbc)
    moved, change = integers @ still.cell, np.zeros(3)
    if "fragments" in subject.kind:
        first = np.flatnonzero(np.diff(subject.held["fragments"], prepend=-1))
        change = subject.held["fragment_charges"] @ moved[first]
    elif subject.kind not in FREE:
        change = subject.reference_charge @ moved
    one, got = potential.compute(still), potential.compute(replace(still, positions=still.positions + moved))
    gain = -change @ still.field if subject.field == "tilted" else 0.0
    charged = has_charged_units(*request.node.callspec.params["subject"])
    assert (abs(gain) > 1e-3) == (subject.field == "tilted" and charged)  # eV: this test can fail
    assert got.energy == pytest.approx(one.energy + gain, abs=1e-10 * max(1.0, abs(one.energy)))
    same(replace(got, energy=one.energy), one, 1e-10, ("charges", "forces", "virial"))
    if one.dipole is not None:
        np.testing.assert_allclose(got.dipole, one.dipole + change, atol=1e-10 * max(1.0, np.abs(change).max()))


@subjects([case for case in PERIODIC if case[4] == 0.0])
def test_supercell(subject: Any) -> None:
    """Energy, forces, virial and polarization are those of each cell, in fields along periodic axes too."""
    cell, held = subject.structure, subject.held
    repeats = (2, 1, 2) if subject.boundary != "slab" else (2, 2, 1)
    offsets = np.array(list(np.ndindex(*repeats))) @ cell.cell
    many = len(offsets)
    if "fragments" in held:
        held["fragments"] = np.concatenate([held["fragments"] + 4 * k for k in range(many)])
        held["fragment_charges"] = np.tile(held["fragment_charges"], many)
    large = replace(
        cell,
        numbers=np.tile(cell.numbers, many),
        positions=np.concatenate([cell.positions + offset for offset in offsets]),
        cell=np.diag(repeats) @ cell.cell,
    )
    one, got = subject.potential().compute(cell), Potential(subject.model, 1e-9, 1e-12, **held).compute(large)
    wanted = replace(
        one, energy=many * one.energy, charges=np.tile(one.charges, many), energies=np.tile(one.energies, many),
        forces=np.tile(one.forces, (many, 1)), virial=None if one.virial is None else many * one.virial,
        dipole=None if one.dipole is None else many * one.dipole,  # what q0 F.offset adds is zero for neutral cells
    )  # fmt: skip
    # atoms with charges have their own energies -q F.R, which add up to nothing
    own = subject.field == "tilted" and subject.kind != "split"
    # two Ewald sums of different splitting, each good to 1e-9 eV/A
    same(got, wanted, 1e-8, tuple(name for name in EVERYTHING if name != "energies" or not own))


# --- refusals


@subjects([case for case in CASES if not has_energy(*case)])
def test_no_field_along_periodic_axes_where_charge_is_free(subject: Any) -> None:
    with pytest.raises(FieldError, match="`field` must be zero along periodic axes, got") as caught:
        subject.potential().compute(subject.structure)
    message = str(caught.value)
    assert "\n" not in message
    for way_out in ("open boundary", 'charges="fragments"', 'charges="split"'):
        assert way_out in message


@subjects([case for case in DEFINED if not has_virial(*case)])
def test_virial_that_is_wanted_and_undefined(subject: Any) -> None:
    potential = subject.potential()
    with pytest.raises(FieldError, match="`virial` is not defined for charged fragments") as caught:
        potential.compute(subject.structure, want=("virial",))
    assert "\n" not in str(caught.value)
    assert potential.compute(subject.structure, want=("forces",)).forces is not None  # the rest is defined


@pytest.mark.parametrize("kind", ["cluster", "fragments", "split"])
def test_the_virial_before_it_is_symmetrised_feels_turns(kind: str, model: Model, helpers: Any) -> None:
    """-dE/d(eps_ab) of each component by itself, as triangular cells strain: a field turns with nothing."""
    options: dict[str, Any] = {}
    if kind == "cluster":
        structure = helpers.cluster(charge=1.0, field=(0.02, -0.01, 0.05))
    else:
        structure = helpers.salt_box(2, field=(0.1, 0.2, 0.3))
        options = {"charges": kind, "fragments": "connectivity"}
    if kind == "split":
        model = helpers.split_model(model, learned=0.2)
    potential, step = Potential(model, accuracy=1e-9, tolerance=1e-12, **options), 1e-3
    result = potential.compute(structure)
    found = np.empty((3, 3))
    for a, b in np.ndindex(3, 3):

        def energy(strain: float, a: int = a, b: int = b) -> float:
            deform = np.eye(3)
            deform[a, b] += strain
            return potential.compute(
                replace(structure, positions=structure.positions @ deform.T, cell=structure.cell @ deform.T)
            ).energy

        found[a, b] = (8 * (energy(-step) - energy(step)) - (energy(-2 * step) - energy(2 * step))) / (12 * step)
    # differences of eighth digits of some eV over the step
    np.testing.assert_allclose(result.unsymmetrized_virial, found, atol=2e-6)
    assert np.abs(found - found.T).max() > 0.01
    np.testing.assert_allclose(result.virial, (found + found.T) / 2, atol=2e-6)
    torque = np.outer(structure.field, result.dipole) - np.outer(result.dipole, structure.field)
    np.testing.assert_allclose(result.unsymmetrized_virial - result.virial, torque / 2, atol=1e-9)
