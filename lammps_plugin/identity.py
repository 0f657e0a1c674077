"""Print the git revision of a LAMMPS library: `identity.py LIBMPI LIBLAMMPS`; it loads both into its process."""

from __future__ import annotations

import ctypes
import sys

SYMBOLS = ("_ZN9LAMMPS_NS6LAMMPS14git_descriptorEv", "_ZN9LAMMPS_NS6LAMMPS10git_commitEv")
"""LAMMPS::git_descriptor() and LAMMPS::git_commit(), static functions that need no LAMMPS object."""


def lammps_identity(mpi_library: str, lammps_library: str) -> str:
    """DESCRIPTOR COMMIT: the words that the plugin compares when it is loaded."""
    ctypes.CDLL(mpi_library, ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(lammps_library)
    words = []
    for symbol in SYMBOLS:
        function = getattr(library, symbol)
        function.restype = ctypes.c_char_p
        words.append(function().decode())
    return " ".join(words)


if __name__ == "__main__":
    sys.stdout.write(lammps_identity(*sys.argv[1:]))
