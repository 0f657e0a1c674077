"""Addresses, templates and programs for the tests of the i-PI driver."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import ase
import ase.io
import pytest
from ipi_support import ADDRESSES, POSITIONS, PREFIX, SYMBOLS, TRICLINIC, rattled

from kqeq_md.machine.programs import program


@pytest.fixture
def address() -> Iterator[str]:
    """An unused address of a unix socket, removed afterwards."""
    name = f"kqeq_test_{os.getpid()}_{next(ADDRESSES)}"
    yield name
    Path(PREFIX + name).unlink(missing_ok=True)


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.xyz"
    ase.io.write(path, ase.Atoms(SYMBOLS, POSITIONS))
    return path


@pytest.fixture
def periodic_template(tmp_path: Path) -> Path:
    path = tmp_path / "bulk.xyz"
    ase.io.write(path, ase.Atoms(SYMBOLS, rattled(TRICLINIC), cell=TRICLINIC, pbc=True))
    return path


@pytest.fixture
def start(launch: Callable[..., subprocess.Popen[str]]) -> Callable[..., subprocess.Popen[str]]:
    """Starts installed programs."""
    return lambda name, *arguments, **folder: launch(str(program(name)), *arguments, **folder)
