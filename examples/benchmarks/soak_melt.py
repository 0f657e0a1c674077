"""A long run of a NaCl melt in LAMMPS: does its energy drift, does its memory grow?

    python soak_melt.py -o FOLDER           1,000,000 steps of 216 ions, 2 ns (two to three hours on one core)
    python soak_melt.py --quick             2,000 steps (a minute); --steps N, --json

A run that was ended goes on from its last restart file, by the same command and FOLDER.

NVE at 1200 K after 5 ps of NVT. The drift is the least-squares slope of the total energy against time. Its standard
error comes from blocks, since the energy of velocity Verlet fluctuates with the motion. Memory is what the process of
LAMMPS holds (VmRSS), at the end against after the first tenth, when all lists have found their size. The charges are
solved ten times closer than by default: what the default leaves does work of some 1e-4 meV/atom/ps.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kqeq_md.machine.programs import environment, lammps_command
from kqeq_md.models import NACL
from kqeq_md.structure import Floats

TIMESTEP = 0.002
"""ps."""

BLOCKS = 10
"""Parts of the run whose slopes tell the error of the whole."""

MELT = """
lattice      custom 5.87 a1 1 0 0 a2 0 1 0 a3 0 0 1 &
             basis 0.0 0.0 0.0  basis 0.0 0.5 0.5  basis 0.5 0.0 0.5  basis 0.5 0.5 0.0 &
             basis 0.5 0.5 0.5  basis 0.5 0.0 0.0  basis 0.0 0.5 0.0  basis 0.0 0.0 0.5
region       box block 0 3 0 3 0 3
create_box   2 box
create_atoms 1 box basis 5 2 basis 6 2 basis 7 2 basis 8 2
mass         1 22.98977
mass         2 35.453
velocity     all create 2400 4711 mom yes rot yes
"""

EQUILIBRATION = """
fix          equilibrate all nvt temp 1200 1200 0.1
run          2500
unfix        equilibrate
reset_timestep 0
"""

INPUT = """
units        metal
atom_style   charge
boundary     p p p
{start}
pair_style   kqeq tolerance 1e-7
pair_coeff   * * {model} Na Cl
timestep     {timestep}
{equilibration}
fix          conserve all nve
thermo_style custom step temp etotal
thermo_modify format float %.12g flush yes
thermo       {interval}
restart      {keep} soak.restart.a soak.restart.b
print        "soak begins"
run          {steps} upto
"""


class Sample(NamedTuple):
    """One line of the thermodynamic output, and the process of LAMMPS when it came."""

    step: int
    temperature: float
    """K."""
    energy: float
    """eV."""
    memory: float
    """MB."""
    process: int
    """Its number."""


def samples(folder: Path, steps: int, interval: int) -> list[Sample]:
    """Run LAMMPS, or go on where it was ended; all rows, which stay in the folder as they come."""
    record = folder / "samples.txt"
    restarts = sorted(folder.glob("soak.restart.*"), key=lambda path: path.stat().st_mtime)
    rows = _read(record) if restarts else []
    text = INPUT.format(
        start=f"read_restart {restarts[-1].name}" if restarts else MELT,
        equilibration="" if restarts else EQUILIBRATION,
        model=NACL,
        timestep=TIMESTEP,
        interval=interval,
        keep=50 * interval,
        steps=steps,
    )
    (folder / "in.soak").write_text(text)
    command = [str(lammps_command()), "-in", "in.soak", "-log", "log.soak"]
    begun, first = False, True
    with subprocess.Popen(command, cwd=folder, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            begun = begun or line.startswith("soak begins")
            words = line.split()
            if begun and len(words) == 3 and words[0].isdigit():
                row = Sample(int(words[0]), float(words[1]), float(words[2]), resident_memory(process.pid), process.pid)
                if first:  # what came after the restart file comes again
                    rows = [old for old in rows if old.step < row.step]
                    record.write_text("".join(_line(old) for old in rows))
                    first = False
                rows.append(row)
                with record.open("a") as file:
                    file.write(_line(row))
    if process.returncode:
        raise SystemExit(f"LAMMPS ended with exit status {process.returncode}: see {folder / 'log.soak'}")
    return rows


def _read(record: Path) -> list[Sample]:
    lines = (line.split() for line in record.read_text().splitlines())
    return [Sample(int(s), float(t), float(e), float(m), int(p)) for s, t, e, m, p in lines]


def _line(row: Sample) -> str:
    return " ".join(repr(value) for value in row) + "\n"


def resident_memory(pid: int) -> float:
    """VmRSS of a process and of all that it has started, MB; on Linux."""
    total = 0.0
    for child in Path(f"/proc/{pid}/task").glob("*/children"):
        total += sum(resident_memory(int(number)) for number in child.read_text().split())
    status = Path(f"/proc/{pid}/status").read_text()
    return total + float(status.split("VmRSS:")[1].split()[0]) / 1024


def drift(time: Floats, energy: Floats) -> tuple[float, float]:
    """Slope of the energy against time, and the standard error that slopes of parts of the run give it."""

    def slope(t: Floats, e: Floats) -> float:
        return float(np.polyfit(t - t.mean(), e - e.mean(), 1)[0])

    t, e = (np.array([part.mean() for part in np.array_split(values, BLOCKS)]) for values in (time, energy))
    left = e - e.mean() - slope(t, e) * (t - t.mean())
    error = np.sqrt((left**2).sum() / (BLOCKS - 2) / ((t - t.mean()) ** 2).sum())
    return slope(time, energy), float(error)


def summary(rows: Sequence[Sample], n_atoms: int = 216) -> dict[str, float]:
    """Drift and growth, by name and unit."""
    step, temperature, energy, memory, process = np.array(rows).T
    time = step * TIMESTEP
    slope, error = drift(time, 1000 * energy / n_atoms)
    return {
        "steps": int(step[-1]),
        "time_ps": float(time[-1]),
        "mean_temperature_K": float(temperature.mean()),
        "drift_meV_per_atom_ps": slope,
        "drift_error_meV_per_atom_ps": error,
        "energy_rms_meV_per_atom": 1000 * float(energy.std()) / n_atoms,
        "processes": len(np.unique(process)),
        "memory_MB": float(memory[-1]),
        "memory_growth_MB": max(growth(memory[process == number]) for number in np.unique(process)),
    }


def growth(memory: Floats) -> float:
    """What one process holds at the end, beyond what it held after the first tenth."""
    return float(memory[-1] - memory[len(memory) // 10])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--quick", action="store_true", help="2,000 steps")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="keeps input, log, samples")
    arguments = parser.parse_args(argv)
    steps = 2000 if arguments.quick else arguments.steps
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.output or Path(scratch)
        folder.mkdir(exist_ok=True)
        found = summary(samples(folder, steps, max(1, min(1000, steps // 100))))
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        print("\n".join(f"{name:<28}{value:.6g}" for name, value in found.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
