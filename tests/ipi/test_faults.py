"""What goes wrong around a run: processes that die, numbers that overflow, messages that mean nothing."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
import pytest
from ipi_support import (
    POSITIONS,
    PREFIX,
    READY,
    SYMBOLS,
    Messages,
    free_port,
    header,
    init,
    numbers_in,
    posdata,
    scripted_server,
    wait_for_steps,
    write_crystal,
    write_input,
)

from kqeq_md.errors import KqeqError
from kqeq_md.ipi_driver import client, protocol
from kqeq_md.ipi_driver.client import Client, main
from kqeq_md.ipi_driver.conversation import serve
from kqeq_md.ipi_driver.evaluation import Evaluation
from kqeq_md.ipi_driver.settings import Settings, read_settings
from kqeq_md.ipi_driver.shared_memory import SharedMemory
from kqeq_md.model import Model, save_model
from kqeq_md.models import NACL
from kqeq_md.units import BOHR

Start = Callable[..., "subprocess.Popen[str]"]

FAULTY = """\
import os, signal, sys
from kqeq_md import potential
from kqeq_md.charges import equilibrate
from kqeq_md.ipi_driver import client, evaluation

fault, turn, calls = sys.argv.pop(1), int(sys.argv.pop(1)), 0
evaluate, solve, gradient = evaluation.Evaluation.__call__, equilibrate.ChargeSolver.solve, {gradient}

def counted(self, requests):
    global calls
    calls += 1
    return evaluate(self, requests)

def solve_or_die(*arguments):
    if calls == turn and fault != "nan":
        os.kill(os.getpid(), getattr(signal, fault))
    return solve(*arguments)

def gradient_or_nan(*arguments):
    grad_r, strain = gradient(*arguments)
    if calls == turn and fault == "nan":
        grad_r[[2, 5], 1] = float("nan")
    return grad_r, strain

evaluation.Evaluation.__call__ = counted
equilibrate.ChargeSolver.solve = solve_or_die
potential.electrostatic_gradient = gradient_or_nan
sys.exit(client.main())
""".format(gradient="potential.electrostatic_gradient")
"""The driver, with a fault in the middle of an evaluation, when the descriptor is known and the charges are not:
a signal to itself, or forces that are not numbers."""


@pytest.fixture
def faulty(tmp_path: Path, launch: Start) -> Start:
    """Starts `FAULTY`: the fault, the evaluation in which it happens, and the arguments of the driver."""
    script = tmp_path / "faulty.py"
    script.write_text(FAULTY)
    return lambda *arguments: launch(sys.executable, str(script), *arguments)


def energies_of(folder: Path) -> np.ndarray:
    return numbers_in(folder / "run.out")[:, 1]


def finish(process: subprocess.Popen[str], code: int, timeout: float = 60) -> str:
    """What a process has written to stderr, after it has ended with this code."""
    _, error = process.communicate(timeout=timeout)
    assert process.returncode == code, error
    return error


@pytest.mark.parametrize("mode", ["unix", "inet", pytest.param("shm", marks=pytest.mark.slow)])
def test_drivers_that_die_in_mid_force_are_replaced_without_loss(
    nacl_model: Path,
    template: Path,
    tmp_path: Path,
    address: str,
    start: Start,
    faulty: Start,
    mode: str,
) -> None:
    """Three are killed in the middle of an evaluation; the energies are those of a run that nobody disturbs."""
    common = ["-m", str(nacl_model), "-t", str(template), "--efield", "0 0 0.05"]
    calm, tough = address + "_calm", address
    port = free_port()
    place = "localhost" if mode == "inet" else tough
    where = {"unix": ["-u", "-a", tough], "shm": ["--shm", "-a", tough], "inet": ["-p", str(port)]}[mode]
    for name in ("calm", "tough"):
        (tmp_path / name).mkdir()
    # the server comes later than the driver
    write_input(tmp_path / "calm", "unix", calm, 0, steps=12)
    write_input(tmp_path / "tough", mode, place, port, steps=12)
    waiting = start("kqeq-ipi", *common, "-u", "-a", calm)
    ipi = start("i-pi", "input.xml", folder="tough")
    for fault, turn in (("SIGKILL", 5), ("SIGINT", 1), ("SIGTERM", 3)):
        number = getattr(signal, fault)
        error = finish(faulty(fault, str(turn), *common, *where), -9 if fault == "SIGKILL" else 128 + number)
        assert error == ""
        assert ipi.poll() is None
    last = start("kqeq-ipi", *common, *where)
    undisturbed = start("i-pi", "input.xml", folder="calm")
    for process in (last, waiting, ipi, undisturbed):
        error = finish(process, 0)
        assert process is not waiting or "waiting up to 60 s for i-PI at" in error
    energies, expected = energies_of(tmp_path / "tough"), energies_of(tmp_path / "calm")
    assert len(energies) == 13
    # eight atoms are solved directly, without a history; the order of the sums comes from lists that a new driver
    # makes anew, so the last of 16 digits may differ
    np.testing.assert_allclose(energies, expected, rtol=1e-13, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["unix", "inet"])
def test_a_large_crystal_loses_no_step(tmp_path: Path, address: str, start: Start, faulty: Start, mode: str) -> None:
    """A message of 0.5 MB is on its way, and the driver is killed with a system of 21,952 atoms."""
    runs = {}
    for name, turn in (("calm", None), ("tough", 2)):
        folder = tmp_path / name
        folder.mkdir()
        port = free_port()
        place = f"{address}_{name}" if mode == "unix" else "localhost"
        where = ["-u", "-a", place] if mode == "unix" else ["-p", str(port)]
        template = write_crystal(folder, mode, place, port, steps=2, cells=14)
        common = ["-m", str(NACL), "-t", str(template), *where, "--extras", "none"]
        ipi = start("i-pi", "input.xml", folder=name)
        if turn:
            finish(faulty("SIGKILL", str(turn), *common), -9, timeout=300)
            assert ipi.poll() is None
        assert finish(start("kqeq-ipi", *common), 0, timeout=600) == ""
        finish(ipi, 0)
        runs[name] = energies_of(folder)
        shutil.rmtree(folder)
    assert len(runs["calm"]) == 3
    # charges are iterated to a residual of 1e-5, from another start in a new driver; the energy is stationary, so that
    # its relative error is about the square; the potential is some 4 eV per atom
    np.testing.assert_allclose(runs["tough"], runs["calm"], rtol=1e-9, atol=0)


def cpu_seconds(process: subprocess.Popen[str]) -> float:
    """Processor time that a process has taken, s."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_killed_server_is_left_or_waited_for_without_spinning(
    nacl_model: Path, template: Path, tmp_path: Path, address: str, start: Start
) -> None:
    write_input(tmp_path, "unix", address, 0, steps=10**6)
    common = ["-m", str(nacl_model), "-t", str(template), "-u", "-a", address]
    ipi = start("i-pi", "input.xml")
    leaving, staying = start("kqeq-ipi", *common), start("kqeq-ipi", *common, "--reconnect")
    wait_for_steps(tmp_path / "run.out", 3)
    deadline = time.monotonic() + 60
    while not (connected(leaving) and connected(staying)):
        assert time.monotonic() < deadline, "two drivers have not connected within a minute"
        time.sleep(0.05)
    ipi.kill()
    gone = "kqeq-ipi: the server closed the connection without EXIT\n"
    assert finish(leaving, 0, timeout=10) == gone
    time.sleep(0.5)  # the end of the last evaluation
    before = cpu_seconds(staying)
    time.sleep(1.0)
    # an attempt every half second takes about a millisecond; spinning would take the whole second
    assert cpu_seconds(staying) - before < 0.2
    assert staying.poll() is None
    Path(PREFIX + address).unlink()  # i-PI itself does not start where its own remains lie
    write_input(tmp_path, "unix", address, 0, steps=3)
    second = start("i-pi", "input.xml")
    assert finish(staying, 0).startswith(gone + "kqeq-ipi: trying to connect again (--reconnect)\n")
    finish(second, 0)


def connected(process: subprocess.Popen[str]) -> bool:
    """Whether a process has a socket."""
    try:
        return any("socket:" in os.readlink(link) for link in Path(f"/proc/{process.pid}/fd").iterdir())
    except OSError:
        return False


def test_forces_that_are_not_numbers_stop_the_driver_and_not_ipi(
    nacl_model: Path, template: Path, tmp_path: Path, address: str, start: Start, faulty: Start
) -> None:
    """The message names the atoms; i-PI waits for another driver, and leaves with RESTART when it is told to."""
    write_input(tmp_path, "unix", address, 0, steps=10**6)
    ipi = start("i-pi", "input.xml")
    error = finish(faulty("nan", "4", "-m", str(nacl_model), "-t", str(template), "-u", "-a", address), 2)
    rule = r"`forces` must be finite, got nan for atoms 2, 5 \(counted from 0\)"
    assert re.fullmatch(f"kqeq-ipi: error: {rule}.*\n", error)
    assert ipi.poll() is None
    assert not (tmp_path / "RESTART").exists()
    ipi.send_signal(signal.SIGTERM)
    ipi.communicate(timeout=30)
    assert "<simulation" in (tmp_path / "RESTART").read_text()
    assert len(energies_of(tmp_path)) == 3  # the start and two steps: nothing of the bad one is written


def test_a_model_that_overflows_is_refused_before_ipi_waits_for_it(
    model: Model, template: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (term,) = model.terms
    huge = replace(model, terms=(replace(term, weights=tuple(1e200 * weights for weights in term.weights)),))
    save_model(huge, tmp_path / "huge.kqeq")
    assert main(["-m", str(tmp_path / "huge.kqeq"), "-t", str(template), "-u", "-a", "nobody", "--wait", "100"]) == 2
    (record,) = caplog.records
    assert re.search("must be finite, got .* for atoms 0, 1, 2", record.message)


def test_a_stale_socket_file_is_an_absent_server(
    nacl_model: Path, template: Path, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(PREFIX + address)
    assert Path(PREFIX + address).is_socket()
    assert main(["-m", str(nacl_model), "-t", str(template), "-u", "-a", address, "--wait", "0.2"]) == 2
    message = f"no i-PI server at {PREFIX + address} within 0.2 s (--wait): Connection refused"
    assert [record.message for record in caplog.records] == [f"error: {message}"]


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["--part", "short", "--extras", "charges"], "`extras` must be defined, got `charges`: E_short knows no charg"),
        (["--part", "short", "--extras", "bec"], "`extras` must be defined, got `bec`: E_short knows no charges"),
        (["--charges", "fragments", "--fragments", "absent"], "absent"),
    ],
)
def test_options_that_do_not_go_together(
    nacl_model: Path, template: Path, caplog: pytest.LogCaptureFixture, arguments: list[str], rule: str
) -> None:
    assert main(["-m", str(nacl_model), "-t", str(template), "-u", "-a", "nobody", "--wait", "1", *arguments]) == 2
    (record,) = caplog.records
    assert rule in record.message


def test_a_server_that_drops_everyone_is_not_asked_without_a_pause(
    nacl_model: Path, template: Path, address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(client, "_BEFORE_NEXT", 0.1)
    times: list[float] = []

    def talk(driver: socket.socket) -> None:
        times.append(time.monotonic())
        driver.sendall(header("STATUS" if len(times) < 4 else "EXIT"))

    command = ["-m", str(nacl_model), "-t", str(template), "-u", "-a", address, "--wait", "100", "--reconnect"]
    with scripted_server(address, talk, drivers=4):
        assert main(command) == 0
    assert len(times) == 4
    assert min(np.diff(times)) >= 0.1 - 0.01  # sleep never ends before its time; clocks tick
    assert [record.message for record in caplog.records] == 3 * [
        "the server closed the connection without EXIT",
        "trying to connect again (--reconnect)",
    ]


class Nothing:
    """A driver whose answer is always zero; settings are read as by the real one."""

    def begin(self, parameters: Mapping[str, str]) -> None:
        read_settings(parameters, "`<parameters>`")

    def evaluate(self, requests: Sequence[protocol.Request]) -> list[protocol.Answer]:
        return [protocol.Answer(0.0, np.zeros((8, 3)), np.zeros((3, 3)), "{}") for _ in requests]


def outcome(sent: bytes, wire: Any, driver: Any) -> str:
    """How the driver takes these bytes, followed by the end of the stream: "left", "gone", or the refusal."""
    server, connection = socket.socketpair()
    with server, connection:
        server.settimeout(1.0)
        connection.settimeout(1.0)  # what waits for longer fails
        server.sendall(sent)
        server.shutdown(socket.SHUT_WR)
        try:
            serve(connection, wire, driver, lambda n: None)
        except protocol.ServerGone:
            return "gone"
        except KqeqError as error:
            return str(error)
        return "left"


@pytest.mark.parametrize("wire", [protocol.Stream, SharedMemory])
def test_garbage_is_refused_or_passed_over(wire: Callable[[int], Any]) -> None:
    """5,000 conversations each: a clean end, no other exception, no memory that stays."""
    with Messages(seed=17, shm=wire is SharedMemory) as messages:
        outcomes = [outcome(messages.next(), wire(8), Nothing()) for _ in range(1000)]
        tracemalloc.start()
        try:
            outcomes += [outcome(messages.next(), wire(8), Nothing()) for _ in range(1000)]
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            outcomes += [outcome(messages.next(), wire(8), Nothing()) for _ in range(3000)]
            after, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    # 3,000 texts of outcomes stay, 200 bytes each; no length that a message announces is taken at its word
    assert after - before < 2e6
    assert peak - before < 8e6
    refusals = {text for text in outcomes if text not in ("gone", "left")}
    assert all(text.isprintable() and len(text) < 500 for text in refusals)  # one line, that can be read
    assert outcomes.count("left") > 100
    assert outcomes.count("gone") > 100
    for rule in ("message from i-PI must be one of", "`batch_size` must lie", "number of atoms must be 8", "INIT text"):
        assert any(rule in text for text in refusals), rule
    if wire is SharedMemory:
        assert any("name of a segment must" in text for text in refusals)
        assert any("the shared memory of i-PI must have" in text for text in refusals)


def test_garbage_in_front_of_the_model(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    """As above, with real evaluations of what bits have been flipped in."""
    evaluation = Evaluation(model, ase.Atoms(SYMBOLS, POSITIONS), Settings(), threads=1)
    with Messages(seed=23, shm=False) as messages:
        outcomes = [outcome(messages.flipped(), protocol.Stream(8), Client(evaluation)) for _ in range(300)]
    for rule in ("`positions`", "message from i-PI must be one of", "left"):
        assert any(rule in text for text in outcomes), rule


def replies_to(sent: bytes, driver: Client) -> tuple[list[bytes], list[int]]:
    """What the driver answers, in pieces that begin with a header, and how many structures it counts."""
    server, connection = socket.socketpair()
    served: list[int] = []
    with server, connection:
        server.sendall(sent)
        server.shutdown(socket.SHUT_WR)
        serve(connection, protocol.Stream(8), driver, served.append)
        connection.shutdown(socket.SHUT_WR)
        received = b"".join(iter(lambda: server.recv(65536), b""))
    return re.split(b"(?=NEEDINIT|(?<!FORCE)READY |HAVEDATA|FORCEREADY)", received)[1:], served


def test_a_second_init_begins_anew(model: Model) -> None:
    """Charge and batches are those of the last INIT; what it does not say is as on the command line."""
    driver = Client(Evaluation(model, ase.Atoms(SYMBOLS, POSITIONS), Settings(), threads=1))
    step = posdata(POSITIONS) + header("GETFORCE")
    batch = np.int32(8).tobytes() + 2 * bytes(144) + 2 * (POSITIONS / BOHR).tobytes()
    sent = init(" charge : 1 , ") + step + init(" , batch_size:2") + header("POSDATA") + batch + header("GETFORCE")
    answers, served = replies_to(sent + init(" ") + step + header("EXIT"), driver)
    assert served == [1, 2, 1]
    energies = [np.frombuffer(answer[12:20])[0] for answer in answers]
    (charged,) = Client(Evaluation(model, ase.Atoms(SYMBOLS, POSITIONS), Settings(charge=1.0), threads=1)).evaluate(
        [protocol.Request(np.zeros((3, 3)), POSITIONS)]
    )
    # units' rounding of the positions
    assert energies[0] == pytest.approx(charged.energy, rel=1e-12)
    assert abs(energies[1] - energies[0]) > 1e-3
    assert energies[1] == pytest.approx(energies[2], rel=1e-12)


def test_exit_in_the_middle_of_a_step_is_an_exit(model: Model) -> None:
    driver = Client(Evaluation(model, ase.Atoms(SYMBOLS, POSITIONS), Settings(), threads=1))
    answers, served = replies_to(READY + posdata(POSITIONS) + header("EXIT"), driver)
    assert answers == [header("NEEDINIT"), header("READY")]
    assert served == []
