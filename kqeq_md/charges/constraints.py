"""Charges that are fixed as sums: of the whole structure, or of each of its fragments.

Disjoint groups of atoms hold the charges Q_g. The allowed changes are those with zero sum in each group; the
orthogonal projection on them takes off each group's mean,

    (P x)_i = x_i - (sum_{j in g(i)} x_j) / n_g(i).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kqeq_md.errors import ChargeError
from kqeq_md.ranks.halo import SERIAL, Halo, dot, norm
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
        sizes: number of atoms in each group, shape (n_groups,).
        halo: how sums go over the atoms of all ranks.
    """

    group: Ints
    charges: Floats
    sizes: Floats
    halo: Halo = SERIAL

    def project(self, x: Floats) -> Floats:
        """P x, shape (n,)."""
        if len(self.charges) == 1:
            return x - self.halo.sum(x.sum()) / self.sizes[0]
        out: Floats = x - (self._sum(x) / self.sizes)[self.group]
        return out

    def enforce(self, x: Floats) -> Floats:
        """x with the same change for all atoms of a group, such that the sums are right; shape (n,)."""
        out: Floats = x + (self.excess(x) / self.sizes)[self.group]
        return out

    def excess(self, x: Floats) -> Floats:
        """Q_g less the sum of x over each group, shape (n_groups,)."""
        return self.charges - self._sum(x)

    @property
    def homogeneous(self) -> Constraint:
        """The same groups with sums of zero: what changes of charges obey."""
        return replace(self, charges=np.zeros_like(self.charges))

    def ordered(self, order: Ints) -> Constraint:
        """The same constraint for atoms in another order."""
        return replace(self, group=self.group[order])

    def shared(self, mine: Ints, halo: Halo) -> Constraint:
        """The same constraint for the rank that owns the atoms `mine` of all."""
        return replace(self, group=self.group[mine], halo=halo)

    @property
    def n_free(self) -> int:
        """How many charges may change independently, those of all ranks."""
        return int(self.sizes.sum()) - len(self.charges)

    def dot(self, x: Floats, y: Floats) -> float:
        """x.y over the atoms of all ranks."""
        return dot(x, y, self.halo)

    def norm(self, x: Floats) -> float:
        """|x| over the atoms of all ranks."""
        return norm(x, self.halo)

    def _sum(self, x: Floats) -> Floats:
        own = np.bincount(self.group, x, minlength=len(self.charges)).astype(np.float64, copy=False)
        return self.halo.sum(own)


def _of_groups(group: Ints, charges: Floats) -> Constraint:
    sizes = np.bincount(group, minlength=len(charges)).astype(np.float64)
    return Constraint(group, charges, sizes)


def total_charge(n: int, charge: float) -> Constraint:
    """sum_i q_i = Q over n atoms; charge flows everywhere."""
    return _of_groups(np.zeros(n, dtype=np.int64), np.array([charge]))


def fragment_charges(
    n: int, charge: float, fragments: ArrayLike | Sequence[ArrayLike], charges: ArrayLike
) -> Constraint:
    """Each fragment holds its own charge; atoms in none of them share what is left of the total charge.

    Args:
        n: number of atoms.
        charge: total charge Q, e.
        fragments: as `grouping` takes them.
        charges: of each fragment, e, shape (n_fragments,).

    Raises:
        ChargeError: fragments that overlap, are empty or name atoms that there are not; charges that do not add up.
    """
    return constrain(*grouping(n, fragments), charge, charges)


def grouping(n: int, fragments: ArrayLike | Sequence[ArrayLike]) -> tuple[Ints, bool]:
    """The group of each atom, shape (n,), and whether the last group holds the atoms that no fragment names.

    Args:
        n: number of atoms.
        fragments: a whole number for each atom, shape (n,), the same within a molecule, groups ascend with it; or the
            atoms of each fragment, counted from 0, no atom in two of them.

    Raises:
        ChargeError: anything else.
    """
    if isinstance(fragments, str) or not isinstance(fragments, Sequence | np.ndarray):
        raise ChargeError(f"`fragments` must be a list of lists of atoms or molecule numbers, got {fragments!r}")
    if len(fragments) > 0 and all(np.ndim(entry) == 0 for entry in fragments):
        numbers = np.asarray(fragments)
        if numbers.shape != (n,) or not np.issubdtype(numbers.dtype, np.integer):
            raise ChargeError(
                f"`fragments` must be a whole number for each of {n} atoms, got {len(numbers)} of type {numbers.dtype}"
            )
        return np.unique(numbers, return_inverse=True)[1].astype(np.int64), False
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
    rest = group < 0
    group[rest] = len(fragments)
    return group, bool(rest.any())


def constrain(group: Ints, rest: bool, charge: float, charges: ArrayLike | None) -> Constraint:
    """Sums over groups.

    Args:
        group: of each atom, shape (n,).
        rest: the last group takes what the others leave of the total charge.
        charge: total charge Q, e.
        charges: of each group, the last one of `rest` left out, e; None where only one choice is natural: neutral
            groups, or one group.

    Raises:
        ChargeError: charges that do not add up, or that nobody can guess.
    """
    n_groups = int(group.max()) + 1
    if not np.isfinite(charge):
        raise ChargeError(f"`charge` must be finite, got {charge!r}")
    if charges is None:
        if n_groups > 1 and charge != 0.0:
            raise ChargeError(
                f"`fragment_charges` must say which of {n_groups} fragments hold the total charge {charge:g}, got None"
            )
        return _of_groups(group, np.full(n_groups, charge))
    n_given = n_groups - rest
    try:
        wanted = np.asarray(charges, dtype=np.float64)
    except (TypeError, ValueError):
        wanted = np.empty(())
    if wanted.shape != (n_given,) or not np.isfinite(wanted).all():
        raise ChargeError(
            f"`fragment_charges` must be a finite number for each of {n_given} fragments, got {charges!r}"
        )
    left = charge - wanted.sum()
    if rest:
        return _of_groups(group, np.append(wanted, left))
    if abs(left) > SUM:
        raise ChargeError(f"`fragment_charges` must add up to the total charge {charge:g}, got {wanted.sum():g}")
    return _of_groups(group, wanted)
