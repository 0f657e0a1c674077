"""The i-PI driver: its messages, its conversation with a scripted server, and runs with the real i-PI."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
import pytest

from kqeq_md.errors import KqeqError
from kqeq_md.ipi_driver import connection, protocol
from kqeq_md.ipi_driver.client import Evaluation, main, serve
from kqeq_md.model import Model
from kqeq_md.potential import Potential
from kqeq_md.programs import environment, program
from kqeq_md.structure import Result, Structure
from kqeq_md.units import BOHR, HARTREE

# issue-level agreement between engines: eV/atom, eV/Angstrom, e; the virial as the energy of the whole cell
ENERGY, FORCE, CHARGE, VIRIAL = 1e-8, 1e-7, 1e-8, 1e-7
SYMBOLS = "Na4Cl4"
FIELD = (0.01, -0.02, 0.05)
PREFIX = "/tmp/ipi_"
CUBIC = 5.7 * np.eye(3)
AROUND_CLUSTER = 30 * np.eye(3)
TRICLINIC = np.array([[5.9, 0.0, 0.0], [0.7, 5.6, 0.0], [-0.4, 0.9, 6.1]])
_count = itertools.count()


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


# ---------------------------------------------------------------------------------------------------- messages


def test_lattice_vectors_are_the_columns_of_h() -> None:
    positions = rattled(TRICLINIC)
    body = io.BytesIO(posdata(positions, TRICLINIC)[12:])
    request = protocol.decode_request(body.read, 8)
    # one division and one product by bohr: two roundings
    np.testing.assert_allclose(request.cell, TRICLINIC, rtol=1e-15)
    np.testing.assert_allclose(request.positions, positions, rtol=4e-16)
    assert body.read() == b""


def test_init_text_of_ipi() -> None:
    text = " charge : 1 , efield : 0 0 0.01 , , batch_size:2"
    body = io.BytesIO(init(text)[12:])
    assert protocol.decode_init(body.read) == {"charge": "1", "efield": "0 0 0.01", "batch_size": "2"}


@pytest.mark.parametrize("text", ["", " ", "\0", "batch_size:1"])
def test_init_without_parameters_is_accepted(text: str) -> None:
    protocol.check_parameters(protocol.decode_init(io.BytesIO(init(text)[12:]).read))


def result(**changes: object) -> Result:
    values = {
        "energy": -HARTREE,
        "charges": np.array([0.5, -0.5]),
        "forces": np.full((2, 3), 2 * HARTREE / BOHR),
        "virial": 3 * HARTREE * np.eye(3),
        "dipole": np.array([0.0, 0.0, BOHR]),
    }
    return Result(**{**values, **changes})  # type: ignore[arg-type]


def test_reply_is_in_atomic_units() -> None:
    stream = io.BytesIO(protocol.encode_result(result()))
    energy, forces, virial, extras = receive_reply(stream.read)
    assert stream.read() == b""
    assert energy == -1.0
    np.testing.assert_allclose(forces, 2.0, rtol=4e-16)  # roundings
    np.testing.assert_allclose(virial, 3 * np.eye(3), rtol=4e-16)
    assert extras == {"charges": [0.5, -0.5], "dipole": [0.0, 0.0, 1.0]}


def test_no_dipole_no_key() -> None:
    *_, extras = receive_reply(io.BytesIO(protocol.encode_result(result(dipole=None))).read)
    assert list(extras) == ["charges"]


@pytest.mark.parametrize("name", ["energy", "forces", "virial", "charges", "dipole"])
def test_results_that_are_not_finite_are_refused(name: str) -> None:
    bad = np.array(getattr(result(), name))
    bad.flat[-1] = np.nan
    with pytest.raises(KqeqError, match=f"`{name}` must be finite, got nan.* from the model"):
        protocol.encode_result(result(**{name: bad}))


# --------------------------------------------------------------------------------- conversation, without a model


def converse(sent: bytes, evaluate: Callable[[protocol.Request], bytes], n_atoms: int = 8) -> bytes:
    """All that the driver answers to what a server has `sent`, before it leaves."""
    server, driver = socket.socketpair()
    with server, driver:
        server.sendall(sent)
        server.shutdown(socket.SHUT_WR)
        serve(driver, evaluate, n_atoms)
        driver.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: server.recv(65536), b""))


def never(request: protocol.Request) -> bytes:
    raise AssertionError("there is nothing to evaluate")


POSITIONS = rattled()
READY = header("STATUS") + init(" ") + header("STATUS")


def test_fused_conversation() -> None:
    step = posdata(POSITIONS) + header("GETFORCE") + header("STATUS")
    answers = converse(READY + 2 * step + header("EXIT"), lambda request: b"<forces>")
    assert answers == header("NEEDINIT") + header("READY") + 2 * (b"<forces>" + header("READY"))


def test_conversation_with_a_status_before_getforce() -> None:
    step = posdata(POSITIONS) + header("STATUS") + header("GETFORCE")
    answers = converse(READY + step + header("STATUS") + header("EXIT"), lambda request: b"<forces>")
    assert answers == header("NEEDINIT") + header("READY") + header("HAVEDATA") + b"<forces>" + header("READY")


def test_nothing_is_unread_during_an_evaluation() -> None:
    server, driver = socket.socketpair()

    def evaluate(request: protocol.Request) -> bytes:
        assert not select.select([driver], [], [], 0)[0]  # a GETFORCE left here would hang i-PI
        server.sendall(header("EXIT"))
        return b""

    with server, driver:
        server.sendall(posdata(POSITIONS) + header("GETFORCE"))
        assert serve(driver, evaluate, 8) == 1


def nan_in(array: np.ndarray) -> np.ndarray:
    out = array.copy()
    out[2, 1] = np.nan
    return out


BAD_MESSAGES = {
    "number of atoms must be 8, as in the template, got 7": posdata(POSITIONS[:7]),
    r"`positions` must be finite, got nan at index \[2, 1\] from i-PI": posdata(nan_in(POSITIONS)),
    "`cell` must be finite, got nan": posdata(POSITIONS, nan_in(np.eye(3))),
    "message from i-PI must be one of EXIT, .* got b'HELLO": header("HELLO"),
    "`batch_size` must be 1 in this version, got 2": init(" , batch_size:2"),
    "`<parameters>` of the ffsocket must be empty, got 'charge'": init(" charge : 1 , "),
    "length of the INIT text must lie between 0 and 1048576, got -1": header("INIT")
    + np.array([0, -1], np.int32).tobytes(),
    "GETFORCE must follow POSDATA": header("GETFORCE"),
}


@pytest.mark.parametrize("message", BAD_MESSAGES)
def test_bad_messages_are_named(message: str) -> None:
    with pytest.raises(KqeqError, match=message):
        converse(BAD_MESSAGES[message], never)


@pytest.mark.parametrize("sent", [b"", b"STAT", READY, posdata(POSITIONS)[:100]])
def test_end_of_the_stream(sent: bytes) -> None:
    with pytest.raises(protocol.ServerGone):
        converse(sent, never)


# --------------------------------------------------------------------------------------- the command, in process


@pytest.fixture
def address() -> Iterator[str]:
    """An unused address of a unix socket, removed afterwards."""
    name = f"kqeq_test_{os.getpid()}_{next(_count)}"
    yield name
    Path(PREFIX + name).unlink(missing_ok=True)


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.xyz"
    ase.io.write(path, ase.Atoms(SYMBOLS, POSITIONS))
    return path


@pytest.fixture
def periodic_template(tmp_path: Path) -> Path:
    path = tmp_path / "bulk.xyz"
    ase.io.write(path, ase.Atoms(SYMBOLS, rattled(TRICLINIC), cell=TRICLINIC, pbc=True))
    return path


@contextlib.contextmanager
def scripted_server(address: str, talk: Callable[[socket.socket], None], delay: float = 0.0) -> Iterator[None]:
    """A thread that talks to the first driver that connects, `delay` seconds later than asked."""
    failures: list[BaseException] = []

    def run() -> None:
        time.sleep(delay)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(PREFIX + address)
            listener.listen()
            listener.settimeout(20)
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


def drive(model: Path, template: Path, address: str, *more: str) -> int:
    return main(["-m", str(model), "-t", str(template), "-u", "-a", address, "--wait", "20", *more])


def test_waits_for_a_late_server_and_leaves_at_exit(nacl_model: Path, template: Path, address: str) -> None:
    with scripted_server(address, lambda driver: driver.sendall(header("EXIT")), delay=0.5):
        assert drive(nacl_model, template, address) == 0


def test_a_long_wait_is_told_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(connection, "_NOTICE_AFTER", 0.1)
    left, right = socket.socketpair()
    attempts = iter([ConnectionRefusedError(111, "Connection refused")] * 4)

    def open_socket(seconds: float) -> socket.socket:
        assert seconds <= 20
        for error in attempts:
            raise error
        return right

    with left, right:
        assert connection.connect(open_socket, "somewhere", 20) is right
    assert [record.message for record in caplog.records] == ["waiting up to 20 s for i-PI at somewhere"]


def test_a_server_that_closes_before_it_speaks_is_refused(
    nacl_model: Path, template: Path, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    with scripted_server(address, lambda driver: None):
        assert drive(nacl_model, template, address) == 2
    assert "closed the connection before its first message: is it i-PI?" in caplog.text


def test_a_silent_server_is_told(caplog: pytest.LogCaptureFixture) -> None:
    left, right = socket.socketpair()
    with left, right:
        threading.Timer(0.3, left.sendall, [header("STATUS")]).start()
        connection.await_first_word(right, "somewhere", 0.05)
    assert "connected to somewhere, which has said nothing for 0.05 s" in caplog.text


def test_leaves_when_the_server_goes_in_the_middle(
    nacl_model: Path, template: Path, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    def talk(driver: socket.socket) -> None:
        driver.sendall(posdata(POSITIONS)[:77])

    with scripted_server(address, talk):
        assert drive(nacl_model, template, address) == 0
    assert "i-PI closed the connection without EXIT" in caplog.text


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (posdata(rattled()[:7]) + header("GETFORCE"), "number of atoms must be 8"),
        (posdata(nan_in(POSITIONS)) + header("GETFORCE"), "`positions` must be finite"),
        (posdata(0 * POSITIONS) + header("GETFORCE"), "overlap"),
        (init(" , batch_size:2"), "`batch_size` must be 1"),
    ],
)
def test_an_error_is_one_line_and_the_server_sees_the_end_of_the_stream(
    nacl_model: Path, template: Path, address: str, caplog: pytest.LogCaptureFixture, sent: bytes, message: str
) -> None:
    seen = []

    def talk(driver: socket.socket) -> None:
        driver.sendall(sent)
        seen.append(driver.recv(100))  # a reset, which would stop i-PI, would raise here

    with scripted_server(address, talk):
        assert drive(nacl_model, template, address) == 2
    assert seen == [b""]
    (record,) = caplog.records
    assert message in record.message
    assert "\n" not in record.message


def refusal(caplog: pytest.LogCaptureFixture, *arguments: str) -> str:
    """The one line with which the command refuses its arguments before it looks for a server."""
    start = time.monotonic()
    assert main([*arguments, "--wait", "100"]) == 2
    assert time.monotonic() - start < 50
    (record,) = caplog.records
    assert "\n" not in record.message
    return record.message


def test_field_with_a_periodic_template(
    nacl_model: Path, periodic_template: Path, caplog: pytest.LogCaptureFixture
) -> None:
    message = refusal(caplog, "-m", str(nacl_model), "-t", str(periodic_template), "--efield", "0 0 0.05")
    assert "field" in message
    assert "periodic" in message


def test_boundary_of_the_template_can_be_replaced(
    nacl_model: Path, template: Path, periodic_template: Path, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    message = refusal(caplog, "-m", str(nacl_model), "-t", str(template), "--pbc")
    assert "`--template` must have a cell for periodic boundaries" in message
    with scripted_server(address, lambda driver: driver.sendall(header("EXIT"))):
        assert drive(nacl_model, periodic_template, address, "--no-pbc", "--efield", "-0.1 0 0") == 0


@pytest.mark.parametrize("text", ["", "8\nnothing\nNa 0 0\n"])
def test_unreadable_template(nacl_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str) -> None:
    path = tmp_path / "bad.xyz"
    path.write_text(text)
    assert f"ASE can read, got {path}: " in refusal(caplog, "-m", str(nacl_model), "-t", str(path))


def test_absent_files_and_elements(
    nacl_model: Path, template: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert "absent.xyz" in refusal(caplog, "-m", str(nacl_model), "-t", "absent.xyz")
    caplog.clear()
    assert "absent.kqeq" in refusal(caplog, "-m", "absent.kqeq", "-t", str(template))
    caplog.clear()
    ase.io.write(tmp_path / "k.xyz", ase.Atoms("KCl", [[0, 0, 0], [0, 0, 2.7]]))
    assert "got K" in refusal(caplog, "-m", str(nacl_model), "-t", str(tmp_path / "k.xyz"))


def test_absent_server(nacl_model: Path, template: Path, address: str, caplog: pytest.LogCaptureFixture) -> None:
    assert drive(nacl_model, template, address, "--wait", "0.3") == 2
    (record,) = caplog.records
    assert f"no i-PI server at {PREFIX}{address} within 0.3 s" in record.message


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_close_the_socket(
    nacl_model: Path, template: Path, address: str, number: signal.Signals, code: int
) -> None:
    before = signal.getsignal(number)

    def talk(driver: socket.socket) -> None:
        driver.sendall(header("STATUS"))
        assert driver.recv(12) == header("NEEDINIT")
        signal.pthread_kill(threading.main_thread().ident or 0, number)
        assert driver.recv(12) == b""

    with scripted_server(address, talk), pytest.raises(SystemExit, match=str(code)):
        drive(nacl_model, template, address)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(("mode", "reason"), [(["-u"], "path too long"), ([], "not the name of a host")])
def test_an_address_where_waiting_cannot_help(
    nacl_model: Path, template: Path, caplog: pytest.LogCaptureFixture, mode: list[str], reason: str
) -> None:
    assert reason in refusal(caplog, "-m", str(nacl_model), "-t", str(template), *mode, "-a", 120 * "a")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--efield", "0 0"], "--efield: must be three numbers in V/Angstrom, got '0 0'"),
        (["--port", "0"], "--port: must be a port from 1 to 65535, got '0'"),
        (["--threads", "0"], "--threads: must be a positive integer, got '0'"),
        (["--wait", "-1"], "--wait: must be a number of seconds, 0 or more, got '-1'"),
        (["--charge", "much"], "--charge: invalid float value: 'much'"),
        ([], "the following arguments are required: -t/--template"),
    ],
)
def test_command_line_errors_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["-m", "some.kqeq", *(["-t", "some.xyz"] if arguments else []), *arguments])
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_help_shows_the_ipi_input(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "<ffsocket name='kqeq' mode='unix' pbc='false'>" in capsys.readouterr().out


# ------------------------------------------------------------------------------------ the socket of the real i-PI


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
                if not request._event_done.wait(20):
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


# i-PI leaves the accepted socket, whose descriptor it has duplicated, to the garbage collector
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("mode", "fused", "boundary", "charge", "field"),
    [
        ("unix", True, "open", 1.0, FIELD),
        ("unix", False, "open", -1.0, (0.0, 0.0, 0.0)),
        ("inet", True, "open", 0.0, FIELD),
        ("inet", False, "triclinic", 0.0, (0.0, 0.0, 0.0)),
        ("unix", True, "triclinic", 1.0, (0.0, 0.0, 0.0)),
    ],
)
def test_ipi_gets_what_the_potential_computes(
    nacl_model: Path,
    template: Path,
    periodic_template: Path,
    address: str,
    mode: str,
    fused: bool,
    boundary: str,
    charge: float,
    field: tuple[float, float, float],
) -> None:
    periodic = boundary == "triclinic"
    port, place = (free_port(), "localhost") if mode == "inet" else (0, address)
    cell = TRICLINIC if periodic else AROUND_CLUSTER
    positions = rattled(TRICLINIC if periodic else CUBIC, seed=11)  # not the template's
    structure = Structure([11] * 4 + [17] * 4, positions, cell=cell, pbc=periodic, charge=charge, field=field)
    command = ["-m", str(nacl_model), "-t", str(periodic_template if periodic else template)]
    command += ["-u", "-a", place] if mode == "unix" else ["-a", place, "-p", str(port)]
    command += ["--charge", str(charge), "--efield", " ".join(map(str, field)), "--wait", "20"]
    for energy, forces, virial, extras in through_ipi(command, place, port, mode, fused, structure):
        expected = Potential(nacl_model).compute(structure)
        forces = forces.reshape(-1, 3) * HARTREE / BOHR
        assert energy * HARTREE == pytest.approx(expected.energy, abs=ENERGY * len(structure), rel=0)
        np.testing.assert_allclose(forces, expected.forces, atol=FORCE, rtol=0)
        np.testing.assert_allclose(virial * HARTREE, expected.virial, atol=VIRIAL, rtol=0)
        np.testing.assert_allclose(extras["charges"], expected.charges, atol=CHARGE, rtol=0)
        # translation invariance, to the accuracy of the forces
        np.testing.assert_allclose(forces.sum(axis=0), charge * np.array(field), atol=FORCE)
        if periodic:
            assert "dipole" not in extras
        else:
            np.testing.assert_allclose(np.array(extras["dipole"]) * BOHR, expected.dipole, atol=1e-7, rtol=0)


# --------------------------------------------------------------------------------------- runs of the real i-PI

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


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts programs in `tmp_path`; whatever still runs at the end of the test is killed."""
    running: list[subprocess.Popen[str]] = []

    def run(name: str, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [str(program(name)), *arguments],
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield run
    for process in running:
        process.kill()
        process.communicate()


def write_input(folder: Path, mode: str, address: str, port: int, steps: int) -> None:
    """input.xml and start.xyz; atomic units throughout, so that i-PI's own constants (1e-7 off) play no part."""
    (folder / "input.xml").write_text(INPUT.format(mode=mode, address=address, port=port, steps=steps))
    cell = "# CELL(abcABC): 60 60 60 90 90 90 positions{atomic_unit} cell{atomic_unit}"
    atoms = zip(ase.Atoms(SYMBOLS).get_chemical_symbols(), POSITIONS / BOHR, strict=True)
    lines = [f"{symbol} {x!r} {y!r} {z!r}" for symbol, (x, y, z) in ((s, r.tolist()) for s, r in atoms)]
    (folder / "start.xyz").write_text("\n".join(["8", cell, *lines]) + "\n")


def numbers_in(path: Path) -> np.ndarray:
    return np.atleast_2d(np.loadtxt(path))


@pytest.mark.parametrize("mode", ["unix", "inet"])
def test_short_nve_run(
    nacl_model: Path,
    template: Path,
    tmp_path: Path,
    address: str,
    mode: str,
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    port = free_port()
    place = address if mode == "unix" else "localhost"
    write_input(tmp_path, mode, place, port, steps=40)
    ipi = start("i-pi", "input.xml")
    where = ["-u", "-a", place] if mode == "unix" else ["-p", str(port)]
    driver = start("kqeq-ipi", "-m", str(nacl_model), "-t", str(template), *where, "--efield", "0 0 0.05")
    assert driver.communicate(timeout=60)[1] == ""
    assert driver.returncode == 0
    ipi.communicate(timeout=20)
    assert ipi.returncode == 0

    structure = Structure([11] * 4 + [17] * 4, POSITIONS, field=(0.0, 0.0, 0.05))
    expected = Potential(nacl_model).compute(structure)
    _, potential, kinetic, conserved = numbers_in(tmp_path / "run.out").T
    assert potential[0] * HARTREE == pytest.approx(expected.energy, abs=8 * ENERGY, rel=0)
    charges = numbers_in(tmp_path / "run.charges_0")
    assert charges.shape == (41, 8)
    np.testing.assert_allclose(charges[0], expected.charges, atol=CHARGE, rtol=0)
    np.testing.assert_allclose(charges.sum(axis=1), 0.0, atol=CHARGE)
    dipole = numbers_in(tmp_path / "run.dipole_0")[0] * BOHR
    np.testing.assert_allclose(dipole, expected.dipole, atol=1e-7, rtol=0)
    forces = np.loadtxt(tmp_path / "run.forces_0.xyz", skiprows=2, max_rows=8, usecols=(1, 2, 3))
    # i-PI prints six digits of forces
    np.testing.assert_allclose(forces * HARTREE / BOHR, expected.forces, rtol=1e-5, atol=1e-9)
    # velocity Verlet at 0.25 fs follows the surface: its error is a small part of the energy that is exchanged
    assert np.ptp(kinetic) > 1e-4
    assert np.ptp(conserved) < 1e-3 * np.ptp(kinetic)


def test_ipi_goes_on_with_another_driver(
    nacl_model: Path, tmp_path: Path, template: Path, address: str, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """A driver of another system leaves with an error, one is stopped; i-PI finishes with a third."""
    write_input(tmp_path, "unix", address, 0, steps=200)
    ase.io.write(tmp_path / "pair.xyz", ase.Atoms("NaCl", [[0, 0, 0], [0, 0, 2.6]]))
    ipi = start("i-pi", "input.xml")
    common = ["-m", str(nacl_model), "-u", "-a", address, "-t"]
    foreign = start("kqeq-ipi", *common, "pair.xyz")
    error = foreign.communicate(timeout=60)[1]
    assert error == "kqeq-ipi: error: the number of atoms must be 2, as in the template, got 8 from i-PI\n"
    assert foreign.returncode == 2

    stopped = start("kqeq-ipi", *common, str(template))
    wait_for_steps(tmp_path / "run.out", 3)
    stopped.terminate()
    assert stopped.communicate(timeout=20)[1] == ""
    assert stopped.returncode == 143
    assert ipi.poll() is None
    third = start("kqeq-ipi", *common, str(template))
    assert third.communicate(timeout=60)[1] == ""
    ipi.communicate(timeout=20)
    assert third.returncode == 0
    assert ipi.returncode == 0
    assert len(numbers_in(tmp_path / "run.out")) == 201


def wait_for_steps(path: Path, steps: int) -> None:
    """Until i-PI has written that many steps."""
    deadline = time.monotonic() + 60
    while not path.exists() or len(path.read_text().splitlines()) < steps + 4:
        assert time.monotonic() < deadline, f"i-PI has not written {steps} steps within a minute"
        time.sleep(0.05)


def test_ions_in_a_field_along_a_periodic_axis_send_no_virial(model: Model, helpers: Any) -> None:
    """Reference charges of +-1: energy, forces and dipole have a meaning, the virial has none and is sent as nan."""
    ions = helpers.split_model(model, (1.0, -1.0))
    solid = replace(helpers.rock_salt(), field=(0.0, 0.0, 0.05))
    request = protocol.Request(cell=solid.cell, positions=solid.positions)
    reply = Evaluation(Potential(ions), solid)(request)
    n = len(solid)
    forces = np.frombuffer(reply[24 : 24 + 24 * n]).reshape(n, 3)
    virial = np.frombuffer(reply[24 + 24 * n : 96 + 24 * n])
    extras = json.loads(reply[100 + 24 * n :])
    wanted = Potential(ions).compute(solid)
    np.testing.assert_allclose(forces * HARTREE / BOHR, wanted.forces, atol=1e-10)
    np.testing.assert_allclose(np.array(extras["dipole"]) * BOHR, wanted.dipole, atol=1e-10)
    assert wanted.virial is None
    assert np.isnan(virial).all()
    still = Evaluation(Potential(ions), replace(solid, field=np.zeros(3)))(request)
    assert np.isfinite(np.frombuffer(still[24 + 24 * n : 96 + 24 * n])).all()
