"""i-PI's shared memory: positions and forces stand in segments that i-PI owns, the socket carries the words.

Shared memory of POSIX is a file below /dev/shm on Linux (man shm_overview). It is mapped here as such, for
`multiprocessing.shared_memory` believes that each process that opens a segment owns it, and removes it at the end.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kqeq_md.ipi_driver.protocol import (
    Answer,
    DriverError,
    Floats,
    Read,
    Request,
    brief,
    check_atoms,
    decode_integer,
    encode_extras,
    encode_header,
    request_from,
)

_FOLDER = Path("/dev/shm")
_KINDS = ("pos", "h", "ih", "pot", "force", "vir")
"""In the order in which i-PI names their segments."""
_LONGEST_NAME = 255


class SharedMemory:
    """Positions and forces in shared memory; the methods are those of `Stream`.

    Attributes:
        n_atoms: of each structure.
        batch_size: structures in each message.
    """

    def __init__(self, n_atoms: int) -> None:
        self.n_atoms, self.batch_size = n_atoms, 1
        self._segments: dict[str, Floats] = {}

    def receive(self, read: Read) -> list[Request]:
        """The body of a POSDATA message: the number of atoms and, the first time, the names of the segments.

        Raises:
            DriverError: not `n_atoms` atoms, segments that are not there or too small, numbers that are not finite.
        """
        check_atoms(decode_integer(read), self.n_atoms)
        if not self._segments:
            names = [_name(read) for _ in _KINDS]
            self._segments = {kind: self._attach(kind, name) for kind, name in zip(_KINDS, names, strict=True)}
        cells, positions = self._segments["h"], self._segments["pos"]
        return [request_from(h_cc, r_nc) for h_cc, r_nc in zip(cells, positions, strict=True)]

    def reply(self, answers: Sequence[Answer]) -> bytes:
        """Write the numbers, and return FORCEREADY with the extras."""
        for slot, answer in enumerate(answers):
            self._segments["pot"][slot] = answer.energy
            self._segments["force"][slot] = answer.forces
            self._segments["vir"][slot] = answer.virial
        return encode_header("FORCEREADY") + encode_extras(answers)

    def _attach(self, kind: str, name: str) -> Floats:
        """The numbers of one segment, for each structure; unmapped when nobody refers to them any more."""
        each = {"pos": (self.n_atoms, 3), "force": (self.n_atoms, 3), "pot": ()}.get(kind, (3, 3))
        shape = (self.batch_size, *each)
        size = 8 * int(np.prod(shape))
        try:
            with (_FOLDER / name).open("r+b") as file:
                segment = mmap.mmap(file.fileno(), size)
        except (OSError, ValueError) as error:  # absent; too small
            raise DriverError(
                f"the shared memory of i-PI must have {size} bytes in {_FOLDER / name}, got: {error}"
            ) from None
        return np.frombuffer(segment).reshape(shape)


def _name(read: Read) -> str:
    length = decode_integer(read)
    if not 0 < length <= _LONGEST_NAME:
        raise DriverError(
            f"the length of the name of a segment must lie between 1 and {_LONGEST_NAME}, got {length} from i-PI"
        )
    name = read(length).decode("ascii", "replace")
    if not name.isprintable() or "/" in name or name in (".", ".."):
        raise DriverError(f"the name of a segment must be that of a file, got '{brief(name)}' from i-PI")
    return name
