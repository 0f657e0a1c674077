"""What runs of the real i-PI have to keep: conserved energies, and the pressure that LAMMPS finds."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
import pytest
from ipi_support import rattled

from kqeq_md.ase import KQEq
from kqeq_md.machine.programs import environment, libpython, program
from kqeq_md.models import NACL
from kqeq_md.structure import Floats
from kqeq_md.units import EV_PER_A3_IN_BAR

Start = Callable[..., "subprocess.Popen[str]"]

INPUT = """\
<simulation verbosity='low' floatformat='%23.15e'>
  <output prefix='run'> <properties filename='out' stride='{stride}'> [ {properties} ] </properties> </output>
  <total_steps> {steps} </total_steps>
  <prng> <seed> 11 </seed> </prng>
  <ffsocket name='kqeq' mode='unix' pbc='false'> <address> {address} </address> </ffsocket>
  <system>
    <initialize nbeads='1'>
      <file mode='xyz'> start.xyz </file>
      <velocities mode='thermal' units='kelvin'> {temperature} </velocities>
    </initialize>
    <forces> <force forcefield='kqeq'/> </forces>
    <ensemble>
      <temperature units='kelvin'> {bath} </temperature> <pressure units='bar'> 1 </pressure>
    </ensemble>
    <motion mode='dynamics'>
      <dynamics mode='{mode}'> <timestep units='femtosecond'> 1.0 </timestep> {more} </dynamics>
    </motion>
  </system>
</simulation>
"""

BAROSTAT = """
<thermostat mode='langevin'> <tau units='femtosecond'> 100 </tau> </thermostat>
<barostat mode='isotropic'>
  <tau units='femtosecond'> 200 </tau>
  <thermostat mode='langevin'> <tau units='femtosecond'> 100 </tau> </thermostat>
</barostat>"""


def crystal(cells: int) -> ase.Atoms:
    """Rock salt at rest, 8 atoms in each cell."""
    base = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    sites = np.concatenate([base, base + np.array([0.5, 0, 0])])
    return ase.Atoms("Na4Cl4", scaled_positions=sites, cell=5.6 * np.eye(3), pbc=True).repeat(cells)


def run(
    start: Start, folder: Path, address: str, atoms: ase.Atoms, properties: str, stride: int = 1, **parts: object
) -> Floats:
    """The properties, shape (n_times, n_properties), of a run of i-PI with the shipped model."""
    values: dict[str, object] = {"mode": "nve", "temperature": 1e-9, "more": "", "bath": 1000, **parts}
    text = INPUT.format(address=address, properties=properties, stride=stride, **values)
    (folder / "input.xml").write_text(text)
    # the columns of i-PI's cell are the lattice vectors
    cell = " ".join(f"{x:.17g}" for x in atoms.cell.array.T.ravel())
    rows = [f"{s} {x:.17g} {y:.17g} {z:.17g}" for s, (x, y, z) in zip(atoms.symbols, atoms.positions, strict=True)]
    comment = f"# CELL(H): {cell} positions{{angstrom}} cell{{angstrom}}"
    (folder / "start.xyz").write_text("\n".join([str(len(atoms)), comment, *rows]) + "\n")
    ase.io.write(folder / "template.xyz", atoms)
    ipi = start("i-pi", "input.xml")
    driver = start("kqeq-ipi", "-m", str(NACL), "-t", "template.xyz", "-u", "-a", address, "--extras", "none")
    assert driver.communicate(timeout=900)[1] == ""
    ipi.communicate(timeout=30)
    assert (driver.returncode, ipi.returncode) == (0, 0)
    return np.loadtxt(folder / "run.out", ndmin=2)


def lammps_pressure(folder: Path, atoms: ase.Atoms) -> Floats:
    """xx, yy, zz, xy, xz, yz of atoms at rest, bar."""
    ase.io.write(folder / "atoms.data", atoms, format="lammps-data", atom_style="charge", specorder=["Na", "Cl"])
    (folder / "in.lammps").write_text(f"""units metal
atom_style charge
read_data atoms.data
mass 1 22.99
mass 2 35.45
pair_style kqeq
pair_coeff * * {NACL} Na Cl
run 0
print "pressure $(pxx:%.17g) $(pyy:%.17g) $(pzz:%.17g) $(pxy:%.17g) $(pxz:%.17g) $(pyz:%.17g)"
""")
    lmp = [str(program("lmp" if libpython() else "kqeq-lmp")), "-in", "in.lammps"]
    screen = subprocess.run(lmp, cwd=folder, env=environment(), capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in screen.splitlines() if line.startswith("pressure")]
    return np.array(line.split()[1:], dtype=float)


def test_pressure_of_a_tilted_cell_is_that_of_lammps_and_ase(start: Start, tmp_path: Path, address: str) -> None:
    cell = np.array([[5.9, 0.0, 0.0], [0.7, 5.6, 0.0], [-0.4, 0.9, 6.1]])
    atoms = ase.Atoms("Na4Cl4", rattled(cell), cell=cell, pbc=True)
    names = "stress_md{bar}, pressure_md{bar}, potential{electronvolt}"
    first = run(start, tmp_path, address, atoms, names, steps=1)[0]
    theirs = lammps_pressure(tmp_path, atoms)
    # i-PI's pascal is 3e-5 off
    np.testing.assert_allclose(first[:6], theirs, atol=1e-4 * np.abs(theirs).max())
    assert first[6] == pytest.approx(theirs[:3].mean(), rel=1e-4)
    atoms.calc = KQEq(NACL)
    stress = -atoms.get_stress()[[0, 1, 2, 5, 4, 3]] * EV_PER_A3_IN_BAR
    np.testing.assert_allclose(first[:6], stress, atol=1e-4 * np.abs(stress).max())
    assert first[7] == pytest.approx(atoms.get_potential_energy(), rel=1e-7)  # i-PI's electronvolt


def test_nve_and_npt_conserve_their_energies(start: Start, tmp_path: Path, address: str) -> None:
    """A hot lattice for 0.1 ps; what thermostats and barostat take, they have."""
    names = "conserved{electronvolt}, potential{electronvolt}, volume{angstrom3}"
    conserved, potential, volume = run(start, tmp_path, address, crystal(2), names, steps=100, temperature=2000).T
    # Verlet's wavering, (omega dt)^2 / 8 of what potential and kinetic energy exchange
    assert np.ptp(conserved) < 1e-3 * np.ptp(potential)
    assert np.ptp(volume) == 0
    more = {"mode": "npt", "more": BAROSTAT, "temperature": 2000}
    conserved, potential, volume = run(start, tmp_path, address, crystal(2), names, steps=100, **more).T
    assert np.ptp(volume) > 5.0
    assert np.ptp(conserved) < 2e-3 * np.ptp(potential)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["nve", "npt"])
def test_long_runs_do_not_drift(mode: str, start: Start, tmp_path: Path, address: str, helpers: Any) -> None:
    """20 ps of 64 atoms at 1 fs: below 1e-3 meV per atom and ps, or what they tell from 0."""
    names = "time{picosecond}, conserved{electronvolt}"
    more = {"mode": mode, "more": BAROSTAT if mode == "npt" else "", "temperature": 1200}
    times, energies = run(start, tmp_path, address, crystal(2), names, 10, steps=20000, **more)[200:].T
    slope, error = helpers.drift(times, 1000 * energies / 64)
    print(f"{mode}: drift {slope:.2e} +- {error:.1e} meV/atom/ps")  # noqa: T201  (the figure of the README)
    assert error < 5e-3
    assert abs(slope) < 1e-3 + 3.0 * error
