"""Print the git revision of a LAMMPS library: `identity.py LIBMPI LIBLAMMPS [PLUGIN]`, all loaded into its process."""

from __future__ import annotations

import ctypes
import sys

SYMBOLS = ("_ZN9LAMMPS_NS6LAMMPS14git_descriptorEv", "_ZN9LAMMPS_NS6LAMMPS10git_commitEv")
"""LAMMPS::git_descriptor() and LAMMPS::git_commit(), static functions that need no LAMMPS object."""


def lammps_identity(mpi_library: str, lammps_library: str, *plugins: str) -> str:
    """DESCRIPTOR COMMIT: the words that the plugin compares when it is loaded.

    Raises:
        OSError: a library cannot be loaded.
    """
    # global: each finds its functions in those before it, as in the process of `lmp`
    _, library, *_ = [ctypes.CDLL(path, ctypes.RTLD_GLOBAL) for path in (mpi_library, lammps_library, *plugins)]
    words = []
    for symbol in SYMBOLS:
        function = getattr(library, symbol)
        function.restype = ctypes.c_char_p
        words.append(function().decode())
    return " ".join(words)


if __name__ == "__main__":
    sys.stdout.write(lammps_identity(*sys.argv[1:]))
