"""A guess of the next charges from those of the last steps.

The coefficients that best write the newest charges by the six before them are applied one step later,

    min_c |q_(t-1) - sum_k c_k q_(t-1-k)|^2 + noise^2 |c|^2,   guess q_t = sum_k c_k q_(t-k),   k = 1 ... 6,

which follows smooth motion without knowing the time step. The noise is what the tolerance left of the charges: without
it, coefficients would grow until they multiply it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np

from kqeq_md.charges.constraints import Constraint
from kqeq_md.ranks.halo import SERIAL, Halo, dot, total
from kqeq_md.structure import Floats, Structure

LENGTH = 6

NEGLIGIBLE = 1e-13
"""Directions of the history whose square is smaller than this part of the largest are rounding, not motion."""

NOISE = 0.3
"""Error of converged charges, relative to their norm, in units of the tolerance; measured for water and NaCl."""

JUMP = 1.0
"""Angstrom. An atom that moves further between two calls is not on its way: another structure, or other order."""


class ChargeHistory:
    """The charges of the last seven steps of one trajectory, in the order of the structure that came in.

    Args:
        tolerance: relative residual to which charges are converged.
    """

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self._charges: deque[Floats] = deque(maxlen=LENGTH + 1)  # the newest first
        self._last: tuple[Structure, Constraint] | None = None

    def add(self, structure: Structure, constraint: Constraint, charges: Floats) -> None:
        """Remember the charges of a step, shape (n,)."""
        self._charges.appendleft(charges)
        self._last = structure, constraint

    def guess(self, structure: Structure, constraint: Constraint) -> Floats | None:
        """The next charges, e, shape (n,); None, and all is forgotten, if the structure does not follow the last."""
        if self._last is None or not follows(structure, constraint, *self._last):
            self._charges.clear()
            self._last = None
            return None
        return extrapolate(list(self._charges), NOISE * self._tolerance, constraint.halo)

    def carry(self, carried: Callable[[Floats], Floats] | None, structure: Structure, constraint: Constraint) -> None:
        """Give each rank what belongs to the atoms that it owns from now on.

        Args:
            carried: values of the atoms owned before, shape (n_before, k), to those of the atoms owned now; None where
                the atoms of all ranks are not the same.
            structure: the atoms owned now.
            constraint: of these atoms.
        """
        if carried is None or self._last is None:
            self._charges.clear()
            self._last = None
            return
        before, held = self._last
        columns = carried(np.column_stack([*self._charges, before.positions, held.group]))
        count = len(self._charges)
        self._charges = deque(np.ascontiguousarray(columns[:, :count].T), maxlen=LENGTH + 1)
        before = Structure(
            structure.numbers, columns[:, count : count + 3], cell=before.cell, pbc=before.pbc, part=True
        )
        self._last = before, replace(held, group=columns[:, -1].astype(np.int64))


def follows(structure: Structure, constraint: Constraint, before: Structure, constraint_before: Constraint) -> bool:
    """True if both are steps of one trajectory: the same atoms, sums and boundary, and nobody jumped."""
    continues = (
        structure.pbc == before.pbc
        and np.array_equal(structure.numbers, before.numbers)
        and np.array_equal(constraint.group, constraint_before.group)
        and np.array_equal(constraint.charges, constraint_before.charges)
        and _largest_move(structure, before) < JUMP
    )
    return total(not continues, constraint.halo) == 0  # on all ranks


def _largest_move(structure: Structure, before: Structure) -> float:
    """Of an owned atom, Angstrom."""
    moved = structure.positions - before.positions
    if any(structure.pbc):
        turns = np.rint(moved @ np.linalg.inv(structure.cell)) * np.array(structure.pbc)
        moved = moved - turns @ structure.cell  # an atom that is written as another of its images has not moved
    return float(np.abs(moved).max(initial=0.0))


def extrapolate(charges: list[Floats], noise: float, halo: Halo = SERIAL) -> Floats:
    """The next of a sequence of up to seven charges, the newest first; shape (n,).

    Differences D of successive steps stand for the older charges: they span the same space and keep their digits.

    Args:
        charges: e, each of shape (n,).
        noise: their error, relative to the norm of the newest.
        halo: how sums go over all ranks.
    """
    newest, *older = charges
    if not older:
        return newest
    basis = np.array([older[0], *(a - b for a, b in pairwise(older))])
    later = np.array([newest, *(a - b for a, b in pairwise(charges[:-1]))])
    differences = -np.eye(len(older)) + np.eye(len(older), k=-1)
    differences[0, 0] = 1.0
    overlap, projected = halo.sum(basis @ basis.T), halo.sum(basis @ newest)
    overlap = overlap + noise**2 * dot(newest, newest, halo) * (differences @ differences.T)
    length = np.sqrt(np.diag(overlap))
    length[length == 0.0] = 1.0
    values, vectors = np.linalg.eigh(overlap / np.outer(length, length))
    kept = values > NEGLIGIBLE * values[-1]
    coefficients = vectors[:, kept] @ ((vectors[:, kept].T @ (projected / length)) / values[kept])
    out: Floats = (coefficients / length) @ later
    return out
