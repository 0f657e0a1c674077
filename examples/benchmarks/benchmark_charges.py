"""Time, iterations, scaling and memory of the charge part, beside LAMMPS' own charge equilibration.

    python benchmark_charges.py                     500 to 100,000 atoms, one and two threads (about 20 minutes)
    python benchmark_charges.py --quick             the ratios at 8k atoms and the scaling from 2k to 32k (under 50 s)
    python benchmark_charges.py --quick --json      the same as one JSON object
    python benchmark_charges.py --sizes 500 8k      these sizes only; --folder keeps the trajectories for the next run

Water and molten NaCl, along real trajectories (`benchmark_peers.py`). All codes solve the same frames in alternating
blocks of the same process, so that a busy machine is busy for all of them; figures are medians over the steps that
follow the first eight, in which histories of charges fill. What the peers do, matrix and solution at a tolerance of
1e-6, is compared with the same work of this package; neighbour lists are excluded on both sides. The physics is not
the same: the peers cut the Coulomb interaction off at 10 Angstrom, this package sums it over the lattice. Split
charges, with the usual compliances, are solved on the same frames beside plain equilibration.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # of all codes, the threads that are asked for and no others

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from kqeq_md.charges.constraints import total_charge
from kqeq_md.charges.equilibrate import ChargeSolver, Problem, bond_gradient
from kqeq_md.charges.preconditioner import RADIUS
from kqeq_md.charges.split import find_bonds
from kqeq_md.electrostatics.coulomb import Electrostatics
from kqeq_md.elements import SYMBOLS
from kqeq_md.examples.benchmarks.benchmark_peers import (
    NACL,
    REPLICAS,
    TOLERANCE,
    WATER,
    Floats,
    Peer,
    System,
    Trajectory,
    make_small_box,
    make_trajectory,
)
from kqeq_md.model import usual_compliance
from kqeq_md.neighbours.half_list import NeighbourList, find_pairs
from kqeq_md.ranks.halo import SERIAL
from kqeq_md.structure import Structure
from kqeq_md.units import COULOMB_CONSTANT

ACCURACY = 1e-5
"""Target rms force error of the Coulomb sum, eV/Angstrom: the default of the package."""
WARM_UP = 8
"""Steps until the histories of charges of all codes are full."""
BLOCK = 2
"""Steps of one code before it is the next one's turn."""


@dataclass(frozen=True)
class Case:
    """One liquid at one size.

    Attributes:
        peers: the fixes to compare with.
        steps: of dynamics before the first frame.
        frames: to keep.
    """

    system: System
    size: str
    peers: tuple[str, ...] = ("reaxff", "shielded")
    steps: int = 100
    frames: int = 25

    def trajectory(self, folder: Path) -> Trajectory:
        """Its frames, made now unless they are in the folder."""
        return make_trajectory(self.system, self.size, folder, self.steps, self.frames)


class ChargePart:
    """This package's charge part alone, driven as `Potential` drives it, with a clock between its parts.

    Args:
        system: electronegativities, hardness, widths.
        trajectory: its frames; the first one is solved for from nothing.
        threads: how many work at once.
        model: "qeq" or "split".
    """

    def __init__(self, system: System, trajectory: Trajectory, threads: int, model: str = "qeq") -> None:
        self._trajectory, self._model = trajectory, model
        self._compliance, self._cutoff = usual_compliance([SYMBOLS[number] for number in system.numbers])
        self._numbers = np.array(system.numbers)[trajectory.species]
        self._electronegativity = np.array(system.electronegativity)[trajectory.species]
        self._neighbours = NeighbourList()
        self._electrostatics = Electrostatics(
            np.array(system.gaussian_width), np.array(system.hardness), ACCURACY, None, threads
        )
        self._solver = ChargeSolver(TOLERANCE, threads)
        self._constraint = total_charge(len(self._numbers), 0.0)
        self._now = -1
        self.cold = self.advance(0)

    def advance(self, frame: int) -> Steps:
        """Equilibrate every frame up to `frame`."""
        found = []
        while self._now < frame:
            self._now += 1
            found.append(self._step(self._trajectory.frames[self._now]))
        return Steps(*np.array(found).T)

    def _step(self, positions: Floats) -> tuple[float, float, float, float, int]:
        """Seconds of list, setup, solution and forces, and the iterations."""
        trajectory, neighbours = self._trajectory, self._neighbours
        structure = Structure(self._numbers, positions, np.diag(trajectory.box), True)
        clock = [perf_counter()]
        neighbours.update(structure, max(self._electrostatics.cutoff(structure), RADIUS))
        order = neighbours.order
        species = trajectory.species[order]
        # in a simulation these are the descriptor's
        pairs = neighbours.pairs(float(self._cutoff.max())) if self._model == "split" else None
        ordered = Structure(structure.numbers[order], structure.positions[order], structure.cell, True)
        clock.append(perf_counter())
        coulomb = self._electrostatics.at(ordered, species, neighbours)
        bonds = None if pairs is None else find_bonds(pairs, species, self._compliance, self._cutoff, SERIAL)
        clock.append(perf_counter())
        problem = Problem(
            ordered, coulomb, neighbours, self._electronegativity[order], self._constraint.ordered(order),
            ordered.field, ordered.positions, None if bonds is None else np.zeros(len(order)), bonds,
        )  # fmt: skip
        solution = self._solver.solve(problem)
        clock.append(perf_counter())
        coulomb.gradient(solution.charges)
        if bonds is not None:
            bond_gradient(bonds, solution.tension)
        clock.append(perf_counter())
        self.coulomb, self.charges = coulomb, solution.charges
        lists, setup, solve, forces = np.diff(clock)
        return lists, setup, solve, forces, solution.iterations


@dataclass(frozen=True)
class Steps:
    """Seconds of the parts of each step, and its iterations; each of shape (n_steps,)."""

    lists: Floats
    setup: Floats
    solve: Floats
    forces: Floats
    iterations: Floats


@dataclass(frozen=True)
class Row:
    """Medians of one liquid at one size; times in microseconds per atom and step.

    Attributes:
        system, size, atoms: which.
        threads: of this package; the peers have one.
        model: charge model, "qeq" or "split".
        setup, solve, forces: of this package.
        equilibration: setup and solution together, as the peers' times are.
        whole: all of these and the neighbour list, whose mean over the steps is taken: it is rarely rebuilt.
        iterations: of this package.
        peers: time and iterations of the peers.
    """

    system: str
    size: str
    atoms: int
    threads: int
    model: str
    setup: float
    solve: float
    equilibration: float
    forces: float
    whole: float
    iterations: float
    peers: dict[str, tuple[float, float]]


class Run:
    """All codes on their way along one trajectory."""

    def __init__(self, case: Case, threads: Sequence[int], folder: Path) -> None:
        """Every code has solved the first frame."""
        trajectory = case.trajectory(folder)
        self._case, self._atoms, self._last = case, len(trajectory.species), len(trajectory.frames) - 1
        kinds = [(count, "qeq") for count in threads] + [(1, "split")]
        self._ours = {kind: ChargePart(case.system, trajectory, *kind) for kind in kinds}
        self._peers = {style: Peer(case.system, style, trajectory, folder) for style in case.peers}
        self._steps: dict[tuple[int, str], list[Steps]] = {kind: [] for kind in kinds}
        self._fixes: dict[str, list[tuple[Floats, Floats]]] = {style: [] for style in case.peers}

    def turn(self, end: int) -> None:
        """Each code in its turn solves the frames up to `end`, if there are so many."""
        if end > self._last:
            return
        for kind, part in self._ours.items():
            self._steps[kind].append(part.advance(end))
        for style, peer in self._peers.items():
            self._fixes[style].append(peer.advance(end))

    def rows(self) -> list[Row]:
        """Medians over all turns but the first, a row for each number of threads and charge model; the peers are
        closed."""
        peers = {}
        for style, turns in self._fixes.items():
            self._peers[style].close()
            seconds, iterations = (np.concatenate(part) for part in zip(*turns[1:], strict=True))
            peers[style] = self._per_atom(seconds), float(np.median(iterations))
        return [
            self._row(*kind, joined(turns[1:]), peers if kind[1] == "qeq" else {})
            for kind, turns in self._steps.items()
        ]

    def _row(self, threads: int, model: str, warm: Steps, peers: dict[str, tuple[float, float]]) -> Row:
        return Row(
            system=self._case.system.name,
            size=self._case.size,
            atoms=self._atoms,
            threads=threads,
            model=model,
            setup=self._per_atom(warm.setup),
            solve=self._per_atom(warm.solve),
            equilibration=self._per_atom(warm.setup + warm.solve),
            forces=self._per_atom(warm.forces),
            whole=self._per_atom(warm.setup + warm.solve + warm.forces) + float(warm.lists.mean()) * 1e6 / self._atoms,
            iterations=float(np.median(warm.iterations)),
            peers=peers,
        )

    def _per_atom(self, seconds: Floats) -> float:
        """Median in microseconds per atom."""
        return float(np.median(seconds)) * 1e6 / self._atoms


def measure(cases: Sequence[Case], threads: Sequence[int], folder: Path) -> list[Row]:
    """Rows of all cases; sizes, liquids and codes take turns, so that all meet the machine as it is."""
    runs = [Run(case, threads, folder) for case in cases]
    for end in range(WARM_UP, max(case.frames for case in cases), BLOCK):
        for run in runs:
            run.turn(end)
    return [row for run in runs for row in run.rows()]


def joined(blocks: list[Steps]) -> Steps:
    """The steps of all blocks."""
    return Steps(*(np.concatenate([getattr(block, name) for block in blocks]) for name in Steps.__dataclass_fields__))


# ---------------------------------------------------------------- memory


def memory(name: str) -> float:
    """VmRSS, what this process holds now, or VmHWM, its peak; MB, on Linux."""
    rows = Path("/proc/self/status").read_text().splitlines()
    return next(float(row.split()[1]) * 1024 / 1e6 for row in rows if row.startswith(name))


def growth(case: Case, folder: Path) -> float:
    """Peak memory (MB) above what the interpreter, modules, compiled functions and frames hold before."""
    small, large = Case(case.system, "500", (), 0, 2).trajectory(folder), case.trajectory(folder)
    ChargePart(case.system, small, 1).advance(1)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = memory("VmRSS")
    ChargePart(case.system, large, 1).advance(WARM_UP)
    return memory("VmHWM") - before


def growth_elsewhere(case: Case, folder: Path) -> float:
    """`growth` in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(growth, case, folder).result()


# ---------------------------------------------------------------- one product with J against torch-pme


def rms(x: Floats) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.mean(x**2)))


def timed(function: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Median seconds of some calls after one that is not counted, and what the last one returned."""
    function()
    seconds = []
    for _ in range(repeats):
        start = perf_counter()
        result = function()
        seconds.append(perf_counter() - start)
    return float(np.median(seconds)), result


def our_product(system: System, trajectory: Trajectory, charges: Floats) -> tuple[float, float]:
    """Median seconds of J q, and the rms error of its potentials, V, at the default accuracy."""
    structure = Structure(
        np.array(system.numbers)[trajectory.species], trajectory.frames[0], np.diag(trajectory.box), True
    )
    found = []
    for accuracy in (ACCURACY, 1e-10):
        electrostatics = Electrostatics(np.array(system.gaussian_width), np.array(system.hardness), accuracy, None, 1)
        neighbours = NeighbourList()
        neighbours.update(structure, electrostatics.cutoff(structure))
        order = neighbours.order
        ordered = replace(structure, numbers=structure.numbers[order], positions=structure.positions[order])
        coulomb = electrostatics.at(ordered, trajectory.species[order], neighbours)
        found.append(timed(partial(coulomb.apply, charges[order]), 9))
    (seconds, potential), (_, exact) = found
    return seconds, rms(potential - exact)


def their_product(trajectory: Trajectory, charges: Floats, error: float) -> float:
    """Median seconds of torch-pme's forward: the fastest of some settings whose rms error, V, is no larger."""
    torch, torchpme = import_module("torch"), import_module("torchpme")
    torch.set_num_threads(1)
    x, cell, q = (torch.tensor(a) for a in (trajectory.frames[0], np.diag(trajectory.box), charges[:, None]))
    structure = Structure(np.ones(len(charges), dtype=int), trajectory.frames[0], np.diag(trajectory.box), True)

    def forward(cutoff: float, exponent: float, mesh: int, repeats: int) -> tuple[float, Floats]:
        pairs = find_pairs(structure, cutoff)
        once = pairs.centre < pairs.neighbour
        indices = torch.tensor(np.stack([pairs.centre, pairs.neighbour], axis=1)[once])
        distances = torch.tensor(np.linalg.norm(pairs.vectors[once], axis=1))
        potential = torchpme.CoulombPotential(smearing=cutoff / (np.sqrt(2.0) * exponent))
        spacing = 2.0 * trajectory.box.min() / (mesh - 1)  # gives `mesh` points along the shortest edge
        calculator = torchpme.PMECalculator(potential, spacing, interpolation_nodes=7).to(torch.float64)
        with torch.no_grad():
            seconds, out = timed(lambda: calculator.forward(q, cell, x, indices, distances), repeats)
        return seconds, 2.0 * COULOMB_CONSTANT * out.numpy()[:, 0]  # theirs is half of the potential

    _, exact = forward(12.0, 5.2, 128, 1)
    best = np.inf
    for cutoff in (5.0, 6.0, 8.0, 10.0, 12.0):
        for mesh in (32, 64, 128):
            seconds, potential = forward(cutoff, 3.8, mesh, 3)  # erfc(3.8) = 8e-8: what is cut off is below the error
            if rms(potential - exact) <= error:
                best = min(best, seconds)
                break
    return best


def product_times(system: System, trajectory: Trajectory) -> dict[str, float] | None:
    """One product with J against torch-pme's forward, same charges, same accuracy, one thread; None without it.

    Both errors are measured against converged potentials of the same code.
    """
    if find_spec("torch") is None or find_spec("torchpme") is None:
        return None
    charges = np.array([-0.8, 0.4] if system == WATER else [0.9, -0.9])[trajectory.species]
    ours, error = our_product(system, trajectory, charges)
    theirs = their_product(trajectory, charges, error)
    per_atom = 1e6 / len(charges)
    return {"ours": ours * per_atom, "torch_pme": theirs * per_atom, "ratio": theirs / ours, "error": error}


# ---------------------------------------------------------------- what is run, and what is said


QUICK = (
    Case(WATER, "32k", (), 10, 13),
    Case(WATER, "8k", ("reaxff", "shielded"), 60, 17),
    Case(NACL, "8k", ("reaxff",), 60, 17),
    Case(WATER, "2k", (), 60, 17),
)


def cases_of(sizes: Sequence[str], quick: bool) -> list[Case]:
    """What to measure: the few of the quick form, or both liquids at all sizes."""
    if quick:
        return [case for case in QUICK if case.size in sizes]
    return [Case(system, size) for size in sizes for system in (WATER, NACL)]


def prepare(cases: Sequence[Case], folder: Path) -> None:
    """Make all trajectories, two at a time, and compile what will be timed; nothing is measured meanwhile."""
    systems = {case.system.name: case.system for case in cases}.values()
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for box in [pool.submit(make_small_box, system, folder) for system in systems]:
            box.result()  # what all trajectories are made of
        making = [pool.submit(Case.trajectory, case, folder) for case in cases]
        ChargePart(WATER, Case(WATER, "500", (), 0, 2).trajectory(folder), 1)
        for trajectory in making:
            trajectory.result()


def exponent(rows: Sequence[Row]) -> float | None:
    """Slope of log(time of the whole charge part) against log(atoms) of water from 2k atoms on, one thread."""
    plain = [row for row in rows if (row.system, row.threads, row.model) == ("water", 1, "qeq")]
    points = [(float(row.atoms), row.atoms * row.whole) for row in plain]
    atoms, seconds = np.log([point for point in points if point[0] > 1000] or [(1.0, 1.0)]).T
    return float(np.polyfit(atoms, seconds, 1)[0]) if len(atoms) > 1 else None


def summary(rows: Sequence[Row]) -> dict[str, float | None]:
    """The figures that the README quotes, None where they were not measured; one thread."""
    one_thread = [row for row in rows if row.threads == 1]
    at_8k = {row.system: row for row in one_thread if row.size == "8k" and row.model == "qeq"}
    split = {(row.system, row.size): row for row in one_thread if row.model == "split"}
    out: dict[str, float | None] = {}
    for style, system in (("reaxff", "water"), ("reaxff", "nacl"), ("shielded", "water")):
        row = at_8k.get(system)
        peer = row.peers.get(style) if row else None
        out[f"ratio_{style}_{system}"] = row.equilibration / peer[0] if row and peer else None
    out["iterations_8k"] = at_8k["water"].iterations if "water" in at_8k else None
    out["exponent"] = exponent(rows)
    for system in ("water", "nacl"):
        plain, flowing = at_8k.get(system), split.get((system, "8k"))
        out[f"split_ratio_{system}"] = (
            (flowing.equilibration + flowing.forces) / (plain.equilibration + plain.forces)
            if plain and flowing
            else None
        )
    for size in ("2k", "8k", "32k"):
        row = split.get(("water", size))
        out[f"split_iterations_{size}"] = row.iterations if row else None
    return out


HEAD = (
    f"{'':12}{'':8}{'':10}{'us per atom and step':^32}{'':8}{'peers':^24}\n"
    f"{'':12}{'atoms':>8}{'thr':>4}{'model':>6}{'setup':>8}{'solve':>8}{'forces':>8}{'whole':>8}{'iter':>8}"
    f"{'reaxff (iter)':>16}{'shielded (iter)':>16}"
)


def line(row: Row) -> str:
    """A row of the table under HEAD."""
    times = "".join(f"{value:8.2f}" for value in (row.setup, row.solve, row.forces, row.whole))
    peers = "".join(
        f"{row.peers[style][0]:9.2f} ({row.peers[style][1]:4.1f})" if style in row.peers else f"{'-':>16}"
        for style in ("reaxff", "shielded")
    )
    return f"{row.system:12}{row.atoms:8d}{row.threads:4d}{row.model:>6}{times}{row.iterations:8.1f}{peers}"


def run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure, printing as it goes unless JSON was asked for; returns everything."""

    def say(text: str) -> None:
        if not arguments.json:
            print(text, flush=True)

    say("making trajectories ...")
    threads = sorted({1, arguments.threads or (1 if arguments.quick else 2)})
    cases = cases_of(arguments.sizes, arguments.quick)
    prepare(cases, folder)
    say("measuring ...")
    rows = measure(cases, threads, folder)
    say("\n".join([HEAD, *map(line, rows)]))
    out: dict[str, Any] = summary(rows)
    for name, value in out.items():
        say(f"{name:22} {'not measured' if value is None else f'{value:.3f}'}")
    if not arguments.quick:
        out |= beyond_time(cases, folder)
        say(json.dumps({key: out[key] for key in ("memory_MB", "product")}, indent=1))
    return out | {"rows": [asdict(row) for row in rows]}


def beyond_time(cases: Sequence[Case], folder: Path) -> dict[str, Any]:
    """Memory of the largest size, and one product with J against torch-pme at 8k atoms of water."""
    largest = [case for case in cases if case.size == cases[-1].size]
    memory = {f"{case.system.name}_{case.size}": growth_elsewhere(case, folder) for case in largest}
    medium = [case for case in cases if case.size == "8k" and case.system == WATER]
    product = product_times(WATER, medium[0].trajectory(folder)) if medium else None
    return {"memory_MB": memory, "product": product or "skipped: needs 8k atoms of water, torch and torch-pme"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="8k atoms and the scaling of water only, under 50 s")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--threads", type=int, help="also with so many threads (default: 2, with --quick 1)")
    parser.add_argument("--sizes", nargs="+", choices=REPLICAS, default=list(REPLICAS), help="default: all")
    parser.add_argument("--folder", type=Path, help="keep trajectories here, and use those that are there")
    arguments = parser.parse_args()
    if arguments.threads is not None and arguments.threads < 1:
        parser.error(f"--threads: must be positive, got {arguments.threads}")
    if not cases_of(arguments.sizes, arguments.quick):
        parser.error(f"--sizes: with --quick must hold one of 2k, 8k, 32k, got {' '.join(arguments.sizes)}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        out = run(arguments, folder)
    if arguments.json:
        print(json.dumps(out))


if __name__ == "__main__":
    main()
