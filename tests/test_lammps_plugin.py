"""The plugin's two ends without LAMMPS: its compilation, and the table of functions that C++ calls."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from kqeq_md.errors import StructureError
from kqeq_md.lammps_plugin import build, pair


def test_failed_compilation_names_compiler_and_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "broken++"
    version = "[ $1 = -dumpversion ] && echo 3 && exit"
    compiler.write_text(f"#!/bin/sh\n{version}\necho 'x.cpp: error: too old' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(build.BuildError, match=r"broken\+\+` cannot compile .*too old \(see .*compile.log"):
        build.built_plugin()


def test_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kqeq_md").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(build.BuildError, match=r"cannot write to the cache folder .*set XDG_CACHE_HOME"):
        build.built_plugin()


def call_guarded(error: BaseException) -> tuple[int, str]:
    """What C++ gets when an action of the pair style raises."""

    def action(_: pair.Call) -> None:
        raise error

    call = pair.Call()
    return pair._guarded(action)(ctypes.pointer(call)), call.message.decode()


def test_errors_of_users_come_without_a_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    assert call_guarded(StructureError("too close")) == (1, "too close")
    assert capfd.readouterr().err == ""


def test_unexpected_errors_come_with_a_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    assert call_guarded(ZeroDivisionError("oops")) == (1, "ZeroDivisionError: oops")
    assert "Traceback" in capfd.readouterr().err


def test_table_refuses_another_layout() -> None:
    with pytest.raises(RuntimeError, match="`size` of KqeqCall must be"):
        pair.attach(0, 1)


def test_start_of_lmp_stays_light(tmp_path: Path) -> None:
    """`lmp` imports the launcher at each start: no numpy, numba or ase on the way."""
    heavy = "sorted({'numpy', 'numba', 'ase'} & set(sys.modules))"
    check = f"import sys, kqeq_md.lammps_plugin.launcher; sys.exit({heavy} or 0)"
    assert subprocess.run([sys.executable, "-c", check], cwd=tmp_path).returncode == 0
