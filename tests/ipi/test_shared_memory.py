"""Segments of shared memory, of a server that may err, and of the real i-PI."""

from __future__ import annotations

import gc
import io
import itertools
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from ipi_support import CUBIC, POSITIONS, collect, ipi_server, queue, rattled

from kqeq_md.errors import KqeqError
from kqeq_md.ipi_driver import protocol
from kqeq_md.ipi_driver.client import main
from kqeq_md.ipi_driver.shared_memory import SharedMemory
from kqeq_md.potential import Potential
from kqeq_md.structure import Structure
from kqeq_md.units import BOHR, HARTREE

KINDS = {"pos": 24, "h": 9, "ih": 9, "pot": 1, "force": 24, "vir": 9}
"""Numbers of each structure of 8 atoms."""
SHM = Path("/dev/shm")
NUMBERS = itertools.count()

# i-PI leaves the accepted socket, whose descriptor it has duplicated, to the garbage collector
of_ipi = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


class Segments:
    """What i-PI makes: six files with a common beginning."""

    def __init__(self, batch_size: int = 1) -> None:
        self.prefix = f"kqeq_test_{os.getpid()}_{next(NUMBERS)}_"
        for kind, numbers in KINDS.items():
            self.path(kind).write_bytes(bytes(8 * batch_size * numbers))

    def path(self, kind: str) -> Path:
        return SHM / (self.prefix + kind)

    def write(self, kind: str, values: np.ndarray) -> None:
        with self.path(kind).open("r+b") as file:  # in place, as through a map
            file.write(np.ascontiguousarray(values, dtype=np.float64).tobytes())

    def read(self, kind: str) -> np.ndarray:
        return np.frombuffer(self.path(kind).read_bytes())

    def body(self, n_atoms: int = 8) -> bytes:
        """The first POSDATA after its header."""
        names = [(self.prefix + kind).encode() for kind in KINDS]
        return np.int32(n_atoms).tobytes() + b"".join(np.int32(len(name)).tobytes() + name for name in names)

    def remove(self) -> None:
        for kind in KINDS:
            self.path(kind).unlink(missing_ok=True)


@pytest.fixture
def segments() -> Iterator[Segments]:
    made = Segments(batch_size=2)
    yield made
    made.remove()


def wire_of(batch_size: int) -> SharedMemory:
    wire = SharedMemory(8)
    wire.batch_size = batch_size
    return wire


def test_numbers_come_and_go_through_the_segments(segments: Segments) -> None:
    """Names come once; afterwards only the number of atoms does."""
    wire, cells = wire_of(2), np.stack([CUBIC, CUBIC + np.triu(np.ones((3, 3)))])
    for turn, body in enumerate((segments.body(), np.int32(8).tobytes())):
        structures = np.stack([rattled(seed=10 * turn + k) for k in range(2)])
        segments.write("pos", structures)
        segments.write("h", np.swapaxes(cells, 1, 2))
        stream = io.BytesIO(body)
        for request, cell, positions in zip(wire.receive(stream.read), cells, structures, strict=True):
            np.testing.assert_array_equal(request.cell, cell * BOHR)
            np.testing.assert_array_equal(request.positions, positions * BOHR)
        assert stream.read() == b""
    answers = [protocol.Answer(k + 1.0, np.full((8, 3), 10.0 + k), np.full((3, 3), 20.0 + k), "x" * k) for k in (0, 1)]
    assert wire.reply(answers) == protocol.encode_header("FORCEREADY") + protocol.encode_extras(answers)
    np.testing.assert_array_equal(segments.read("pot"), [1, 2])
    np.testing.assert_array_equal(segments.read("force").reshape(2, 24)[:, 0], [10, 11])
    np.testing.assert_array_equal(segments.read("vir").reshape(2, 9)[:, 8], [20, 21])


def test_requests_are_copies(segments: Segments) -> None:
    """i-PI may write the next step while this one is evaluated."""
    segments.write("pos", np.stack([POSITIONS, POSITIONS]))
    first, _ = wire_of(2).receive(io.BytesIO(segments.body()).read)
    before = first.positions.copy()
    segments.write("pos", np.zeros((2, 8, 3)))
    np.testing.assert_array_equal(first.positions, before)


def test_segments_are_given_back(segments: Segments) -> None:
    wire = wire_of(2)
    wire.receive(io.BytesIO(segments.body()).read)
    assert segments.prefix in Path("/proc/self/maps").read_text()
    del wire
    gc.collect()
    assert segments.prefix not in Path("/proc/self/maps").read_text()
    assert all(segments.path(kind).is_file() for kind in KINDS)  # they are i-PI's


def test_segments_that_vanish_later_do_no_harm(segments: Segments) -> None:
    """Their names go when i-PI ends; the memory stays until the driver lets it go."""
    wire = wire_of(2)
    wire.receive(io.BytesIO(segments.body()).read)
    segments.remove()
    requests = wire.receive(io.BytesIO(np.int32(8).tobytes()).read)
    assert len(requests) == 2
    wire.reply([protocol.Answer(0.0, np.zeros((8, 3)), np.zeros((3, 3)), "")] * 2)


@pytest.mark.parametrize("kind", KINDS)
def test_absent_and_small_segments_are_named(segments: Segments, kind: str) -> None:
    size = 8 * 3 * KINDS[kind]
    rule = f"the shared memory of i-PI must have {size} bytes in {segments.path(kind)}, got: "
    for other in KINDS:
        segments.path(other).write_bytes(bytes(8 * (2 if other == kind else 3) * KINDS[other]))
    with pytest.raises(KqeqError, match=rule + ".*length is greater than file size"):
        wire_of(3).receive(io.BytesIO(segments.body()).read)
    segments.path(kind).unlink()
    with pytest.raises(KqeqError, match=rule + ".*No such file"):
        wire_of(3).receive(io.BytesIO(segments.body()).read)


@pytest.mark.parametrize("name", [b"../../etc/passwd", b".", b"..", b"a/b", b"a\0b", b"a\n", b"\xff\0"])
def test_names_must_be_those_of_files(name: bytes) -> None:
    body = np.int32(8).tobytes() + np.int32(len(name)).tobytes() + name
    with pytest.raises(KqeqError, match="name of a segment must be that of a file, got .* from i-PI"):
        SharedMemory(8).receive(io.BytesIO(body).read)


@pytest.mark.parametrize("length", [0, -1, 256, 2**31 - 1, -(2**31)])
def test_names_must_be_short(length: int) -> None:
    body = np.array([8, length], np.int32).tobytes()
    with pytest.raises(KqeqError, match=f"name of a segment must lie between 1 and 255, got {length} from i-PI"):
        SharedMemory(8).receive(io.BytesIO(body).read)


def test_number_of_atoms(segments: Segments) -> None:
    with pytest.raises(KqeqError, match="number of atoms must be 8, as in the template, got 7 from i-PI"):
        wire_of(2).receive(io.BytesIO(segments.body(7)).read)


@of_ipi
@pytest.mark.parametrize(("mode", "wrong", "right"), [("shm", "-u", "--shm"), ("unix", "--shm", "-u")])
def test_the_wrong_mode_is_refused_and_ipi_goes_on(
    nacl_model: Path,
    template: Path,
    address: str,
    mode: str,
    wrong: str,
    right: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    command = ["-m", str(nacl_model), "-t", str(template), "-a", address, "--wait", "100"]
    structure = Structure([11] * 4 + [17] * 4, POSITIONS, cell=10 * CUBIC)
    given_up, results = threading.Event(), []
    with ipi_server(address, 0, mode) as forcefield:
        request = queue(forcefield, structure)
        assert main([*command, wrong]) == 2
        (record,) = caplog.records
        assert "the number of atoms must be 8, as in the template, got " in record.message

        def ask() -> None:
            results.extend(collect(forcefield, [request], given_up))
            forcefield.stop()

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            assert main([*command, right]) == 0
        finally:
            given_up.set()
            asking.join()
    ((energy, *_),) = results
    # eight atoms are solved directly: the same numbers but for the units' rounding
    assert energy * HARTREE == pytest.approx(Potential(nacl_model).compute(structure).energy, rel=1e-13)


@of_ipi
def test_two_clients_at_one_server(
    nacl_model: Path, template: Path, address: str, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """i-PI names segments after a file descriptor that it has closed: those of both clients have the same names."""
    structures = [Structure([11] * 4 + [17] * 4, rattled(seed=40 + k), cell=10 * CUBIC) for k in range(6)]
    clients = [start("kqeq-ipi", "-m", str(nacl_model), "-t", str(template), "--shm", "-a", address) for _ in range(2)]
    results = []
    with ipi_server(address, 0, "shm") as forcefield:
        deadline = time.monotonic() + 60
        while len(forcefield.socket.clients) < 2:
            assert time.monotonic() < deadline, "two clients have not come within a minute"
            forcefield.socket.pool_update()  # i-PI polls only while there are requests
        for _ in range(3):
            requests = [queue(forcefield, structure) for structure in structures]
            results.extend(collect(forcefield, requests, threading.Event()))
    for client in clients:
        assert client.communicate(timeout=20)[1] == ""
        assert client.returncode == 0
    potential = Potential(nacl_model)
    for (energy, *_), structure in zip(results, 3 * structures, strict=True):
        # another order of the sums, as neighbour lists are those of other steps
        assert energy * HARTREE == pytest.approx(potential.compute(structure).energy, rel=1e-11)
