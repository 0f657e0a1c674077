"""Invariances and derivatives of the whole potential: they hold for any model, so for one with random weights."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from math import erf
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kqeq_md.electrostatics import coulomb
from kqeq_md.errors import ChargeError, FieldError, KqeqError, StructureError
from kqeq_md.model import Model
from kqeq_md.potential import Potential
from kqeq_md.short_range import screened_nuclear_repulsion
from kqeq_md.structure import Result, Structure
from kqeq_md.units import COULOMB_CONSTANT

FIELD = (0.03, -0.05, 0.08)
TRICLINIC = np.array([[0.0, 0.12, 0.05], [0.0, 0.02, -0.1], [0.0, 0.0, 0.06]])
ORTHORHOMBIC = np.diag([0.05, -0.04, 0.1])

IN_PLANE = np.array([[0.0, 0.12, 0.0], [0.0, 0.02, 0.0], [0.0, 0.0, 0.06]])
TALL = 0.08  # V/Angstrom, along the normal of a slab

SYSTEMS = {
    "open": ("open", 0.0, None),
    "open, charged": ("open", 1.0, None),
    "open, field": ("open", 0.0, FIELD),
    "open, charged, field": ("open", 1.0, FIELD),
    "slab": ("slab", 0.0, None),
    "slab, charged": ("slab", 1.0, None),
    "slab, field": ("slab", 0.0, (0, 0, TALL)),
    "slab, charged, field": ("slab", 1.0, (0, 0, TALL)),
    "orthorhombic": ("orthorhombic", 0.0, None),
    "orthorhombic, charged": ("orthorhombic", 1.0, None),
    "triclinic": ("triclinic", 0.0, None),
    "triclinic, charged": ("triclinic", 1.0, None),
}


@pytest.fixture(scope="module")
def potential(strong: Model) -> Potential:
    return Potential(strong, accuracy=1e-9, tolerance=1e-12)


EXACT = {"accuracy": 1e-11, "tolerance": 1e-12}
"""For finite differences: energies whose truncation error a division by the step leaves small."""


def slab(helpers: Any, **kwargs: Any) -> Structure:
    """Eight rattled atoms, periodic along two oblique vectors of the xy plane."""
    solid = helpers.rock_salt(rattle=0.3, strain=IN_PLANE)
    cell = solid.cell * np.array([[1.0], [1.0], [0.0]])
    return Structure(solid.numbers, solid.positions, cell=cell, pbc=(True, True, False), **kwargs)


@pytest.fixture(params=SYSTEMS.values(), ids=SYSTEMS.keys())
def structure(request: pytest.FixtureRequest, helpers: Any) -> Structure:
    """Eight rattled atoms: every boundary, with and without charge, and with a field where one is allowed."""
    boundary, charge, field = request.param
    inside = {"charge": charge, **({} if field is None else {"field": field})}
    if boundary == "open":
        return helpers.cluster(**inside)
    if boundary == "slab":
        return slab(helpers, **inside)
    strain = ORTHORHOMBIC if boundary == "orthorhombic" else TRICLINIC
    return helpers.rock_salt(rattle=0.3, strain=strain, **inside)


HELD = {"charges": "fragments", "fragments": [[0, 1, 5], [7, 2]], "fragment_charges": [0.4, -0.3]}
"""Two fragments of both elements and a rest."""


@pytest.fixture(params=[{}, HELD], ids=["total", "fragments"])
def held(request: pytest.FixtureRequest) -> dict[str, Any]:
    """How charge flows: under the total charge alone, or inside of fragments."""
    return request.param


@pytest.fixture
def used(strong: Model, held: dict[str, Any]) -> Potential:
    return Potential(strong, accuracy=1e-9, tolerance=1e-12, **held)


@pytest.fixture
def result(used: Potential, structure: Structure) -> Result:
    return used.compute(structure)


def strained(structure: Structure, deform: np.ndarray) -> Structure:
    """Positions and cell times `deform`; the field of a slab turns with its normal, for only there it has a meaning."""
    cell = structure.cell @ deform
    field = structure.field
    if structure.boundary == "slab":
        cell[structure.open_axis] = 0.0  # perpendicular to the plane, wherever that turns
        empty = Structure([1], [[0, 0, 0]], cell=cell, pbc=structure.pbc)
        field = (structure.field @ structure.normal) * empty.normal
    return Structure(
        structure.numbers, structure.positions @ deform, cell=cell, pbc=structure.pbc, charge=structure.charge,
        field=field,
    )  # fmt: skip


def same(got: Result, wanted: Result, relative: float, names: tuple[str, ...]) -> None:
    assert got.energy == pytest.approx(wanted.energy, rel=relative)
    for name in names:
        expected = getattr(wanted, name)
        np.testing.assert_allclose(
            getattr(got, name), expected, atol=relative * np.abs(expected).max(), rtol=0, err_msg=name
        )


# --- derivatives. Steps of 5e-4 A (strain 1e-4): short, since the third derivative jumps where a switch begins or ends.
# Rounding of 100 eV leaves 1e-9, the descriptor's interpolation 1e-10 / 5e-4, the Coulomb sum 1e-9 eV/A


def test_forces(strong: Model, structure: Structure, held: dict[str, Any], result: Result, helpers: Any) -> None:
    exact = Potential(strong, **EXACT, **held)

    def energy(r: np.ndarray) -> float:
        return exact.compute(helpers.moved(structure, r), want=()).energy

    wanted = -helpers.five_point(energy, structure.positions, 5e-4)
    assert np.abs(wanted).max() > 0.5  # eV/A: large enough for a relative error to mean something
    np.testing.assert_allclose(result.forces, wanted, rtol=0, atol=1e-7 * np.abs(wanted).max())


def test_virial(strong: Model, structure: Structure, held: dict[str, Any], result: Result, helpers: Any) -> None:
    exact = Potential(strong, **EXACT, **held)

    def energy(strain: np.ndarray) -> float:
        symmetric = np.eye(3) + 0.5 * (strain + strain.T)
        return exact.compute(strained(structure, symmetric), want=()).energy

    wanted = -helpers.five_point(energy, np.zeros((3, 3)), 1e-4)
    assert np.abs(wanted).max() > 0.05  # eV
    np.testing.assert_allclose(result.virial, wanted, rtol=0, atol=1e-7 * np.abs(wanted).max())


LARGE = {
    "open, direct": ((4, False), 0.0),
    "open, mesh": ((4, False), np.inf),
    "slab": ((3, (True, True, False)), np.inf),
    "periodic": ((3, True), np.inf),
}


@pytest.mark.parametrize("kind", LARGE)
@pytest.mark.parametrize("charge", [0.0, 1.0])
@pytest.mark.parametrize("constrained", [False, True], ids=["total", "fragments"])
def test_forces_and_virial_of_many_atoms(
    strong: Model, kind: str, charge: float, constrained: bool, helpers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Along a random direction of all positions, one coordinate and one strain: mesh, sorting and iteration at work."""
    (cells, pbc), per_pair = LARGE[kind]
    monkeypatch.setattr(coulomb, "PER_DIRECT_PAIR", per_pair)
    rng = np.random.default_rng(7)
    solid = helpers.rock_salt(cells, rattle=0.25, charge=charge)
    cell = solid.cell * (np.arange(3)[:, None] < (2 if kind == "slab" else 3))
    along = (0, 0, TALL) if kind == "slab" else FIELD if kind.startswith("open") else (0, 0, 0)
    still = Structure(solid.numbers, solid.positions, cell=cell, pbc=pbc, charge=charge, field=along)
    n = len(still)
    pieces = [rng.permutation(n)[: n // 3], []]
    pieces[1] = np.setdiff1d(np.arange(n), pieces[0])[:20]
    held = {"charges": "fragments", "fragments": pieces, "fragment_charges": [1.0, -0.5]} if constrained else {}
    exact = Potential(strong, **EXACT, **held)
    got = Potential(strong, accuracy=1e-9, tolerance=1e-12, **held).compute(still)
    for rows, total in zip(pieces, (1.0, -0.5), strict=True):
        held = got.charges[rows].sum() == pytest.approx(total, abs=1e-10)  # rounding of some hundred charges
        assert held == constrained

    direction, shear = rng.normal(size=(n, 3)), rng.normal(size=(3, 3))
    direction /= np.linalg.norm(direction)
    shear += shear.T
    single = np.zeros((n, 3))
    single[n // 2, 1] = 1.0

    def slope(move: Callable[[float], Structure], step: float) -> float:
        def energy(x: np.ndarray) -> float:
            return exact.compute(move(float(x[0])), want=()).energy

        return float(helpers.five_point(energy, np.zeros(1), step)[0])

    # energies of 1e3 to 4e3 eV round to 5e-13: 3e-9 eV/A for steps of 5e-4 A; forces are 1 to 5 eV/A, virials 10 eV
    for vector in (direction, single):
        wanted = -slope(lambda x, v=vector: helpers.moved(still, still.positions + x * v), 5e-4)
        assert (got.forces * vector).sum() == pytest.approx(wanted, abs=1e-7 * np.abs(got.forces).max())
    wanted = -slope(lambda x: strained(still, np.eye(3) + x * shear), 1e-4)
    assert (got.virial * shear).sum() == pytest.approx(wanted, abs=1e-7 * np.abs(got.virial).max())


@pytest.mark.parametrize("muted", ["electronegativity", "short-range energy", "repulsion"])
def test_every_term_matters(strong: Model, potential: Potential, muted: str, helpers: Any) -> None:
    """The finite differences above would not see a term that contributes nothing."""
    columns = np.array([muted != "electronegativity", muted != "short-range energy"])
    radius = strong.repulsion_radius * (muted != "repulsion")
    model = strong.with_weights([w * columns for w in strong.terms[0].weights])
    model = replace(model, repulsion_radius=radius)
    still = helpers.rock_salt(rattle=0.3)
    assert np.abs(Potential(model).compute(still).forces - potential.compute(still).forces).max() > 0.05  # eV/A


@pytest.mark.parametrize("numbers", [(11, 11), (11, 17), (17, 17)])
def test_repulsion_acts_between_the_right_nuclei(strong: Model, potential: Potential, numbers: tuple[int, int]) -> None:
    r = np.array([1.3])  # inside of half the sum of the radii, 1.5 A at least: the switch is 1
    pair = Structure(numbers, [[0, 0, 0], [0, 0, r[0]]])
    without = Potential(replace(strong, repulsion_radius=np.zeros(2)))
    wanted, _ = screened_nuclear_repulsion(r, np.array([numbers[0]]), np.array([numbers[1]]))
    gained = potential.compute(pair).energy - without.compute(pair).energy
    assert gained == pytest.approx(wanted[0], rel=1e-10)  # a difference of energies of 100 eV


# --- symmetries, to rounding: sums of some thousand terms, and Ewald's sums of terms of 50 eV


def test_rotation(used: Potential, structure: Structure, result: Result, helpers: Any) -> None:
    rotation = helpers.random_rotation(3)
    turned = used.compute(
        Structure(
            structure.numbers,
            structure.positions @ rotation,
            cell=structure.cell @ rotation,
            pbc=structure.pbc,
            charge=structure.charge,
            field=structure.field @ rotation,
        )
    )
    wanted = Result(
        result.energy,
        result.charges,
        result.energies,
        result.forces @ rotation,
        rotation.T @ result.virial @ rotation,
        None if result.dipole is None else result.dipole @ rotation,
    )
    names = ("charges", "energies", "forces", "virial") + (("dipole",) if result.dipole is not None else ())
    same(turned, wanted, 1e-9, names)


def test_translation(used: Potential, structure: Structure, result: Result, helpers: Any) -> None:
    """A charged system in a field gains -Q F.t; nothing else changes."""
    t = np.array([3.3, -7.1, 12.4])
    shifted = used.compute(helpers.moved(structure, structure.positions + t))
    gain = -structure.charge * (structure.field @ t)
    assert shifted.energy == pytest.approx(result.energy + gain, abs=1e-9)
    np.testing.assert_allclose(shifted.charges, result.charges, atol=1e-11)
    np.testing.assert_allclose(shifted.forces, result.forces, atol=1e-9)
    if result.dipole is not None:
        np.testing.assert_allclose(shifted.dipole, result.dipole + structure.charge * t, atol=1e-10)


def test_permutation(strong: Model, structure: Structure, held: dict[str, Any], result: Result) -> None:
    order = np.random.default_rng(5).permutation(len(structure))
    if held:
        place = np.argsort(order)
        held = {**held, "fragments": [place[rows] for rows in held["fragments"]]}
    mixed = Potential(strong, accuracy=1e-9, tolerance=1e-12, **held).compute(
        Structure(
            structure.numbers[order],
            structure.positions[order],
            cell=structure.cell,
            pbc=structure.pbc,
            charge=structure.charge,
            field=structure.field,
        )
    )
    wanted = Result(
        result.energy, result.charges[order], result.energies[order], result.forces[order], result.virial, result.dipole
    )
    same(mixed, wanted, 1e-10, ("charges", "energies", "forces", "virial"))


def test_sums(structure: Structure, held: dict[str, Any], result: Result) -> None:
    """sum q = Q, sum F = Q times the field, the atoms' energies add up; all to rounding of eight numbers."""
    assert result.charges.sum() == pytest.approx(structure.charge, abs=1e-12)
    if held:
        fragments = [result.charges[rows].sum() for rows in held["fragments"]]
        np.testing.assert_allclose(fragments, held["fragment_charges"], atol=1e-12)
    np.testing.assert_allclose(result.forces.sum(axis=0), structure.charge * structure.field, atol=1e-9)
    assert result.energies.sum() == pytest.approx(result.energy, rel=1e-13)
    np.testing.assert_array_equal(result.virial, result.virial.T)
    if structure.boundary != "open":
        assert result.dipole is None or held
    else:
        np.testing.assert_allclose(result.dipole, result.charges @ structure.positions, rtol=1e-12)


def test_charges_are_the_derivative_in_the_field(potential: Potential, helpers: Any) -> None:
    """dE/dF = -mu at equilibrium: stationarity, from outside."""
    still = helpers.cluster(charge=1.0, field=FIELD)

    def energy(field: np.ndarray) -> float:
        return potential.compute(Structure(still.numbers, still.positions, charge=1.0, field=field), want=()).energy

    mu = potential.compute(still).dipole
    np.testing.assert_allclose(mu, -helpers.five_point(energy, still.field, 1e-2), rtol=1e-9)  # quadratic: rounding


# --- periodic cells


@pytest.mark.parametrize("repeats", [(2, 1, 1), (2, 2, 2)])
def test_supercell(potential: Potential, repeats: tuple[int, int, int], helpers: Any) -> None:
    cell = helpers.rock_salt(rattle=0.3, strain=TRICLINIC)
    offsets = np.array(list(np.ndindex(*repeats))) @ cell.cell
    many = len(offsets)
    large = Structure(
        np.tile(cell.numbers, many),
        np.concatenate([cell.positions + offset for offset in offsets]),
        cell=np.diag(repeats) @ cell.cell,
        pbc=True,
    )
    one = potential.compute(cell)
    wanted = Result(
        many * one.energy,
        np.tile(one.charges, many),
        np.tile(one.energies, many),
        np.tile(one.forces, (many, 1)),
        many * one.virial,
    )
    # two Ewald sums of different splitting, each good to 1e-9 eV/A
    same(potential.compute(large), wanted, 1e-8, ("charges", "energies", "forces", "virial"))


@pytest.mark.parametrize("charge", [0.0, 1.0])
def test_wrapping_does_not_matter(potential: Potential, charge: float, helpers: Any) -> None:
    """Each atom as any of its images, some a hundred cells away: coordinates of 600 A round to 1e-13."""
    cell = helpers.rock_salt(rattle=0.3, strain=TRICLINIC, charge=charge)
    integers = np.random.default_rng(6).integers(-2, 3, size=(8, 3))
    integers[0] = (100, -50, 30)
    scattered = potential.compute(helpers.moved(cell, cell.positions + integers @ cell.cell))
    same(scattered, potential.compute(cell), 1e-10, ("charges", "energies", "forces", "virial"))


# --- slabs


@pytest.mark.parametrize("field", [0.0, TALL])
@pytest.mark.parametrize("charge", [0.0, 1.0])
def test_open_vector_of_a_slab_has_no_meaning(potential: Potential, charge: float, field: float, helpers: Any) -> None:
    """Neither its length nor its sign, nor how high the slab lies in it, far beyond it included."""
    still = slab(helpers, charge=charge, field=(0, 0, field))
    wanted = potential.compute(still)
    for length in (-3.0, 0.5, 6.0, 1e4):
        cell = still.cell.copy()
        cell[2] = (0, 0, length)
        got = potential.compute(helpers.moved(still, still.positions, cell))
        same(got, wanted, 1e-11, ("charges", "energies", "forces", "virial"))  # the same terms, but for a sign of n
    lifted = potential.compute(helpers.moved(still, still.positions + np.array([0, 0, 1e4])))
    # coordinates of 1e4 A round to 1e-12; terms that height multiplies, as Q F z, to 1e-12 of 800 eV
    assert lifted.energy == pytest.approx(wanted.energy - charge * field * 1e4, abs=1e-8)
    np.testing.assert_allclose(lifted.forces, wanted.forces, atol=1e-8)
    np.testing.assert_allclose(lifted.charges, wanted.charges, atol=1e-9)


@pytest.mark.parametrize("axis", [0, 1])
def test_any_axis_may_be_open(potential: Potential, axis: int, helpers: Any) -> None:
    still = slab(helpers, charge=1.0, field=(0, 0, TALL))
    order = np.roll(np.arange(3), axis + 1)  # z becomes `axis`
    rotated = Structure(
        still.numbers,
        still.positions[:, order],
        cell=still.cell[order][:, order],
        pbc=tuple(np.array(still.pbc)[order]),
        charge=1.0,
        field=still.field[order],
    )
    assert rotated.open_axis == axis
    one = potential.compute(still)
    wanted = Result(
        one.energy, one.charges, one.energies, one.forces[:, order], one.virial[order][:, order]
    )  # fmt: skip
    same(potential.compute(rotated), wanted, 1e-10, ("charges", "energies", "forces", "virial"))  # rounding


@pytest.mark.parametrize("repeats", [(2, 1), (3, 2)])
@pytest.mark.parametrize("field", [0.0, TALL])
def test_supercell_of_a_slab(potential: Potential, repeats: tuple[int, int], field: float, helpers: Any) -> None:
    """In the plane; with its charge, which needs no background."""
    cell = slab(helpers, charge=0.5, field=(0, 0, field))
    offsets = np.array([(i, j, 0) for i, j in np.ndindex(*repeats)]) @ cell.cell
    many = len(offsets)
    large = Structure(
        np.tile(cell.numbers, many),
        np.concatenate([cell.positions + offset for offset in offsets]),
        cell=np.diag([*repeats, 1]) @ cell.cell,
        pbc=cell.pbc,
        charge=0.5 * many,
        field=cell.field,
    )
    one = potential.compute(cell)
    wanted = Result(
        many * one.energy, np.tile(one.charges, many), np.tile(one.energies, many), np.tile(one.forces, (many, 1)),
        many * one.virial,
    )  # fmt: skip
    # two sums of different splitting and vacuum, each good to 1e-9 eV/A
    same(potential.compute(large), wanted, 1e-8, ("charges", "energies", "forces", "virial"))


@pytest.mark.parametrize("field", [0.0, TALL])
def test_wrapping_of_a_slab_does_not_matter(potential: Potential, field: float, helpers: Any) -> None:
    cell = slab(helpers, charge=1.0, field=(0, 0, field))
    integers = np.random.default_rng(6).integers(-2, 3, size=(8, 3))
    integers[0] = (100, -50, 0)
    integers[:, 2] = 0
    scattered = potential.compute(helpers.moved(cell, cell.positions + integers @ cell.cell))
    # coordinates of 600 A round to 1e-13
    same(scattered, potential.compute(cell), 1e-10, ("charges", "energies", "forces", "virial"))


def test_slab_far_from_another_feels_its_field_alone(strong: Model, potential: Potential, helpers: Any) -> None:
    """Two neutral slabs as fragments of one, 100 A apart: each has the charges it has alone."""
    here = slab(helpers)
    both = Structure(
        np.tile(here.numbers, 2),
        np.concatenate([here.positions, here.positions + np.array([0, 0, 100.0])]),
        cell=here.cell,
        pbc=here.pbc,
    )
    one = potential.compute(here)
    apart = Potential(strong, 1e-9, 1e-12, charges="fragments", fragments=np.arange(16) // 8)
    got = apart.compute(both)
    # a neutral slab has no field outside but exp(-G d), G = 1 / A and d = 90 A: what is left is the sum's 1e-9
    np.testing.assert_allclose(got.charges, np.tile(one.charges, 2), atol=1e-8)
    np.testing.assert_allclose(got.forces, np.tile(one.forces, (2, 1)), atol=1e-7)


SMALL = {
    "one atom": ([11], [[0.1, 0.2, 0.3]], np.array([[3.1, 0, 0], [0.4, 3.3, 0], [-0.3, 0.5, 2.9]])),
    "two atoms": ([11, 17], [[0, 0, 0], [1.5, 1.6, 1.3]], np.array([[3.3, 0, 0], [0.4, 3.4, 0], [0, 0.6, 3.2]])),
    "primitive rock salt": ([11, 17], [[0, 0, 0], [2.8, 0.1, 0]], 2.85 * (np.ones((3, 3)) - np.eye(3))),
}


@pytest.mark.parametrize("name", SMALL)
def test_cells_smaller_than_the_cutoff(potential: Potential, name: str, helpers: Any) -> None:
    numbers, positions, cell = SMALL[name]
    small = Structure(numbers, positions, cell=cell, pbc=True)
    assert np.linalg.norm(cell, axis=1).max() < potential.model.cutoff
    large = Structure(
        np.tile(numbers, 27),
        np.concatenate([small.positions + np.array(n) @ cell for n in np.ndindex(3, 3, 3)]),
        cell=3 * cell,
        pbc=True,
    )
    one = potential.compute(small)
    wanted = Result(27 * one.energy, np.tile(one.charges, 27), virial=27 * one.virial)
    same(potential.compute(large), wanted, 1e-8, ("virial",))  # as test_supercell
    np.testing.assert_allclose(np.tile(one.charges, 27), potential.compute(large).charges, atol=1e-9)
    # absolute: forces vanish by symmetry for one atom
    np.testing.assert_allclose(one.forces, potential.compute(large).forces[: len(numbers)], atol=1e-8)


def test_charged_cell_is_warned_of_once(strong: Model, caplog: pytest.LogCaptureFixture, helpers: Any) -> None:
    potential = Potential(strong)
    with caplog.at_level(logging.WARNING, logger="kqeq_md"):
        potential.compute(helpers.rock_salt())
        potential.compute(helpers.cluster(charge=1.0))
        assert not caplog.records
        for _ in range(2):
            potential.compute(helpers.rock_salt(charge=1.0))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "total charge 1 e" in caplog.text
    assert "background" in caplog.text


def test_field_in_a_periodic_cell_is_refused(potential: Potential, helpers: Any) -> None:
    with pytest.raises(FieldError, match="`field` must be zero along periodic axes") as caught:
        potential.compute(helpers.rock_salt(field=FIELD))
    message = str(caught.value)
    assert "\n" not in message
    for way_out in ("open boundary", "charge conserved per fragment", "split charges"):
        assert way_out in message


# --- cutoffs


@pytest.mark.parametrize("cutoff", ["descriptor", "repulsion"])
def test_energy_and_forces_are_smooth_across_a_cutoff(potential: Potential, cutoff: str) -> None:
    """Second differences of energy and force across the cutoff stay as small as beside it."""
    edge = 4.5 if cutoff == "descriptor" else 3.2
    gap = 1e-4

    def at(r: float) -> tuple[float, float]:
        got = potential.compute(Structure([11, 17, 11], [[0, 0, 0], [0, 0, r], [1.0, 3.0, 0.5]]))
        return got.energy, float(got.forces[1, 2])

    across, beside = (np.array([at(middle + k * gap) for k in (-1, 0, 1)]) for middle in (edge, edge + 10 * gap))
    jump, usual = (np.abs(line[0] - 2 * line[1] + line[2]) for line in (across, beside))
    # a kink in the energy would show as gap times a force of 1 eV/A, one in the force as gap times 10 eV/A^2
    assert jump[0] < usual[0] + 1e-9
    assert jump[1] < usual[1] + 1e-6


def test_interaction_ends_at_the_cutoff(potential: Potential, model: Model) -> None:
    """Beyond it only charges act: chi and E_short of each atom are those of a lone atom."""
    far = potential.compute(Structure([11, 17], [[0, 0, 0], [0, 0, 4.5 + 1e-9]]))
    near = potential.compute(Structure([11, 17], [[0, 0, 0], [0, 0, 4.5 - 1e-7]]))
    assert far.energy == pytest.approx(near.energy, abs=1e-6)
    assert far.forces is not None
    # Coulomb alone: q1 q2 d(erf(g r)/r)/dr, with g from widths 1.1 and 0.8 A
    g, r = 1 / np.sqrt(2 * (1.1**2 + 0.8**2)), 4.5
    field = COULOMB_CONSTANT * (np.exp(-((g * r) ** 2)) * 2 * g / np.sqrt(np.pi) / r - erf(g * r) / r**2)
    assert far.forces[1, 2] == pytest.approx(-far.charges[0] * far.charges[1] * field, rel=1e-8)  # r + 1e-9
    assert model.cutoff == 4.5


# --- few atoms, far atoms


@pytest.mark.parametrize("charge", [0.0, 1.0, -1.0])
def test_one_atom(potential: Potential, charge: float) -> None:
    got = potential.compute(Structure([17], [[1.0, 2.0, 3.0]], charge=charge, field=FIELD))
    neutral = potential.compute(Structure([17], [[0.0, 0.0, 0.0]]))
    ion = potential.compute(Structure([17], [[0.0, 0.0, 0.0]], charge=charge))
    assert got.charges.tolist() == [charge]
    np.testing.assert_allclose(got.forces, [charge * np.array(FIELD)], atol=1e-14)
    # E = E_0 + chi Q + 1/2 J Q^2 - Q F.R: the even part in Q is J, eta 8 eV and width 0.8 A
    anion = potential.compute(Structure([17], [[0.0, 0.0, 0.0]], charge=-charge))
    hardness = 8.0 + COULOMB_CONSTANT / (np.sqrt(np.pi) * 0.8)
    assert ion.energy + anion.energy - 2 * neutral.energy == pytest.approx(hardness * charge**2, abs=1e-12)
    assert got.energy == pytest.approx(ion.energy - charge * np.dot(FIELD, [1, 2, 3]), abs=1e-12)


def test_two_atoms_pull_along_their_axis(potential: Potential) -> None:
    got = potential.compute(Structure([11, 17], [[0, 0, 0], [1.2, 1.2, 1.2]]))
    assert got.charges[0] == pytest.approx(-got.charges[1], abs=1e-14)
    np.testing.assert_allclose(got.forces[0], -got.forces[1], atol=1e-12)
    np.testing.assert_allclose(got.forces[0], got.forces[0, 0], atol=1e-11)  # along (1, 1, 1), to rounding


def test_fragments_a_thousand_angstrom_apart(potential: Potential, helpers: Any) -> None:
    """Local parts are those of the fragments; the charges see each other as points."""
    here = helpers.cluster(n_pairs=2)
    both = Structure(
        np.tile(here.numbers, 2), np.concatenate([here.positions, here.positions + np.array([0, 0, 1000.0])])
    )
    alone, got = potential.compute(here), potential.compute(both)
    # equal fragments interact as two point dipoles; next: quadrupoles of some e A^2 and the charge of 1e-5 e that their
    # potentials drive through the vacuum
    mu = alone.dipole
    interaction = COULOMB_CONSTANT * (mu @ mu - 3 * mu[2] ** 2) / 1000.0**3
    assert got.energy - 2 * alone.energy == pytest.approx(interaction, abs=2e-9)
    np.testing.assert_allclose(got.charges, np.tile(alone.charges, 2), atol=1e-4)
    np.testing.assert_allclose(got.forces, np.tile(alone.forces, (2, 1)), atol=1e-4)


FAR_APART = """
import resource, sys
import numpy as np
from kqeq_md.neighbours.half_list import find_pairs
from kqeq_md.structure import Structure
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
positions = np.array([[0, 0, 0], [0, 0, 2.5], [1e3, 1e3, 1e3], [-1e3, 2e3, 1e3 + 2.5]])
find_pairs(Structure([11] * 4, [[0, 0, z] for z in range(4)]), 4.5)
before = peak()
assert len(find_pairs(Structure([11] * 4, positions), 4.5).neighbour) == 2
print(peak() - before)
"""


def test_empty_space_costs_no_memory() -> None:
    """The search of neighbours must not fill 3000 A of vacuum with bins: 1e8 of them would be a gigabyte."""
    run = subprocess.run([sys.executable, "-c", FAR_APART], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 100  # MB


# --- what is refused, and what is asked for


def test_unknown_element_is_named(potential: Potential) -> None:
    with pytest.raises(StructureError, match=r"`numbers`: the model knows Na, Cl, got Z = 200 \(atom 1\)"):
        potential.compute(Structure([11, 200], [[0, 0, 0], [0, 0, 3]]))


def test_overlapping_atoms_are_refused(potential: Potential) -> None:
    with pytest.raises(StructureError, match="atoms 0 and 1 overlap"):
        potential.compute(Structure([11, 17], [[0, 0, 0], [0, 0, 0.1]]))


def test_only_what_is_wanted(potential: Potential, helpers: Any) -> None:
    got = potential.compute(helpers.cluster(), want=("forces",))
    assert got.forces is not None
    assert (got.energies, got.virial, got.dipole) == (None, None, None)
    with pytest.raises(KqeqError, match=r"`want` must be of energies, .*, got 'stress'"):
        potential.compute(helpers.cluster(), want=("stress",))


def test_same_input_same_output(nacl_model: Path, helpers: Any) -> None:
    first, second = (Potential(nacl_model).compute(helpers.rock_salt()) for _ in range(2))
    np.testing.assert_array_equal(first.forces, second.forces)
    assert first.energy == second.energy


def test_results_that_overflow_are_refused(potential: Potential, helpers: Any) -> None:
    with pytest.raises(ChargeError, match="must be finite"):
        potential.compute(helpers.cluster(charge=1e300))


@pytest.mark.parametrize("name", ["charges", "forces", "virial", "dipole", "energy"])
def test_results_that_are_not_finite_are_refused(
    name: str, nacl_model: Path, helpers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever spoils them, nothing goes on to an engine; atoms are named."""
    right = Potential._result

    def spoilt(*arguments: Any) -> Result:
        result = right(*arguments)
        values = np.array(getattr(result, name))
        values.flat[-1] = np.nan
        return replace(result, **{name: values if values.ndim else float(values)})

    monkeypatch.setattr(Potential, "_result", spoilt)
    where = r" for atoms 7 \(counted from 0\)" if name in ("charges", "forces") else ""
    with pytest.raises(ChargeError, match=f"`{name}` must be finite, got nan{where}: look at the positions"):
        Potential(nacl_model).compute(helpers.cluster())
