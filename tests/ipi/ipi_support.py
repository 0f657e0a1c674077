"""What the tests of the i-PI driver share: messages, scripted servers, inputs of the real i-PI."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

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
def scripted_server(address: str, talk: Callable[[socket.socket], None], delay: float = 0.0) -> Iterator[None]:
    """A thread that talks to the first driver that connects, `delay` seconds later than asked."""
    failures: list[BaseException] = []

    def run() -> None:
        time.sleep(delay)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(PREFIX + address)
            listener.listen()
            listener.settimeout(100)
            try:
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


def through_ipi(
    command: list[str], address: str, port: int, mode: str, fused: bool, structure: Structure, steps: int = 2
) -> list[tuple[float, np.ndarray, np.ndarray, dict[str, list[float]]]]:
    """What i-PI's own FFSocket gets from the driver for `structure`, asked `steps` times; atomic units."""
    from ipi.engine.atoms import Atoms
    from ipi.engine.cell import GenericCell
    from ipi.engine.forcefields import FFSocket
    from ipi.interfaces.sockets import InterfaceSocket

    interface = InterfaceSocket(address=address, port=port, mode=mode, consolidate_messages=fused, timeout=0.0)
    forcefield = FFSocket(name="kqeq", interface=interface, dopbc=False)
    atoms = Atoms(len(structure))
    atoms.q[:] = structure.positions.ravel() / BOHR
    cell = GenericCell(structure.cell.T / BOHR)
    results = []

    def ask() -> None:
        try:
            for _ in range(steps):
                request = forcefield.queue(atoms, cell, reqid=0)
                if not request._event_done.wait(100):
                    return
                results.append(request["result"])
                forcefield.release(request)
        finally:
            forcefield.stop()

    forcefield.start()
    asking = threading.Thread(target=ask)
    asking.start()
    try:
        assert main(command) == 0
    finally:
        asking.join()
    assert len(results) == steps
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
