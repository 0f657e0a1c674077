"""Dipoles along a trajectory, as i-PI and LAMMPS write them."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np

from kqeq_md.errors import KqeqError
from kqeq_md.spectrum.absorption import Trajectory, check_positive
from kqeq_md.structure import Floats
from kqeq_md.units import BOHR

JUMP = 10.0
"""Change between frames that is suspect, of the median change: normally distributed ones reach 4 in 10^6 frames."""

_EXTRAS = re.compile(r"\s*#\s*EXTRAS")
_DIPOLE = re.compile(r"\s*#\s*EXTRAS\s*\(dipole\)\s*#\s*Step:\s*(\d+)")
_PROPERTIES = re.compile(r"# columns?\s+1[\s-]")
_BEAD = re.compile(r"(.*)_(\d+)")


logger = logging.getLogger("kqeq_md")


@dataclass(frozen=True, eq=False)
class DipoleFile:
    """What a file holds.

    Attributes:
        steps: of the dynamics, shape (n,), ascending.
        dipoles: e Angstrom, shape (n, 3).
        of_ipi: whether i-PI wrote it.
    """

    steps: np.ndarray
    dipoles: Floats
    of_ipi: bool


def read_trajectories(paths: Sequence[Path], timestep: float) -> list[Trajectory]:
    """The trajectories of dipole files; the beads of one i-PI run, PREFIX_0, PREFIX_1, ..., are averaged to one.

    Args:
        paths: files of `read_dipoles`.
        timestep: of the dynamics, fs; between rows where the file has no steps.

    Raises:
        KqeqError: a file that `read_dipoles` refuses, steps at unequal distances, beads that are missing or differ.
    """
    check_positive("timestep", timestep, "fs")
    if len(set(paths)) < len(paths):
        raise KqeqError(f"dipole files must be given once each, got {', '.join(map(str, paths))}")
    runs: dict[Path, list[tuple[str, DipoleFile]]] = {}
    for path in paths:
        file = read_dipoles(path)
        bead = _BEAD.fullmatch(path.name) if file.of_ipi else None
        runs.setdefault(path.with_name(bead[1]) if bead else path, []).append((bead[2] if bead else "0", file))
    return [_trajectory(name, beads, timestep) for name, beads in runs.items()]


def read_dipoles(path: Path) -> DipoleFile:
    """Dipoles as i-PI writes the extras `dipole` (e bohr), or rows `x y z` or `step x y z` in e Angstrom.

    Other lines that start with # are comments. After a restart, steps that were written before count as they were
    written last. A last line without its end is of a run that was cut short, and does not count.

    Raises:
        KqeqError: a file with something else, with numbers that are not finite, or with two runs.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    if _PROPERTIES.match(text):
        raise KqeqError(
            f"{path} holds i-PI's properties, not dipoles: those of <trajectory extra_type='dipole'> extras"
        )
    of_ipi = _EXTRAS.match(text) is not None
    steps: list[int] = []
    dipoles: list[list[float]] = []
    for number, step, dipole in (_rows_of_ipi if of_ipi else _rows)(text, path):
        if steps and step <= steps[0]:
            raise KqeqError(f"{path}, line {number}: steps start again at {step}: a file must hold one run")
        while steps and step <= steps[-1]:
            del steps[-1], dipoles[-1]
        steps.append(step)
        dipoles.append(dipole)
    if len(steps) < 2:
        raise KqeqError(f"{path} must hold dipoles of at least two frames, got {len(steps)}")
    return DipoleFile(np.array(steps), np.array(dipoles) * (BOHR if of_ipi else 1.0), of_ipi)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    complete = text[: text.rfind("\n") + 1]
    return ((number, line) for number, line in enumerate(complete.split("\n"), 1) if line.strip())


def _rows_of_ipi(text: str, path: Path) -> Iterator[tuple[int, int, list[float]]]:
    """Line, step and dipole of each frame, e bohr."""
    step = None
    for number, line in _lines(text):
        if step is None:
            header = _DIPOLE.match(line)
            if header is None:
                raise KqeqError(f"{path}, line {number} must be #EXTRAS(dipole)# Step: N, got {line.strip()[:60]!r}")
            step = int(header[1])
        else:
            yield number, step, _numbers(line, (3,), path, number)
            step = None


def _rows(text: str, path: Path) -> Iterator[tuple[int, int, list[float]]]:
    """Line, step and dipole of each row, e Angstrom; without steps they are counted."""
    columns: tuple[int, ...] = (3, 4)
    rows = 0
    for number, line in _lines(text):
        if line.lstrip().startswith("#"):
            if _EXTRAS.match(line):
                raise KqeqError(f"{path}, line {number}: i-PI's #EXTRAS must start on the first line")
            continue
        values = _numbers(line, columns, path, number)
        columns = (len(values),)
        step = values[0] if len(values) == 4 else rows
        if step != int(step):
            raise KqeqError(f"{path}, line {number}: the first of four columns must be the step, got {step:g}")
        yield number, int(step), values[-3:]
        rows += 1


def _numbers(line: str, columns: tuple[int, ...], path: Path, number: int) -> list[float]:
    try:
        values = [float(word) for word in line.split()]
    except ValueError:
        values = []
    if len(values) not in columns:
        wanted = " or ".join(map(str, columns))
        raise KqeqError(f"{path}, line {number} must be {wanted} numbers, got {line.strip()[:60]!r}")
    if not all(map(isfinite, values)):
        raise KqeqError(f"{path}, line {number}: dipoles must be finite, got {line.strip()[:60]!r}")
    return values


def _trajectory(name: Path, beads: list[tuple[str, DipoleFile]], timestep: float) -> Trajectory:
    _check_beads(name, [number for number, _ in beads])
    files = [file for _, file in beads]
    n = min(len(file.steps) for file in files)  # a run that goes on has written some beads of its last frame
    steps = files[0].steps[:n]
    if any((file.steps[:n] != steps).any() for file in files):
        raise KqeqError(f"beads of {name} must be written at the same steps, got others")
    strides = np.diff(steps)
    if (strides != strides[0]).any():
        odd = int(np.argmax(strides != strides[0]))
        raise KqeqError(
            f"{name} must hold frames at equal distances, got {strides[0]} steps between the first two and "
            f"{strides[odd]} from step {steps[odd]} to {steps[odd + 1]}"
        )
    dipoles = np.mean([file.dipoles[:n] for file in files], axis=0)
    _warn_of_jumps(name, steps, dipoles)
    return Trajectory(str(name), dipoles, timestep * int(strides[0]), len(files))


def _check_beads(name: Path, numbers: list[str]) -> None:
    """All beads from 0, once each; i-PI writes as many digits as the number of beads has."""
    least = 10 ** (len(numbers[0]) - 1)
    if sorted(map(int, numbers)) != list(range(len(numbers))) or len(numbers) < least:
        raise KqeqError(
            f"the beads of an i-PI run must be given all, {name}_{'0'.zfill(len(numbers[0]))} and on, got "
            f"{', '.join(numbers)}"
        )


def _warn_of_jumps(name: Path, steps: np.ndarray, dipoles: Floats) -> None:
    change = np.linalg.norm(np.diff(dipoles, axis=0), axis=1)
    most, usual = int(np.argmax(change)), float(np.median(change))
    if change[most] > JUMP * usual:
        logger.warning(
            "%s: the dipole jumps by %.3g e A from step %d to %d, %.3g is usual: charged atoms that were wrapped into "
            "the cell? Such jumps hide the spectrum", name, change[most], steps[most], steps[most + 1], usual,
        )  # fmt: skip
