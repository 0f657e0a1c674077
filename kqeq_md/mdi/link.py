"""The connection of an MDI engine to its driver, through the MDI library."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kqeq_md.errors import KqeqError

logger = logging.getLogger("kqeq_md.mdi")

_NOTICE_AFTER = 2.0
"""Seconds of waiting for a driver before saying so: it is often started a moment later."""

_OPTIONS = ("-role", "-name", "-method", "-hostname", "-port")


class MdiError(KqeqError):
    """A command of the driver, or a connection, that the engine cannot serve."""


class DriverGone(MdiError):
    """The driver left without EXIT."""


def mdi_library() -> Any:
    """The Python module of the MDI library.

    Raises:
        MdiError: it is not installed.
    """
    try:
        import mdi
    except ImportError:
        raise MdiError(
            f"pymdi is not installed: install it with {sys.executable} -m pip install 'kqeq_md[mdi]'"
        ) from None
    return mdi


@dataclass(frozen=True)
class Link:
    """The connection to the driver.

    The library's Python functions raise nothing but `Exception`; what went wrong is on the standard error stream then.

    Attributes:
        socket: that of the library, where it is known.
    """

    library: Any
    communicator: int
    socket: socket.socket | None = None

    def command(self) -> str:
        """The next command; the library answers <NAME and the like by itself.

        Raises:
            DriverGone: there is none.
        """
        self._acknowledge()
        try:
            return str(self.library.MDI_Recv_Command(self.communicator))
        except Exception as error:
            raise DriverGone(f"the driver closed the connection without EXIT ({error})") from None

    def receive(self, command: str, count: int, kind: type) -> NDArray[Any]:
        """The values that follow a command, shape (count,).

        Raises:
            MdiError: another number or type of values, or none.
        """
        # what a connection that breaks in the middle leaves unfilled has to be seen: the library does not tell
        values: NDArray[Any] = np.full(count, np.nan if kind is np.float64 else -1, dtype=kind)
        code = self.library.MDI_DOUBLE if kind is np.float64 else self.library.MDI_INT
        self._acknowledge()
        try:
            self.library.MDI_Recv(count, code, self.communicator, buf=values)
        except Exception:
            what = "real numbers" if kind is np.float64 else "integers"
            raise MdiError(
                f"`{command}` must bring {count} {what}, got another number or type of values, or the driver left"
            ) from None
        return values

    def send(self, values: NDArray[Any] | str) -> None:
        """Answer with whole numbers, real numbers or a name.

        Raises:
            DriverGone: nobody takes it.
        """
        library = self.library
        try:
            if isinstance(values, str):
                length = library.MDI_NAME_LENGTH
                library.MDI_Send(values.ljust(length, "\0"), length, library.MDI_CHAR, self.communicator)
            else:
                code = library.MDI_INT if np.issubdtype(values.dtype, np.integer) else library.MDI_DOUBLE
                library.MDI_Send(np.ascontiguousarray(values), values.size, code, self.communicator)
        except Exception as error:
            raise DriverGone(f"the driver did not take an answer ({error})") from None

    def close(self) -> None:
        """Let the driver see the end, which the library leaves to the end of the process."""
        if self.socket is not None:
            with contextlib.suppress(OSError):  # the driver has gone
                self.socket.shutdown(socket.SHUT_RDWR)
            self.socket.close()

    def _acknowledge(self) -> None:
        """Let the kernel acknowledge what comes at once.

        The library writes each message in two pieces, and a driver's second piece waits for the acknowledgement of the
        first: 40 ms each time. The kernel forgets this wish whenever something is sent.
        """
        if self.socket is not None:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def check_connection(text: str) -> dict[str, str]:
    """The options of `-mdi` by name.

    Raises:
        MdiError: something is missing, unknown, or nothing that this engine can do.
    """
    words = text.split()
    given = dict(zip(words[::2], words[1::2], strict=False))
    if len(words) != 2 * len(_OPTIONS) or sorted(given) != sorted(_OPTIONS):
        raise MdiError(f"`-mdi` must give {', '.join(_OPTIONS)}, each with a value, got {text!r}")
    if given["-role"] != "ENGINE":
        raise MdiError(f"`-mdi`: -role must be ENGINE, got {given['-role']}")
    if given["-method"] != "TCP":
        raise MdiError(f"`-mdi`: -method must be TCP, got {given['-method']}")
    if not (given["-port"].isdecimal() and 0 < int(given["-port"]) < 65536):
        raise MdiError(f"`-mdi`: -port must lie between 1 and 65535, got {given['-port']}")
    return given


def connect(text: str) -> Link:
    """A connection to the driver, tried again until it succeeds.

    Raises:
        MdiError: options that are refused, or a host that cannot be reached.
    """
    given, library = check_connection(text), mdi_library()
    place = f"{given['-hostname']}:{given['-port']}"
    with _notice(place):
        try:
            library.MDI_Init(text)
            communicator = library.MDI_Accept_Communicator()
        except Exception as error:
            raise MdiError(f"cannot connect to a driver at {place} ({error})") from None
    if communicator == library.MDI_COMM_NULL:
        raise MdiError(f"cannot connect to a driver at {place}")
    logger.info("connected to the driver at %s", place)
    found = _socket_to(int(given["-port"]))
    if found is not None:
        # an answer is two short pieces as well
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Link(library, communicator, found)


@contextlib.contextmanager
def _notice(place: str) -> Iterator[None]:
    """Say so where it takes long until the driver is there: the library tries again for ever."""
    timer = threading.Timer(_NOTICE_AFTER, logger.warning, ["waiting for a driver at %s", place])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _socket_to(port: int) -> socket.socket | None:
    """A second handle of this process' connection to a port; None on systems that do not list open files.

    The library keeps its socket to itself.
    """
    for entry in sorted(Path("/proc/self/fd").glob("*"), key=lambda path: -int(path.name)):
        with contextlib.suppress(OSError):  # closed in between
            descriptor = int(entry.name)
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode) and _leads_to(descriptor, port):
                return socket.socket(fileno=os.dup(descriptor))
    return None


def _leads_to(descriptor: int, port: int) -> bool:
    with socket.socket(fileno=os.dup(descriptor)) as found, contextlib.suppress(OSError):  # not connected
        return found.family == socket.AF_INET and found.getpeername()[1] == port
    return False
