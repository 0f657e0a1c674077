"""Messages of i-PI's socket protocol: pure encoding and decoding, and reads of an exact length.

Headers are 12 upper-case bytes padded with spaces, numbers are int32 and float64 in native byte order, units
are atomic (hartree, bohr, e). They turn into eV and Angstrom, and back, in this file and nowhere else.

Reference: M. Ceriotti, J. More, D. E. Manolopoulos, Comput. Phys. Commun. 185, 1019 (2014),
doi:10.1016/j.cpc.2013.10.027.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kqeq_md.errors import KqeqError
from kqeq_md.structure import Result
from kqeq_md.units import BOHR, HARTREE

Floats = NDArray[np.float64]
Read = Callable[[int], bytes]
"""Takes a number of bytes and returns exactly that many."""

HEADER_LENGTH = 12
_FROM_SERVER = ("EXIT", "STATUS", "INIT", "POSDATA", "GETFORCE")

LONGEST_INIT = 1 << 20
"""Bytes; i-PI sends a few dozen."""

LARGEST_BATCH = 1 << 16
"""Structures in one message; i-PI sends as many as there are replicas, or fewer."""

_SHOWN = 80
"""Characters of foreign text in a message."""


class DriverError(KqeqError):
    """What i-PI sent, or the model answered, cannot be passed on."""


class ServerGone(Exception):
    """The server closed the connection."""


@dataclass(frozen=True)
class Request:
    """One structure whose forces i-PI wants.

    Attributes:
        cell: lattice vectors as rows, Angstrom, shape (3, 3).
        positions: Angstrom, shape (n, 3).
    """

    cell: Floats
    positions: Floats


def read_exactly(connection: socket.socket, length: int) -> bytes:
    """The next `length` bytes of the stream.

    Raises:
        ServerGone: the stream ended before.
    """
    out = connection.recv(length, socket.MSG_WAITALL)
    while len(out) < length:  # the end of the stream, or a signal in between
        more = connection.recv(length - len(out), socket.MSG_WAITALL)
        if not more:
            raise ServerGone
        out += more
    return out


def encode_header(message: str) -> bytes:
    """`message` padded with spaces to the length of a header."""
    return message.ljust(HEADER_LENGTH).encode("ascii")


def decode_header(read: Read) -> str:
    """The next header.

    Raises:
        DriverError: a message that i-PI does not send.
    """
    raw = read(HEADER_LENGTH)
    message = raw.decode("ascii", "replace").rstrip()
    if message not in _FROM_SERVER:
        raise DriverError(f"the message from i-PI must be one of {', '.join(_FROM_SERVER)}, got {raw!r}")
    return message


def decode_init(read: Read) -> dict[str, str]:
    """The `key : value` pairs of an INIT message; words without a colon carry nothing and are passed over.

    Raises:
        DriverError: the announced length is negative or absurd.
    """
    decode_integer(read)  # the number of the bead, which repeats nothing that the positions do not tell
    length = decode_integer(read)
    if not 0 <= length <= LONGEST_INIT:
        raise DriverError(f"the length of the INIT text must lie between 0 and {LONGEST_INIT}, got {length} from i-PI")
    words = read(length).decode("utf-8", "replace").split(",")
    pairs = (word.partition(":") for word in words)
    return {key.strip(): value.strip() for key, colon, value in pairs if colon}


def decode_batch_size(text: str) -> int:
    """How many structures each message will hold.

    Raises:
        DriverError: no number, or an absurd one.
    """
    # the length comes first: Python refuses to read integers of thousands of digits
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= LARGEST_BATCH):
        raise DriverError(f"`batch_size` must lie between 1 and {LARGEST_BATCH}, got {brief(text)} from i-PI")
    return int(text)


class Stream:
    """Positions and forces as bytes of the socket.

    Attributes:
        n_atoms: of each structure.
        batch_size: structures in each message.
    """

    def __init__(self, n_atoms: int) -> None:
        self.n_atoms, self.batch_size = n_atoms, 1

    def receive(self, read: Read) -> list[Request]:
        """The body of a POSDATA message: h (3x3) and its inverse, the number of atoms, the positions; in batches the
        number comes first, then all cells, then all positions.

        Raises:
            DriverError: not `n_atoms` atoms, or numbers that are not finite.
        """
        if self.batch_size == 1:
            cells = [read(144)[:72]]
            check_atoms(decode_integer(read), self.n_atoms)
        else:
            check_atoms(decode_integer(read), self.n_atoms)
            cells = [read(144)[:72] for _ in range(self.batch_size)]
        h_kcc = [np.frombuffer(cell).reshape(3, 3) for cell in cells]
        return [request_from(h_cc, np.frombuffer(read(24 * self.n_atoms)).reshape(self.n_atoms, 3)) for h_cc in h_kcc]

    def reply(self, answers: Sequence[Answer]) -> bytes:
        """The message FORCEREADY: energies, the number of atoms, forces, virials, and the extras of each structure."""
        return b"".join(
            (
                encode_header("FORCEREADY"),
                *(np.float64(answer.energy).tobytes() for answer in answers),
                np.int32(self.n_atoms).tobytes(),
                *(answer.forces.tobytes() for answer in answers),
                *(answer.virial.tobytes() for answer in answers),
                encode_extras(answers),
            )
        )


def check_atoms(n: int, n_atoms: int) -> None:
    """Refuse structures of another size.

    Raises:
        DriverError: not `n_atoms` atoms.
    """
    if n != n_atoms:
        raise DriverError(
            f"the number of atoms must be {n_atoms}, as in the template, got {n} from i-PI"
            + ("" if 0 < n < 1 << 24 else ": is the mode of the ffsocket (unix, inet, shm) that of the driver?")
        )


def request_from(h_cc: Floats, r_nc: Floats) -> Request:
    """A request in Angstrom, from bohr; the lattice vectors are the COLUMNS of h.

    Raises:
        DriverError: numbers that are not finite.
    """
    return Request(cell=_finite("cell", h_cc).T * BOHR, positions=_finite("positions", r_nc) * BOHR)


@dataclass(frozen=True)
class Answer:
    """What i-PI gets for one structure, in atomic units.

    Attributes:
        energy: hartree.
        forces: hartree/bohr, shape (n, 3).
        virial: -dE/d(eps_ab) for r_a + eps_ab r_b, hartree, shape (3, 3), of which i-PI takes the upper triangle; nan
            where it has no meaning.
        extras: text, one JSON object or nothing.
    """

    energy: float
    forces: Floats
    virial: Floats
    extras: str


def answer_from(
    result: Result,
    extras: Collection[str] = (),
    born_charges: Floats | None = None,
    extrapolation: Floats | None = None,
) -> Answer:
    """The answer of a result, whose numbers are finite.

    Args:
        result: energy, forces and virial (nan goes out where there is none), and what the extras need.
        extras: of "dipole", "charges", "bec" and "extrapolation".
        born_charges: Z[i, a, b] = dmu_a / dR_ib, e, shape (n, 3, 3), for "bec".
        extrapolation: measure of each atom, shape (n,), for "extrapolation".
    """
    assert result.forces is not None
    virial = result.unsymmetrized_virial
    return Answer(
        energy=result.energy / HARTREE,
        forces=result.forces * (BOHR / HARTREE),
        virial=np.full((3, 3), np.nan) if virial is None else virial / HARTREE,
        extras=_json(result, extras, born_charges, extrapolation),
    )


def _json(result: Result, names: Collection[str], born_charges: Floats | None, extrapolation: Floats | None) -> str:
    """One JSON object: `charges` (e), `dipole` (e bohr), `BEC` (e; row 3i+b, column a: dmu_a / dR_ib), and
    `extrapolation` of each atom."""
    extras = {}
    if "charges" in names:
        extras["charges"] = _numbers(result.charges)
    if "dipole" in names:
        assert result.dipole is not None
        extras["dipole"] = _numbers(result.dipole / BOHR)
    if "extrapolation" in names:
        assert extrapolation is not None
        extras["extrapolation"] = _numbers(extrapolation)
    if "bec" in names:
        assert born_charges is not None
        rows = born_charges.transpose(0, 2, 1).reshape(-1, 3)
        extras["BEC"] = "[" + ", ".join(_numbers(row) for row in rows) + "]"
    return "{" + ", ".join(f'"{name}": {text}' for name, text in extras.items()) + "}" if extras else ""


def _numbers(values: Floats) -> str:
    """A JSON array. All digits, as `json` writes them, would take three times as long; these are 1e-12 e."""
    return "[" + ", ".join(["%.12f"] * len(values)) % tuple(values.tolist()) + "]"


def brief(text: str) -> str:
    """Foreign text for a message of one line: its beginning, without control characters."""
    shown = repr(text[:_SHOWN])[1:-1]
    return shown if len(text) <= _SHOWN else f"{shown}..."


def encode_extras(answers: Sequence[Answer]) -> bytes:
    """Length in bytes and text, for each answer."""
    texts = [answer.extras.encode("utf-8") for answer in answers]
    return b"".join(np.int32(len(text)).tobytes() + text for text in texts)


def decode_integer(read: Read) -> int:
    """The next int32."""
    return int(np.frombuffer(read(4), dtype=np.int32)[0])


def _finite(name: str, value: Floats) -> Floats:
    """`value`, which came from i-PI.

    Raises:
        DriverError: NaN or infinity.
    """
    finite = np.isfinite(value)
    if not finite.all():
        bad = np.argwhere(~finite)[0]
        raise DriverError(f"`{name}` must be finite, got {value[tuple(bad)]} at index {bad.tolist()} from i-PI")
    return value
