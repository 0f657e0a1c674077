"""The conversation with i-PI over an open connection."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

from kqeq_md.ipi_driver.connection import take_getforce
from kqeq_md.ipi_driver.protocol import (
    Answer,
    DriverError,
    Read,
    Request,
    decode_batch_size,
    decode_header,
    decode_init,
    encode_header,
    read_exactly,
)


class Wire(Protocol):
    """How numbers travel: `protocol.Stream` or `shared_memory.SharedMemory`."""

    batch_size: int

    def receive(self, read: Read) -> list[Request]:
        """The structures of a POSDATA message."""

    def reply(self, answers: Sequence[Answer]) -> bytes:
        """The answer to GETFORCE."""


class Driver(Protocol):
    """What answers."""

    def begin(self, parameters: Mapping[str, str]) -> None:
        """Take the `<parameters>` of the ffsocket."""

    def evaluate(self, requests: Sequence[Request]) -> list[Answer]:
        """One answer for each structure."""


def serve(connection: socket.socket, wire: Wire, driver: Driver, served: Callable[[int], None]) -> None:
    """Answer i-PI until it says EXIT.

    Args:
        connection: open, at the first message.
        wire: how numbers travel.
        driver: what answers.
        served: called after each reply with its number of structures.

    Raises:
        ServerGone: the connection was closed without EXIT.
        KqeqError: a message, a structure or a result that is refused.
    """
    read = partial(read_exactly, connection)
    initialised = False
    reply: bytes | None = None
    while (message := decode_header(read)) != "EXIT":
        wanted = message == "GETFORCE"
        if message == "STATUS":
            connection.sendall(encode_header(_status(initialised, reply)))
        elif message == "INIT":
            parameters = decode_init(read)
            wire.batch_size = decode_batch_size(parameters.pop("batch_size", "1"))
            driver.begin(parameters)
            initialised = True
        elif message == "POSDATA":
            requests = wire.receive(read)
            wanted = take_getforce(connection)
            reply = wire.reply(driver.evaluate(requests))
        if wanted:
            if reply is None:
                raise DriverError("GETFORCE must follow POSDATA, got it from i-PI before any positions")
            connection.sendall(reply)
            reply = None
            served(wire.batch_size)


def _status(initialised: bool, reply: bytes | None) -> str:
    # NEEDINIT comes first even though nothing is needed: only INIT tells the size of batches
    if not initialised:
        return "NEEDINIT"
    return "READY" if reply is None else "HAVEDATA"
