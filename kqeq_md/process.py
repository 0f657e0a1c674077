"""The atoms of this process: all there are, or those of one rank among several.

The local part of an atom belongs to the rank that owns it. Its charge goes with it where a mesh serves; small open
structures, which are summed over directly, are solved as a whole by every rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from typing import Protocol

import numpy as np

from kqeq_md.charges.charge_model import Hold
from kqeq_md.charges.constraints import Constraint
from kqeq_md.charges.equilibrate import ChargeSolver
from kqeq_md.charges.field import anchors
from kqeq_md.charges.preconditioner import RADIUS
from kqeq_md.electrostatics.coulomb import Electrostatics
from kqeq_md.neighbours.half_list import NeighbourList, Neighbours, Pairs
from kqeq_md.neighbours.search import Ints
from kqeq_md.ranks.domain import Domain, Everyone
from kqeq_md.ranks.ghost_list import GhostList
from kqeq_md.ranks.halo import SERIAL, Halo
from kqeq_md.structure import Floats, Structure


@dataclass(frozen=True, eq=False)
class Site:
    """The atoms whose charges are solved together in this process.

    Attributes:
        structure: these atoms, in the order of `neighbours`.
        neighbours: their half lists.
        pairs: their directed pairs up to the cutoff of the potential.
        halo: of the ranks that solve for the others.
        longest: cutoff that pairs can have, Angstrom.
        constraint: sums of charges.
        reference: fixed q0, e, shape (n,); None where it is learned, or charges are not split.
        anchors: r of `charges.field`, Angstrom, shape (n, 3).
        enter: values of the rows of this process to those of these atoms.
        leave: the way back.
    """

    structure: Structure
    neighbours: Neighbours
    pairs: Pairs
    halo: Halo
    longest: float
    constraint: Constraint
    reference: Floats | None
    anchors: Floats
    enter: Callable[[Floats], Floats]
    leave: Callable[[Floats], Floats]


class Process(Protocol):
    """What `Potential` asks of the atoms.

    Attributes:
        order: row k of this process is atom order[k] of the structure, shape (n_local,).
        halo: of the ranks that own the others.
        everyone: all atoms of all ranks; on a rank where they were when they came together.
    """

    @property
    def order(self) -> Ints: ...

    @property
    def halo(self) -> Halo: ...

    @property
    def everyone(self) -> Structure: ...

    def update(self, cutoff: float, electrostatics: Electrostatics | None) -> None:
        """Make the lists good for pairs below `cutoff` (Angstrom), and for the Coulomb sum, if there is one."""

    def pairs(self, cutoff: float, threads: int) -> Pairs:
        """Directed pairs of the rows of this process below `cutoff` (Angstrom)."""

    def site(self, hold: Hold, pairs: Pairs, in_place: bool) -> Site:
        """Where the charges are solved; with anchors in their places only if `in_place`."""

    def collect(self, values: Floats) -> Floats:
        """Values of the structure's atoms to those of `everyone`."""

    def migrate(self, charges: ChargeSolver, site: Site) -> None:
        """Let what is remembered of earlier steps follow its atoms."""


class OneProcess:
    """One process that owns every atom; its rows are in the spatial order of the neighbour list."""

    halo: Halo = SERIAL

    def __init__(self) -> None:
        self._neighbours = NeighbourList()

    def take(self, structure: Structure) -> None:
        """Go on with this structure."""
        self.everyone = structure

    @property
    def order(self) -> Ints:
        return self._neighbours.order

    def update(self, cutoff: float, electrostatics: Electrostatics | None) -> None:
        if electrostatics is not None:
            cutoff = max(cutoff, electrostatics.cutoff(self.everyone), RADIUS)
        self._neighbours.update(self.everyone, cutoff)

    def pairs(self, cutoff: float, threads: int) -> Pairs:
        return self._neighbours.pairs(cutoff, threads)

    def site(self, hold: Hold, pairs: Pairs, in_place: bool) -> Site:
        order, structure = self.order, self.everyone
        return Site(
            replace(structure, numbers=structure.numbers[order], positions=structure.positions[order]),
            self._neighbours, pairs, SERIAL, inf, hold.constraint.ordered(order),
            None if hold.reference is None else hold.reference[order],
            anchors(structure, hold)[order], enter=_same, leave=_same,
        )  # fmt: skip

    def collect(self, values: Floats) -> Floats:
        return values

    def migrate(self, charges: ChargeSolver, site: Site) -> None:
        """Nobody leaves the only process."""


class Rank:
    """One rank among several, with ghosts; its rows are those of the engine."""

    def __init__(self) -> None:
        self._ghosts, self._all = GhostList(), Everyone()
        self._whole = OneProcess()
        self._directly = self._was_whole = True

    def take(self, structure: Structure, domain: Domain) -> None:
        """Go on with these owned atoms. All ranks call it together."""
        self._structure, self._domain = structure, domain
        if domain.renewed:
            self._all.renew(structure, domain)
        self.everyone = self._all.atoms.in_place_of(structure)

    def forget(self) -> None:
        """Look where all atoms are when owners change next."""
        self._all.forget()

    @property
    def order(self) -> Ints:
        return self._ghosts.order

    @property
    def halo(self) -> Halo:
        return self._domain.halo

    def update(self, cutoff: float, electrostatics: Electrostatics | None) -> None:
        if electrostatics is not None:
            coulomb = electrostatics.cutoff(self._structure, self.halo, self._domain.reach)
            self._was_whole, self._directly = self._directly, coulomb == 0.0
            cutoff = max(cutoff, coulomb)
            if self._directly:
                self._whole.take(replace(self.everyone, positions=self.collect(self._domain.unwrapped)))
                self._whole.update(cutoff, electrostatics)
        self._ghosts.update(self._structure, self._domain, cutoff)

    def pairs(self, cutoff: float, threads: int) -> Pairs:
        return self._ghosts.pairs(self._domain, cutoff, threads)

    def site(self, hold: Hold, pairs: Pairs, in_place: bool) -> Site:
        mine = self._all.mine
        if self._directly:
            whole = self._whole
            site = whole.site(hold, whole.pairs(self._ghosts.cutoff, 1), in_place)
            back = np.argsort(whole.order)[mine]
            return replace(
                site, enter=lambda values: self.collect(values)[whole.order], leave=lambda values: values[back]
            )
        places = self._domain.unwrapped
        if in_place and hold.fragments is not None:
            now = replace(self.everyone, positions=self.collect(places))
            places = anchors(now, hold)[mine]
        return Site(
            self._structure, self._ghosts, pairs, self.halo, self._domain.reach,
            hold.constraint.shared(mine, self.halo),
            None if hold.reference is None else hold.reference[mine],
            places, enter=_same, leave=_same,
        )  # fmt: skip

    def collect(self, values: Floats) -> Floats:
        return self._all.collect(values, self.halo)

    def migrate(self, charges: ChargeSolver, site: Site) -> None:
        """Let what is remembered of earlier steps follow its atoms from rank to rank."""
        if self._domain.renewed and not self._directly:
            moves = None if self._was_whole else self._all.moves
            charges.carry(None if moves is None else moves.carry, site.structure, site.constraint)


def _same(values: Floats) -> Floats:
    return values
