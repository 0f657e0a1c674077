"""Messages of i-PI's socket protocol: pure encoding and decoding, and reads of an exact length.

Headers are 12 upper-case bytes padded with spaces, numbers are int32 and float64 in native byte order, units
are atomic (hartree, bohr, e). They turn into eV and Angstrom, and back, in this file and nowhere else.

Reference: M. Ceriotti, J. More, D. E. Manolopoulos, Comput. Phys. Commun. 185, 1019 (2014),
doi:10.1016/j.cpc.2013.10.027.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

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
    buffer = bytearray(length)
    view = memoryview(buffer)
    while view:
        received = connection.recv_into(view)
        if received == 0:
            raise ServerGone
        view = view[received:]
    return bytes(buffer)


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
    _integer(read)  # the number of the bead, which repeats nothing that the positions do not tell
    length = _integer(read)
    if not 0 <= length <= LONGEST_INIT:
        raise DriverError(f"the length of the INIT text must lie between 0 and {LONGEST_INIT}, got {length} from i-PI")
    words = read(length).decode("utf-8", "replace").split(",")
    pairs = (word.partition(":") for word in words)
    return {key.strip(): value.strip() for key, colon, value in pairs if colon}


def check_parameters(parameters: Mapping[str, str]) -> None:
    """Refuse what would otherwise be dropped in silence and change the physics or the wire.

    Raises:
        DriverError: `batch_size` above 1, or any `<parameters>` in i-PI's input.
    """
    batch_size = parameters.get("batch_size", "1")
    if batch_size != "1":
        raise DriverError(f"`batch_size` must be 1 in this version, got {batch_size} from i-PI")
    for name in parameters:
        if name != "batch_size":
            raise DriverError(
                f"`<parameters>` of the ffsocket must be empty, got {name!r}: "
                "--charge and --efield of kqeq-ipi set the charge and the field"
            )


def decode_request(read: Read, n_atoms: int) -> Request:
    """The body of a POSDATA message: h (3x3), its inverse, the number of atoms, the positions.

    The lattice vectors are the COLUMNS of h.

    Raises:
        DriverError: not `n_atoms` atoms, or numbers that are not finite.
    """
    h_ck = _finite("cell", np.frombuffer(read(72)), "from i-PI").reshape(3, 3)
    read(72)  # the inverse of h
    n = _integer(read)
    if n != n_atoms:
        raise DriverError(f"the number of atoms must be {n_atoms}, as in the template, got {n} from i-PI")
    r_nc = _finite("positions", np.frombuffer(read(24 * n)).reshape(n, 3), "from i-PI")
    return Request(cell=h_ck.T * BOHR, positions=r_nc * BOHR)


def encode_result(result: Result, with_charges: bool = True) -> bytes:
    """The answer to GETFORCE: header, energy, number of atoms, forces, virial -dE/d(strain), extras.

    Args:
        result: energy, charges, forces and virial (nan goes out where there is none); its dipole goes into the extras
            where there is one.
        with_charges: False for a model that has none.

    Raises:
        DriverError: a number that is not finite.
    """
    energy = _finite("energy", result.energy, "from the model") / HARTREE
    forces = _finite("forces", result.forces, "from the model") * (BOHR / HARTREE)
    undefined = np.full((3, 3), np.nan)
    virial = undefined if result.virial is None else _finite("virial", result.virial, "from the model") / HARTREE
    extras = _extras(result, with_charges).encode("utf-8")
    return b"".join(
        (
            encode_header("FORCEREADY"),
            energy.tobytes(),
            np.int32(len(forces)).tobytes(),
            forces.tobytes(),
            virial.tobytes(),
            np.int32(len(extras)).tobytes(),
            extras,
        )
    )


def _extras(result: Result, with_charges: bool) -> str:
    """One JSON object: `charges` (e) where there are any and, where the dipole has a meaning, `dipole` (e bohr)."""
    extras = {}
    if with_charges:
        extras["charges"] = _finite("charges", result.charges, "from the model").tolist()
    if result.dipole is not None:
        extras["dipole"] = (_finite("dipole", result.dipole, "from the model") / BOHR).tolist()
    return json.dumps(extras)


def _integer(read: Read) -> int:
    return int(np.frombuffer(read(4), dtype=np.int32)[0])


def _finite(name: str, value: ArrayLike | None, origin: str) -> Floats:
    """`value` as a fresh float64 array in C order.

    Raises:
        DriverError: NaN or infinity.
    """
    array = np.array(value, dtype=np.float64, order="C")
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        where = f" at index {bad[0].tolist()}" if array.ndim else ""
        raise DriverError(f"`{name}` must be finite, got {array[tuple(bad[0])]}{where} {origin}")
    return array
