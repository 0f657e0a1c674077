"""What `benchmark_lammps.py` leads: LAMMPS on one or more MPI ranks, waiting for orders without using a core.

`Ranks` starts `mpirun` with this file as the program of every rank, and each rank connects to a socket. Orders go to
all ranks at once. Between two orders a rank sleeps in the kernel, where a rank of `lmp` that waits for its script
would spin: so several LAMMPS, on one rank and on two, can take turns on the same cores.
"""

from __future__ import annotations

import math
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Client, Connection, wait
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from kqeq_md.errors import KqeqError
from kqeq_md.examples.benchmarks.benchmark_charges import memory
from kqeq_md.examples.benchmarks.benchmark_peers import lammps, unwrapped
from kqeq_md.lammps_plugin.halo import LammpsHalo
from kqeq_md.machine.programs import environment, program
from kqeq_md.potential import Potential
from kqeq_md.structure import Floats, Structure

SECTIONS = ("Pair", "Neigh", "Comm", "Output", "Modify", "Other")
"""Of LAMMPS' breakdown of a loop; the Coulomb sum and the charges are inside Pair."""
HALO = ("forward", "reverse")
"""What a rank exchanges with its neighbours alone."""
PATIENCE = 120.0
"""Seconds until all ranks must have started."""
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "KQEQ_NUM_THREADS")}


class Traffic(NamedTuple):
    """One kind of exchange between ranks in a step.

    Attributes:
        method: of the halo: "forward", "reverse", "sum", "gather" or "exchange".
        doubles: that a call carries; of "forward" and "reverse" for each ghost, of "gather" those of this rank, of
            "exchange" those to all ranks together.
        calls: how often.
        seconds: in all calls together, the wait for other ranks included.
    """

    method: str
    doubles: int
    calls: float
    seconds: float


class Ranks:
    """Some ranks of one MPI job, each with one thread.

    Args:
        number: of ranks.
        folder: in which they run, and leave their logs.

    Raises:
        KqeqError: `mpirun` fails.
    """

    def __init__(self, number: int, folder: Path) -> None:
        # a Unix socket's path is short: not every `folder` is
        with tempfile.TemporaryDirectory() as place, socket.socket(socket.AF_UNIX) as server:
            address = str(Path(place) / "orders")
            server.bind(address)
            server.listen(number)
            server.settimeout(PATIENCE)
            command = [str(program("mpirun")), "-n", str(number), sys.executable, "-m", __name__, address]
            self._job = subprocess.Popen(
                command, cwd=folder, env=environment() | ONE_THREAD, stdin=subprocess.DEVNULL, stdout=sys.stderr
            )
            try:
                self._ranks = [Connection(server.accept()[0].detach()) for _ in range(number)]
            except TimeoutError:
                self._job.terminate()
                raise KqeqError(f"`{' '.join(command)}` does not start") from None

    def __call__(self, order: str, *arguments: Any) -> list[Any]:
        """What every rank answers, in no order, to the method `order` of `Rank`.

        Raises:
            KqeqError: a rank has failed; all are ended.
        """
        for rank in self._ranks:
            rank.send((order, arguments))
        answers, waiting = [], list(self._ranks)
        while waiting:
            ready = wait(waiting)  # whoever is first: others may wait in vain for one that has failed
            for rank in [rank for rank in waiting if rank in ready]:
                failed, answer = self._answer(rank)
                if failed:
                    self._job.terminate()
                    raise KqeqError(f"a rank has failed in `{order}`: {answer}")
                answers.append(answer)
                waiting.remove(rank)
        return answers

    def _answer(self, rank: Connection) -> tuple[bool, Any]:
        try:
            return rank.recv()
        except (EOFError, ConnectionResetError):
            return True, "it has ended"

    def first(self, order: str, *arguments: Any) -> Any:
        """The answer of the rank that has one, where all others answer None."""
        return next(answer for answer in self(order, *arguments) if answer is not None)

    def close(self) -> None:
        """End the job."""
        for rank in self._ranks:
            rank.close()
        self._job.wait()


class Rank:
    """The other end: one rank with any number of LAMMPS, each with a name."""

    def __init__(self) -> None:
        self._engines: dict[str, Any] = {}

    def open(self, name: str, script: str) -> None:
        """Start a LAMMPS, and run the commands of a script."""
        self._engines[name] = lammps()
        self.command(name, script)

    def command(self, name: str, script: str) -> None:
        """Run more commands."""
        self._engines[name].commands_string(script)

    def close(self, name: str) -> None:
        """Give the memory of a LAMMPS back."""
        self._engines.pop(name).close()

    def run(self, name: str, steps: int) -> dict[str, float] | None:
        """Go on for some steps: seconds of LAMMPS' loop ("Loop") and of its sections, means over ranks, by the first
        rank."""
        engine, log = self._engines[name], Path(f"{name}.log")
        engine.command(f"log {log}")
        engine.command(f"run {steps} pre no post yes")
        engine.command("log none")
        return breakdown(log.read_text()) if engine.extract_setting("world_rank") == 0 else None

    def forces(self, name: str) -> Floats | None:
        """Forces in the order of the atoms' identifiers, shape (n, 3), by the first rank."""
        engine = self._engines[name]
        found = np.array(engine.gather_atoms("f", 1, 3)).reshape(-1, 3)
        return found if engine.extract_setting("world_rank") == 0 else None

    def traffic(self, name: str, steps: int) -> list[tuple[str, int, float, float]]:
        """What this rank exchanges with others in a step, as `Traffic` has it, the positions of ghosts aside; means of
        some steps."""
        with counted(LammpsHalo) as calls:
            self.run(name, steps)
        return [(*kind, len(seconds) / steps, sum(seconds) / steps) for kind, seconds in sorted(calls.items())]

    def atoms(self, name: str) -> tuple[int, int]:
        """Atoms of this rank, and its ghosts."""
        engine = self._engines[name]
        return engine.extract_setting("nlocal"), engine.extract_setting("nghost")

    def peak(self) -> float:
        """Largest memory of this rank so far, MB."""
        return memory("VmHWM")

    def beside(self, name: str, model: str, numbers: list[int], blocks: int, steps: int) -> list[tuple[float, float]]:
        """Seconds of LAMMPS' loop, and of `Potential.compute` on the same frames; a pair for each block of steps.

        Args:
            name: a LAMMPS with `pair_style kqeq`, alone on its rank.
            model: its model.
            numbers: atomic numbers of its types.
            blocks, steps: how many blocks of how many steps; one more before them does not count.
        """
        engine, potential = self._engines[name], Potential(model, threads=1)
        kinds = np.array(engine.gather_atoms("type", 0, 1)) - 1
        (low, high, *_) = engine.extract_box()
        start = Structure(np.array(numbers)[kinds], unwrapped(engine), np.diag(np.array(high) - low), True)

        def pair() -> tuple[float, float]:
            timed = self.run(name, 1)
            assert timed is not None
            structure = replace(start, positions=unwrapped(engine))
            clock = perf_counter()
            potential.compute(structure, ("forces", "virial"))  # LAMMPS asks for both at the last step of a run
            return timed["Loop"], perf_counter() - clock

        found = np.array([[pair() for _ in range(steps)] for _ in range(blocks + 1)])
        return [tuple(block) for block in found[1:].sum(axis=1).tolist()]


@contextmanager
def counted(halo: type) -> Iterator[dict[tuple[str, int], list[float]]]:
    """Seconds of all calls of a kind of halo while the context lasts, by method and doubles as in `Traffic`."""
    methods = {name: getattr(halo, name) for name in (*HALO, "sum", "gather", "exchange")}
    calls: dict[tuple[str, int], list[float]] = {}

    def watched(name: str) -> Callable[..., Any]:
        def method(self: Any, values: Any, *others: Any) -> Any:
            clock = perf_counter()
            out = methods[name](self, values, *others)
            seconds = perf_counter() - clock
            if name == "exchange":
                size = sum(np.size(piece) for piece in values)
            else:
                size = int(np.prod(np.shape(values)[1:] if name in HALO else np.shape(values)))
            calls.setdefault((name, size), []).append(seconds)
            return out

        return method

    for name in methods:
        setattr(halo, name, watched(name))
    try:
        yield calls
    finally:
        for name, method in methods.items():
            setattr(halo, name, method)


def breakdown(log: str) -> dict[str, float]:
    """Seconds of the last loop of a log: the whole ("Loop"), and each section's mean over ranks."""
    loop = re.findall(r"^Loop time of (\S+) on", log, re.M)[-1]
    rows = {row[0].strip(): row[2] for line in log.splitlines() if len(row := line.split("|")) == 6}
    return {"Loop": float(loop)} | {name: float(rows[name]) for name in SECTIONS}


# ---------------------------------------------------------------- from two ranks to many


def exchanged(traffic: Sequence[Traffic], ghosts: float, ranks: int) -> tuple[float, float]:
    """Bytes that a rank sends in a step, and its messages, if it has as many atoms and ghosts among more ranks.

    A halo is exchanged in six messages, two along each axis, which carry every ghost once (where an axis has one rank,
    its ghosts are copied instead). A sum over P ranks is 2 log2 P messages of together 2 (P - 1)/P times its size
    (R. Rabenseifner, Lect. Notes Comput. Sci. 3036, 1 (2004), https://doi.org/10.1007/978-3-540-24685-5_1); where all
    get what each has, log2 P messages carry P - 1 times that; an exchange is a message to each of the others.

    Args:
        traffic: of a rank in a step.
        ghosts: of a rank.
        ranks: P.
    """
    sent = messages = 0.0
    for method, doubles, calls, _ in traffic:
        if method in HALO:
            sent += 8.0 * calls * doubles * ghosts
            messages += 6.0 * calls
        elif method == "sum":
            sent += 16.0 * calls * doubles * (ranks - 1) / ranks
            messages += 2.0 * calls * math.log2(ranks)
        elif method == "exchange":
            sent += 8.0 * calls * doubles * (ranks - 1) / ranks
            messages += calls * (ranks - 1)
        else:
            sent += 8.0 * calls * doubles * (ranks - 1)
            messages += calls * math.log2(ranks)
    return sent, messages


def serve(address: str) -> None:
    """Obey until the socket is closed."""
    rank, orders = Rank(), Client(address)
    while True:
        try:
            order, arguments = orders.recv()
        except EOFError:
            return
        try:
            answer = False, getattr(rank, order)(*arguments)
        except Exception as error:
            answer = True, f"{type(error).__name__}: {error}"
        orders.send(answer)


if __name__ == "__main__":
    serve(sys.argv[1])
