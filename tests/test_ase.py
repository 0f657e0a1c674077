"""The ASE calculator."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress

from kqeq_md.ase import KQEq, structure_from_atoms
from kqeq_md.errors import FieldError, KqeqError, ModelError, StructureError
from kqeq_md.model import Model
from kqeq_md.potential import Potential
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
    with pytest.raises(PropertyNotImplementedError, match="`dipole` is not defined for periodic atoms"):
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
    with pytest.raises(PropertyNotImplementedError, match="`dipole` is not defined for periodic atoms"):
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
