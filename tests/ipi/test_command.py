"""The command, in process."""

from __future__ import annotations

import re
import signal
import socket
import threading
import time
from pathlib import Path

import ase
import ase.io
import pytest
from ipi_support import POSITIONS, PREFIX, header, init, nan_in, posdata, rattled, scripted_server

from kqeq_md.ipi_driver import connection
from kqeq_md.ipi_driver.client import main


def drive(model: Path, template: Path, address: str, *more: str) -> int:
    return main(["-m", str(model), "-t", str(template), "-u", "-a", address, "--wait", "100", *more])


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


def test_a_server_that_closes_before_it_speaks_is_no_end_for_those_who_reconnect(
    nacl_model: Path, template: Path, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    with scripted_server(address, lambda driver: None):
        assert drive(nacl_model, template, address, "--reconnect", "--wait", "0.2") == 2
    assert [record.message.split(" within")[0] for record in caplog.records] == [
        "the server closed the connection without EXIT",
        "trying to connect again (--reconnect)",
        f"error: no i-PI server at {PREFIX}{address}",
    ]


def test_a_silent_server_is_told(caplog: pytest.LogCaptureFixture) -> None:
    left, right = socket.socketpair()
    with left, right:
        threading.Timer(0.3, left.sendall, [header("STATUS")]).start()
        assert connection.await_first_word(right, "somewhere", 0.05)
    assert "connected to somewhere, which has said nothing for 0.05 s" in caplog.text


def test_leaves_when_the_server_goes_in_the_middle(
    nacl_model: Path, template: Path, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    def talk(driver: socket.socket) -> None:
        driver.sendall(posdata(POSITIONS)[:77])

    with scripted_server(address, talk):
        assert drive(nacl_model, template, address) == 0
    assert "the server closed the connection without EXIT" in caplog.text


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (posdata(rattled()[:7]) + header("GETFORCE"), "number of atoms must be 8"),
        (posdata(nan_in(POSITIONS)) + header("GETFORCE"), "`positions` must be finite"),
        (posdata(0 * POSITIONS) + header("GETFORCE"), "overlap"),
        (init(" , batch_size:0"), "`batch_size` must lie between 1 and 65536"),
        (init(" charge : 1 , "), "`charge` must be the same on the command line and in <parameters>, got 0.0 and 1.0"),
        (init(" charges : all , "), "`charges` in `<parameters>` must be one of qeq, fragments, split, got 'all'"),
        (init(" colour : red , "), "`<parameters>` must be of charge, efield, .*, got `colour`"),
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
        assert drive(nacl_model, template, address, "--charge", "0") == 2
    assert seen == [b""]
    (record,) = caplog.records
    assert re.search(message, record.message)
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
    bare = ase.Atoms("Na4Cl4", POSITIONS, pbc=True)
    ase.io.write(template.with_name("no_cell.traj"), bare)
    message = refusal(caplog, "-m", str(nacl_model), "-t", str(template.with_name("no_cell.traj")))
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
        (["--charge", "much"], "--charge: must be a finite number, got 'much'"),
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
