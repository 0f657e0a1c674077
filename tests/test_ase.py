"""The ASE calculator."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.md.verlet import VelocityVerlet

from kqeq_md.ase import KQEq, structure_from_atoms
from kqeq_md.errors import ChargeError, FieldError, KqeqError, ModelError, StructureError
from kqeq_md.model import Model
from kqeq_md.models import NACL
from kqeq_md.potential import Potential
from kqeq_md.response import response
from kqeq_md.structure import Structure


def to_atoms(structure: Structure) -> Atoms:
    return Atoms(structure.numbers, structure.positions, cell=structure.cell, pbc=structure.pbc)


@pytest.fixture
def crystal(helpers: Any) -> Atoms:
    """A triclinic cell of eight atoms."""
    return to_atoms(helpers.rock_salt(rattle=0.25, strain=np.array([[0, 0.1, 0.05], [0, 0, -0.1], [0, 0, 0.04]])))


@pytest.fixture
def molecule(helpers: Any) -> Atoms:
    return to_atoms(helpers.cluster())


@pytest.mark.parametrize("charge", [0, 1])
def test_same_as_the_core(strong: Model, molecule: Atoms, charge: int) -> None:
    field = (0.01, -0.02, 0.03)
    molecule.calc = KQEq(strong, charge=charge, field=field)
    wanted = Potential(strong).compute(Structure(molecule.numbers, molecule.positions, charge=charge, field=field))
    assert wanted.forces is not None
    assert molecule.get_potential_energy() == wanted.energy
    assert molecule.get_potential_energy(force_consistent=True) == wanted.energy
    for got, expected in (
        (molecule.get_forces(), wanted.forces),
        (molecule.get_charges(), wanted.charges),
        (molecule.get_dipole_moment(), wanted.dipole),
        (molecule.get_potential_energies(), wanted.energies),
    ):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("charge", [0, -1])
def test_forces_and_stress_by_ases_own_differences(strong: Model, crystal: Atoms, charge: int) -> None:
    crystal.calc = KQEq(strong, charge=charge, accuracy=1e-9, tolerance=1e-12)
    # central differences of ASE: eps^2 f''' / 6, f''' up to 100 times the force for Gaussians of 0.5 A
    forces, stress = crystal.get_forces(), crystal.get_stress()
    numerical = calculate_numerical_forces(crystal, eps=1e-4, iatoms=[0, 5])
    np.testing.assert_allclose(forces[[0, 5]], numerical, atol=1e-6 * np.abs(forces).max())
    np.testing.assert_allclose(stress, calculate_numerical_stress(crystal, eps=1e-5), atol=1e-6 * np.abs(stress).max())


def test_from_a_file(nacl_model: Path, model: Model, molecule: Atoms) -> None:
    energies = []
    for source in (nacl_model, str(nacl_model), model):
        molecule.calc = KQEq(source)
        energies.append(molecule.get_potential_energy())
    assert energies[0] == energies[1] == energies[2]


def test_recalculates_when_atoms_move(strong: Model, molecule: Atoms, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    compute = Potential.compute
    monkeypatch.setattr(Potential, "compute", lambda *args, **kwargs: calls.append(1) or compute(*args, **kwargs))
    molecule.calc = KQEq(strong)
    first = molecule.get_potential_energy()
    molecule.get_forces()
    assert len(calls) == 1
    molecule.positions[0, 0] += 0.1
    assert molecule.get_potential_energy() != first
    molecule.positions[0, 0] -= 0.1
    assert molecule.get_potential_energy() == pytest.approx(first, abs=1e-12)  # coordinates came back to rounding
    assert len(calls) == 3


@pytest.mark.parametrize(("name", "value"), [("charge", 1), ("field", (0.0, 0.0, 0.1))])
def test_new_charge_or_field_counts(strong: Model, molecule: Atoms, name: str, value: Any) -> None:
    molecule.calc = KQEq(strong)
    molecule.get_potential_energy()
    setattr(molecule.calc, name, value)
    molecule.positions[0, 0] += 1e-13  # a moved atom, lest results be those of the old setting
    wanted = KQEq(strong, **{name: value}).get_potential_energy(molecule)
    assert molecule.get_potential_energy() == pytest.approx(wanted, abs=1e-10)  # 1e-13 A times forces


def test_charge_comes_from_the_argument_alone(strong: Model, molecule: Atoms) -> None:
    molecule.info.update(charge=1, total_charge=1)
    molecule.set_initial_charges(np.full(len(molecule), 0.5))
    molecule.calc = KQEq(strong)
    assert molecule.get_charges().sum() == pytest.approx(0.0, abs=1e-12)  # rounding of eight charges
    molecule.calc = KQEq(strong, charge=-1)
    assert molecule.get_charges().sum() == pytest.approx(-1.0, abs=1e-12)


def test_dipole_of_periodic_atoms_is_refused(strong: Model, crystal: Atoms) -> None:
    crystal.calc = KQEq(strong)
    with pytest.raises(PropertyNotImplementedError, match="`dipole` is not defined where charge flows freely"):
        crystal.get_dipole_moment()
    assert np.isfinite(crystal.get_potential_energy())


def test_stress_of_open_atoms_is_refused(strong: Model, molecule: Atoms) -> None:
    molecule.calc = KQEq(strong)
    with pytest.raises(PropertyNotImplementedError, match="`stress` needs a periodic cell$"):
        molecule.get_stress()
    with pytest.raises(PropertyNotImplementedError):
        molecule.get_magnetic_moment()


def test_unknown_element_is_named(strong: Model, molecule: Atoms) -> None:
    molecule.numbers[2] = 19
    molecule.calc = KQEq(strong)
    with pytest.raises(StructureError, match=r"the model knows Na, Cl, got K \(atom 2\)"):
        molecule.get_potential_energy()


@pytest.mark.parametrize("field", [None, (0, 0, 0.05)])
def test_slab_is_that_of_the_core(strong: Model, helpers: Any, field: Any) -> None:
    solid = helpers.rock_salt(rattle=0.25)
    slab = Atoms(solid.numbers, solid.positions, cell=[5.7, 5.7, 20.0], pbc=(True, True, False))
    slab.calc = KQEq(strong, charge=1, field=field, tolerance=1e-10)
    structure = structure_from_atoms(slab, charge=1, field=(0, 0, 0) if field is None else field)
    wanted = Potential(strong, tolerance=1e-10).compute(structure)
    assert slab.get_potential_energy() == wanted.energy
    np.testing.assert_array_equal(slab.get_forces(), wanted.forces)
    assert wanted.virial is not None
    np.testing.assert_allclose(slab.get_stress(voigt=False), -wanted.virial / (5.7**2 * 20.0), rtol=1e-14)
    with pytest.raises(PropertyNotImplementedError, match="`dipole` is not defined where charge flows freely"):
        slab.get_dipole_moment()


def test_wire_is_refused(strong: Model, crystal: Atoms) -> None:
    crystal.pbc = (True, False, False)
    crystal.calc = KQEq(strong)
    with pytest.raises(StructureError, match="`pbc` must be True for all axes, for two .slab. or for none.*wires"):
        crystal.get_potential_energy()


def test_slab_with_a_slanted_open_vector_is_refused(strong: Model, crystal: Atoms) -> None:
    crystal.pbc = (True, False, True)
    crystal.calc = KQEq(strong)
    with pytest.raises(StructureError, match="`cell` vector 1 must be perpendicular to the periodic ones"):
        crystal.get_potential_energy()


def test_field_in_a_periodic_cell_is_refused(strong: Model, crystal: Atoms) -> None:
    crystal.calc = KQEq(strong, field=(0, 0, 0.05))
    with pytest.raises(FieldError, match="`field` must be zero along periodic axes"):
        crystal.get_potential_energy()


def test_absent_model() -> None:
    with pytest.raises(ModelError, match="does not exist"):
        KQEq("no-such-file.kqeq")


def test_structure_keeps_boundary_and_cell(crystal: Atoms, molecule: Atoms) -> None:
    periodic, isolated = structure_from_atoms(crystal, charge=2.0), structure_from_atoms(molecule, field=[0, 0, 1.0])
    np.testing.assert_array_equal(periodic.cell, crystal.cell.array)
    assert (periodic.periodic, isolated.periodic) == (True, False)
    assert (periodic.charge, isolated.charge) == (2.0, 0.0)
    assert isolated.field.tolist() == [0.0, 0.0, 1.0]


def test_repulsion_stops_a_collapse(strong: Model) -> None:
    """Pushed together, the energy climbs: no hole to fall into."""
    energies = []
    for distance in (1.2, 0.9, 0.6, 0.3):
        atoms = Atoms("NaCl", [[0, 0, 0], [0, 0, distance]], calculator=KQEq(strong))
        energies.append(atoms.get_potential_energy())
    assert (np.diff(energies) > 0).all()


def test_module_does_not_shadow_ase() -> None:
    """kqeq_md/ase.py imports the real ASE, also when it is the first to do so."""
    code = "from kqeq_md.ase import KQEq; import ase; assert 'kqeq_md' not in ase.__file__"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_words_are_refused(strong: Model) -> None:
    with pytest.raises(TypeError, match="chrage"):
        KQEq(strong, chrage=1)  # type: ignore[call-arg]
    with pytest.raises(KqeqError, match="only `charge` and `field` can be set, got `chrage`"):
        KQEq(strong).set(chrage=1)


def test_set_and_copies_of_the_field(strong: Model, molecule: Atoms) -> None:
    """`set` counts like assignment, and nobody else's array can change the field behind the calculator's back."""
    field = np.array([0.0, 0.0, 0.05])
    molecule.calc = KQEq(strong, charge=1, field=field)
    first = molecule.get_potential_energy()
    field[2] = 0.5
    assert molecule.get_potential_energy() == first
    with pytest.raises(ValueError, match="read-only"):
        molecule.calc.field[2] = 0.5
    assert set(molecule.calc.set(charge=0)) == {"charge"}
    assert molecule.calc.charge == 0
    assert molecule.get_potential_energy() != first


@pytest.mark.parametrize("value", [None, "x", 0.0, 1.0, -1e-3])
def test_accuracy_is_a_small_number(strong: Model, value: Any) -> None:
    with pytest.raises(KqeqError, match="`accuracy` must lie between 1e-11 and 0.1, got"):
        KQEq(strong, accuracy=value)


@pytest.mark.parametrize("value", [None, "x", 0.0, 1e-3, -1e-3])
def test_tolerance_is_a_small_number(strong: Model, value: Any) -> None:
    with pytest.raises(KqeqError, match="`tolerance` must lie between 1e-14 and 0.0001, got"):
        KQEq(strong, tolerance=value)


# --- charges that are held


HELD: dict[str, dict[str, Any]] = {
    "fragments": {"charges": "fragments"},
    "numbers": {"charges": "fragments", "fragments": np.arange(24) // 3},
    "split": {"charges": "split", "reference_charges": {"H": 0.4, "O": -0.8}},
    "split, fragments": {"charges": "split", "fragments": "connectivity"},
}


@pytest.mark.parametrize("name", HELD)
def test_held_charges_are_those_of_the_core(name: str, water: Model, helpers: Any) -> None:
    """In a field along periodic axes, with everything that it defines."""
    field, held = (0.02, -0.01, 0.03), HELD[name]
    box = helpers.water_box(2, field=field)
    atoms, potential = to_atoms(box), Potential(water, **held)
    atoms.calc = KQEq(water, field=field, **held)
    wanted, answer = potential.compute(box), response(potential, box)
    assert atoms.get_potential_energy() == wanted.energy
    np.testing.assert_array_equal(atoms.get_charges(), wanted.charges)
    np.testing.assert_array_equal(atoms.get_forces(), wanted.forces)
    np.testing.assert_array_equal(atoms.get_dipole_moment(), wanted.dipole)
    for quantity, expected in (
        ("polarizability", answer.polarizability),
        ("born_effective_charges", answer.born_charges),
        ("dielectric_tensor", answer.dielectric),
    ):
        got = atoms.calc.get_property(quantity, atoms)
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)  # both to the tolerance
        assert np.abs(got).max() > 0.1
    if name == "split":  # q0 != 0
        assert wanted.virial is None
        with pytest.raises(
            PropertyNotImplementedError, match="`stress` is not defined in a field .* for charged fragments"
        ):
            atoms.get_stress()
    else:
        # another solution, from the charges of the first
        np.testing.assert_allclose(atoms.get_stress(voigt=False), -wanted.virial / box.volume, atol=1e-6)


def test_responses_are_derivatives_by_ases_own_means(water: Model, helpers: Any) -> None:
    """Forces in a field are the Born charges times it, the dipole is alpha times it: to first order, from outside."""
    box = helpers.water_box((2, 1, 1))
    settings = {"charges": "split", "accuracy": 1e-8, "tolerance": 1e-11}
    atoms = to_atoms(box)
    atoms.calc = KQEq(water, **settings)
    born = atoms.calc.get_property("born_effective_charges", atoms)
    alpha = atoms.calc.get_property("polarizability", atoms)
    field = np.array([0.01, -0.02, 0.015])
    results = []
    for sign in (1, -1):
        atoms.calc = KQEq(water, field=sign * field, **settings)
        results.append((atoms.get_forces(), atoms.get_dipole_moment()))
    # odd in the field: the next order is the third, and E has none beyond the second
    np.testing.assert_allclose((results[0][0] - results[1][0]) / 2, np.einsum("iab,a->ib", born, field), atol=1e-7)
    np.testing.assert_allclose((results[0][1] - results[1][1]) / 2, alpha @ field, atol=1e-9)


@pytest.mark.parametrize("quantity", ["polarizability", "born_effective_charges", "dielectric_tensor"])
def test_response_that_is_not_defined(quantity: str, strong: Model, crystal: Atoms, molecule: Atoms) -> None:
    crystal.calc = KQEq(strong)
    with pytest.raises(PropertyNotImplementedError):
        crystal.calc.get_property(quantity, crystal)
    assert np.isfinite(crystal.get_potential_energy())
    molecule.calc = KQEq(strong)
    if quantity == "dielectric_tensor":
        with pytest.raises(PropertyNotImplementedError, match="`dielectric_tensor` needs a cell that is periodic"):
            molecule.calc.get_property(quantity, molecule)
    else:
        assert np.isfinite(molecule.calc.get_property(quantity, molecule)).all()


def test_response_follows_the_atoms(water: Model, helpers: Any) -> None:
    atoms = to_atoms(helpers.water_box((2, 1, 1)))
    atoms.calc = KQEq(water, charges="split")
    first = atoms.calc.get_property("polarizability", atoms)
    energy = atoms.get_potential_energy()
    atoms.positions[1] += [0.1, 0.0, 0.0]
    second = atoms.calc.get_property("polarizability", atoms)
    assert np.abs(first - second).max() > 1e-4
    assert atoms.get_potential_energy() != energy


def test_molecule_numbers_of_an_array(water: Model, helpers: Any) -> None:
    """As ASE reads them from LAMMPS data files; atoms may be in any order, and other atoms may come."""
    box = helpers.water_box(2)
    order = np.random.default_rng(0).permutation(24)
    atoms = to_atoms(box)[order]
    atoms.set_array("mol-id", order // 3 + 1)
    atoms.calc = KQEq(water, charges="fragments", fragments="mol-id", tolerance=1e-10)
    sums = np.bincount(order // 3, atoms.get_charges())
    np.testing.assert_allclose(sums, 0.0, atol=1e-12)
    wanted = Potential(water, tolerance=1e-10, charges="fragments").compute(box)
    assert atoms.get_potential_energy() == pytest.approx(wanted.energy, rel=1e-10)
    fewer = atoms[np.argsort(order)[:12]]
    fewer.calc = atoms.calc
    np.testing.assert_allclose(fewer.get_charges().reshape(4, 3).sum(axis=1), 0.0, atol=1e-12)
    bare = to_atoms(box)
    bare.calc = atoms.calc
    with pytest.raises(
        ChargeError, match=r"`fragments` must be .*, or an array of the atoms with whole numbers \(.*\), got 'mol-id'"
    ):
        bare.get_potential_energy()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"charges": "eem"}, "`charges` must be qeq, fragments, split, got 'eem'"),
        ({"fragments": "connectivity"}, '`fragments` need charges="fragments" or charges="split"'),
        ({"fragments": "mol-id"}, '`fragments` need charges="fragments" or charges="split"'),
        ({"charges": "split", "reference_charges": {"K": 1.0}}, "`reference_charges` must name elements of the model"),
    ],
)
def test_settings_are_refused_at_once(settings: dict[str, Any], message: str, water: Model) -> None:
    with pytest.raises(ChargeError, match=message):
        KQEq(water, **settings)


@pytest.mark.slow
def test_energy_is_conserved_in_a_field_along_a_periodic_axis() -> None:
    """NaCl near its melting point, split charges with ions as reference, 0.05 V/A: 3 ps of NVE.

    The drift is that of a line through the energies after half a picosecond, without the field's work on the ions,
    which is E itself: positions are not wrapped.
    """
    salt = bulk("NaCl", "rocksalt", a=5.9, cubic=True).repeat(2)
    salt.calc = KQEq(
        NACL, charges="split", reference_charges={"Na": 1.0, "Cl": -1.0}, field=(0.0, 0.0, 0.05), tolerance=1e-6
    )
    momenta = np.random.default_rng(1).normal(size=(64, 3)) * np.sqrt(1800 * units.kB * salt.get_masses())[:, None]
    salt.set_momenta(momenta - momenta.mean(axis=0))
    dynamics = VelocityVerlet(salt, timestep=0.5 * units.fs)
    times, energies = [], []

    def record() -> None:
        times.append(dynamics.get_time() / (1000 * units.fs))
        energies.append(salt.get_total_energy())

    dynamics.attach(record, interval=5)
    dynamics.run(6000)
    late = np.array(times) > 0.5
    drift = 1000 * np.polyfit(np.array(times)[late], np.array(energies)[late], 1)[0] / len(salt)
    spread = 1000 * np.std(energies) / len(salt)
    figures = f"{drift:.1e} meV/atom/ps, standard deviation {spread:.1e} meV/atom, {salt.get_temperature():.0f} K"
    logging.getLogger(__name__).info("drift %s", figures)
    assert abs(drift) < 1e-3
