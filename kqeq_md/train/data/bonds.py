"""What bonds tell about units: how long they are against covalent radii, and how forces answer their stretch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kqeq_md.elements import COVALENT_RADII
from kqeq_md.errors import StructureError
from kqeq_md.neighbours.half_list import find_pairs
from kqeq_md.neighbours.search import Ints
from kqeq_md.structure import Floats, Structure
from kqeq_md.train.data.labels import Frame

NOBLE = (2, 10, 18, 36, 54, 86)
"""Atomic numbers whose covalent radii say nothing about distances."""

REACH = 2.2
"""Sums of covalent radii within which neighbours are looked for; longer than a bond that is written in bohr (1.9)."""

BONDED = 1.15
"""Sums of covalent radii up to which two atoms count as bonded; at 1.3 hydrogen bonds on the way to transfer are in."""


@dataclass(frozen=True)
class Bonds:
    """Directed pairs of neighbours of some frames, and what each atom has as the nearest one.

    Attributes:
        nearest: shortest distance over the sum of covalent radii per atom, shape (n_atoms,); inf without neighbour, 0
            in frames whose atoms lie on each other.
        ratio: distance over the sum of radii per pair, shape (n_pairs,).
        length: Angstrom, shape (n_pairs,).
        pull: (F_j - F_i).r_ij / (2 |r_ij|), eV/Angstrom, shape (n_pairs,); NaN without forces.
        kind: number of the pair of elements, shape (n_pairs,).
    """

    nearest: Floats
    ratio: Floats
    length: Floats
    pull: Floats
    kind: Ints


def find_bonds(frames: Sequence[Frame]) -> Bonds:
    """Neighbours within REACH sums of covalent radii; noble gases are left out."""
    parts = [_bonds_of(frame) for frame in frames]
    return Bonds(*(np.concatenate([getattr(part, name) for part in parts]) for name in Bonds.__annotations__))


def _bonds_of(frame: Frame) -> Bonds:
    structure, none = frame.structure, np.zeros(0)
    radii = np.array([COVALENT_RADII[z] for z in structure.numbers])
    usable = ~np.isin(structure.numbers, NOBLE)
    try:
        pairs = find_pairs(_neutral(structure), REACH * 2.0 * radii.max())
    except StructureError:
        return Bonds(np.zeros(len(structure)), none, none, none, none.astype(np.int64))
    centre, neighbour = pairs.centre, pairs.neighbour
    length = np.linalg.norm(pairs.vectors, axis=1)
    ratio = length / (radii[centre] + radii[neighbour])
    keep = usable[centre] & usable[neighbour] & (ratio < REACH)
    centre, neighbour, length, ratio, vectors = (x[keep] for x in (centre, neighbour, length, ratio, pairs.vectors))
    nearest = np.full(len(structure), np.inf)
    np.minimum.at(nearest, centre, ratio)
    pull = np.full(len(length), np.nan)
    if frame.forces is not None:
        pull = 0.5 * np.einsum("pc,pc->p", frame.forces[neighbour] - frame.forces[centre], vectors) / length
    z = structure.numbers
    kind = 1000 * np.minimum(z[centre], z[neighbour]) + np.maximum(z[centre], z[neighbour])
    return Bonds(nearest[usable], ratio, length, pull, kind)


def _neutral(structure: Structure) -> Structure:
    """The atoms alone: a field or a charge has no part in distances."""
    return Structure(structure.numbers, structure.positions, structure.cell, structure.pbc)


@dataclass(frozen=True)
class Stiffness:
    """Slope of the pull against the logarithm of the length, with the sign of a bond.

    Attributes:
        value: k d^2, eV: 4 to 46 measured for ionic to covalent bonds.
        significance: correlation coefficient over its standard error under no correlation.
        correlation: of pull and length, over all kinds of bonds, each in its own unit.
    """

    value: float
    significance: float
    correlation: float


def stiffness(bonds: Bonds, scale: float) -> Stiffness | None:
    """How stiff bonds are, k d^2 = -d(pull d)/d(ln d), over all bonds of all kinds; None where there are too few.

    ln d is replaced by -(d0/d)^2/2, which straightens the curve of a bond; the slope at d0 is the same. Each kind of
    bond counts about its own mean and in the unit of its own spread.

    Args:
        bonds: of some frames.
        scale: bonds are pairs up to BONDED * scale sums of radii; 1, or 1.9 for positions in bohr.
    """
    bonded = (bonds.ratio < BONDED * scale) & np.isfinite(bonds.pull)
    xx = xy = yy = 0.0
    n = 0.0
    for kind in np.unique(bonds.kind[bonded]):
        mine = bonded & (bonds.kind == kind)
        if mine.sum() < 6:
            continue
        length = bonds.length[mine]
        x = -0.5 * (np.median(length) / length) ** 2
        y = bonds.pull[mine] * length
        x, y = x - x.mean(), y - y.mean()
        spread = float(y @ y) / len(y)
        if spread == 0.0:
            continue
        xx, xy, yy = xx + float(x @ x) / spread, xy - float(x @ y) / spread, yy + float(y @ y) / spread
        n += 0.5 * len(y) - 1.0  # each bond is there twice
    if n < 4.0 or xx == 0.0:
        return None
    correlation = xy / np.sqrt(xx * yy)
    significance = correlation * np.sqrt(n / max(1.0 - correlation**2, 1e-12))
    return Stiffness(xy / xx, float(significance), float(correlation))
