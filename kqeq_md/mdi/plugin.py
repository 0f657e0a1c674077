"""An MDI engine in the process of its driver: a plugin of the MDI library for drivers in Python.

The library of the wheels of pymdi opens plugins from shared libraries alone. So a library of two functions is compiled,
which call back into this Python:

    mdi.MDI_Init(f"-role DRIVER -name mine -method LINK -plugin_path {plugin_folder()}")
    engine = mdi.MDI_Open_plugin("kqeq", '-mdi "-role ENGINE -name kqeq -method LINK" -m nacl.kqeq', None)
    mdi.MDI_Send_Command("<NATOMS", engine)
    ...
    mdi.MDI_Close_plugin(engine)

MDI_Launch_plugin does as well. The options are those of `kqeq-mdi`.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from kqeq_md.errors import KqeqError
from kqeq_md.mdi.engine import System, build_parser, execute, prepare, register
from kqeq_md.mdi.link import Link, MdiError, mdi_library

logger = logging.getLogger("kqeq_md.mdi")

_SOURCE = """\
extern "C" {
int (*kqeq_launch)(void *), (*kqeq_open)(void *);
int MDI_Plugin_init_kqeq(void *state) { return kqeq_launch(state); }
int MDI_Plugin_open_kqeq(void *state) { return kqeq_open(state); }
}
"""
_LIBRARY = "libkqeq.so"
_Start = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)


def plugin_folder() -> str:
    """The folder for `-plugin_path` of a driver in this process; it is there until the process ends.

    Raises:
        MdiError: no C++ compiler (`CXX`, or else g++), or no pymdi.
    """
    mdi_library()
    return str(_loaded()[0])


@cache
def _loaded() -> tuple[Path, list[Any]]:
    """The folder with the library, and the library and what it points to, which have to last."""
    folder = Path(tempfile.mkdtemp(prefix="kqeq_mdi_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    library = ctypes.CDLL(str(_compiled(folder)))
    kept: list[Any] = [library]
    for name, function in (("kqeq_launch", _launch), ("kqeq_open", _open)):
        start = _Start(function)
        ctypes.c_void_p.in_dll(library, name).value = ctypes.cast(start, ctypes.c_void_p).value
        kept.append(start)
    return folder, kept


def _compiled(folder: Path) -> Path:
    source, path = folder / "kqeq.cpp", folder / _LIBRARY
    source.write_text(_SOURCE)
    command = [*(shlex.split(os.environ.get("CXX", "")) or ["g++"]), "-shared", "-fPIC", str(source), "-o", str(path)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, errors="replace")
    except (OSError, subprocess.CalledProcessError) as error:
        raise MdiError(f"no plugin without a C++ compiler (install g++ or set CXX): {error}") from None
    return path


def _guarded(function: Callable[[Any], None]) -> Callable[[Any], int]:
    """1 after an error, which the driver's call raises then."""

    def start(state: Any) -> int:
        try:
            function(state)
        except KqeqError as error:
            logger.error("kqeq-mdi: error: %s", error)
            return 1
        return 0

    return start


@_guarded
def _open(state: Any) -> None:
    """Become the engine of a driver that has called MDI_Open_plugin, and return to it."""
    _join(state)


@_guarded
def _launch(state: Any) -> None:
    """Become the engine of a driver that has called MDI_Launch_plugin, until its function has said EXIT."""
    link = _join(state)
    while link.command() != "EXIT":
        pass  # all else came to `_respond` while the library ran the driver's function


def _join(state: Any) -> Link:
    library = mdi_library()
    # first of all: without it the library would follow pointers to nothing when it ends the plugin
    library.MDI_Set_plugin_state(state)
    words = [library.MDI_Plugin_get_arg(index) for index in range(library.MDI_Plugin_get_argc())]
    register(library)
    link = Link(library, library.MDI_Accept_Communicator())
    library.MDI_Set_Execute_Command_Func(_respond, (_prepared(words), link))
    return link


def _prepared(words: Sequence[str]) -> System | KqeqError:
    """The system, or why there is none: a driver learns of an error by its first command only."""
    try:
        return prepare(build_parser(plugin=True).parse_args(words))
    except SystemExit:
        return MdiError(f"options of the plugin must be those of kqeq-mdi, got {shlex.join(words)}")
    except KqeqError as error:
        return error


def _respond(command: str, _: int, engine: tuple[System | KqeqError, Link]) -> int:
    """0, or 1 after an error, which the driver's call raises then; the next command finds the engine as it was."""
    system, link = engine
    try:
        if isinstance(system, KqeqError):
            raise system
        execute(system, link, command)
    except KqeqError as error:
        logger.error("kqeq-mdi: error: %s", error)
        return 1
    return 0
