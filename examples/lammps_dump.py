"""Text dumps of LAMMPS as arrays, for the pictures of the examples."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kqeq_md.structure import Floats

HEADER = 9
"""Lines before the atoms of a frame."""


def read_dump(path: str | Path) -> dict[str, Floats]:
    """Columns of `dump ... custom` by name, each of shape (frames, atoms), of an orthogonal box and sorted atoms.

    Beside them: `box`, edges of the box, Angstrom, shape (frames, 3), and `timestep`, shape (frames,).
    """
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    n_atoms, names = int(lines[3]), lines[HEADER - 1].split()[2:]
    frames = [lines[start : start + HEADER + n_atoms] for start in range(0, len(lines), HEADER + n_atoms)]
    rows = np.array([[line.split() for line in frame[HEADER:]] for frame in frames], dtype=np.float64)
    bounds = np.array([[line.split()[:2] for line in frame[5:8]] for frame in frames], dtype=np.float64)
    columns = {name: rows[:, :, k] for k, name in enumerate(names)}
    return columns | {"box": bounds[:, :, 1] - bounds[:, :, 0], "timestep": np.array([float(f[1]) for f in frames])}
