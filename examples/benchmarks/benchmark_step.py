"""The whole step of a model with charges: time per atom, how it grows, what it goes into, threads, memory.

    python benchmark_step.py                    1,000 to 32,768 atoms (about four minutes)
    python benchmark_step.py --json             the same as one JSON object
    python benchmark_step.py --sizes 1000 8000  these sizes only

The shipped NaCl model (descriptor, kernels, charges, forces and virial) on rock salt whose ions swing about their sites
by 0.1 Angstrom with a period of 100 steps, about as fast as at room temperature in steps of 2 fs. Sizes, and one and
two threads, take turns, so that a busy machine is busy for all; figures are medians of the steps that follow the first
eight, in which the history of charges fills. The neighbour list is kept as long as it is good.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from cProfile import Profile
from multiprocessing import get_context
from time import perf_counter
from typing import Any

import numpy as np
from ase.build import bulk

from kqeq_md.ase import structure_from_atoms
from kqeq_md.charges.equilibrate import ChargeSolver, electrostatic_gradient
from kqeq_md.electrostatics.coulomb import Electrostatics
from kqeq_md.examples.benchmarks.benchmark_charges import WARM_UP, memory
from kqeq_md.local_part import LocalPart
from kqeq_md.models import NACL
from kqeq_md.potential import Potential
from kqeq_md.process import OneProcess
from kqeq_md.structure import Structure

LATTICE = 5.64  # Angstrom
AMPLITUDE = 0.1  # Angstrom
PERIOD = 100  # steps
SEED = 20240607
SIZES = {1000: 5, 2744: 7, 8000: 10, 32768: 16}
"""Atoms and cubic cells along each edge."""
STEPS = 9

PARTS: dict[str, tuple[Callable[..., Any], ...]] = {
    "neighbours": (OneProcess.update, OneProcess.pairs),
    "descriptor and kernels": (LocalPart.__init__,),
    "their reverse": (LocalPart.gradient,),
    "charges": (Electrostatics.at, ChargeSolver.solve),
    "Coulomb forces": (electrostatic_gradient,),
}
"""What a step goes into; the time of a function includes that of all that it calls."""


class Salt:
    """Rock salt in motion, and a model on its way along.

    Args:
        edge: cubic cells along each edge.
        threads: how many work at once.
    """

    def __init__(self, edge: int, threads: int = 1) -> None:
        self._start = bulk("NaCl", "rocksalt", a=LATTICE, cubic=True) * (edge, edge, edge)
        self._phase = np.random.default_rng(SEED).uniform(0.0, 2.0 * np.pi, (len(self._start), 3))
        self._potential = Potential(NACL, threads=threads)
        self._now = 0
        self.seconds: list[float] = []

    def __len__(self) -> int:
        return len(self._start)

    def step(self) -> None:
        """Move, and compute forces and virial."""
        structure = self._structure()
        start = perf_counter()
        self._potential.compute(structure, ("forces", "virial"))
        self.seconds.append(perf_counter() - start)

    def _structure(self) -> Structure:
        self._now += 1
        atoms = self._start.copy()
        atoms.positions += AMPLITUDE * np.sin(2.0 * np.pi * self._now / PERIOD + self._phase)
        return structure_from_atoms(atoms)

    @property
    def microseconds(self) -> float:
        """Per atom and step, median after the warm-up."""
        return float(np.median(self.seconds[WARM_UP:])) * 1e6 / len(self)


def times(sizes: Sequence[int]) -> dict[int, dict[int, float]]:
    """Microseconds per atom and step for each number of atoms, with one and with two threads."""
    salts = [(Salt(SIZES[size]), Salt(SIZES[size], 2)) for size in sizes]
    for _ in range(WARM_UP + STEPS):
        for pair in salts:
            for salt in pair:
                salt.step()
    return {len(pair[0]): {threads: salt.microseconds for threads, salt in enumerate(pair, 1)} for pair in salts}


def profile(size: int) -> dict[str, float]:
    """Shares of the parts in a step, and the rest."""
    salt, record = Salt(SIZES[size]), Profile()
    for _ in range(WARM_UP):
        salt.step()
    for _ in range(STEPS):
        record.runcall(salt.step)
    spent = {entry.code: entry.totaltime for entry in record.getstats()}
    whole = spent[Potential.compute.__code__]
    out = {name: sum(spent[part.__code__] for part in parts) / whole for name, parts in PARTS.items()}
    return out | {"rest": 1.0 - sum(out.values())}


def peak(size: int) -> float:
    """MB of this process after the first steps; a fresh process' first work."""
    salt = Salt(SIZES[size])
    for _ in range(WARM_UP):
        salt.step()
    return memory("VmHWM")


def memory_per_atom(sizes: Sequence[int]) -> float:
    """kB per atom between the two largest sizes, each in a process of its own."""
    peaks = []
    for size in sorted(sizes)[-2:]:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            peaks.append(pool.submit(peak, size).result())
    fewer, more = (8 * SIZES[size] ** 3 for size in sorted(sizes)[-2:])
    return (peaks[1] - peaks[0]) * 1e3 / (more - fewer)


def exponent(measured: dict[int, dict[int, float]]) -> float:
    """Slope of log(time) against log(atoms), one thread."""
    atoms = np.array(list(measured))
    seconds = atoms * [threads[1] for threads in measured.values()]
    return float(np.polyfit(np.log(atoms), np.log(seconds), 1)[0])


def report(out: dict[str, Any]) -> str:
    """What was measured, as text."""
    lines = [f"{'atoms':>8}{'us per atom':>14}{'two threads':>14}{'gain':>8}"]
    lines += [
        f"{atoms:8d}{one:14.2f}{two:14.2f}{one / two:8.2f}"
        for atoms, (one, two) in ((atoms, threads.values()) for atoms, threads in out["microseconds"].items())
    ]
    lines += [f"{name:24}{100.0 * share:6.1f} %" for name, share in out["profile"].items()]
    lines += [f"{name:24}{out[name]:8.3f}" for name in ("exponent", "kB_per_atom") if name in out]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--sizes", nargs="+", type=int, choices=SIZES, default=list(SIZES), help="default: all")
    arguments = parser.parse_args()
    sizes = sorted(set(arguments.sizes))
    measured = times(sizes)
    out: dict[str, Any] = {"microseconds": measured, "profile": profile(8000 if 8000 in sizes else sizes[-1])}
    if len(sizes) > 1:
        out |= {"exponent": exponent(measured), "kB_per_atom": memory_per_atom(sizes)}
    print(json.dumps(out) if arguments.json else report(out))


if __name__ == "__main__":
    main()
