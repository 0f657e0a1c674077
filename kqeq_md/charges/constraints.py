"""Charges that are fixed as sums: of the whole structure, or of each of its fragments.

Disjoint groups of atoms hold the charges Q_g. The allowed changes are those with zero sum in each group; the
orthogonal projection on them takes off each group's mean,

    (P x)_i = x_i - (sum_{j in g(i)} x_j) / n_g(i).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kqeq_md.errors import ChargeError
from kqeq_md.structure import Floats

Ints = NDArray[np.int64]

SUM = 1e-9
"""e. Fragment charges add up to the total charge within rounding of decimal input."""


@dataclass(frozen=True, eq=False)
class Constraint:
    """Sums of charges over disjoint groups that together hold every atom.

    Attributes:
        group: index of each atom's group, shape (n,).
        charges: Q_g, e, shape (n_groups,).
    """

    group: Ints
    charges: Floats

    def project(self, x: Floats) -> Floats:
        """P x, shape (n,)."""
        if len(self.charges) == 1:
            return x - x.mean()
        out: Floats = x - (self._sum(x) / self.sizes)[self.group]
        return out

    def enforce(self, x: Floats) -> Floats:
        """x with the same change for all atoms of a group, such that the sums are right; shape (n,)."""
        out: Floats = x + ((self.charges - self._sum(x)) / self.sizes)[self.group]
        return out

    def check(self, n: int, charge: float) -> None:
        """Refuse a structure of another size or total charge.

        Raises:
            ChargeError: naming both.
        """
        if len(self.group) != n:
            raise ChargeError(f"`constraint` must be for the structure's {n} atoms, got {len(self.group)}")
        if not abs(self.charges.sum() - charge) <= SUM:
            raise ChargeError(f"`constraint` must add up to the total charge {charge:g}, got {self.charges.sum():g}")

    def ordered(self, order: Ints) -> Constraint:
        """The same constraint for atoms in another order."""
        return Constraint(self.group[order], self.charges)

    @property
    def sizes(self) -> Floats:
        """Number of atoms in each group, shape (n_groups,)."""
        return np.bincount(self.group, minlength=len(self.charges)).astype(np.float64)

    def _sum(self, x: Floats) -> Floats:
        out: Floats = np.bincount(self.group, x, minlength=len(self.charges)).astype(np.float64, copy=False)
        return out


def total_charge(n: int, charge: float) -> Constraint:
    """sum_i q_i = Q over n atoms; charge flows everywhere."""
    return Constraint(np.zeros(n, dtype=np.int64), np.array([charge]))


def fragment_charges(n: int, charge: float, fragments: Sequence[ArrayLike], charges: ArrayLike) -> Constraint:
    """Each fragment holds its own charge; atoms in none of them share what is left of the total charge.

    Args:
        n: number of atoms.
        charge: total charge Q, e.
        fragments: the atoms of each fragment, counted from 0; no atom in two of them.
        charges: of each fragment, e, shape (n_fragments,).

    Raises:
        ChargeError: fragments that overlap, are empty or name atoms that there are not; charges that do not add up.
    """
    if not isinstance(fragments, Sequence):
        raise ChargeError(f"`fragments` must be a list of lists of atoms, got {fragments!r}")
    if not np.isfinite(charge):
        raise ChargeError(f"`charge` must be finite, got {charge!r}")
    wanted = np.asarray(charges, dtype=np.float64)
    if wanted.shape != (len(fragments),) or not np.isfinite(wanted).all():
        raise ChargeError(f"`charges` must be a finite number for each of {len(fragments)} fragments, got {charges!r}")
    group = np.full(n, -1, dtype=np.int64)
    for index, fragment in enumerate(fragments):
        atoms = np.asarray(fragment)
        if atoms.ndim != 1 or len(atoms) == 0 or not np.issubdtype(atoms.dtype, np.integer):
            raise ChargeError(f"`fragments` must be lists of atoms, got {fragment!r} as fragment {index}")
        if atoms.min() < 0 or atoms.max() >= n:
            wrong = atoms[(atoms < 0) | (atoms >= n)][0]
            raise ChargeError(f"`fragments` must name atoms from 0 to {n - 1}, got {wrong} in fragment {index}")
        if len(np.unique(atoms)) < len(atoms):
            raise ChargeError(f"`fragments` must not name an atom twice, got {atoms.tolist()} as fragment {index}")
        if (group[atoms] >= 0).any():
            shared = int(atoms[group[atoms] >= 0][0])
            raise ChargeError(
                f"`fragments` must not overlap, got atom {shared} in fragments {group[shared]} and {index}"
            )
        group[atoms] = index
    rest = charge - wanted.sum()
    if (group < 0).any():
        group[group < 0] = len(wanted)
        return Constraint(group, np.append(wanted, rest))
    if abs(rest) > SUM:
        raise ChargeError(
            f"`charges` of the fragments must add up to the total charge {charge:g}, got {wanted.sum():g}"
        )
    return Constraint(group, wanted)
