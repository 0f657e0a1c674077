"""Whether a model holds in bulk: NVT of a periodic melt of NaCl or of liquid water in LAMMPS, its limits watched.

    python hold_bulk.py nacl MODEL.kqeq               64 ions at 1200 K, 2.1 g/cm^3, 100 ps (three minutes)
    python hold_bulk.py water MODEL.kqeq              27 molecules at 300 K, 1 g/cm^3, 100 ps (seven minutes)
    python hold_bulk.py water MODEL.kqeq --ps 5 --seed 2 --json

Every atom's measure of extrapolation is looked at every hundredth step. Printed is the largest one over the threshold
of the model (below 1: nobody has left the range of the training set), temperature, and how far the conserved energy
moved. Exit status 1 if somebody did. Hydrogen has the mass of deuterium, which changes no average over positions and
allows steps of 1 fs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.io import write

from kqeq_md.errors import KqeqError
from kqeq_md.examples.benchmarks.benchmark_quip import water
from kqeq_md.extrapolation import largest_measure
from kqeq_md.machine.programs import environment, lammps_command
from kqeq_md.model import load_model
from kqeq_md.structure import Floats

GRAM_PER_CM3 = 1.66053907
"""Of one unified atomic mass unit per Angstrom^3."""

DEUTERIUM = 2.014
"""Its mass, u."""

LOOK = 100
"""Steps between two looks."""

INPUT = """
units        metal
atom_style   charge
boundary     p p p
read_data    start.data
pair_style   kqeq extrapolation off
pair_coeff   * * {model} {elements}
timestep     {timestep}
minimize     0.0 0.1 50 200
velocity     all create {hot} {seed} mom yes rot yes
fix          integrate all nvt temp {temperature} {temperature} {damping}
fix          look all pair {look} kqeq extrapolation 1
compute      most all reduce max f_look
thermo_style custom step temp pe econserve press c_most
thermo_modify format float %.10g
thermo       {look}
run          {steps}
"""

SYSTEMS = {"nacl": (1200.0, 0.002, 2.1), "water": (300.0, 0.001, 1.0)}
"""Temperature, K; time step, ps; density, g/cm^3."""


def start_of(system: str, density: float) -> Atoms:
    """64 ions on a lattice, or 27 molecules in disorder."""
    if system == "nacl":
        atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True) * (2, 2, 2)
        atoms.rattle(0.1, seed=1)
    else:
        atoms = water(3, np.random.default_rng(1))
    volume = GRAM_PER_CM3 * atoms.get_masses().sum() / density
    atoms.set_masses(np.where(atoms.numbers == 1, DEUTERIUM, atoms.get_masses()))
    if system == "nacl":
        atoms.set_cell(atoms.cell * (volume / atoms.get_volume()) ** (1 / 3), scale_atoms=True)
    return atoms


def hold(system: str, model: Path, ps: float, seed: int) -> dict[str, Any]:
    """Figures of one run."""
    temperature, timestep, density = SYSTEMS[system]
    atoms, threshold = start_of(system, density), largest_measure(load_model(model))
    elements = sorted(set(atoms.get_chemical_symbols()))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "start.data", atoms, format="lammps-data", specorder=elements, masses=True, atom_style="charge")
        script = INPUT.format(
            model=model.resolve(), elements=" ".join(elements), timestep=timestep, hot=2 * temperature, seed=seed,
            temperature=temperature, damping=100 * timestep, look=LOOK, steps=round(ps / timestep),
        )  # fmt: skip
        rows = run_lammps(script, folder)
    looks = round(ps / timestep) // LOOK + 1
    if len(rows["Step"]) < looks:  # it prints the last step too
        raise KqeqError(f"LAMMPS must print {looks} rows or more, got {len(rows['Step'])}")
    measure, later = rows["c_most"] / threshold, looks // 10
    return {
        "system": system,
        "model": model.name,
        "ps": ps,
        "largest measure over threshold": float(measure.max()),
        "of so many looks beyond": float(np.mean(measure > 1.0)),
        "mean temperature, K": float(rows["Temp"][later:].mean()),
        "conserved energy moved by, meV/atom": 1e3 * float(np.ptp(rows["Econserve"][later:])) / len(atoms),
        "mean pressure, GPa": 1e-4 * float(rows["Press"][later:].mean()),
    }


def run_lammps(script: str, folder: Path) -> dict[str, Floats]:
    """The columns of the last table that LAMMPS prints.

    Raises:
        KqeqError: it fails.
    """
    (folder / "in.hold").write_text(script)
    command = [str(lammps_command()), "-in", "in.hold", "-log", "none"]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)
    if done.returncode != 0:
        raise KqeqError(f"LAMMPS failed: {(done.stdout + done.stderr)[-800:]}")
    lines = done.stdout.splitlines()
    begin = max(k for k, line in enumerate(lines) if line.split()[:1] == ["Step"])
    end = next(k for k in range(begin, len(lines)) if lines[k].startswith("Loop time"))
    words = [line.split() for line in lines[begin + 1 : end]]
    rows = [[float(word) for word in row] for row in words if row and row[0].isdigit()]  # warnings stand between them
    return dict(zip(lines[begin].split(), np.array(rows).T, strict=True))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one system."""
    parser = argparse.ArgumentParser(description="NVT in bulk with the limits of a model watched.")
    parser.add_argument("system", choices=list(SYSTEMS))
    parser.add_argument("model", type=Path, metavar="MODEL.kqeq")
    parser.add_argument("--ps", type=float, default=100.0, help="how long (default 100)")
    parser.add_argument("--seed", type=int, default=1, help="of the velocities (default 1)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    found = hold(arguments.system, arguments.model, arguments.ps, arguments.seed)
    print(json.dumps(found, indent=1) if arguments.json else "\n".join(f"{k}: {v}" for k, v in found.items()))
    return int(found["largest measure over threshold"] > 1.0)


if __name__ == "__main__":
    sys.exit(main())
