"""The same GAP model in QUIP and in this package: time, memory, and how well they agree.

    python benchmark_gap.py                     water and NaCl, l_max 4 and 6; two threads; memory (about ten minutes)
    python benchmark_gap.py --quick             l_max 4 and few repeats (under 50 s)
    python benchmark_gap.py --quick --json      the same as one JSON object
    python benchmark_gap.py --basis GTO         with QUIP's other radial basis
    python benchmark_gap.py --xml GAP.xml --structure FILE      your model, on the last structure of a file ASE reads

The models are made on the spot (`benchmark_quip.py`): one SOAP of 8 radial functions, cutoff 5 Angstrom, zeta = 2, 500
sparse points for each of the two elements. "exact" is the kernel of all of them, "low rank" what `kqeq import-gap`
makes of it: force error below 1e-4 of the rms force on the structures of the fit (with --xml on those of the file).

Both compute energy, forces and virial of structures that move by 1e-3 Angstrom from call to call, in turns in one
process, so that a busy machine is busy for both; figures are medians, and the first turn does not count. Both have one
thread: OpenMP and BLAS are told so before they are loaded. Needs QUIP: `pip install quippy-ase`.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import read

from kqeq_md.ase import structure_from_atoms
from kqeq_md.compression import compress, forces_on
from kqeq_md.descriptor.power_spectrum import Descriptor
from kqeq_md.descriptor.radial import SoapParameters
from kqeq_md.errors import KqeqError
from kqeq_md.examples.benchmarks.benchmark_charges import memory, rms
from kqeq_md.examples.benchmarks.benchmark_quip import INSTALL, SEED, SYSTEMS, Answer, Quip, fit_gap
from kqeq_md.gap_import import import_gap
from kqeq_md.model import Model, SoapTerm, load_model, save_model
from kqeq_md.potential import Potential
from kqeq_md.structure import Floats, Structure

DISPLACEMENT = 1e-3
"""Standard deviation of each coordinate from call to call, Angstrom."""
OURS = 8
"""Calls of this package for one of QUIP, which takes as long as fifty of them."""
TURNS, QUICK_TURNS = 15, 5
MANY = 3000
"""Atoms at least, of copies of the structure, for threads; and for memory, which per atom is what twice as many add."""

Engine = Callable[[Floats], Answer]


@dataclass(frozen=True)
class Case:
    """One model and one structure.

    Attributes:
        name: "water_84" and the like; "given" for the user's.
        xml, path: the model for QUIP and for this package.
        atoms: the structure.
        fit_error: relative force error of the low rank on the structures of the fit; None without low rank.
    """

    name: str
    xml: Path
    path: Path
    atoms: Atoms
    fit_error: float | None


class Ours:
    """This package on one structure whose atoms move."""

    def __init__(self, path: Path, kernel: str, atoms: Atoms, threads: int = 1) -> None:
        self._start = structure_from_atoms(atoms)
        self._want = ("forces", "virial") if atoms.pbc.all() else ("forces",)
        self.potential = Potential(path, kernel=kernel, threads=threads)

    def __call__(self, positions: Floats) -> Answer:
        """Everything at these positions, Angstrom, shape (n, 3)."""
        found = self.potential.compute(replace(self._start, positions=positions), self._want)
        assert found.forces is not None
        return Answer(found.energy, found.forces, found.virial)


def engine(name: str, case: Case, atoms: Atoms) -> Engine:
    """QUIP ("quip") or one of the two kernels."""
    return Quip(case.xml, atoms) if name == "quip" else Ours(case.path, name, atoms)


def engines_of(case: Case) -> list[str]:
    """The names of all that the case has; without low rank, two."""
    return ["quip", "exact"] + (["low_rank"] if case.fit_error is not None else [])


@dataclass(frozen=True)
class Row:
    """What one case has shown.

    Attributes:
        name, atoms: which, and how many.
        microseconds: per atom of each engine, medians.
        speedup: of each kernel over QUIP.
        energy, force, virial: largest difference of the exact kernel from QUIP in eV/atom, eV/Angstrom and eV; no
            virial without a periodic cell.
        sparse_points, rank: of all elements and terms together; no rank without low rank.
        fit_error, force_error: rms force error of the low rank over the rms force, on the fit and here.
    """

    name: str
    atoms: int
    microseconds: dict[str, float]
    speedup: dict[str, float]
    energy: float
    force: float
    virial: float | None
    sparse_points: int
    rank: int | None
    fit_error: float | None
    force_error: float | None


class Race:
    """All engines on one case, on the same path of the atoms."""

    def __init__(self, case: Case) -> None:
        """All engines have had a turn that does not count: tables and lists are made."""
        self._case = case
        self._rng, self._positions = np.random.default_rng(SEED + 2), case.atoms.positions
        self._engines = {name: engine(name, case, case.atoms) for name in engines_of(case)}
        self._turn()
        self._turns: list[tuple[dict[str, list[float]], dict[str, Answer]]] = []

    def turn(self) -> None:
        """Our kernels, one after the other, on a few structures, and QUIP on the last of them."""
        self._turns.append(self._turn())

    def _turn(self) -> tuple[dict[str, list[float]], dict[str, Answer]]:
        """Seconds of all calls, and the answers to the last structure."""
        frames = [self._move() for _ in range(OURS)]
        seconds: dict[str, list[float]] = {name: [] for name in self._engines}
        answers = {}
        for name, compute in self._engines.items():
            for positions in frames[-1:] if name == "quip" else frames:
                start = perf_counter()
                answers[name] = compute(positions)
                seconds[name].append(perf_counter() - start)
        return seconds, answers

    def _move(self) -> Floats:
        self._positions = self._positions + self._rng.normal(scale=DISPLACEMENT, size=self._positions.shape)
        return self._positions

    def row(self) -> Row:
        """Medians and differences."""
        n, answers = len(self._case.atoms), [answers for _, answers in self._turns]
        time = {
            name: float(np.median(np.concatenate([seconds[name] for seconds, _ in self._turns]))) * 1e6 / n
            for name in self._engines
        }
        energy, force, virial = np.array([difference(a["quip"], a["exact"]) for a in answers]).max(axis=0)
        terms = load_model(self._case.path).terms
        low = "low_rank" in self._engines
        ranks = [len(points) for term in terms if term.low_rank for points in term.low_rank.points]
        return Row(
            name=self._case.name,
            atoms=n,
            microseconds=time,
            speedup={name: time["quip"] / time[name] for name in time if name != "quip"},
            energy=energy / n,
            force=force,
            virial=None if np.isnan(virial) else virial,
            sparse_points=sum(len(points) for term in terms for points in term.sparse_points),
            rank=sum(ranks) if low else None,
            fit_error=self._case.fit_error,
            force_error=max(force_error(a["low_rank"], a["exact"]) for a in answers) if low else None,
        )


def difference(a: Answer, b: Answer) -> tuple[float, float, float]:
    """Largest differences of energy, forces and virial; NaN for the virial without a periodic cell."""
    virial = np.nan if a.virial is None or b.virial is None else float(np.abs(a.virial - b.virial).max())
    return abs(a.energy - b.energy), float(np.abs(a.forces - b.forces).max()), virial


def force_error(a: Answer, exact: Answer) -> float:
    """rms of F - F(exact) over the rms of F(exact)."""
    return rms(a.forces - exact.forces) / rms(exact.forces)


# ---------------------------------------------------------------- what is compared


def our_cases(l_max: Sequence[int], basis: str, folder: Path) -> list[Case]:
    """Water and NaCl with models made now; `gap_fit` works on two at a time, while our kernels are compiled."""
    kinds = [(name, degree, folder / f"{name}_8{degree}.xml") for degree in l_max for name in SYSTEMS]
    frames = {name: system.frames() for name, system in SYSTEMS.items()}
    with ThreadPoolExecutor(2) as pool:
        fits = [pool.submit(fit_gap, frames[name], degree, basis, xml) for name, degree, xml in kinds]
        load_kernels()
        for fit in fits:
            fit.result()
    return [imported(xml, frames[name], SYSTEMS[name].atoms, folder / f"{xml.stem}.kqeq") for name, _, xml in kinds]


def load_kernels() -> None:
    """Compile what will be timed, or load it, with a model of one sparse point."""
    soap = SoapParameters(n_max=1, l_max=0)
    point, weight = np.ones((1, Descriptor.size_for(soap, 1))), np.ones((1, 1))
    model = Model(species=("O",), terms=(SoapTerm(soap, 2.0, (point,), (weight,)),), charges="none")
    Potential(model, threads=1).compute(Structure([8, 8], [[0.0, 0.0, 0.0], [1.2, 0.0, 0.0]]), ("forces", "virial"))


def given_case(xml: Path, structures: Path, folder: Path) -> Case:
    """A user's model on the last of the structures of a file; all of them say how low the rank may be.

    Raises:
        KqeqError: a model that cannot be imported, or structures that are not for it.
    """
    frames = read(structures, ":")
    return imported(xml, frames, frames[-1], folder / "given.kqeq")


def imported(xml: Path, frames: Sequence[Atoms], atoms: Atoms, path: Path) -> Case:
    """The case of a GAP and a structure, its kernel of a rank as low as the forces on some frames allow."""
    compressed = compress(import_gap(xml), forces_on([structure_from_atoms(frame) for frame in frames]))
    save_model(compressed.model, path)
    return Case(path.stem, xml, path, atoms, compressed.force_error)


# ---------------------------------------------------------------- threads and memory


def at_least(number: int, atoms: Atoms) -> Atoms:
    """So many atoms: copies side by side, along the shortest edge first."""
    copies = np.ones(3, dtype=int)
    while len(atoms) * copies.prod() < number:
        copies[np.argmin(copies * atoms.cell.lengths())] *= 2
    return atoms.repeat(copies)


def two_threads(case: Case, kernel: str) -> float:
    """How many times faster two threads are than one, in turns; medians."""
    atoms = at_least(MANY, case.atoms)
    rng = np.random.default_rng(SEED + 3)
    engines = [Ours(case.path, kernel, atoms, threads) for threads in (1, 2)]
    seconds = []
    for _ in range(TURNS + 1):
        positions = atoms.positions + rng.normal(scale=DISPLACEMENT, size=atoms.positions.shape)
        clock = [perf_counter()]
        for compute in engines:
            compute(positions)
            clock.append(perf_counter())
        seconds.append(np.diff(clock))
    one, two = np.median(seconds[1:], axis=0)
    return float(one / two)


def peak(case: Case, name: str, number: int) -> float:
    """MB of this process after some calls of one engine for so many atoms at least; a fresh process' first work."""
    atoms = at_least(number, case.atoms)
    compute = engine(name, case, atoms)
    for step in range(2):
        compute(atoms.positions + DISPLACEMENT * step)
    return memory("VmHWM")


def memory_per_atom(case: Case) -> dict[str, float]:
    """kB per atom by which the peak of each engine grows, each in processes of its own."""
    out = {}
    fewer, more = len(at_least(MANY, case.atoms)), len(at_least(2 * MANY, case.atoms))
    for name in engines_of(case):
        peaks = []
        for number in (fewer, more):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                peaks.append(pool.submit(peak, case, name, number).result())
        out[name] = (peaks[1] - peaks[0]) * 1e3 / (more - fewer)
    return out


# ---------------------------------------------------------------- what is run, and what is said


def measure(cases: Sequence[Case], turns: int) -> list[Row]:
    """Rows of all cases, which take turns."""
    races = [Race(case) for case in cases]
    for _ in range(turns):
        for race in races:
            race.turn()
    return [race.row() for race in races]


def key(figure: str, engine: str, case: str) -> str:
    """ "speedup_lowrank_water"; l_max = 4 stands without a number."""
    return f"{figure}_{engine.replace('_', '')}_{case.removesuffix('_84')}"


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """The figures that the README quotes."""
    out = {key("speedup", kernel, row.name): value for row in rows for kernel, value in row.speedup.items()}
    for name in ("energy", "force", "virial"):
        values = [value for row in rows if (value := getattr(row, name)) is not None]
        if values:
            out[f"max_{name}_difference"] = max(values)
    return out


HEAD = (
    f"{'':10}{'':7}{'us per atom':^27}{'speedup':^18}{'difference from QUIP':^27}{'low rank':^28}\n"
    f"{'':10}{'atoms':>7}{'QUIP':>9}{'exact':>9}{'low rank':>9}{'exact':>9}{'low rank':>9}"
    f"{'eV/atom':>9}{'eV/A':>9}{'eV':>9}{'points':>10}{'fit':>9}{'here':>9}"
)


def line(row: Row) -> str:
    """A row of the table under HEAD: with low rank its points of all sparse points, and its force errors."""
    times = [row.microseconds.get(name) for name in ("quip", "exact", "low_rank")]
    figures = [*times, *(row.speedup.get(name) for name in ("exact", "low_rank"))]
    errors = [row.energy, row.force, row.virial]
    points = f"{row.rank or '-'}/{row.sparse_points}"
    return (
        f"{row.name:10}{row.atoms:7d}"
        + "".join(f"{'-':>9}" if value is None else f"{value:9.1f}" for value in figures)
        + "".join(f"{'-':>9}" if value is None else f"{value:9.1e}" for value in errors)
        + f"{points:>10}"
        + "".join(f"{'-':>9}" if value is None else f"{value:9.1e}" for value in (row.fit_error, row.force_error))
    )


def run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure, printing as it goes unless JSON was asked for; returns everything."""

    def say(text: str) -> None:
        if not arguments.json:
            print(text, flush=True)

    say("making models ...")
    if arguments.xml:
        cases = [given_case(arguments.xml, arguments.structure, folder)]
    else:
        cases = our_cases((4,) if arguments.quick else (4, 6), arguments.basis, folder)
    say("measuring ...")
    rows = measure(cases, QUICK_TURNS if arguments.quick else TURNS)
    say("\n".join([HEAD, *map(line, rows)]))
    out: dict[str, Any] = summary(rows)
    if not arguments.quick:
        for case in cases:
            out |= beyond_time(case)
    for name, value in out.items():
        say(f"{name:32} {value:.3g}")
    return out | {"rows": [asdict(row) for row in rows]}


def beyond_time(case: Case) -> dict[str, float]:
    """Two threads, and memory, of copies of a periodic structure."""
    if not case.atoms.pbc.all():
        return {}
    gains = {key("two_threads", name, case.name): two_threads(case, name) for name in engines_of(case)[1:]}
    return gains | {key("kB_per_atom", name, case.name): value for name, value in memory_per_atom(case).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="l_max 4 and few repeats, under 50 s")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--basis", choices=("EQUISPACED_GAUSS", "GTO"), default="EQUISPACED_GAUSS",
                        help="radial basis of the models that are made (default: %(default)s)")  # fmt: skip
    parser.add_argument("--xml", type=Path, help="a GAP of your own, with its sparse-point files beside it")
    parser.add_argument("--structure", type=Path, help="structures for it, in any format that ASE reads")
    arguments = parser.parse_args()
    if (arguments.xml is None) != (arguments.structure is None):
        parser.error("--xml and --structure go together")
    for name in ("xml", "structure"):
        path = getattr(arguments, name)
        if path is not None and not path.is_file():
            parser.error(f"--{name}: there is no file {path}")
    if find_spec("quippy") is None:
        sys.exit(INSTALL)
    try:
        with tempfile.TemporaryDirectory() as folder:
            out = run(arguments, Path(folder))
    except KqeqError as error:
        sys.exit(str(error))
    if arguments.json:
        print(json.dumps(out))


if __name__ == "__main__":
    main()
