"""Runs of the real i-PI."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
from ipi_support import CHARGE, ENERGY, POSITIONS, free_port, numbers_in, wait_for_steps, write_input

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
