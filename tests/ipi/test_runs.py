"""Runs of the real i-PI."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
from ipi_support import CHARGE, ENERGY, POSITIONS, free_port, numbers_in, wait_for_steps, write_input

from kqeq_md.model import load_model, save_model
from kqeq_md.models import NACL
from kqeq_md.potential import Potential
from kqeq_md.structure import Structure
from kqeq_md.units import BOHR, HARTREE


@pytest.mark.parametrize("mode", ["unix", "inet"])
def test_short_nve_run(
    nacl_model: Path,
    template: Path,
    tmp_path: Path,
    address: str,
    mode: str,
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    port = free_port()
    place = address if mode == "unix" else "localhost"
    write_input(tmp_path, mode, place, port, steps=40)
    ipi = start("i-pi", "input.xml")
    where = ["-u", "-a", place] if mode == "unix" else ["-p", str(port)]
    driver = start("kqeq-ipi", "-m", str(nacl_model), "-t", str(template), *where, "--efield", "0 0 0.05")
    assert driver.communicate(timeout=60)[1] == ""
    assert driver.returncode == 0
    ipi.communicate(timeout=20)
    assert ipi.returncode == 0

    structure = Structure([11] * 4 + [17] * 4, POSITIONS, field=(0.0, 0.0, 0.05))
    expected = Potential(nacl_model).compute(structure)
    _, potential, kinetic, conserved = numbers_in(tmp_path / "run.out").T
    assert potential[0] * HARTREE == pytest.approx(expected.energy, abs=8 * ENERGY, rel=0)
    charges = numbers_in(tmp_path / "run.charges_0")
    assert charges.shape == (41, 8)
    np.testing.assert_allclose(charges[0], expected.charges, atol=CHARGE, rtol=0)
    np.testing.assert_allclose(charges.sum(axis=1), 0.0, atol=CHARGE)
    dipole = numbers_in(tmp_path / "run.dipole_0")[0] * BOHR
    np.testing.assert_allclose(dipole, expected.dipole, atol=1e-7, rtol=0)
    forces = np.loadtxt(tmp_path / "run.forces_0.xyz", skiprows=2, max_rows=8, usecols=(1, 2, 3))
    # i-PI prints six digits of forces
    np.testing.assert_allclose(forces * HARTREE / BOHR, expected.forces, rtol=1e-5, atol=1e-9)
    # velocity Verlet at 0.25 fs follows the surface: its error is a small part of the energy that is exchanged
    assert np.ptp(kinetic) > 1e-4
    assert np.ptp(conserved) < 1e-3 * np.ptp(kinetic)


def test_ipi_goes_on_with_another_driver(
    nacl_model: Path, tmp_path: Path, template: Path, address: str, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """A driver of another system leaves with an error, one is stopped; i-PI finishes with a third."""
    write_input(tmp_path, "unix", address, 0, steps=200)
    ase.io.write(tmp_path / "pair.xyz", ase.Atoms("NaCl", [[0, 0, 0], [0, 0, 2.6]]))
    ipi = start("i-pi", "input.xml")
    common = ["-m", str(nacl_model), "-u", "-a", address, "-t"]
    foreign = start("kqeq-ipi", *common, "pair.xyz")
    error = foreign.communicate(timeout=60)[1]
    assert error == "kqeq-ipi: error: the number of atoms must be 2, as in the template, got 8 from i-PI\n"
    assert foreign.returncode == 2

    stopped = start("kqeq-ipi", *common, str(template))
    wait_for_steps(tmp_path / "run.out", 3)
    stopped.terminate()
    assert stopped.communicate(timeout=20)[1] == ""
    assert stopped.returncode == 143
    assert ipi.poll() is None
    third = start("kqeq-ipi", *common, str(template))
    assert third.communicate(timeout=60)[1] == ""
    ipi.communicate(timeout=20)
    assert third.returncode == 0
    assert ipi.returncode == 0
    assert len(numbers_in(tmp_path / "run.out")) == 201


def test_atoms_that_extrapolate_end_the_driver_or_are_told(
    template: Path, tmp_path: Path, address: str, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """With a threshold that all atoms are beyond: `stop` leaves with an error, and i-PI finishes with a driver that
    warns once and gives the measure of each atom as extras."""
    record = {"threshold": 1e-3, "charges": {}, "charge_per_atom": [0.0, 0.0]}
    model = tmp_path / "narrow.kqeq"
    save_model(replace(load_model(NACL), training={"extrapolation": record}), model)
    write_input(tmp_path, "unix", address, 0, steps=5)
    text = (tmp_path / "input.xml").read_text()
    measured = "<trajectory filename='measure' extra_type='extrapolation' stride='1'> extras </trajectory>"
    (tmp_path / "input.xml").write_text(text.replace("  </output>", f"    {measured}\n  </output>"))
    ipi = start("i-pi", "input.xml")
    common = ["-m", str(model), "-t", str(template), "-u", "-a", address]
    stopped = start("kqeq-ipi", *common, "--extrapolation", "stop")
    error = stopped.communicate(timeout=60)[1]
    assert re.fullmatch(r"kqeq-ipi: error: 8 atoms extrapolate, .* threshold of 0\.00: \d \(\d.*\n", error)
    assert stopped.returncode == 2

    warned = start("kqeq-ipi", *common, "--extras", "charges,dipole,extrapolation")
    error = warned.communicate(timeout=60)[1]
    ipi.communicate(timeout=20)
    assert (warned.returncode, ipi.returncode) == (0, 0)
    assert error.count("8 atoms extrapolate") == error.count("\n") == 1
    structure, potential = Structure([11] * 4 + [17] * 4, POSITIONS), Potential(model)
    wanted = potential.extrapolation(structure, result=potential.compute(structure))
    got = numbers_in(tmp_path / "run.measure_0")
    assert got.shape == (6, 8)
    np.testing.assert_allclose(got[0], wanted, rtol=1e-6)  # of positions that went through atomic units, under roots
