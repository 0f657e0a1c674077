"""Forces of OpenMM, run by OpenMM itself."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import pytest
from ase import Atoms
from openmm import app, unit

from kqeq_md.ase import KQEq
from kqeq_md.errors import ChargeError, ConfigError, KqeqError, ModelError, StructureError
from kqeq_md.model import Model
from kqeq_md.models import NACL
from kqeq_md.openmm import FIELD, Computation, add_to
from kqeq_md.potential import Potential
from kqeq_md.structure import Result, Structure
from kqeq_md.units import KJ_PER_MOL

KJ = unit.kilojoule_per_mole
TRICLINIC = np.array([[0.0, 0.0, 0.0], [0.12, 0.02, 0.0], [0.05, -0.1, 0.06]])
"""Lower triangular, as OpenMM wants its boxes."""

TIGHT = {"accuracy": 1e-9, "tolerance": 1e-12}
FIELD_VALUE = (0.02, -0.01, 0.03)
IONS = {"Na": 1.0, "Cl": -1.0}


def build(
    structure: Structure, per_residue: int = 1, box: bool | None = None, masses: Sequence[float] | None = None
) -> tuple[openmm.System, app.Topology]:
    """System and topology; with the box of the structure where it has one, unless told otherwise."""
    system, topology = openmm.System(), app.Topology()
    chain = topology.addChain()
    for index, number in enumerate(structure.numbers):
        if index % per_residue == 0:
            residue = topology.addResidue("RES", chain)
        element = app.Element.getByAtomicNumber(int(number))
        topology.addAtom(element.symbol, element, residue)
        system.addParticle(element.mass if masses is None else masses[index])
    if any(structure.pbc) if box is None else box:
        topology.setPeriodicBoxVectors(structure.cell * unit.angstrom)
        system.setDefaultPeriodicBoxVectors(*structure.cell / 10.0)
    return system, topology


def start(
    system: openmm.System, structure: Structure, step: float = 1.0, platform: str = "Reference"
) -> openmm.Context:
    """A context at the positions of the structure, with a time step in fs."""
    integrator = openmm.VerletIntegrator(step * unit.femtosecond)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName(platform))
    context.setPositions(structure.positions * unit.angstrom)
    return context


def energy_of(context: openmm.Context, groups: int = -1) -> float:
    """Potential energy, eV."""
    state = context.getState(energy=True, groups=groups)
    return float(state.getPotentialEnergy().value_in_unit(KJ)) * KJ_PER_MOL


def forces_of(context: openmm.Context) -> np.ndarray:
    """Forces, eV/Angstrom."""
    forces = context.getState(forces=True).getForces(asNumpy=True)
    return np.asarray(forces.value_in_unit(KJ / unit.angstrom)) * KJ_PER_MOL


def total_energy(context: openmm.Context) -> float:
    """Potential and kinetic energy, eV."""
    state = context.getState(energy=True)
    return float((state.getPotentialEnergy() + state.getKineticEnergy()).value_in_unit(KJ)) * KJ_PER_MOL


def result_of(force: openmm.PythonForce, context: openmm.Context) -> Result:
    result = force.computation.result(context.getState(positions=True, parameters=True))
    assert isinstance(result, Result)
    return result


def check_against_ase(context: openmm.Context, model: Model, structure: Structure, **settings: Any) -> None:
    """Energy and forces of a context are those of the ASE calculator.

    Coordinates went through nm: forces differ by their rounding, 1e-15 A, times second derivatives of some 100 eV/A^2,
    and by that of the mesh, 1e-13 of the largest force or a hundred times more.
    """
    atoms = Atoms(structure.numbers, structure.positions, cell=structure.cell, pbc=structure.pbc)
    atoms.calc = KQEq(model, charge=structure.charge, field=structure.field, **settings)
    wanted = atoms.get_forces()
    assert energy_of(context) == pytest.approx(atoms.get_potential_energy(), rel=1e-12)
    np.testing.assert_allclose(forces_of(context), wanted, atol=1e-10 * np.abs(wanted).max())


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # builder of the structure, its arguments, settings
    "open": ("cluster", {}, {}),
    "charged in a field": ("cluster", {"charge": 1.0, "field": FIELD_VALUE}, {}),
    "exact kernel": ("cluster", {}, {"kernel": "exact"}),
    "cubic": ("rock_salt", {}, {}),
    "charged, cubic": ("rock_salt", {"charge": -1.0}, {}),
    "triclinic": ("rock_salt", {"strain": TRICLINIC}, {}),
    "fragments": ("salt_box", {"repeats": 2, "field": FIELD_VALUE}, {"charges": "fragments"}),
    "fragments, triclinic": (
        "salt_box",
        {"repeats": (2, 1, 2), "strain": TRICLINIC, "charge": 1.0, "field": FIELD_VALUE},
        {"charges": "fragments", "fragments": np.arange(8) // 2, "fragment_charges": [0.0, 1.0, 0.0, 0.0]},
    ),
    "split": (
        "rock_salt",
        {"strain": TRICLINIC, "field": FIELD_VALUE},
        {"charges": "split", "reference_charges": IONS},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_same_as_ase(name: str, strong: Model, helpers: Any) -> None:
    builder, arguments, settings = CASES[name]
    structure = getattr(helpers, builder)(**arguments)
    model = helpers.split_model(strong) if settings.get("charges") == "split" else strong
    system, topology = build(structure)
    add_to(system, topology, model, charge=structure.charge, field=structure.field, **settings, **TIGHT)
    check_against_ase(start(system, structure), model, structure, **settings, **TIGHT)


def test_same_on_the_cpu_platform(strong: Model, helpers: Any) -> None:
    """It sums forces in single precision elsewhere; not those of Python."""
    structure = helpers.rock_salt(strain=TRICLINIC)
    system, topology = build(structure)
    add_to(system, topology, strong, **TIGHT)
    check_against_ase(start(system, structure, platform="CPU"), strong, structure, **TIGHT)


@pytest.mark.parametrize("axis", [0, 2])
def test_slab(axis: int, strong: Model, helpers: Any) -> None:
    solid = helpers.rock_salt()
    pbc = tuple(k != axis for k in range(3))
    cell, field = 5.7 * np.eye(3), 0.05 * np.eye(3)[axis]
    cell[axis, axis] = 30.0
    structure = Structure(solid.numbers, solid.positions, cell, pbc, field=field)
    system, topology = build(structure)
    add_to(system, topology, strong, pbc=pbc, field=field, **TIGHT)
    check_against_ase(start(system, structure), strong, structure, **TIGHT)


def test_residues_of_the_topology(water: Model, helpers: Any) -> None:
    """Pairs of molecules, where connectivity would find each of them alone."""
    box = helpers.water_box((2, 2, 1))
    system, topology = build(box, per_residue=6)
    force = add_to(system, topology, water, charges="fragments", fragments="residues", **TIGHT)
    context = start(system, box)
    check_against_ase(context, water, box, charges="fragments", fragments=np.arange(12) // 6, **TIGHT)
    charges = result_of(force, context).charges
    np.testing.assert_allclose(charges.reshape(2, 6).sum(axis=1), 0.0, atol=1e-12)  # rounding of six charges
    assert np.abs(charges.reshape(4, 3).sum(axis=1)).max() > 1e-3


def test_forces_by_differences(strong: Model, helpers: Any) -> None:
    """Along a random direction, by OpenMM's own energies, in a field along no axis."""
    structure = helpers.salt_box((2, 1, 2), strain=TRICLINIC, field=FIELD_VALUE)
    system, topology = build(structure)
    add_to(system, topology, strong, field=FIELD_VALUE, charges="fragments", **TIGHT)
    context = start(system, structure)
    direction = np.random.default_rng(3).normal(size=(8, 3))
    wanted = -(forces_of(context) * direction).sum()

    def energy(x: np.ndarray) -> float:
        context.setPositions((structure.positions + x[0] * direction) * unit.angstrom)
        return energy_of(context)

    # found 1e-10: five points with f^(5) / 30 up to 1e5 eV/A^5, and rounding, 1e-14 eV over the step
    assert helpers.five_point(energy, np.zeros(1), 2e-4)[0] == pytest.approx(wanted, rel=1e-9)


# --- dynamics


def fluctuation(system: openmm.System, structure: Structure, step: float, duration: float) -> float:
    """Standard deviation of the total energy along a trajectory, eV; times in fs."""
    context = start(system, structure, step)
    context.setVelocitiesToTemperature(300.0, 1)
    energies = []
    for _ in range(round(duration / (2 * step))):
        context.getIntegrator().step(2)
        energies.append(total_energy(context))
    return float(np.std(energies))


def test_energy_is_conserved_to_second_order(helpers: Any) -> None:
    """A cluster of eight ions in a field: steps of 2 and 1 fs over 0.2 ps."""
    structure = helpers.cluster()
    system, topology = build(structure)
    add_to(system, topology, NACL, field=(0.0, 0.0, 0.05))
    minimized = start(system, structure)
    openmm.LocalEnergyMinimizer.minimize(minimized)
    positions = minimized.getState(positions=True).getPositions(asNumpy=True).value_in_unit(unit.angstrom)
    calm = Structure(structure.numbers, positions)
    coarse, fine = (fluctuation(system, calm, step, 200.0) for step in (2.0, 1.0))
    assert fine < 1e-4  # eV; found 1e-5
    assert 3.5 < coarse / fine < 4.5  # 4, but for the next order and the phase of the samples


def test_energy_of_water_in_a_field_is_conserved(water: Model, helpers: Any) -> None:
    """Split charges in a field along periodic axes; steps of 0.25 and 0.125 fs over 20 fs."""
    box = helpers.water_box((2, 1, 1))
    model = helpers.split_model(water)
    system, topology = build(box)
    add_to(system, topology, model, field=FIELD_VALUE, tolerance=1e-8)
    coarse, fine = (fluctuation(system, box, step, 20.0) for step in (0.25, 0.125))
    assert 3.5 < coarse / fine < 4.5  # as above


def test_crystal_at_constant_energy(helpers: Any) -> None:
    """64 ions on the mesh, 0.1 ps: what warm starts leave of the charges' error does not heat."""
    solid = helpers.rock_salt(2, rattle=0.1)
    system, topology = build(solid)
    add_to(system, topology, NACL)
    context = start(system, solid)
    context.setVelocitiesToTemperature(300.0, 1)
    energies = []
    for _ in range(20):
        context.getIntegrator().step(5)
        energies.append(total_energy(context))
    # periods of some 200 fs: (omega dt)^2 / 8 = 1e-4 of 2.5 eV of kinetic energy; found 4e-5 eV and 2e-5 eV
    assert np.std(energies) < 2.5e-4
    assert np.ptp(energies[10:]) < 2.5e-4


def test_field_changes_in_a_run(strong: Model, helpers: Any) -> None:
    """E is quadratic in the field, so it falls by the mean dipole times the change, to the last digits."""
    structure = helpers.cluster(charge=1.0, field=(0.01, 0.0, 0.0))
    system, topology = build(structure)
    force = add_to(system, topology, strong, charge=1.0, field=(0.01, 0.0, 0.0))
    context = start(system, structure)
    context.getIntegrator().step(3)
    assert dict(context.getParameters()) == dict(zip(FIELD, (0.01, 0.0, 0.0), strict=True))
    before, first = energy_of(context), result_of(force, context)
    for name, value in zip(FIELD, FIELD_VALUE, strict=True):
        context.setParameter(name, value)
    second = result_of(force, context)
    assert first.dipole is not None
    assert second.dipole is not None
    work = (first.dipole + second.dipole) / 2 @ (np.array(FIELD_VALUE) - (0.01, 0.0, 0.0))
    assert abs(work) > 0.01
    assert energy_of(context) - before == pytest.approx(-work, abs=1e-10)  # rounding of some 50 eV, by factorisation
    # rounding of eight forces of some eV/A
    np.testing.assert_allclose(forces_of(context).sum(axis=0), FIELD_VALUE, atol=1e-11)


def test_charges_and_dipole_of_a_state(strong: Model, helpers: Any) -> None:
    structure = helpers.cluster(charge=1.0, field=FIELD_VALUE)
    system, topology = build(structure)
    force = add_to(system, topology, strong, charge=1.0, field=FIELD_VALUE)
    got, wanted = result_of(force, start(system, structure)), Potential(strong).compute(structure)
    np.testing.assert_allclose(got.charges, wanted.charges, atol=1e-12)  # rounding of coordinates in nm
    assert got.dipole is not None
    np.testing.assert_allclose(got.dipole, wanted.dipole, atol=1e-11)  # the same, times distances
    assert got.energy == pytest.approx(wanted.energy, rel=1e-12)


# --- boxes


def test_new_box_counts(strong: Model, helpers: Any) -> None:
    """A box and positions as a barostat sets them, against a context that never saw others."""
    first, later = helpers.rock_salt(), helpers.strained(helpers.rock_salt(), np.eye(3) + 0.5 * TRICLINIC)
    system, topology = build(first)
    add_to(system, topology, strong, **TIGHT)
    context = start(system, first)
    before = energy_of(context)
    context.setPeriodicBoxVectors(*later.cell / 10.0)
    context.setPositions(later.positions * unit.angstrom)
    check_against_ase(context, strong, later, **TIGHT)
    assert abs(energy_of(context) - before) > 0.1


def test_barostat(strong: Model, helpers: Any) -> None:
    """What OpenMM's Monte Carlo leaves behind is a box with the energy of that box."""
    solid = helpers.rock_salt()
    system, topology = build(solid)
    add_to(system, topology, strong, **TIGHT)
    barostat = openmm.MonteCarloBarostat(1000 * unit.bar, 300 * unit.kelvin, 1)
    barostat.setRandomNumberSeed(1)
    system.addForce(barostat)
    context = start(system, solid, step=0.1)
    context.getIntegrator().step(10)
    state = context.getState(positions=True)
    positions = state.getPositions(asNumpy=True).value_in_unit(unit.angstrom)
    cell = state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(unit.angstrom)
    assert abs(np.linalg.det(cell) - solid.volume) > 1e-3 * solid.volume
    check_against_ase(context, strong, helpers.moved(solid, positions, cell), **TIGHT)


BAROSTATS = {
    "isotropic": lambda: openmm.MonteCarloBarostat(1.0, 300.0, 1),
    "anisotropic": lambda: openmm.MonteCarloAnisotropicBarostat((1.0, 1.0, 1.0), 300.0, True, True, True, 1),
    "membrane": lambda: openmm.MonteCarloMembraneBarostat(1.0, 0.0, 300.0, 0, 0, 1),
    "flexible": lambda: openmm.MonteCarloFlexibleBarostat(1.0, 300.0, 1),
}


@pytest.mark.parametrize("name", BAROSTATS)
def test_barostat_without_a_pressure_is_refused(name: str, strong: Model, helpers: Any) -> None:
    """Slabs, and ions with reference charges in a field along the box."""
    solid = helpers.rock_salt(field=FIELD_VALUE)
    system, topology = build(solid)
    add_to(system, topology, strong, pbc=(True, True, False))
    system.addForce(BAROSTATS[name]())
    with pytest.raises(openmm.OpenMMException, match="`pbc` must be True for all axes with a barostat"):
        energy_of(start(system, solid))
    system, topology = build(solid)
    model = helpers.split_model(strong, (0.7, -0.7))
    add_to(system, topology, model, field=FIELD_VALUE)
    system.addForce(BAROSTATS[name]())
    context = start(system, solid)
    with pytest.raises(openmm.OpenMMException, match="`field` must be zero along periodic axes with a barostat"):
        energy_of(context)
    for parameter in FIELD:
        context.setParameter(parameter, 0.0)
    assert np.isfinite(energy_of(context))


@pytest.mark.parametrize("where", ["topology", "other force", "nowhere", "argument"])
def test_what_makes_a_system_periodic(where: str, strong: Model, helpers: Any) -> None:
    solid = helpers.rock_salt()
    system, topology = build(solid, box=where != "nowhere")
    if where in ("other force", "argument"):
        topology.setPeriodicBoxVectors(None)
    if where == "other force":
        other = openmm.CustomExternalForce("0*periodicdistance(x, y, z, 0, 0, 0)")
        system.addForce(other)
    force = add_to(system, topology, strong, **({"pbc": True} if where == "argument" else {}), **TIGHT)
    periodic = where != "nowhere"
    assert force.usesPeriodicBoundaryConditions() == periodic
    wanted = solid if periodic else Structure(solid.numbers, solid.positions)
    check_against_ase(start(system, solid), strong, wanted, **TIGHT)


def test_open_in_spite_of_a_box(strong: Model, helpers: Any) -> None:
    solid = helpers.rock_salt()
    system, topology = build(solid)
    add_to(system, topology, strong, pbc=False)
    check_against_ase(start(system, solid), strong, Structure(solid.numbers, solid.positions))


# --- what OpenMM does with systems


def test_goes_with_the_system(strong: Model, helpers: Any) -> None:
    """Through XML and as a copy, with everything that it was told."""
    structure = helpers.salt_box((2, 1, 2), charge=1.0, field=FIELD_VALUE)
    settings = {"charges": "fragments", "fragments": "residues", "fragment_charges": [0.0, 1.0, 0.0, 0.0], **TIGHT}
    system, topology = build(structure, per_residue=2)
    add_to(system, topology, strong, charge=1.0, field=FIELD_VALUE, force_group=3, **settings)
    wanted = energy_of(start(system, structure))
    again = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system))
    for other in (again, copy.deepcopy(system)):
        context = start(other, structure)
        assert energy_of(context) == wanted
        assert context.getParameter(FIELD[0]) == FIELD_VALUE[0]
        assert other.getForce(0).getForceGroup() == 3
        assert other.getForce(0).usesPeriodicBoundaryConditions()


def test_options_reach_the_potential(helpers: Any) -> None:
    structure = helpers.cluster()
    system, topology = build(structure)
    force = add_to(
        system, topology, str(NACL), accuracy=1e-4, tolerance=1e-6, threads=1, kernel="exact", charges="split",
        reference_charges=IONS, fragments="connectivity", atoms=[0, 4],
    )  # fmt: skip
    for computation in (force.computation, copy.deepcopy(force.computation)):
        assert isinstance(computation, Computation)
        potential = computation.potential
        assert (potential.accuracy, potential.tolerance, potential.threads) == (1e-4, 1e-6, 1)
        assert potential.charge_model.name == "split"
        state = start(system, structure).getState(positions=True, parameters=True)
        exact = Potential(NACL, 1e-4, 1e-6, kernel="exact", charges="split", reference_charges=IONS)
        pair = Structure(structure.numbers[[0, 4]], structure.positions[[0, 4]])
        assert computation.result(state).energy == pytest.approx(exact.compute(pair).energy, rel=1e-12)  # rounding


def test_contexts_of_one_system(strong: Model, helpers: Any) -> None:
    """Two trajectories in turn, which share what the potential remembers: results within the tolerance."""
    structures = [helpers.rock_salt(seed=seed, rattle=0.3) for seed in (1, 2)]
    system, topology = build(structures[0])
    add_to(system, topology, strong, **TIGHT)
    contexts = [start(system, structure) for structure in structures]
    for _ in range(3):
        for context, structure in zip(contexts, structures, strict=True):
            wanted = Potential(strong, **TIGHT).compute(structure)
            assert energy_of(context) == pytest.approx(wanted.energy, rel=1e-12)
            assert wanted.forces is not None
            # eV/A: a relative residual of 1e-12 with some tens of eV/A
            np.testing.assert_allclose(forces_of(context), wanted.forces, atol=1e-9)


def test_contexts_in_threads(strong: Model, helpers: Any) -> None:
    """OpenMM lets go of the interpreter's lock: the potential is called by one at a time."""
    structures = [helpers.rock_salt(seed=seed, rattle=0.3) for seed in range(4)]
    system, topology = build(structures[0])
    add_to(system, topology, strong, **TIGHT)
    wanted = [Potential(strong, **TIGHT).compute(structure).energy for structure in structures]

    def run(structure: Structure) -> list[float]:
        context, energies = start(system, structure), []
        for _ in range(10):
            context.setPositions(structure.positions * unit.angstrom)
            energies.append(energy_of(context))
        return energies

    with ThreadPoolExecutor(4) as pool:
        for expected, energies in zip(wanted, pool.map(run, structures), strict=True):
            np.testing.assert_allclose(energies, expected, rtol=1e-12)  # rounding, as above


def test_force_group(strong: Model, helpers: Any) -> None:
    structure = helpers.cluster()
    system, topology = build(structure)
    add_to(system, topology, strong, force_group=2)
    spring = openmm.CustomExternalForce("100*x^2")
    for index in range(len(structure)):
        spring.addParticle(index)
    system.addForce(spring)
    context = start(system, structure)
    alone = Potential(strong).compute(structure).energy
    assert energy_of(context, groups=4) == pytest.approx(alone, rel=1e-12)  # rounding
    nm = structure.positions[:, 0] / 10.0
    assert energy_of(context, groups=1) == pytest.approx(100 * (nm**2).sum() * KJ_PER_MOL, rel=1e-12)


def test_some_of_the_particles(strong: Model, helpers: Any) -> None:
    """The model takes the rest for nothing: other elements, virtual sites; in any order."""
    structure = helpers.cluster(charge=1.0)
    system, topology = build(structure)
    chain = next(topology.chains())
    topology.addAtom("K", app.Element.getBySymbol("K"), topology.addResidue("K", chain))
    topology.addAtom("M", None, topology.addResidue("M", chain))
    system.addParticle(39.0)
    system.addParticle(0.0)
    system.setVirtualSite(9, openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5))
    atoms = np.array([4, 1, 2, 3, 0, 5, 6, 7])
    add_to(system, topology, strong, charge=1.0, atoms=atoms)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    # the K ion in the midst of the others
    context.setPositions(np.vstack([structure.positions, structure.positions[:2]]) * unit.angstrom)
    wanted = Potential(strong).compute(structure)
    assert energy_of(context) == pytest.approx(wanted.energy, rel=1e-12)  # rounding
    assert wanted.forces is not None
    np.testing.assert_allclose(forces_of(context)[:8], wanted.forces, atol=1e-10)  # as in `check_against_ase`
    np.testing.assert_array_equal(forces_of(context)[8:], 0.0)


def test_particles_without_mass_stay(strong: Model, helpers: Any) -> None:
    structure = helpers.cluster()
    system, topology = build(structure, masses=[0.0, *[30.0] * 7])
    add_to(system, topology, strong)
    context = start(system, structure)
    check_against_ase(context, strong, structure)
    context.getIntegrator().step(5)
    positions = context.getState(positions=True).getPositions(asNumpy=True).value_in_unit(unit.angstrom)
    np.testing.assert_allclose(positions[0], structure.positions[0], rtol=1e-14)  # to nm and back
    assert np.abs(positions[1:] - structure.positions[1:]).min() > 0


# --- what is refused


REFUSED: dict[str, tuple[dict[str, Any], type[KqeqError], str]] = {
    "absent": ({"model": "no-such-file.kqeq"}, ModelError, "does not exist"),
    "wire": ({"pbc": (True, False, False)}, StructureError, "`pbc` must be True for all axes, for two .slab."),
    "field": ({"field": (0.0, np.nan, 0.0)}, StructureError, "`field` must be finite, got nan"),
    "unit": ({"charge": 1.0 * unit.elementary_charge}, StructureError, "`charge` must be numbers"),
    "threads": ({"threads": 0}, ConfigError, "`threads` must be a positive integer, got 0"),
    "tolerance": ({"tolerance": 1.0}, KqeqError, "`tolerance` must lie between"),
    "fragments": ({"fragments": "residues"}, ChargeError, '`fragments` need charges="fragments"'),
    "name": ({"charges": "fragments", "fragments": "chains"}, ChargeError, "`fragments` must be .*, got 'chains'"),
    "number": ({"atoms": [0, 8]}, StructureError, "`atoms` must be different indices from 0 to 7, got "),
    "twice": ({"atoms": [1, 1]}, StructureError, "`atoms` must be different indices from 0 to 7, got "),
    "negative": ({"atoms": [-1]}, StructureError, "`atoms` must be different indices from 0 to 7, got "),
    "none": ({"atoms": []}, StructureError, "`atoms` must be a list of indices, got"),
    "mask": ({"atoms": [True] * 8}, StructureError, "`atoms` must be a list of indices, got"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_are_refused_at_once(name: str, strong: Model, helpers: Any) -> None:
    settings, error, message = REFUSED[name]
    system, topology = build(helpers.cluster())
    with pytest.raises(error, match=message):
        add_to(system, topology, **{"model": strong, **settings})
    assert system.getNumForces() == 0


def test_particles_that_are_no_atoms_of_the_model(strong: Model, helpers: Any) -> None:
    structure = helpers.cluster()
    system, topology = build(Structure([*structure.numbers[:7], 19], structure.positions))
    with pytest.raises(
        StructureError, match=r"hold elements of the model \(Na, Cl\), got K \(atom 7, K of residue RES\)"
    ):
        add_to(system, topology, strong)
    system, topology = build(structure)
    topology.addAtom("M", None, list(topology.residues())[-1])
    with pytest.raises(StructureError, match="`topology` must have the 8 particles of the system, got 9 atoms"):
        add_to(system, topology, strong)
    system.addParticle(0.0)
    with pytest.raises(StructureError, match=r"got no element \(atom \d, M of residue RES\)"):
        add_to(system, topology, strong)
    system, topology = build(structure, masses=[*[30.0] * 7, 0.0])
    system.setVirtualSite(7, openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5))
    with pytest.raises(StructureError, match=r"`atoms` must leave out virtual sites, got one \(atom 7"):
        add_to(system, topology, strong)


def test_forgotten_box_is_refused(strong: Model, helpers: Any) -> None:
    """OpenMM gives 2 nm to a system that has not been told of its box."""
    solid = helpers.rock_salt()
    told, topology = build(solid)
    with pytest.raises(KqeqError, match=r"`system` must have the box of the topology .* got \[\[20.0, 0.0, 0.0\]"):
        add_to(build(solid, box=False)[0], topology, strong)
    told.setDefaultPeriodicBoxVectors(*np.eye(3))  # another box, but one that was set
    add_to(told, topology, strong)


def test_errors_of_a_run_surface(strong: Model, helpers: Any) -> None:
    """With the message, at evaluation and in a step, and the context lives on."""
    structure = helpers.cluster()
    system, topology = build(structure)
    add_to(system, topology, strong)
    context = start(system, structure)
    wanted = energy_of(context)
    overlap = structure.positions.copy()
    overlap[1] = overlap[0] + [0.05, 0.0, 0.0]
    context.setPositions(overlap * unit.angstrom)
    message = "`positions`: atoms 0 and 1 overlap"
    with pytest.raises(openmm.OpenMMException, match=message):
        energy_of(context)
    with pytest.raises(openmm.OpenMMException, match=message):
        context.getIntegrator().step(1)
    context.setPositions(structure.positions * unit.angstrom)
    assert energy_of(context) == pytest.approx(wanted, rel=1e-12)  # rounding


def test_field_along_a_periodic_axis_is_refused(strong: Model, helpers: Any) -> None:
    solid = helpers.rock_salt()
    system, topology = build(solid)
    add_to(system, topology, strong)
    context = start(system, solid)
    assert np.isfinite(energy_of(context))
    context.setParameter(FIELD[2], 0.05)
    with pytest.raises(openmm.OpenMMException, match="`field` must be zero along periodic axes, got .*0.05. V/Angst"):
        energy_of(context)


# --- the rest


def test_unit_of_energy() -> None:
    volt = (1.0 * unit.elementary_charge * unit.volt * unit.AVOGADRO_CONSTANT_NA).value_in_unit(KJ)
    assert pytest.approx(1.0 / volt, rel=1e-14) == KJ_PER_MOL  # both exact


def test_module_does_not_shadow_openmm() -> None:
    """kqeq_md/openmm.py imports the real OpenMM, also when it is the first to do so, without a warning."""
    code = "from kqeq_md.openmm import add_to; import openmm; assert 'kqeq_md' not in openmm.__file__"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_example(tmp_path: Path) -> None:
    """A tenth of the steps; energy stays but where the field is switched on, at the same positions."""
    example = (Path(__file__).parent.parent / "examples" / "openmm_nve.py").read_text()
    assert "(0, 100, 100)" in example
    (tmp_path / "short.py").write_text(example.replace("(0, 100, 100)", "(0, 10, 10)"))
    run = subprocess.run(
        [sys.executable, "short.py"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600
    )
    assert run.returncode == 0, run.stderr
    lines = re.findall(r"total energy (\S+) kJ/mol, dipole \[ *\S+ +\S+ +(\S+?) *\]", run.stdout)
    energies, dipoles = np.array(lines, dtype=float).T
    assert len(energies) == 6
    assert max(np.ptp(energies[:3]), np.ptp(energies[3:])) < 0.08  # kJ/mol: 0.1 meV per atom
    assert dipoles[3] > dipoles[2] + 0.01  # e A: what the charges do
    # velocities are known at half steps: half a step of the field's work on eight ions at 300 K, 0.01 kJ/mol each
    assert energies[3] - energies[2] == pytest.approx(-0.05 * (dipoles[2] + dipoles[3]) / 2 / KJ_PER_MOL, abs=0.06)


def test_atoms_that_extrapolate_end_the_run() -> None:
    """Chlorine at 2 Angstrom, for the model of the salt; what does so goes with the system."""
    structure = Structure([17, 17], [[0.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
    system, topology = build(structure)
    add_to(system, topology, str(NACL), extrapolation="stop")
    for each in (system, copy.deepcopy(system)):
        with pytest.raises(openmm.OpenMMException, match="2 atoms extrapolate"):
            energy_of(start(each, structure))
    system, topology = build(structure)
    add_to(system, topology, str(NACL), extrapolation="off")
    assert np.isfinite(energy_of(start(system, structure)))
