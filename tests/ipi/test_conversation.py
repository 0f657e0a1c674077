"""The conversation with a scripted server, without a model."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
from ipi_support import POSITIONS, READY, header, init, nan_in, posdata

from kqeq_md.errors import KqeqError
from kqeq_md.ipi_driver import protocol
from kqeq_md.ipi_driver.conversation import serve


class Scripted:
    """A driver without a model: `evaluate` of its answers."""

    def __init__(self, evaluate: Callable[[Sequence[protocol.Request]], list[protocol.Answer]]) -> None:
        self.evaluate = evaluate
        self.begun: list[Mapping[str, str]] = []

    def begin(self, parameters: Mapping[str, str]) -> None:
        self.begun.append(parameters)


class Wire(protocol.Stream):
    """Replies that are easy to read."""

    def reply(self, answers: Sequence[protocol.Answer]) -> bytes:
        return f"<forces of {len(answers)}>".encode()


def converse(sent: bytes, driver: Scripted, n_atoms: int = 8) -> bytes:
    """All that the driver answers to what a server has `sent`, before it leaves."""
    server, connection = socket.socketpair()
    with server, connection:
        server.sendall(sent)
        server.shutdown(socket.SHUT_WR)
        serve(connection, Wire(n_atoms), driver, lambda n: None)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: server.recv(65536), b""))


def never(requests: Sequence[protocol.Request]) -> list[protocol.Answer]:
    raise AssertionError("there is nothing to evaluate")


def nothing(requests: Sequence[protocol.Request]) -> list[protocol.Answer]:
    return [protocol.Answer(0.0, np.zeros((8, 3)), np.zeros((3, 3)), "") for _ in requests]


def test_fused_conversation() -> None:
    step = posdata(POSITIONS) + header("GETFORCE") + header("STATUS")
    answers = converse(READY + 2 * step + header("EXIT"), Scripted(nothing))
    assert answers == header("NEEDINIT") + header("READY") + 2 * (b"<forces of 1>" + header("READY"))


def test_conversation_with_a_status_before_getforce() -> None:
    step = posdata(POSITIONS) + header("STATUS") + header("GETFORCE")
    answers = converse(READY + step + header("STATUS") + header("EXIT"), Scripted(nothing))
    assert answers == header("NEEDINIT") + header("READY") + header("HAVEDATA") + b"<forces of 1>" + header("READY")


def test_init_tells_the_parameters_and_the_size_of_batches() -> None:
    driver = Scripted(nothing)
    body = np.int32(8).tobytes() + np.zeros(2 * 18).tobytes() + np.zeros(2 * 24).tobytes()
    sent = header("STATUS") + init(" charge : 1 , efield : 0 0 0.01 , , batch_size:2") + header("POSDATA") + body
    answers = converse(sent + header("GETFORCE") + header("EXIT"), driver)
    assert answers == header("NEEDINIT") + b"<forces of 2>"
    assert driver.begun == [{"charge": "1", "efield": "0 0 0.01"}]


def test_nothing_is_unread_during_an_evaluation() -> None:
    server, connection = socket.socketpair()
    served: list[int] = []

    def evaluate(requests: Sequence[protocol.Request]) -> list[protocol.Answer]:
        assert not select.select([connection], [], [], 0)[0]  # a GETFORCE left here would hang i-PI
        server.sendall(header("EXIT"))
        return nothing(requests)

    with server, connection:
        server.sendall(posdata(POSITIONS) + header("GETFORCE"))
        serve(connection, Wire(8), Scripted(evaluate), served.append)
    assert served == [1]


BAD_MESSAGES = {
    "number of atoms must be 8, as in the template, got 7": posdata(POSITIONS[:7]),
    r"`positions` must be finite, got nan at index \[2, 1\] from i-PI": posdata(nan_in(POSITIONS)),
    "`cell` must be finite, got nan": posdata(POSITIONS, nan_in(np.eye(3))),
    "message from i-PI must be one of EXIT, .* got b'HELLO": header("HELLO"),
    "`batch_size` must lie between 1 and 65536, got 0": init(" , batch_size:0"),
    "length of the INIT text must lie between 0 and 1048576, got -1": header("INIT")
    + np.array([0, -1], np.int32).tobytes(),
    "GETFORCE must follow POSDATA": header("GETFORCE"),
}


@pytest.mark.parametrize("message", BAD_MESSAGES)
def test_bad_messages_are_named(message: str) -> None:
    with pytest.raises(KqeqError, match=message):
        converse(BAD_MESSAGES[message], Scripted(never))


@pytest.mark.parametrize("sent", [b"", b"STAT", READY, posdata(POSITIONS)[:100]])
def test_end_of_the_stream(sent: bytes) -> None:
    with pytest.raises(protocol.ServerGone):
        converse(sent, Scripted(never))
