"""Frames of LAMMPS runs against `Potential.compute`: every boundary and charge model, at rest and moving."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kqeq_md.model import Model, save_model
from kqeq_md.potential import Potential
from kqeq_md.structure import Structure

SYSTEMS = ("orthorhombic", "triclinic", "charged cluster in a field")
CLUSTER = {"boundary": "boundary f f f", "pair_style": "pair_style kqeq field 0.0 0.05 0.1 charge 1"}


def system(here: Any, name: str) -> tuple[Structure, dict[str, str]]:
    """A structure, and the lines of its input script."""
    if name == "charged cluster in a field":
        return here.cluster(1.0, (0.0, 0.05, 0.1)), CLUSTER
    return (here.solid() if name == "orthorhombic" else here.triclinic()), {}


@pytest.mark.parametrize("name", SYSTEMS)
def test_run_0_agrees_with_the_core(here: Any, name: str) -> None:
    structure, parts = system(here, name)
    here.data(structure)
    frame = here.frame(**parts)
    expected = here.compute(structure)
    here.assert_same(frame, expected)
    assert frame.energies.sum() == pytest.approx(frame.thermo["pe"], abs=1e-10)
    # virial: eV for 64 atoms, forces agree to 1e-7 eV/Angstrom over 10 Angstrom
    np.testing.assert_allclose(frame.virial, here.virial_of(expected), atol=1e-6)


@pytest.mark.parametrize("field", [0.0, 0.1])
def test_slab_agrees_with_the_core(here: Any, field: float) -> None:
    """The open axis along z, x or y; the length of the box along it has no meaning."""
    whole = here.solid()
    here.data(replace(whole, positions=whole.positions % 11.4))  # LAMMPS loses atoms outside of open ends
    for axis in range(3):
        along = field * np.eye(3)[axis]
        style = f"{here.tight} field {along[0]} {along[1]} {along[2]}"
        ends = ["f" if a == axis else "p" for a in range(3)]
        frame = here.frame(boundary=f"boundary {' '.join(ends)}", pair_style=style)
        structure = replace(frame.structure, field=along)
        expected = here.compute(structure, tolerance=1e-12)
        here.assert_same(frame, expected)
        np.testing.assert_allclose(frame.virial, here.virial_of(expected), atol=1e-6)  # as for the other boundaries


def test_dipole_of_the_charges_is_the_cores(here: Any) -> None:
    structure, parts = system(here, "charged cluster in a field")
    here.data(structure)
    end = "compute d all dipole geometry\nrun 0\nprint 'dipole $(c_d[1]:%.15g) $(c_d[2]:%.15g) $(c_d[3]:%.15g)'"
    screen = here.run(here.script(end, **parts))
    values = next(line.split()[1:] for line in screen.splitlines() if line.startswith("dipole"))
    expected = here.compute(structure).dipole
    about_centre = expected - structure.charge * structure.positions.mean(axis=0)
    np.testing.assert_allclose([float(value) for value in values], about_centre, atol=1e-7)


def test_dynamics_renews_charges_and_conserves_energy(here: Any) -> None:
    here.data(here.solid())
    start = here.frame(pair_style=here.tight)
    run = """
velocity all create 600 7 dist gaussian
timestep 0.0005
atom_modify sort 5 2.0
fix 1 all nve
thermo_style custom step etotal press
thermo_modify format float %.12g
run 100
run 100"""
    end = here.frame(run, pair_style=here.tight)
    assert np.abs(end.charges - start.charges).max() > 1e-3
    here.assert_same(end, here.compute(end.structure, tolerance=1e-12))
    log = (here.folder / "log.lammps").read_text()
    energies = [float(x) for x in re.findall(r"^ +\d+ +(-[\d.]+) +-?[\d.]+ *$", log, re.MULTILINE)]
    assert len(energies) == 4
    # Verlet's total wavers by (omega dt)^2 / 8 of the kinetic energy, 5 eV: omega = 30 / ps, dt = 0.5 fs
    assert np.ptp(energies) < 2e-4


def test_box_changes_keep_energy_and_pressure_consistent(here: Any) -> None:
    here.data(here.triclinic())
    npt = "fix 1 all npt temp 600 600 0.05 tri 0 0 0.2"
    run = f"velocity all create 600 7\ntimestep 0.001\n{npt}\nrun 20\nunfix 1\nvelocity all set 0 0 0\nrun 0"
    frame = here.frame(run, pair_style=here.tight)
    assert abs(frame.thermo["lx"] - 11.4 * 1.02) > 1e-4
    expected = here.compute(frame.structure, tolerance=1e-12)
    here.assert_same(frame, expected)
    np.testing.assert_allclose(frame.virial, here.virial_of(expected), atol=1e-6)


def test_charged_cell_is_warned_of_once(here: Any) -> None:
    here.data(here.solid())
    screen = here.run(here.script("fix 1 all nve\nrun 3", pair_style="pair_style kqeq charge 1"))
    assert screen.count("WARNING: pair_style kqeq: periodic cell with total charge 1 e") == 1


def test_overpolarization_is_warned_of_once(here: Any) -> None:
    """Two ion pairs in a field: of the field, and of the charge that leaked, once in two runs."""
    here.data(Structure([11, 11, 17, 17], [[0, 0, 0], [12, 0, 0], [2.4, 0, 0], [14.4, 0, 0]]))
    style = "pair_style kqeq field 0.2 0 0"
    screen = here.run(here.script("fix 1 all nve\nrun 2\nrun 2", boundary="boundary f f f", pair_style=style))
    for said in ("between the 2 separate fragments", "from the nearest integer"):
        assert screen.count(said) == 1


def test_split_charges_are_served_as_trained(here: Any, model: Model, helpers: Any) -> None:
    """The model file says which charges it has; with them a field along periodic axes has a meaning."""
    split = here.folder / "split.kqeq"
    save_model(helpers.split_model(model), split)
    here.data(here.solid())
    parts = {"pair_style": f"{here.tight} field 0.02 0 0.05", "pair_coeff": f"pair_coeff * * {split} Na Cl"}
    frame = here.frame(**parts)
    expected = Potential(split, tolerance=1e-12).compute(replace(frame.structure, field=(0.02, 0, 0.05)))
    here.assert_same(frame, expected)
    np.testing.assert_allclose(frame.virial, here.virial_of(expected), atol=1e-6)
    start = here.frame("fix 1 all nve\ntimestep 0.001\nvelocity all create 300 1\nrun 0", **parts)
    end = here.frame("fix 1 all nve\ntimestep 0.001\nvelocity all create 300 1\nrun 40", **parts)
    assert end.thermo["etotal"] == pytest.approx(start.thermo["etotal"], abs=1e-5 * 64)


def test_ions_in_a_field_run_in_a_fixed_box(here: Any, model: Model, helpers: Any) -> None:
    """Reference charges of +-1 in a field along periodic axes: no pressure is defined, and nothing else suffers."""
    ions = here.folder / "ions.kqeq"
    save_model(helpers.split_model(model, (1.0, -1.0)), ions)
    here.data(here.solid())
    parts = {"pair_style": f"{here.tight} field 0 0 0.05", "pair_coeff": f"pair_coeff * * {ions} Na Cl"}
    screen = here.run(here.script("fix 1 all nve\nthermo_style custom step etotal press\nrun 3\nrun 3", **parts))
    assert screen.count("`virial` is not defined for charged fragments") == 1
    assert "nan" in screen
    frame = here.frame(**parts)
    expected = Potential(ions, tolerance=1e-12).compute(replace(frame.structure, field=(0, 0, 0.05)))
    assert expected.virial is None
    here.assert_same(frame, expected)


def test_fragments_are_those_of_the_run(here: Any, model: Model) -> None:
    """Two atoms of one element: bonds are those of the structure, not of what the kernels were compiled with."""
    molecular = here.folder / "molecular.kqeq"
    save_model(replace(model, charges="fragments"), molecular)
    pair = Structure([11, 11], [[0, 0, 0], [0, 0, 2.9]], field=(0, 0.05, 0.1))
    here.data(pair)
    style = f"{here.tight} field 0 0.05 0.1"
    coefficients = f"pair_coeff * * {molecular} Na Cl"
    frame = here.frame(boundary="boundary f f f", pair_style=style, pair_coeff=coefficients)
    assert abs(frame.charges[0]) > 1e-3  # charge flows inside the molecule
    here.assert_same(frame, Potential(molecular).compute(pair))
