"""What splitting the forces costs and keeps: drift of the conserved quantity, CPU time, error of contraction.

    python measure.py                       the table of the README (about a quarter of an hour)
    python measure.py --picoseconds 0.1     the same rows, shorter
    python measure.py --rows 0 4            some rows only
    python measure.py --json                as one JSON object

Each row is a run of i-PI with `input.xml`, other steps, beads and forces put in, and the model inside i-PI's own
process on one thread: its CPU time, less that of a run of one step, holds everything but the sockets. Drift and time
are of NVE from the same velocities. What contraction does to averages is told without noise, for the harmonic crystal:
its quantum kinetic energy with the charge part on fewer beads, and with fewer beads throughout.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import json
import resource
import shutil
import subprocess
import tempfile
import xml.etree.ElementTree as ET
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from ase import units
from ase.io import read
from ipi.utils.nmtransform import mk_nm_matrix, nm_eva, nm_rescale

from kqeq_md.ase import structure_from_atoms
from kqeq_md.ipi_driver import pes
from kqeq_md.machine.programs import environment, program
from kqeq_md.models import NACL
from kqeq_md.potential import Potential

HERE = Path(__file__).parent
BEADS = 8
TEMPERATURE = 300.0  # K, as in input.xml


@dataclass(frozen=True)
class Row:
    """A way to integrate: outer step (fs), inner steps, beads of the charge part (0: the model is whole), all beads."""

    step: float
    inner: int = 1
    charge_beads: int = 0
    beads: int = BEADS

    def __str__(self) -> str:
        parts = f"short {self.beads}, charge {self.charge_beads}" if self.charge_beads else f"whole {self.beads}"
        inner = f" = {self.inner} x {self.step / self.inner:g}" if self.inner > 1 else ""
        return f"{parts} | {self.step:g}{inner}"


ROWS = (
    Row(2.0),
    Row(4.0),
    Row(2.0, beads=4),
    Row(4.0, beads=4),
    Row(2.0, 1, 8),
    Row(2.0, 1, 2),
    Row(2.0, 1, 1),
    Row(4.0, 1, 1),
    Row(4.0, 2, 8),
    Row(8.0, 4, 8),
    Row(8.0, 2, 8),
    Row(8.0, 4, 2),
    Row(8.0, 4, 1),
    Row(8.0, 2, 1),
    Row(16.0, 4, 1),
)


def force_field(name: str, part: str, beads: int) -> ET.Element:
    """`<ffdirect>`: all beads of a component at once, so that each keeps the charges of its last step."""
    out = ET.Element("ffdirect", name=name, pbc="false")
    settings = f"model: {NACL}, template: {HERE / 'start.xyz'}, part: {part}, extras: none, threads: 1"
    for tag, text in (("pes", "custom"), ("pes_path", pes.__file__), ("batch_size", beads)):
        ET.SubElement(out, tag).text = str(text)
    ET.SubElement(out, "parameters").text = "{" + settings + "}"
    return out


def component(name: str, beads: int, weights: str) -> ET.Element:
    """`<force>`."""
    out = ET.Element("force", forcefield=name, nbeads=str(beads))
    ET.SubElement(out, "mts_weights").text = weights
    return out


def input_of(row: Row, n_steps: int) -> ET.ElementTree:
    """`input.xml` with this row's forces and steps."""
    tree = ET.parse(HERE / "input.xml")
    root = tree.getroot()
    for socket in root.findall("ffsocket"):
        root.remove(socket)
    split = [("short", row.beads, "[0, 1]"), ("charge", row.charge_beads, "[1, 0]")]
    parts = split if row.charge_beads else [("all", row.beads, "[1, 0]")]
    forces, initialize = root.find("system/forces"), root.find("system/initialize")
    assert forces is not None
    assert initialize is not None
    initialize.set("nbeads", str(row.beads))
    forces[:] = [component(*part) for part in parts]
    for number, (part, beads, _) in enumerate(parts):
        root.insert(number, force_field(part, part, beads))
    for path, value in (
        ("total_steps", n_steps),
        ("system/motion/dynamics/timestep", row.step),
        ("system/motion/dynamics/nmts", f"[1, {row.inner}]"),
    ):
        node = root.find(path)
        assert node is not None
        node.text = str(value)
    return tree


def run(row: Row, n_steps: int, folder: Path) -> float:
    """CPU seconds of a run of i-PI in a folder of its own."""
    folder.mkdir()
    shutil.copy(HERE / "start.xyz", folder)
    input_of(row, n_steps).write(folder / "input.xml")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with open(folder / "i-pi.log", "w", encoding="utf-8") as log:
        subprocess.run([program("i-pi"), "input.xml"], cwd=folder, env=environment(), stdout=log, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def drift(folder: Path, n_atoms: int) -> tuple[float, float]:
    """Slope (meV/atom/ps) and rms about it (meV/atom) of the conserved quantity of `rpc.out`."""
    _, times, conserved = np.loadtxt(folder / "rpc.out", usecols=(0, 1, 2)).T
    energies = 1000.0 * (conserved - conserved[0]) / n_atoms
    line = np.polyfit(times, energies, 1)
    return float(line[0]), float(np.std(energies - np.polyval(line, times)))


def hessian(part: str, step: float = 0.01) -> np.ndarray:
    """Mass-weighted second derivatives of a part of the crystal's energy, eV/Angstrom^2/amu, shape (3n, 3n)."""
    atoms = read(HERE / "start.xyz")
    crystal, potential = structure_from_atoms(atoms), Potential(NACL, threads=1, part=part)
    masses = np.repeat(atoms.get_masses(), 3)
    rows = []
    for shift in step * np.eye(len(masses)).reshape(len(masses), -1, 3):
        plus, minus = (potential.compute(replace(crystal, positions=crystal.positions + s)) for s in (shift, -shift))
        rows.append((minus.forces - plus.forces).ravel() / (2 * step))
    h = np.array(rows)
    return (h + h.T) / (2 * np.sqrt(np.outer(masses, masses)))


def kinetic_excess(short: np.ndarray, charge: np.ndarray, charge_beads: int, beads: int = BEADS) -> float:
    """Quantum kinetic energy of the harmonic ring polymer beyond 3/2 kT, meV/atom.

    T = kT/2 sum_{k > 0} tr[H_k (w_k^2 + H_k)^-1], H_k = H_short + c_k H_charge, with c_k the part of normal mode k that
    contraction keeps and w_k the frequency of the free ring polymer.

    Args:
        short, charge: mass-weighted Hessians, eV/Angstrom^2/amu.
        charge_beads, beads: beads of the charge part, and of the short range.
    """
    thermal = units.kB * TEMPERATURE
    # ASE's units: eV, Angstrom, amu; hbar in eV times ASE's unit of time
    frequencies = beads * thermal / (units._hbar * units.J * units.s) * nm_eva(beads)
    to_modes, contract = mk_nm_matrix(beads), nm_rescale(beads, charge_beads).b1tob2(np.eye(beads))
    kept = np.diag(to_modes @ contract.T @ contract @ to_modes.T) * beads / charge_beads
    total = 0.0
    for frequency, share in zip(frequencies[1:], kept[1:], strict=True):
        curvatures = np.linalg.eigvalsh(short + share * charge)
        total += float(np.sum(curvatures / (frequency**2 + curvatures)))
    return 1000.0 * 0.5 * thermal * total / (len(short) // 3)


def measure(rows: list[Row], picoseconds: float, folder: Path) -> list[dict[str, object]]:
    """Drift and cost of each row; cost in CPU seconds per picosecond."""
    n_atoms, out = len(read(HERE / "start.xyz")), []
    for name in ("compile", "start"):  # the second finds kernels compiled
        start = run(Row(1.0, 1, 1), 1, folder / name)
    for number, row in enumerate(rows):
        n_steps = round(1000.0 * picoseconds / row.step)
        seconds = run(row, n_steps, folder / str(number)) - start
        slope, rms = drift(folder / str(number), n_atoms)
        out.append({"row": str(row), "drift": slope, "rms": rms, "cpu": seconds / ((n_steps - 1) * row.step / 1000.0)})
    return out


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picoseconds", type=float, default=2.0, help="length of each run (default: %(default)s)")
    parser.add_argument("--rows", type=int, nargs="+", default=range(len(ROWS)), help="numbers of rows, from 0")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        rows = measure([ROWS[number] for number in arguments.rows], arguments.picoseconds, Path(name))
    short, charge = hessian("short"), hessian("charge")
    pairs = [(32, 32), (8, 8), (4, 4), (2, 2), (8, 4), (8, 2), (8, 1)]
    excess = {f"{beads}, {few}": kinetic_excess(short, charge, few, beads) for beads, few in pairs}
    if arguments.json:
        print(json.dumps({"rows": rows, "excess": excess}))
        return
    print("| beads | step, fs | drift meV/atom/ps | rms meV/atom | CPU s/ps |\n|---|---|---|---|---|")
    for row in rows:
        print(f"| {row['row']} | {row['drift']:.4f} | {row['rms']:.4f} | {row['cpu']:.1f} |")
    print("\n| beads of short range, charge part | quantum kinetic energy beyond 3/2 kT, meV/atom |\n|---|---|")
    for beads, energy in excess.items():
        print(f"| {beads} | {energy:.3f} |")


if __name__ == "__main__":
    main()
