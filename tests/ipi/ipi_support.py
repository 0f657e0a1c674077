"""What the tests of the i-PI driver share: messages, scripted servers, inputs of the real i-PI."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np

from kqeq_md.ipi_driver import protocol
from kqeq_md.ipi_driver.client import main
from kqeq_md.structure import Structure
from kqeq_md.units import BOHR

# issue-level agreement between engines: eV/atom, eV/Angstrom, e; the virial as the energy of the whole cell
ENERGY, FORCE, CHARGE, VIRIAL = 1e-8, 1e-7, 1e-8, 1e-7
SYMBOLS = "Na4Cl4"
FIELD = (0.01, -0.02, 0.05)
PREFIX = "/tmp/ipi_"
CUBIC = 5.7 * np.eye(3)
AROUND_CLUSTER = 30 * np.eye(3)
TRICLINIC = np.array([[5.9, 0.0, 0.0], [0.7, 5.6, 0.0], [-0.4, 0.9, 6.1]])
ADDRESSES = itertools.count()


def rattled(cell: np.ndarray = CUBIC, seed: int = 3) -> np.ndarray:
    """Positions of 8 rattled atoms of NaCl, Angstrom."""
    base = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    sites = np.concatenate([base, base + np.array([0.5, 0, 0])])
    return sites @ cell + 0.15 * np.random.default_rng(seed).normal(size=(8, 3))


def header(message: str) -> bytes:
    return message.ljust(12).encode()


def posdata(positions: np.ndarray, cell: np.ndarray = AROUND_CLUSTER) -> bytes:
    """POSDATA as i-PI writes it, from Angstrom and lattice vectors as rows."""
    h = np.ascontiguousarray(cell.T) / BOHR
    body = h.tobytes() + np.linalg.pinv(np.nan_to_num(h)).tobytes() + np.int32(len(positions)).tobytes()
    return header("POSDATA") + body + (positions / BOHR).tobytes()


def init(text: str) -> bytes:
    raw = text.encode()
    return header("INIT") + np.int32(0).tobytes() + np.int32(len(raw)).tobytes() + raw


def receive_reply(read: protocol.Read) -> tuple[float, np.ndarray, np.ndarray, dict[str, list[float]]]:
    """Energy, forces, virial (atomic units) and extras of a FORCEREADY message."""
    assert read(12) == header("FORCEREADY")
    energy = float(np.frombuffer(read(8))[0])
    n = int(np.frombuffer(read(4), np.int32)[0])
    forces = np.frombuffer(read(24 * n)).reshape(n, 3)
    virial = np.frombuffer(read(72)).reshape(3, 3)
    return energy, forces, virial, json.loads(read(int(np.frombuffer(read(4), np.int32)[0])))


POSITIONS = rattled()

READY = header("STATUS") + init(" ") + header("STATUS")


def nan_in(array: np.ndarray) -> np.ndarray:
    out = array.copy()
    out[2, 1] = np.nan
    return out


@contextlib.contextmanager
def scripted_server(
    address: str, talk: Callable[[socket.socket], None], delay: float = 0.0, drivers: int = 1
) -> Iterator[None]:
    """A thread that talks to the first drivers that connect, `delay` seconds later than asked."""
    failures: list[BaseException] = []

    def run() -> None:
        time.sleep(delay)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(PREFIX + address)
            listener.listen()
            listener.settimeout(100)
            try:
                for _ in range(drivers):
                    driver, _ = listener.accept()
                    with driver:
                        talk(driver)
            except BaseException as failure:
                failures.append(failure)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    for failure in failures:
        raise failure


Reply = tuple[float, np.ndarray, np.ndarray, dict[str, Any]]
"""Energy, forces (3n,), virial and extras of one structure as i-PI has read them, atomic units."""


@contextlib.contextmanager
def ipi_server(
    address: str, port: int, mode: str, fused: bool = True, batch_size: int = 1, pars: dict[str, Any] | None = None
) -> Iterator[Any]:
    """i-PI's own FFSocket in this process, as upstream's tests use it; it says EXIT at the end."""
    from ipi.engine.forcefields import FFSocket
    from ipi.interfaces.sockets import InterfaceSocket
    from ipi.utils.softexit import softexit

    interface = InterfaceSocket(
        address=address, port=port, mode=mode, consolidate_messages=fused, timeout=0.0, batch_size=batch_size
    )
    forcefield = FFSocket(name="kqeq", interface=interface, dopbc=False, pars=pars)
    forcefield.start()
    try:
        yield forcefield
    finally:
        forcefield.stop()
        softexit.reset()  # i-PI keeps lists of what it has started, for the whole process


def queue(forcefield: Any, structure: Structure) -> Any:
    """A request for the forces of a structure."""
    from ipi.engine.atoms import Atoms
    from ipi.engine.cell import GenericCell

    atoms = Atoms(len(structure))
    atoms.q[:] = structure.positions.ravel() / BOHR
    return forcefield.queue(atoms, GenericCell(structure.cell.T / BOHR), reqid=0)


def collect(forcefield: Any, requests: Sequence[Any], given_up: threading.Event) -> list[Reply]:
    """The results of all requests; fewer if nobody is going to answer any more."""
    results = []
    for request in requests:
        while not request._event_done.wait(0.1):
            if given_up.is_set():
                return results
        results.append(request["result"])
        forcefield.release(request)
    return results


def through_ipi(
    command: list[str],
    address: str,
    port: int,
    mode: str,
    fused: bool,
    *structures: Structure,
    steps: int = 2,
    batch_size: int = 1,
    pars: dict[str, Any] | None = None,
) -> list[Reply]:
    """What i-PI's own FFSocket gets from the driver for the structures, all asked at once, `steps` times."""
    results: list[Reply] = []
    given_up = threading.Event()
    server = contextlib.ExitStack()
    forcefield = server.enter_context(ipi_server(address, port, mode, fused, batch_size, pars))
    # before the driver comes, so that the first batch is full
    first = [queue(forcefield, structure) for structure in structures]

    def ask() -> None:
        with server:
            for step in range(steps):
                requests = [queue(forcefield, structure) for structure in structures] if step else first
                results.extend(collect(forcefield, requests, given_up))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        assert main(command) == 0
    finally:
        given_up.set()
        asking.join()
    assert len(results) == steps * len(structures)
    return results


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


INPUT = """\
<simulation verbosity='low' floatformat='%23.15e'>
  <output prefix='run'>
    <properties filename='out' stride='1'> [ step, potential, kinetic_md, conserved ] </properties>
    <trajectory filename='charges' extra_type='charges' stride='1'> extras </trajectory>
    <trajectory filename='dipole' extra_type='dipole' stride='1'> extras </trajectory>
    <trajectory filename='forces' stride='1'> forces </trajectory>
  </output>
  <total_steps> {steps} </total_steps>
  <prng> <seed> 7 </seed> </prng>
  <ffsocket name='kqeq' mode='{mode}' pbc='false'>
    <address> {address} </address> <port> {port} </port>
  </ffsocket>
  <system>
    <initialize nbeads='1'>
      <file mode='xyz'> start.xyz </file>
      <velocities mode='thermal' units='kelvin'> 300 </velocities>
    </initialize>
    <forces> <force forcefield='kqeq'/> </forces>
    <ensemble> <temperature units='kelvin'> 300 </temperature> </ensemble>
    <motion mode='dynamics'>
      <dynamics mode='nve'> <timestep units='femtosecond'> 0.25 </timestep> </dynamics>
    </motion>
  </system>
</simulation>
"""


def write_input(folder: Path, mode: str, address: str, port: int, steps: int) -> None:
    """input.xml and start.xyz; atomic units throughout, so that i-PI's own constants (1e-7 off) play no part."""
    (folder / "input.xml").write_text(INPUT.format(mode=mode, address=address, port=port, steps=steps))
    cell = "# CELL(abcABC): 60 60 60 90 90 90 positions{atomic_unit} cell{atomic_unit}"
    atoms = zip(ase.Atoms(SYMBOLS).get_chemical_symbols(), POSITIONS / BOHR, strict=True)
    lines = [f"{symbol} {x!r} {y!r} {z!r}" for symbol, (x, y, z) in ((s, r.tolist()) for s, r in atoms)]
    (folder / "start.xyz").write_text("\n".join(["8", cell, *lines]) + "\n")


def numbers_in(path: Path) -> np.ndarray:
    return np.atleast_2d(np.loadtxt(path))


def wait_for_steps(path: Path, steps: int) -> None:
    """Until i-PI has written that many steps."""
    deadline = time.monotonic() + 60
    while not path.exists() or len(path.read_text().splitlines()) < steps + 4:
        assert time.monotonic() < deadline, f"i-PI has not written {steps} steps within a minute"
        time.sleep(0.05)


def write_crystal(folder: Path, mode: str, address: str, port: int, steps: int, cells: int) -> Path:
    """input.xml, start.xyz and the driver's template for a rattled periodic crystal of NaCl, 8 atoms per cell."""
    base = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    sites = np.concatenate([base, base + np.array([0.5, 0, 0])])
    grid = np.array(list(np.ndindex(cells, cells, cells)))
    positions = 5.7 * (grid[:, None] + sites).reshape(-1, 3)
    positions += 0.05 * np.random.default_rng(8).normal(size=positions.shape)
    edge = 5.7 * cells
    atoms = ase.Atoms(cells**3 * ase.Atoms(SYMBOLS).get_chemical_symbols(), positions, cell=edge * np.eye(3), pbc=True)
    ase.io.write(folder / "template.xyz", atoms)
    (folder / "input.xml").write_text(INPUT.format(mode=mode, address=address, port=port, steps=steps))
    text = re.sub("<trajectory.*</trajectory>", "", (folder / "input.xml").read_text())
    (folder / "input.xml").write_text(text)
    box = " ".join(3 * [repr(edge / BOHR)])
    comment = f"# CELL(abcABC): {box} 90 90 90 positions{{atomic_unit}} cell{{atomic_unit}}"
    rows = zip(atoms.get_chemical_symbols(), (positions / BOHR).tolist(), strict=True)
    lines = [f"{symbol} {x!r} {y!r} {z!r}" for symbol, (x, y, z) in rows]
    (folder / "start.xyz").write_text("\n".join([str(len(atoms)), comment, *lines]) + "\n")
    return folder / "template.xyz"


class Messages:
    """Conversations that go wrong: random bytes, flipped bits, lengths that are lies, and ends that come too early.

    Args:
        seed: of all that is random.
        shm: with positions in shared memory, where two structures have room.
    """

    def __init__(self, seed: int, shm: bool) -> None:
        self._rng = np.random.default_rng(seed)
        self._prefix = f"kqeq_test_{os.getpid()}_{next(ADDRESSES)}_"
        self._kinds = ("pos", "h", "ih", "pot", "force", "vir") if shm else ()

    def __enter__(self) -> Messages:
        for kind in self._kinds:
            values = np.concatenate([POSITIONS, POSITIONS]).tobytes() if kind == "pos" else bytes(16 * 24)
            Path("/dev/shm", self._prefix + kind).write_bytes(values)
        return self

    def __exit__(self, *_: object) -> None:
        for kind in self._kinds:
            Path("/dev/shm", self._prefix + kind).unlink()

    def next(self) -> bytes:
        """Any of them."""
        makers = (self._noise, self.flipped, self._cut, self._spliced, self._lengths, self._batches, self._names)
        return makers[self._rng.integers(len(makers))]()

    def _real(self, count: int | None = None) -> bytes:
        """Two steps as i-PI asks for them, of `count` structures each."""
        init_text = init(" charge : 0 , efield : 0 0 0.01 , " + (f"batch_size:{count}" if count else ""))
        begin = header("STATUS") + init_text + header("STATUS")
        if self._kinds:
            names = [(self._prefix + kind).encode() for kind in self._kinds]
            short = header("POSDATA") + np.int32(8).tobytes()
            first = short + b"".join(np.int32(len(name)).tobytes() + name for name in names)
        elif count and count > 1:
            body = count * bytes(144) + count * (POSITIONS / BOHR).tobytes()
            first = short = header("POSDATA") + np.int32(8).tobytes() + body
        else:
            first = short = posdata(POSITIONS)
        ends = [header("GETFORCE"), header("STATUS") + header("GETFORCE"), header("STATUS")]
        one, other = (ends[k] for k in self._rng.integers(3, size=2))
        return begin + first + one + short + other + header("EXIT")

    def flipped(self) -> bytes:
        """A real conversation with a few wrong bits; without any, now and then."""
        raw = bytearray(self._real(int(self._rng.integers(3))))
        for _ in range(self._rng.integers(4)):
            raw[self._rng.integers(len(raw))] ^= 1 << int(self._rng.integers(8))
        return bytes(raw)

    def _noise(self) -> bytes:
        start = [b"", header("POSDATA"), header("INIT"), header("STATUS")][self._rng.integers(4)]
        return start + self._rng.bytes(int(self._rng.integers(400)))

    def _cut(self) -> bytes:
        raw = self._real(int(self._rng.integers(3)))
        return raw[: self._rng.integers(len(raw))]

    def _spliced(self) -> bytes:
        """A piece too many, or too few."""
        raw = self._real()
        i, j = sorted(self._rng.integers(len(raw), size=2))
        return raw[:i] + self._rng.bytes(int(self._rng.integers(20))) + raw[j if self._rng.random() < 0.5 else i :]

    def _integer(self) -> np.int32:
        """Of any size and sign."""
        return np.int32(self._rng.integers(-(2**31), 2**31) >> self._rng.integers(31))

    def _lengths(self) -> bytes:
        """Lengths and numbers of atoms that have nothing to do with what follows."""
        length = header("INIT") + np.int32(0).tobytes() + self._integer().tobytes() + self._rng.bytes(50)
        atoms = header("POSDATA") + (b"" if self._kinds else bytes(144)) + self._integer().tobytes() + bytes(300)
        return header("STATUS") + (length if self._rng.random() < 0.5 else atoms)

    def _batches(self) -> bytes:
        """Batches of any size, digits without end, text that is none."""
        sizes = [str(self._integer()), "9" * int(self._rng.integers(1, 6000)), "1\n2", "二", str(2**16), ""]
        size = sizes[self._rng.integers(len(sizes))]
        return self._real().replace(header("INIT"), init(f" , batch_size:{size}") + header("INIT"), 1)

    def _names(self) -> bytes:
        """Names of segments that are none, or those of others; parameters that mean nothing."""
        if self._kinds and self._rng.random() < 0.5:
            name = self._rng.bytes(int(self._rng.integers(1, 40)))
            wrong = self._integer().tobytes() if self._rng.random() < 0.3 else np.int32(len(name)).tobytes()
            return header("POSDATA") + np.int32(8).tobytes() + wrong + name + bytes(300)
        text = self._rng.bytes(int(self._rng.integers(60))) + b":" + self._rng.bytes(int(self._rng.integers(3000)))
        return header("INIT") + np.array([0, len(text)], np.int32).tobytes() + text + self._real()
