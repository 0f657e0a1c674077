"""What i-PI's MD step costs beside the model: `kqeq-ipi` at 200 atoms, 32 beads in a batch, two clients.

    python benchmark_ipi.py             all transports (about two minutes)
    python benchmark_ipi.py --quick     unix sockets alone, under 50 s
    python benchmark_ipi.py --json      the same as one JSON object

NaCl with the shipped model (200 ions: a cluster, 1,000 ions: a crystal), one thread in each driver, real runs of
`i-pi`. Model evaluation is `Potential.compute` and nothing else, timed inside the driver of the run itself
(`benchmark_clock.py`); a step lasts from the beginning of its first evaluation to that of the next step's. The overhead
is what a step has beside its evaluation, less the whole step of i-PI with its own driver `i-pi-py_driver -m harmonic`
on the same transport. Most of it is i-PI itself, which wakes up with cold caches after an evaluation of milliseconds:
"plain" is the same difference for i-PI's own driver around the same model (`benchmark_plain.py`).

Runs that are compared are all started first and then take turns: while one works the others are stopped by a signal, so
that a busy machine is busy for all of them. Steps that a stop has cut do not count. Figures are medians over turns of
the medians of their steps; "undisturbed" are those of the fastest tenth of steps, which others on the same cores
disturb least.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.io import write

from kqeq_md.errors import KqeqError
from kqeq_md.examples.benchmarks import benchmark_clock
from kqeq_md.examples.benchmarks.benchmark_clock import calls_of, new_log
from kqeq_md.examples.benchmarks.benchmark_ranks import ONE_THREAD
from kqeq_md.examples.benchmarks.benchmark_step import LATTICE
from kqeq_md.ipi_driver import pes
from kqeq_md.machine.programs import environment, program
from kqeq_md.models import NACL
from kqeq_md.structure import Floats

SMALL, LARGE = (5, 5, 8), (10, 10, 10)
"""Ions along each edge: 200, where the overhead shows, and 1,000, whose evaluation takes more than 20 ms."""
BATCH, BEADS = 32, 8
"""Beads of the run in batches, and of the one that two clients share."""
TRANSPORTS = ("unix", "inet", "shm", "ffdirect")
WARM_UP = 6
"""Steps of each run before the first turn: the history of charges fills, and i-PI has met all clients."""
PATIENCE = 180.0
"""Seconds until all runs must have got there."""
SHORT_TURN, LONG_TURN = 0.5, 1.6
"""Seconds: tens of steps with one bead, some of those with many."""
FASTEST = 0.1
"""Share of the steps that count as undisturbed."""
ROUNDS, QUICK_ROUNDS = 5, 2
"""Long turns of each run; there are twice as many short ones."""
TARGETS = {
    "overhead_us_200_atoms": 100.0, "overhead_extras_us_200_atoms": 350.0, "batch_ratio_32": 1.15,
    "speedup_2_clients": 1.8,
}  # fmt: skip
"""The last is a least value, for two free cores; others are largest values."""

MODEL, STOCK = "kqeq_md.potential:Potential.compute", "ipi.pes.harmonic:Harmonic_driver.compute"
"""What is an evaluation."""
PLAIN = Path(__file__).with_name("benchmark_plain.py")
STIFFNESS = 0.1
"""Of the harmonic potential, hartree/bohr^2: a period of some 70 steps."""

INPUT = """\
<simulation verbosity='low'>
  <output prefix='run'> <properties filename='out' stride='1000000'> [ step ] </properties> </output>
  <total_steps> 100000000 </total_steps>
  <prng> <seed> 7 </seed> </prng>
  {forcefield}
  <system>
    <initialize nbeads='{beads}'>
      <file mode='xyz'> start.xyz </file>
      <velocities mode='thermal' units='kelvin'> 300 </velocities>
    </initialize>
    <forces> <force forcefield='model'/> </forces>
    <ensemble> <temperature units='kelvin'> 300 </temperature> </ensemble>
    <motion mode='dynamics'>
      <dynamics mode='nve'> <timestep units='femtosecond'> 0.5 </timestep> </dynamics>
    </motion>
  </system>
</simulation>
"""
SOCKET = """<ffsocket name='model' mode='{transport}' pbc='false'>
    <batch_size> {batch} </batch_size> <address> {address} </address> <port> {port} </port>
  </ffsocket>"""
DIRECT = """<ffdirect name='model' pbc='false'>
    <pes> {pes} </pes> <pes_path> {path} </pes_path> <parameters> {{{parameters}}} </parameters>
  </ffdirect>"""


# ---------------------------------------------------------------- runs of i-PI


@dataclass(frozen=True)
class Setting:
    """A run of i-PI.

    Attributes:
        extras: what `kqeq-ipi` sends beside forces; None for i-PI's own driver.
        harmonic: for i-PI's own driver: its harmonic potential, or the model (`benchmark_plain.py`).
        transport: one of TRANSPORTS.
        ions: along each edge.
        periodic: a crystal instead of a cluster.
        beads: how many.
        batch: structures in a message.
        clients: drivers that share the beads.
    """

    extras: str | None = "none"
    harmonic: bool = False
    transport: str = "unix"
    ions: tuple[int, int, int] = SMALL
    periodic: bool = False
    beads: int = 1
    batch: int = 1
    clients: int = 1

    @property
    def evaluations(self) -> int:
        """Calls of the method under the clock in a step: i-PI's own potential takes a batch in one call."""
        return self.beads // self.batch if self.harmonic else self.beads

    @property
    def rehearsals(self) -> int:
        """Calls of each client before the first step: the model is evaluated before it connects."""
        return int(not self.harmonic)


SHARED = Setting(ions=LARGE, periodic=True, beads=BEADS)
"""What one client does, or two."""
STOCK_RUN = Setting(None, harmonic=True)
"""i-PI's own."""


def salt(ions: Sequence[int]) -> Atoms:
    """A block of rock salt in its cell."""
    edges = np.array(ions) * LATTICE / 2
    crystal = bulk("NaCl", "rocksalt", a=LATTICE, cubic=True) * tuple((n + 1) // 2 for n in ions)
    block = crystal[(crystal.positions < edges - LATTICE / 4).all(axis=1)]
    block.cell = edges
    return block


class Run:
    """i-PI and its drivers in a folder of their own, with the model under the clock.

    Args:
        setting: what runs.
        folder: empty.

    Raises:
        KqeqError: a program ends, or i-PI does not begin.
    """

    def __init__(self, setting: Setting, folder: Path) -> None:
        self._setting, self._folder = setting, folder
        self._turns: list[tuple[float, float]] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        atoms = salt(setting.ions)
        write(folder / "template.xyz", atoms)
        self._write_input(atoms)
        self._logs = [new_log(folder / f"client{client}.log") for client in range(setting.clients)]
        if setting.transport == "ffdirect":
            self._start(self._timed(0, "i-pi", "input.xml"))
            return
        self._start([sys.executable, "-u", str(program("i-pi")), "-S", self._prefix, "input.xml"])

    @property
    def _prefix(self) -> str:
        return f"{self._folder}/socket_"

    def connect(self) -> None:
        """Start the drivers as soon as i-PI listens; i-PI's own does not wait for it.

        Raises:
            KqeqError: i-PI has ended, or takes too long.
        """
        if self._setting.transport == "ffdirect":
            return
        self._wait(lambda: "polling thread" in self._said(0))
        for client in range(self._setting.clients):
            self._start(self._driver(client))

    def warm_up(self) -> None:
        """Wait for the first steps.

        Raises:
            KqeqError: a program has ended, or takes too long.
        """
        needed = self._setting.evaluations * WARM_UP // self._setting.clients
        self._wait(lambda: all(log[needed + self._setting.rehearsals, 0] > 0.0 for log in self._logs))

    def take_turn(self, seconds: float) -> None:
        """Go on for so long, and stop again."""
        begin = perf_counter()
        self._signal(signal.SIGCONT, self._processes[::-1])
        sleep(seconds)
        end = perf_counter()
        self.stop()
        self._check()
        self._turns.append((begin, end))

    def stop(self) -> None:
        """Until the next turn; i-PI stands still before its drivers do, for it has patience with them in tenths of a
        second."""
        self._signal(signal.SIGSTOP, self._processes)

    def steps(self) -> list[Steps]:
        """What was measured in each turn."""
        calls = [calls_of(log)[self._setting.rehearsals :] for log in self._logs]
        return steps_in_turns(np.concatenate(calls), self._setting.evaluations, self._turns)

    def close(self) -> None:
        """End all programs."""
        (self._folder / "EXIT").touch()
        self._signal(signal.SIGCONT, self._processes[::-1])
        for process in self._processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _write_input(self, atoms: Atoms) -> None:
        setting = self._setting
        lines = [f"{symbol} {x} {y} {z}" for symbol, (x, y, z) in zip(atoms.symbols, atoms.positions, strict=True)]
        edges = " ".join(map(str, atoms.cell.lengths()))
        head = [str(len(atoms)), f"# CELL(abcABC): {edges} 90 90 90 positions{{angstrom}} cell{{angstrom}}"]
        (self._folder / "start.xyz").write_text("\n".join([*head, *lines]) + "\n")
        if setting.transport == "ffdirect":
            model = {"model": NACL, "template": "template.xyz", "threads": 1, "pbc": setting.periodic}
            model["extras"] = str(setting.extras).replace(",", " ")  # i-PI splits at commas
            parameters = {"k1": STIFFNESS} if setting.harmonic else model if setting.extras else {}
            words = ", ".join(f"{name}: {value}" for name, value in parameters.items())
            path = str(PLAIN) if setting.extras is None else pes.__file__
            kind, path = ("harmonic", "") if setting.harmonic else ("custom", path)
            forcefield = DIRECT.format(pes=kind, path=path, parameters=words)
        else:
            address, self._port = ("localhost", free_port()) if setting.transport == "inet" else ("ipi", 0)
            forcefield = SOCKET.format(
                transport=setting.transport, batch=setting.batch, address=address, port=self._port
            )
        (self._folder / "input.xml").write_text(INPUT.format(forcefield=forcefield, beads=setting.beads))

    def _driver(self, client: int) -> list[str]:
        """The command of a client; both drivers name the transport alike."""
        kind = {"unix": ["-u", "-a", "ipi"], "shm": ["--shm", "-a", "ipi"]}.get(
            self._setting.transport, ["-a", "localhost", "-p", str(self._port)]
        )
        place = [*kind, "-S", self._prefix]
        if self._setting.harmonic:
            return self._timed(client, "i-pi-py_driver", "-m", "harmonic", "-o", str(STIFFNESS), *place)
        if self._setting.extras is None:
            return self._timed(client, "i-pi-py_driver", "-m", "custom", "-P", str(PLAIN), *place)
        model = ["-m", str(NACL), "-t", "template.xyz", "--threads", "1", "--extras", self._setting.extras]
        return self._timed(client, "kqeq-ipi", *model, "--pbc" if self._setting.periodic else "--no-pbc", *place)

    def _timed(self, client: int, name: str, *arguments: str) -> list[str]:
        method = STOCK if self._setting.harmonic else MODEL
        path = program("i-pi").with_name(name)
        clock = [sys.executable, "-u", "-m", benchmark_clock.__name__, f"client{client}.log", method]
        return [*clock, str(path), *arguments]

    def _start(self, command: list[str]) -> None:
        with (self._folder / f"{len(self._processes)}.out").open("wb") as out:
            self._processes.append(
                subprocess.Popen(
                    command, cwd=self._folder, env=environment() | ONE_THREAD, stdin=subprocess.DEVNULL, stdout=out,
                    stderr=subprocess.STDOUT,
                )
            )  # fmt: skip

    def _said(self, number: int) -> str:
        return (self._folder / f"{number}.out").read_text(errors="replace")

    def _wait(self, ready: Callable[[], bool]) -> None:
        deadline = monotonic() + PATIENCE
        while not ready():
            self._check()
            if monotonic() > deadline:
                raise KqeqError(f"i-PI does not get on within {PATIENCE:g} s: {self._said(0)[-500:]}")
            sleep(0.02)

    def _check(self) -> None:
        for number, process in enumerate(self._processes):
            if process.poll() is not None:
                name = "i-PI" if number == 0 else "a driver"
                raise KqeqError(f"{name} has ended: {self._said(number)[-500:]}")

    def _signal(self, number: int, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


# ---------------------------------------------------------------- what is measured


@dataclass(frozen=True)
class Steps:
    """Steps of one turn, seconds, each with shape (steps,).

    Attributes:
        whole: from the beginning of the step's first evaluation to that of the next step's.
        evaluation: sum of its evaluations.
        driver: processor time of the driver's thread beside its evaluation; where a step has only one.
    """

    whole: Floats
    evaluation: Floats
    driver: Floats


def steps_in_turns(calls: Floats, each: int, turns: Sequence[tuple[float, float]]) -> list[Steps]:
    """Steps that lie within a turn as a whole; turns without any are left out.

    Args:
        calls: rows of `benchmark_clock`, of one client or of several that share the beads.
        each: calls in a step.
        turns: begin and end, seconds.
    """
    calls = calls[np.argsort(calls[:, 0])]
    n_steps = max(len(calls) - 1, 0) // each  # the next step must have begun
    first, following = calls[: n_steps * each : each], calls[each : n_steps * each + 1 : each]
    evaluation = (calls[:, 1] - calls[:, 0])[: n_steps * each].reshape(n_steps, each).sum(axis=1)
    out = []
    for begin, end in turns:
        inside = (first[:, 0] >= begin) & (following[:, 0] <= end)
        if inside.any():
            driver = following[inside, 2] - first[inside, 3]
            out.append(Steps((following - first)[inside, 0], evaluation[inside], driver))
    return out


def race(settings: Mapping[str, Setting], rounds: int, seconds: float, folder: Path) -> dict[str, list[Steps]]:
    """Steps of each turn of each run, in turns of so many seconds.

    Raises:
        KqeqError: a run fails, or has not had a single step in half of its turns.
    """
    with ExitStack() as stack:
        runs = {}
        for name, setting in settings.items():
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
            runs[name] = run = Run(setting, place)
            stack.callback(run.close)
        for run in runs.values():
            run.connect()
        for run in runs.values():
            run.warm_up()
            run.stop()
        for _ in range(rounds):
            for run in runs.values():
                run.take_turn(seconds)
        found = {name: run.steps() for name, run in runs.items()}
    for name, turns in found.items():
        if 2 * len(turns) < rounds:
            raise KqeqError(f"steps of {name!r} must be shorter than its turns of {seconds:g} s")
    return found


def middle(turns: Sequence[Steps], value: Callable[[Steps], Floats], share: float = 0.5) -> float:
    """Median over turns of the value that this share of their steps does not exceed; the median where none is given."""
    return float(np.median([np.quantile(value(steps), share) for steps in turns]))


def overheads(transport: str, rounds: int, folder: Path) -> dict[str, float]:
    """Of one client with one bead on a transport: without extras, with dipole and charges; microseconds."""
    settings = {
        "stock": replace(STOCK_RUN, transport=transport),
        "none": Setting("none", transport=transport),
        "extras": Setting("dipole,charges", transport=transport),
        "plain": Setting(None, transport=transport),
    }
    found = race(settings, rounds, SHORT_TURN, folder)

    def beside(name: str, share: float) -> float:
        stock = middle(found["stock"], lambda steps: steps.whole, share)
        return 1e6 * (middle(found[name], lambda steps: steps.whole - steps.evaluation, share) - stock)

    return {
        "overhead": beside("none", 0.5),
        "overhead, extras": beside("extras", 0.5),
        "plain": beside("plain", 0.5),
        "undisturbed": beside("none", FASTEST),
        "undisturbed, extras": beside("extras", FASTEST),
        "undisturbed, plain": beside("plain", FASTEST),
        "stock step": 1e6 * middle(found["stock"], lambda steps: steps.whole),
        "evaluation": 1e6 * middle(found["none"], lambda steps: steps.evaluation),
        "driver's processor": 1e6 * middle(found["none"], lambda steps: steps.driver),
    }


def batch(rounds: int, folder: Path) -> dict[str, float]:
    """A step of 32 beads in one batch over the sum of its evaluations, and i-PI's own step of as many, ms."""
    settings = {"batch": Setting(beads=BATCH, batch=BATCH), "stock": replace(STOCK_RUN, beads=BATCH, batch=BATCH)}
    found = race(settings, rounds, LONG_TURN, folder)
    return {
        "batch_ratio_32": middle(found["batch"], lambda steps: steps.whole / steps.evaluation),
        "batch_evaluations_ms": 1e3 * middle(found["batch"], lambda steps: steps.evaluation),
        "batch_stock_step_ms": 1e3 * middle(found["stock"], lambda steps: steps.whole),
    }


def sharing(rounds: int, folder: Path) -> dict[str, float]:
    """How many times faster two clients are than one, and how long an evaluation takes, ms."""
    found = race({str(n): replace(SHARED, clients=n) for n in (1, 2)}, rounds, LONG_TURN, folder)
    step = {name: middle(turns, lambda steps: steps.whole) for name, turns in found.items()}
    evaluation = {name: middle(turns, lambda steps: steps.evaluation) / BEADS for name, turns in found.items()}
    return {
        "speedup_2_clients": step["1"] / step["2"],
        "evaluation_ms_1_client": 1e3 * evaluation["1"],
        "evaluation_ms_2_clients": 1e3 * evaluation["2"],
    }


def measure(quick: bool, folder: Path) -> dict[str, Any]:
    """All figures.

    Args:
        quick: unix sockets alone, and fewer rounds.
        folder: for files of the runs; its path must be short, for a unix socket has one.
    """
    rounds = QUICK_ROUNDS if quick else ROUNDS
    transports = TRANSPORTS[:1] if quick else TRANSPORTS
    by_transport = {name: overheads(name, 2 * rounds, folder) for name in transports}
    out: dict[str, Any] = {
        "overhead_us_200_atoms": by_transport["unix"]["overhead"],
        "overhead_extras_us_200_atoms": by_transport["unix"]["overhead, extras"],
    }
    out |= batch(rounds, folder) | sharing(rounds, folder)
    return out | {"microseconds": by_transport, "targets": TARGETS}


# ---------------------------------------------------------------- what is said


def report(out: dict[str, Any]) -> str:
    """What was measured, as text."""
    tables = out["microseconds"]
    lines = [f"{'us, 200 atoms':20}" + "".join(f"{transport:>10}" for transport in tables)]
    lines += [f"{row:20}" + "".join(f"{table[row]:10.0f}" for table in tables.values()) for row in tables["unix"]]
    for name, value in out.items():
        if isinstance(value, float):
            target = f"   (target {TARGETS[name]:g})" if name in TARGETS else ""
            lines.append(f"{name:32}{value:10.3f}{target}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="unix sockets alone, under 50 s")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    arguments = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            out = measure(arguments.quick, Path(folder))
    except KqeqError as error:
        sys.exit(str(error))
    print(json.dumps(out) if arguments.json else report(out))


if __name__ == "__main__":
    main()
