"""The socket between the driver and i-PI: opening it patiently, reading ahead, closing it gently."""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import time
from collections.abc import Callable

from kqeq_md.ipi_driver.protocol import HEADER_LENGTH, DriverError, encode_header, read_exactly

logger = logging.getLogger("kqeq_md.ipi_driver")

_GETFORCE = encode_header("GETFORCE")
_FUSED_WITHIN = 0.05
"""Seconds given to a GETFORCE sent together with POSDATA; other servers ask for the status at once."""
_NOTICE_AFTER = 2.0
"""Seconds of waiting for i-PI before saying so: it is often started a moment later."""
_LONGEST_PAUSE = 0.5
"""Seconds between two attempts to connect."""
_DRAIN_WITHIN = 1.0
"""Seconds given to what i-PI still has on its way when the driver leaves."""


def connect(open_socket: Callable[[float], socket.socket], place: str, wait: float) -> socket.socket:
    """A connection to i-PI, tried again until it succeeds or `wait` seconds are over.

    Args:
        open_socket: connects once, within the given seconds, or raises OSError.
        place: where that is, for messages.

    Raises:
        DriverError: no server, or a place where waiting cannot help.
    """
    start = time.monotonic()
    pause, said = 0.05, False
    while True:
        waited = time.monotonic() - start
        try:
            return open_socket(max(wait - waited, 1.0))
        except OSError as error:
            reason = error.strerror or str(error)
            # a path that is too long comes without a number, and so does the end of the time
            hopeless = error.errno is None and not isinstance(error, TimeoutError)
            if hopeless or isinstance(error, PermissionError):
                raise DriverError(f"cannot connect to i-PI at {place}: {reason}") from None
        if waited >= wait:
            raise DriverError(f"no i-PI server at {place} within {wait:g} s (--wait): {reason}") from None
        if waited >= _NOTICE_AFTER and not said:
            logger.warning("waiting up to %g s for i-PI at %s", wait, place)
            said = True
        time.sleep(min(pause, max(wait - waited, 0.0)))
        pause = min(2 * pause, _LONGEST_PAUSE)


def open_unix(path: str, seconds: float) -> socket.socket:
    """A unix socket connected within `seconds`, without a time limit from then on."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(seconds)
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    connection.settimeout(None)
    return connection


def open_inet(host: str, port: int, seconds: float) -> socket.socket:
    """An inet socket connected within `seconds`, without a time limit from then on."""
    try:
        connection = socket.create_connection((host, port), timeout=seconds)
    except UnicodeError as error:  # from the encoding of international names
        raise OSError(f"not the name of a host: {error}") from None
    connection.settimeout(None)
    # a step is a few short messages: neither side may wait to fill a packet
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # a host that vanishes sends no end of stream
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return connection


def await_first_word(connection: socket.socket, place: str, seconds: float) -> bool:
    """Whether the server has begun to speak, or else has closed the connection; a warning after `seconds` of silence.

    Silence is no error: a server may prepare its first step for long after it has accepted the connection.
    """
    if not select.select([connection], [], [], seconds)[0]:
        logger.warning("connected to %s, which has said nothing for %g s: is it i-PI?", place, seconds)
    return bool(connection.recv(1, socket.MSG_PEEK))


def take_getforce(connection: socket.socket) -> bool:
    """Read the GETFORCE that i-PI sends together with POSDATA; False where anything else follows.

    A driver that dies in the evaluation with GETFORCE unread resets the connection, and i-PI hangs for
    ever; with nothing unread i-PI sees the end of the stream and gives the request to another driver.
    """
    try:
        start = connection.recv(HEADER_LENGTH, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:  # not there yet
        if not select.select([connection], [], [], _FUSED_WITHIN)[0]:
            return False
        start = connection.recv(HEADER_LENGTH, socket.MSG_PEEK)
    # half a header is enough: no other message begins like GETFORCE
    if not start or not _GETFORCE.startswith(start):
        return False
    read_exactly(connection, HEADER_LENGTH)
    return True


def close(connection: socket.socket) -> None:
    """Close such that i-PI sees the end of the stream and not a reset, which would stop its polling for ever.

    A reset follows from closing with unread bytes: read what is on its way, for a second at most.
    """
    with connection, contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(_DRAIN_WITHIN)
        end = time.monotonic() + _DRAIN_WITHIN
        while connection.recv(65536) and time.monotonic() < end:
            pass
