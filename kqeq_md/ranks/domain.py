"""What a rank knows of the atoms that other ranks own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kqeq_md.errors import StructureError
from kqeq_md.neighbours.search import Ints
from kqeq_md.ranks.halo import Halo, total
from kqeq_md.structure import Floats, Structure


@dataclass(frozen=True, eq=False)
class Domain:
    """The surroundings of the atoms that one rank owns.

    Attributes:
        ids: of owned atoms and ghosts, shape (n_all,); an atom and its ghosts have one id.
        ghosts: positions, Angstrom, shape (n_ghosts, 3), beside those of the owned atoms: whoever walks from an atom
            to a ghost needs no lattice vectors.
        unwrapped: owned atoms without jumps where the engine wraps them, Angstrom, shape (n_local, 3).
        reach: everybody within this distance of an owned atom is an owned atom or a ghost, Angstrom.
        renewed: owned atoms or ghosts are others, or in another order, than in the call before; the same on all ranks.
        halo: how values travel.
    """

    ids: Ints
    ghosts: Floats
    unwrapped: Floats
    reach: float
    renewed: bool
    halo: Halo


class Everyone:
    """All atoms of all ranks in the order of their ids, as far as each rank has to know them.

    Attributes:
        atoms: at unwrapped positions, of the time when they came together.
        mine: rows of the owned atoms, shape (n_local,).
    """

    atoms: Structure

    def __init__(self) -> None:
        self._ids = self._own = self.mine = np.empty(0, dtype=np.int64)
        self._moves: Moves | None = None
        self._known = False

    def forget(self) -> None:
        """Gather all atoms at the next renewal, at the positions that they have then."""
        self._known = False

    def renew(self, structure: Structure, domain: Domain) -> None:
        """Take owners as they are now; all ranks call it together.

        Raises:
            StructureError: no atoms at all, or an id that stands twice.
        """
        own, halo = domain.ids[: len(structure)], domain.halo
        self._moves = Moves(self._own, own, halo)
        self._own = own
        self.mine = np.minimum(np.searchsorted(self._ids, own), max(len(self._ids) - 1, 0))
        same = self._known and self._moves.complete and self._holds(own, structure.numbers)
        count = int(total(len(own), halo))
        if total(not same, halo) > 0 or count != len(self._ids):
            self._gather(structure, domain)

    def _holds(self, own: Ints, numbers: Ints) -> bool:
        """Whether the owned atoms are among those that are known."""
        if len(self._ids) == 0:
            return len(own) == 0
        return np.array_equal(self._ids[self.mine], own) and np.array_equal(self.atoms.numbers[self.mine], numbers)

    def _gather(self, structure: Structure, domain: Domain) -> None:
        columns = np.column_stack([self._own, structure.numbers, domain.unwrapped])
        everybody = domain.halo.gather(columns)
        if len(everybody) == 0:
            raise StructureError("`structure` must hold an atom on some rank, got none")
        everybody = everybody[np.argsort(everybody[:, 0])]
        self._ids, numbers = everybody[:, :2].T.astype(np.int64)
        self.atoms = Structure(numbers, everybody[:, 2:])
        twice = self._ids[1:] == self._ids[:-1]
        if twice.any():
            raise StructureError(f"`ids` must be unique, got {self._ids[1:][twice][0]} twice")
        self.mine = np.searchsorted(self._ids, self._own)
        self._moves, self._known = None, True

    def collect(self, values: Floats, halo: Halo) -> Floats:
        """Values of the owned atoms of all ranks in the order of ids, shape (n, ...), from (n_local, ...)."""
        rows = halo.gather(self.mine.astype(np.float64)).astype(np.int64)
        gathered = halo.gather(values)
        out = np.empty_like(gathered)
        out[rows] = gathered
        return out

    @property
    def moves(self) -> Moves | None:
        """From the owners before the last renewal to those of now; None where all atoms came together anew."""
        return self._moves


class Moves:
    """Atoms that have changed their ranks; all ranks call it together.

    Args:
        before: ids of the atoms that this rank has owned, shape (n_before,).
        now: ids of those that it owns, shape (n_local,).
        halo: of the ranks.

    Attributes:
        complete: everybody who has come had left another rank.
    """

    def __init__(self, before: Ints, now: Ints, halo: Halo) -> None:
        self._halo, self._kept = halo, rows_of(now, before)
        self._left = np.flatnonzero(rows_of(before, now) < 0)
        under_way = halo.gather(before[self._left].astype(np.float64)).astype(np.int64)
        self._came = np.flatnonzero(self._kept < 0)
        self._from = rows_of(now[self._came], under_way)
        self.complete = bool((self._from >= 0).all())

    def carry(self, values: Floats) -> Floats:
        """Values of the atoms owned before, shape (n_before, ...), to those of the atoms owned now."""
        under_way = self._halo.gather(values[self._left])
        out = np.empty((len(self._kept), *values.shape[1:]))
        stayed = self._kept >= 0
        out[stayed], out[self._came] = values[self._kept[stayed]], under_way[self._from]
        return out


def rows_of(ids: Ints, among: Ints) -> Ints:
    """Where each of `ids` stands first in `among`, -1 for those that do not, shape of `ids`."""
    if len(among) == 0:
        return np.full(len(ids), -1)
    order = np.argsort(among, kind="stable")
    place = order[np.minimum(np.searchsorted(among, ids, sorter=order), len(among) - 1)]
    return np.where(among[place] == ids, place, -1)
