"""Domain decomposition: several ranks, here threads of one process, give what one process gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from scipy.spatial import cKDTree

from kqeq_md.errors import KqeqError, StructureError
from kqeq_md.model import Model
from kqeq_md.neighbours.half_list import find_pairs
from kqeq_md.potential import Potential
from kqeq_md.ranks.domain import Domain
from kqeq_md.ranks.ghost_list import GhostList
from kqeq_md.ranks.halo import SERIAL
from kqeq_md.structure import Result, Structure

REACH = 14.0
"""Angstrom. Further than any cutoff of these tests."""


class World:
    """Several ranks that are threads of one process; they meet at a barrier."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._barrier = Barrier(size, timeout=120)
        self._here: list[Any] = [None] * size

    def everybody(self, rank: int, value: Any) -> list[Any]:
        """The values of all ranks."""
        self._here[rank] = value
        self._barrier.wait()
        values = list(self._here)
        self._barrier.wait()
        return values

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        """The results of all ranks; who fails ends all."""

        def guarded(rank: int) -> Any:
            try:
                return work(rank)
            except BaseException:
                self._barrier.abort()
                raise

        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(guarded, range(self.size)))


@dataclass(frozen=True)
class SharedHalo:
    """Atoms of a structure shared among the ranks of a world.

    Attributes:
        owned: atoms of this rank.
        owner: the atom of each ghost.
        n_total: atoms of all ranks.
    """

    world: World
    rank: int
    owned: np.ndarray
    owner: np.ndarray
    n_total: int

    def forward(self, x_local: np.ndarray) -> np.ndarray:
        everywhere = np.empty((self.n_total, *x_local.shape[1:]), dtype=x_local.dtype)
        for atoms, values in self.world.everybody(self.rank, (self.owned, x_local)):
            everywhere[atoms] = values
        return np.concatenate([x_local, everywhere[self.owner]])

    def reverse(self, y_all: np.ndarray) -> np.ndarray:
        n = len(self.owned)
        home = np.zeros((self.n_total, *y_all.shape[1:]))
        for owner, values in self.world.everybody(self.rank, (self.owner, y_all[n:])):
            np.add.at(home, owner, values)
        return y_all[:n] + home[self.owned]

    def sum(self, value: np.ndarray) -> np.ndarray:
        return sum(self.world.everybody(self.rank, np.array(value)))

    def gather(self, x_local: np.ndarray) -> np.ndarray:
        return np.concatenate(self.world.everybody(self.rank, np.array(x_local)))

    def exchange(self, pieces: Sequence[np.ndarray], shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        sent = self.world.everybody(self.rank, [np.array(piece) for piece in pieces])
        received = [row[self.rank] for row in sent]
        assert [piece.shape for piece in received] == [tuple(shape) for shape in shapes]
        return received

    @property
    def size(self) -> int:
        return self.world.size


def images(structure: Structure, helpers: Any) -> tuple[np.ndarray, np.ndarray]:
    """Atom and position of every image that may be a ghost of anybody, the atoms themselves included."""
    if structure.boundary == "open":
        return np.arange(len(structure)), structure.positions
    cell = np.array(structure.cell) * np.array(structure.pbc)[:, None]
    if structure.open_axis is not None:
        cell[structure.open_axis] = 1e4 * structure.normal
    shifts = np.array(list(helpers.shifts(cell, REACH)))
    places = (structure.positions[None] + shifts[:, None]).reshape(-1, 3)
    return np.tile(np.arange(len(structure)), len(shifts)), places


Share = tuple[Structure, "SharedHalo", np.ndarray]


def share(structure: Structure, owners: np.ndarray, world: World, helpers: Any) -> list[Share]:
    """The atoms of each rank, its halo and the positions of its ghosts, in a random order of both."""
    atom, place = images(structure, helpers)
    rng, out = np.random.default_rng(3), []
    for rank in range(world.size):
        owned = rng.permutation(np.flatnonzero(owners == rank))
        mine = structure.positions[owned]
        distance = cKDTree(mine).query(place)[0] if len(mine) else np.full(len(place), np.inf)
        ghosts = rng.permutation(np.flatnonzero((distance > 1e-9) & (distance < REACH)))  # owned atoms are no ghosts
        part = Structure(
            structure.numbers[owned], mine, cell=structure.cell, pbc=structure.pbc, charge=structure.charge,
            field=structure.field, part=True,
        )  # fmt: skip
        out.append((part, SharedHalo(world, rank, owned, atom[ghosts], len(structure)), place[ghosts]))
    return out


def on_ranks(
    potentials: Sequence[Potential], structure: Structure, owners: np.ndarray, helpers: Any,
    want: Sequence[str] | None = None, renewed: bool = True,
) -> Result:  # fmt: skip
    """The result of several ranks, put together in the order of the structure."""
    world = World(len(potentials))
    shares = share(structure, owners, world, helpers)

    def work(rank: int) -> Result:
        part, halo, ghosts = shares[rank]
        ids = 10 + 3 * np.concatenate([halo.owned, halo.owner])
        domain = Domain(ids, ghosts, structure.positions[halo.owned], REACH, renewed, halo)
        return potentials[rank].compute(part, want, domain)

    results = world.run(work)
    first = results[0]
    for other in results[1:]:
        for name in ("energy", "short_range_energy", "charge_energy", "field_energy", "iterations"):
            assert getattr(other, name) == getattr(first, name)
    whole: dict[str, Any] = {}
    for name in ("charges", "energies", "forces"):
        if getattr(first, name) is not None:
            out = np.empty((len(structure), *getattr(first, name).shape[1:]))
            for (_, halo, _), result in zip(shares, results, strict=True):
                out[halo.owned] = getattr(result, name)
            whole[name] = out
    return replace(first, **whole)


def assert_same(got: Result, wanted: Result, relative: float) -> None:
    assert got.energy == pytest.approx(wanted.energy, rel=relative)
    for name in ("short_range_energy", "charge_energy", "field_energy"):
        assert getattr(got, name) == pytest.approx(getattr(wanted, name), abs=relative * abs(wanted.energy))
    for name in ("charges", "energies", "forces", "virial", "dipole", "reference_residual"):
        expected = getattr(wanted, name)
        assert (getattr(got, name) is None) == (expected is None), name
        if expected is not None:
            atol = relative * max(np.abs(expected).max(), 1e-3)
            np.testing.assert_allclose(getattr(got, name), expected, rtol=0, atol=atol, err_msg=name)


def test_serial_halo_is_the_identity() -> None:
    x = np.arange(6.0).reshape(2, 3)
    for method in (SERIAL.forward, SERIAL.reverse, SERIAL.sum, SERIAL.gather):
        assert method(x) is x


def owners_of(structure: Structure, kind: str) -> np.ndarray:
    """The rank of each atom."""
    n = len(structure)
    if kind == "halves":
        return (np.argsort(np.argsort(structure.positions[:, 0])) >= n // 2).astype(int)
    if kind == "uneven":
        return np.minimum(np.argsort(np.argsort(structure.positions[:, 1])) // max(n // 10, 1), 2)
    return 2 * np.ones(n, dtype=int)  # "all on the last": ranks 0 and 1 own nothing


KINDS = {"halves": 2, "uneven": 3, "all on the last": 3}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "subject",
    [
        (charges, "water", boundary, field, charge)
        for boundary in ("open", "slab", "orthorhombic", "triclinic")
        for charges, field, charge in (
            ("qeq", "none", 0.0),
            ("qeq", "none", 1.0),
            ("fragments", "tilted", 0.0),
            ("split", "tilted", 0.0),
            ("split, learned q0, fragments", "tilted", 1.0),
        )
    ],
    indirect=True,
    ids=lambda s: "-".join(map(str, s)),
)
def test_ranks_give_what_one_process_gives(subject: Any, kind: str, helpers: Any) -> None:
    structure = subject.structure
    numbers = subject.held.pop("fragments", None)
    assert (numbers is None) == ("fragments" not in subject.kind)
    ranks = [subject.potential() for _ in range(KINDS[kind])]
    owners = owners_of(structure, kind)
    wanted = subject.potential().compute(structure)
    # the same terms in another order
    assert_same(on_ranks(ranks, structure, owners, helpers), wanted, 1e-9)


BOUNDARIES = {"periodic": True, "slab": (True, True, False), "open": False}


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("kind", ["qeq", "fragments", "split"])
def test_trajectory_with_atoms_that_change_ranks(kind: str, boundary: str, water: Model, helpers: Any) -> None:
    """Enough atoms for a rough mesh (1,029) or, in open boundaries, a mesh at all; guesses and the preconditioner
    follow their atoms, so that later steps take as few iterations as in one process, or a few more."""
    along = {"periodic": (7, 7, 7), "slab": (9, 9, 5), "open": (7, 7, 7)}[boundary]
    structure = helpers.water_box(along, pbc=BOUNDARIES[boundary])
    settings = {"charges": kind, "tolerance": 1e-8, "accuracy": 1e-6}
    model = helpers.split_model(water) if kind == "split" else water
    alone, ranks = Potential(model, **settings), [Potential(model, **settings) for _ in range(2)]
    rng = np.random.default_rng(8)
    velocity = 0.01 * rng.normal(size=structure.positions.shape)
    takes = []
    for step in range(4):
        now = helpers.moved(structure, structure.positions + step * velocity)
        owners = (now.positions[:, 0] > 12.0 + 0.3 * step).astype(int)
        wanted, got = alone.compute(now), on_ranks(ranks, now, owners, helpers)
        assert_same(got, wanted, 2e-7)  # residuals of 1e-8, seen by forces and virials
        takes.append((got.iterations, wanted.iterations))
    assert takes[0][0] > 3  # iterations, and no direct sum
    assert all(ranks <= one + 2 for ranks, one in takes), takes
    assert takes[-1][0] < takes[0][0]


def test_lists_with_ghosts_are_kept_while_nobody_has_moved_too_far(helpers: Any) -> None:
    """All pairs below the cutoff are there after every step, whether the list was made anew or not."""
    structure = helpers.rock_salt(2, rattle=0.1)
    world = World(1)
    owners, rng = np.zeros(len(structure), dtype=int), np.random.default_rng(4)
    part, halo, places = share(structure, owners, world, helpers)[0]
    ghosts, shifts = GhostList(), places - structure.positions[halo.owner]
    n, drift = len(structure), 0.05 * rng.normal(size=structure.positions.shape)
    deform = np.eye(3) + 0.002 * rng.normal(size=(3, 3))
    for step in range(12):
        stretched = np.linalg.matrix_power(deform, step)
        mine = part.positions + step * drift[halo.owned]
        now = Structure(part.numbers, mine @ stretched, part.cell @ stretched, True)
        own = structure.positions[halo.owner] + step * drift[halo.owner]
        domain = Domain(
            np.concatenate([halo.owned, halo.owner]), (own + shifts) @ stretched, now.positions, REACH, step == 0, halo
        )  # fmt: skip
        ghosts.update(now, domain, 5.0)
        found = ghosts.pairs(domain, 5.0)
        expected = find_pairs(now, 5.0)
        assert len(found.neighbour) == len(expected.neighbour)
        assert np.sort(np.linalg.norm(found.vectors, axis=1)) == pytest.approx(
            np.sort(np.linalg.norm(expected.vectors, axis=1)), abs=1e-9
        )
        assert len(found.first) == n + 1
    assert 1 < ghosts.builds < 12


def test_bad_domains_are_refused(water: Model, helpers: Any) -> None:
    """On ranks, too, errors name the argument, the rule and the value."""
    structure = helpers.water_box(2)
    part, halo, places = share(structure, np.zeros(24, dtype=int), World(1), helpers)[0]
    ids = np.concatenate([halo.owned, halo.owner])
    domain = Domain(ids, places, part.positions, REACH, True, halo)
    with pytest.raises(StructureError, match="`ids` must be unique, got 1 twice"):
        Potential(water).compute(part, domain=replace(domain, ids=np.where(ids == 2, 1, ids)))
    with pytest.raises(StructureError, match=r"no mesh of reasonable size serves .*ghosts within 3 Angstrom"):
        Potential(water).compute(part, domain=replace(domain, reach=3.0))
    droplet = Structure(part.numbers, part.positions, part=True)
    with pytest.raises(KqeqError, match=r"`reach` of the ghosts must be at least 3.6 Angstrom, got 3"):
        Potential(water).compute(droplet, domain=replace(domain, reach=3.0, ghosts=places[:0], ids=ids[:24]))
    nobody = Structure(part.numbers[:0], np.empty((0, 3)), part.cell, True, part=True)
    empty = replace(halo, owned=halo.owned[:0], owner=halo.owner[:0])
    with pytest.raises(StructureError, match="must hold an atom on some rank, got none"):
        Potential(water).compute(nobody, domain=Domain(ids[:0], np.empty((0, 3)), np.empty((0, 3)), REACH, True, empty))
    close = replace(part, positions=part.positions[0] + np.outer(np.arange(24), [0.0, 0.0, 0.1]))
    with pytest.raises(StructureError, match=r"atoms \d+ and \d+ overlap"):
        Potential(water).compute(close, domain=replace(domain, ghosts=places + 100.0))


def test_charges_that_outgrow_their_plan_on_ranks(water: Model, helpers: Any) -> None:
    """A total charge that makes them larger than 1 e: the sum is planned anew in the middle of a step, also of one in
    which atoms change their ranks, and what is remembered follows them once."""
    model = replace(water, electronegativity_offset=np.array([-30.0, 30.0]))
    structure = helpers.water_box((3, 3, 3))
    settings = {"charges": "fragments", "tolerance": 1e-10}
    alone, ranks = Potential(model, **settings), [Potential(model, **settings) for _ in range(2)]
    shift = np.array([0.01, -0.02, 0.005])
    for step in range(3):
        now = helpers.moved(structure, structure.positions + step * shift)
        for potential in (alone, *ranks):
            potential._electrostatics._largest_charge = 1.0  # as if the charges had been small before
        owners = (now.positions[:, 0] > 5.0 + 0.5 * step).astype(int)
        wanted, got = alone.compute(now), on_ranks(ranks, now, owners, helpers)
        assert np.sqrt(np.mean(wanted.charges**2)) > 1.0
        assert_same(got, wanted, 1e-8)
        assert got.iterations <= wanted.iterations + 2
