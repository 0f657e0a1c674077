"""What a rank knows of the atoms that other ranks own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kqeq_md.errors import StructureError
from kqeq_md.halo import Halo
from kqeq_md.pair_search import Ints
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
        numbers: atomic numbers, shape (n,).
        mine: rows of the owned atoms, shape (n_local,).
    """

    def __init__(self) -> None:
        nobody = np.empty(0, dtype=np.int64)
        self.numbers = self.mine = nobody
        self._ids = self._order = self._order_before = nobody
        self._same_atoms = False

    def renew(self, structure: Structure, domain: Domain) -> None:
        """Take owners and ids as they are now.

        Raises:
            StructureError: no atoms at all, or an id that stands twice.
        """
        own = domain.ids[: len(structure)]
        columns = np.stack([own, structure.numbers], axis=1).astype(np.float64)
        ids, numbers = domain.halo.gather(columns).astype(np.int64).T
        if len(ids) == 0:
            raise StructureError("`structure` must hold an atom on some rank, got none")
        order = np.argsort(ids)
        ids, numbers = ids[order], numbers[order]
        if (ids[1:] == ids[:-1]).any():
            raise StructureError(f"`ids` must be unique, got {ids[1:][ids[1:] == ids[:-1]][0]} twice")
        self._same_atoms = np.array_equal(ids, self._ids) and np.array_equal(numbers, self.numbers)
        self._order_before, self._order = self._order, order
        self._ids, self.numbers = ids, numbers
        self.mine = np.searchsorted(ids, own)

    def collect(self, values: Floats, halo: Halo) -> Floats:
        """Values of the owned atoms of all ranks in the order of ids, shape (n, ...), from (n_local, ...)."""
        return halo.gather(values)[self._order]

    def carried(self, halo: Halo) -> Callable[[Floats], Floats] | None:
        """What takes values of the atoms owned before the last renewal to those of the atoms owned now, shape
        (n_local, ...); None where atoms are not the same. All ranks call it together."""
        if not self._same_atoms:
            return None
        return lambda values: halo.gather(values)[self._order_before][self.mine]

    def structure(self, like: Structure, positions: Floats) -> Structure:
        """All atoms in the cell, field and charge of `like`, at `positions`, Angstrom, shape (n, 3)."""
        return Structure(self.numbers, positions, cell=like.cell, pbc=like.pbc, charge=like.charge, field=like.field)
