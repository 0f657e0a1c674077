"""Pairs against a loop over all images and against vesin; lists kept from step to step against fresh ones."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest
import vesin

from kqeq_md.errors import KqeqError, StructureError
from kqeq_md.neighbours import half_list, search
from kqeq_md.neighbours.half_list import NeighbourList, Pairs, find_pairs
from kqeq_md.structure import Structure

CELLS = {
    "open": None,
    "cubic": 6.0 * np.eye(3),
    "smaller than the cutoff": np.diag([3.0, 3.5, 2.5]),
    "triclinic": np.array([[5.0, 0, 0], [2.4, 6.0, 0], [-2.0, 1.5, 5.5]]),
    "very skewed": np.array([[5.0, 0, 0], [14.0, 4.0, 0], [9.0, -11.0, 5.0]]),
    "left-handed": np.array([[0, 5.0, 0], [6.0, 0, 0], [0, 0, 7.0]]),
}

COULOMB_CELLS = {  # those of the Coulomb tests
    "cubic": 8.0 * np.eye(3),
    "orthorhombic": np.diag([6.0, 9.0, 7.5]),
    "flat": np.diag([20.0, 18.0, 3.0]),
    "needle": np.diag([3.0, 3.2, 40.0]),
    "triclinic": np.array([[8.0, 0, 0], [7.0, 6.0, 0], [-6.0, 5.0, 7.0]]),
    "very skewed": np.array([[6.0, 0, 0], [15.0, 5.0, 0], [9.0, -12.0, 6.0]]),
    "left-handed": np.array([[0, 6.0, 0], [7.0, 0, 0], [0, 1.0, 8.0]]),
}

OPEN, PERIODIC = (False, False, False), (True, True, True)
BOUNDARIES = [OPEN, PERIODIC, (True, True, False), (True, False, True), (False, True, True)]


def spread_atoms(cell: np.ndarray | None) -> Structure:
    """Four atoms that keep apart, some written as images several cells away."""
    fractions = np.array([[0.1, 0.1, 0.1], [0.6, 0.15, 0.55], [2.1, -1.4, 0.6], [0.6, 0.6, 3.12]])
    box = 4.0 * np.eye(3) if cell is None else cell
    return Structure([11, 17, 11, 17], fractions @ box, cell=cell, pbc=cell is not None)


def sorted_rows(centre: np.ndarray, neighbour: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    table = np.column_stack([centre, neighbour, np.round(vectors, 6) + 0.0])
    return table[np.lexsort(table.T[::-1])]


@pytest.mark.parametrize("name", CELLS)
def test_all_images_within_the_cutoff(name: str, helpers: Any) -> None:
    structure, cutoff = spread_atoms(CELLS[name]), 4.6
    r = structure.positions
    images = [np.zeros(3)] if CELLS[name] is None else list(helpers.shifts(structure.cell, cutoff + 40.0))
    rows = []
    for shift in images:
        d = r[None] - r[:, None] + shift
        rows += [(i, j, *d[i, j]) for i, j in np.argwhere(np.linalg.norm(d, axis=2) < cutoff) if d[i, j].any()]
    wanted = np.array(rows).reshape(-1, 5)
    pairs = find_pairs(structure, cutoff)
    got = sorted_rows(pairs.centre, pairs.neighbour, pairs.vectors)
    assert got.shape == wanted.shape
    # vectors are rounded to 1e-6 Angstrom for sorting; coordinates of 20 Angstrom leave 1e-14
    np.testing.assert_allclose(got, sorted_rows(wanted[:, 0], wanted[:, 1], wanted[:, 2:]), atol=2e-6)


def test_sorted_by_centre() -> None:
    pairs = find_pairs(spread_atoms(CELLS["triclinic"]), 5.0)
    assert pairs.first[0] == 0
    assert pairs.first[-1] == len(pairs.neighbour) == len(pairs.vectors) > 0
    assert (np.diff(pairs.centre) >= 0).all()


def test_lone_atom_has_no_pairs() -> None:
    pairs = find_pairs(Structure([11], [[1.0, 2.0, 3.0]]), 5.0)
    assert pairs.first.tolist() == [0, 0]
    assert pairs.vectors.shape == (0, 3)
    assert not pairs.scatter(pairs.vectors, 1).any()


@pytest.mark.parametrize("distance", [0.0, 0.19])
def test_overlapping_atoms_are_named(distance: float) -> None:
    structure = Structure([11, 17, 11], [[0, 0, 9.0], [0, 0, 0], [0, 0, distance]])
    with pytest.raises(
        StructureError, match=r"`positions`: atoms [12] and [12] overlap, .* \(at least 0.2 needed\)"
    ) as caught:
        find_pairs(structure, 4.0)
    assert "\n" not in str(caught.value)


def test_overlap_with_an_image_is_refused() -> None:
    structure = Structure([11, 17], [[0, 0, 0.05], [0, 0, 5.95]], cell=6.0 * np.eye(3), pbc=True)
    with pytest.raises(StructureError, match=r"overlap, 0\.1 Angstrom"):
        find_pairs(structure, 4.0)


# --- half lists and directed pairs against vesin


@dataclass(frozen=True)
class Atoms:
    """What a list reads of a structure, for any boundary."""

    positions: np.ndarray
    cell: np.ndarray
    pbc: tuple[bool, bool, bool]
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)

    def moved(self, positions: np.ndarray, cell: np.ndarray | None = None) -> Atoms:
        return Atoms(positions, self.cell if cell is None else cell, self.pbc, self.numbers)


def atoms_in(
    cell: np.ndarray, n: int, seed: int, pbc: tuple[bool, bool, bool] = PERIODIC, spread: float = 1.0
) -> Atoms:
    """Random atoms, written up to `spread` cells away along periodic axes; open axes perpendicular to the others."""
    rng = np.random.default_rng(seed)
    box = np.array(cell)
    for axis in np.flatnonzero(~np.array(pbc)):
        box[axis] = (
            np.linalg.norm(box[axis]) * np.linalg.inv(box)[:, axis] / np.linalg.norm(np.linalg.inv(box)[:, axis])
        )
    fractions = rng.random((n, 3)) + np.round(rng.normal(scale=spread, size=(n, 3))) * pbc
    return Atoms(fractions @ box, box if any(pbc) else np.zeros((3, 3)), pbc, rng.integers(1, 9, n))


def by_vesin(atoms: Any, cutoff: float) -> np.ndarray:
    search = vesin.NeighborList(cutoff=cutoff, full_list=True)
    i, j, vectors = search.compute(points=atoms.positions, box=atoms.cell, periodic=list(atoms.pbc), quantities="ijD")
    return sorted_rows(i, j, vectors)


def both_ways(half: NeighbourList, cutoff: float) -> np.ndarray:
    """Pairs below the cutoff that stand in the half list, and their mirror images, as indices of the structure."""
    i = np.repeat(np.arange(len(half.first) - 1), np.diff(half.first))
    vectors = half.positions[half.neighbour] - half.positions[i]
    near = np.linalg.norm(vectors, axis=1) < cutoff
    i, j, vectors = half.order[i[near]], half.order[half.owner[half.neighbour[near]]], vectors[near]
    return sorted_rows(np.concatenate([i, j]), np.concatenate([j, i]), np.concatenate([vectors, -vectors]))


def assert_same_pairs(got: np.ndarray, wanted: np.ndarray) -> None:
    """The same rows; they are sorted by vectors rounded to 1e-6 Angstrom, so that two may have changed places."""
    assert got.shape == wanted.shape
    off = np.abs(got - wanted).max(axis=1, initial=0.0) > 2e-6
    for row in got[off]:  # a vector on the edge of two roundings stands elsewhere: look for it, one ulp of 1e-6 away
        assert np.abs(wanted - row).max(axis=1).min() < 2e-6


def assert_right(half: NeighbourList, atoms: Any, cutoff: float) -> None:
    """Every pair below the cutoff once, at the positions of `atoms`."""
    wanted = by_vesin(atoms, cutoff)
    assert_same_pairs(both_ways(half, cutoff), wanted)
    n = len(atoms)
    assert half.owner[:n].tolist() == list(range(n))
    assert sorted(half.order) == list(range(n))
    assert len(half.owner) == len(half.positions)
    assert (half.neighbour.dtype, half.owner.dtype) == (np.uint32, np.uint32)
    i = np.repeat(np.arange(n), np.diff(half.first))
    assert (half.neighbour > i).all()  # two atoms: the smaller row first; images come after atoms


def listed(atoms: Any, cutoff: float, skin: float = 1.0) -> NeighbourList:
    half = NeighbourList(skin)
    half.update(atoms, cutoff)
    return half


@pytest.mark.parametrize("pbc", BOUNDARIES)
@pytest.mark.parametrize("cutoff", [2.47, 6.03, 13.07])  # no lattice vector is as long
@pytest.mark.parametrize("name", COULOMB_CELLS)
def test_every_cell_boundary_and_cutoff(name: str, cutoff: float, pbc: tuple[bool, bool, bool]) -> None:
    atoms = atoms_in(COULOMB_CELLS[name], 12, seed=4, pbc=pbc)
    assert_right(listed(atoms, cutoff), atoms, cutoff)


@pytest.mark.parametrize("seed", range(60))
def test_random_cells(seed: int) -> None:
    """Cells of any shape whose thinnest height is 0.7 to 6 Angstrom, cutoffs of 3 to 9."""
    rng = np.random.default_rng(seed)
    cell = np.eye(3) + rng.normal(scale=0.6, size=(3, 3))
    cell *= rng.uniform(0.7, 6.0) * np.linalg.norm(np.linalg.inv(cell), axis=0).max()
    atoms = atoms_in(cell, int(rng.integers(1, 25)), seed, BOUNDARIES[seed % len(BOUNDARIES)])
    cutoff = rng.uniform(3.0, 9.0)
    assert_right(listed(atoms, cutoff, rng.uniform(0.0, 2.0)), atoms, cutoff)


@pytest.mark.parametrize("pbc", [(True, False, False), (False, False, True)])
def test_wires_are_listed_too(pbc: tuple[bool, bool, bool]) -> None:
    atoms = atoms_in(np.diag([4.0, 5.0, 6.0]), 6, seed=2, pbc=pbc)
    assert_right(listed(atoms, 7.0), atoms, 7.0)


def test_one_atom_in_a_cell_far_below_the_reach() -> None:
    lone = Structure([11], [[7.0, -8.0, 9.0]], cell=3.0 * np.eye(3), pbc=True)
    half = listed(lone, 15.0)
    assert_right(half, lone, 15.0)
    shells = [x for x in product(range(-6, 7), repeat=3) if 0 < np.linalg.norm(x) < 16.0 / 3.0]
    assert len(half.neighbour) == len(shells) / 2  # one of +S and -S


@pytest.mark.parametrize("n", [300, 1500])
@pytest.mark.parametrize("pbc", BOUNDARIES)
def test_many_atoms(n: int, pbc: tuple[bool, bool, bool]) -> None:
    """Below and above the number from which atoms are sorted; density of water."""
    edge = (n / 0.1) ** (1 / 3)
    atoms = atoms_in(edge * (np.eye(3) + 0.3 * np.tri(3, k=-1)), n, seed=5, pbc=pbc)
    half = listed(atoms, 4.0)
    assert_right(half, atoms, 4.0)
    assert (half.order == np.arange(n)).all() == (n < half_list.FEWEST_SORTED)


def test_sorted_atoms_are_close_in_memory() -> None:
    atoms = atoms_in(25.0 * np.eye(3), 1500, seed=6, spread=0.0)
    step = np.linalg.norm(np.diff(atoms.positions[listed(atoms, 4.0).order], axis=0), axis=1)
    # random atoms are 0.66 of the edge apart, those of one cell of 4 A (6 atoms) 0.66 of 4 A
    assert np.median(step) < 4.0


@pytest.mark.parametrize("pbc", [OPEN, PERIODIC])
def test_directed_pairs(pbc: tuple[bool, bool, bool]) -> None:
    atoms = lattice_with_noise(9, pbc)
    half = listed(atoms, 5.0)
    for cutoff in (5.0, 3.1):
        pairs = half.pairs(cutoff)
        assert pairs.first[-1] == len(pairs.neighbour) == len(pairs.vectors)
        assert (pairs.first.dtype, pairs.neighbour.dtype) == (np.int64, np.int64)
        rows = sorted_rows(half.order[pairs.centre], half.order[pairs.neighbour], pairs.vectors)
        assert_same_pairs(rows, by_vesin(atoms, cutoff))


def test_one_shot_pairs_keep_the_order_of_the_structure() -> None:
    atoms = lattice_with_noise(9, PERIODIC)
    pairs = find_pairs(atoms, 5.0)  # type: ignore[arg-type]
    assert len(atoms) > half_list.FEWEST_SORTED
    assert_same_pairs(sorted_rows(pairs.centre, pairs.neighbour, pairs.vectors), by_vesin(atoms, 5.0))


# --- from step to step


def lattice_with_noise(edge: int, pbc: tuple[bool, bool, bool], seed: int = 3) -> Atoms:
    """edge^3 atoms, 2.2 to 3.4 Angstrom apart, in random order."""
    rng = np.random.default_rng(seed)
    sites = 2.8 * rng.permutation(np.array(list(product(range(edge), repeat=3))))
    positions = sites + rng.uniform(-0.17, 0.17, sites.shape)
    return Atoms(positions, 2.8 * edge * np.eye(3) * any(pbc), pbc, rng.integers(1, 9, len(sites)))


def test_reused_below_the_skin_and_built_above() -> None:
    atoms = lattice_with_noise(4, PERIODIC)
    half = listed(atoms, 4.0)
    for two, builds in ((0.49, 1), (0.51, 2)):  # two atoms together 0.98 and 1.02 of a skin of 1 Angstrom
        positions = atoms.positions.copy()
        positions[[5, 9], [0, 2]] += [two, -two]
        here = atoms.moved(positions)
        half.update(here, 4.0)
        assert half.builds == builds
        assert_right(half, here, 4.0)
    positions = positions.copy()
    positions[7, 1] += 0.98  # one alone
    half.update(atoms.moved(positions), 4.0)
    assert half.builds == 2
    assert_right(half, atoms.moved(positions), 4.0)


@pytest.mark.parametrize("pbc", BOUNDARIES[1:])
def test_atoms_written_in_another_cell_have_not_moved(pbc: tuple[bool, bool, bool], helpers: Any) -> None:
    atoms = lattice_with_noise(4, pbc)
    half = listed(atoms, 4.0)
    before = half.positions.copy()
    rng = np.random.default_rng(8)
    half.update(atoms.moved(atoms.positions + (rng.integers(-3, 4, (len(atoms), 3)) * pbc) @ atoms.cell), 4.0)
    assert half.builds == 1
    np.testing.assert_allclose(half.positions, before, atol=1e-13)  # coordinates of 40 Angstrom lose 1e-14
    turn = helpers.random_rotation(1)
    turned = atoms.moved(atoms.positions @ turn, atoms.cell @ turn)
    half.update(turned, 4.0)
    assert half.builds == 1  # nor have atoms that turn with their cell
    assert_right(half, turned, 4.0)


def test_cell_and_atoms_scaled_together_have_not_moved() -> None:
    atoms = lattice_with_noise(4, PERIODIC)
    half = listed(atoms, 4.0)
    for scale, builds in ((1.3, 1), (0.81, 1), (0.79, 2)):  # a list of 5 Angstrom is good for 4 until 0.8
        here = atoms.moved(scale * atoms.positions, scale * atoms.cell)
        half.update(here, 4.0)
        assert half.builds == builds
        assert_right(half, here, 4.0)


@pytest.mark.parametrize("pbc", BOUNDARIES)
@pytest.mark.parametrize("seed", range(3))
def test_walks_in_boxes_that_shrink_shear_and_jump(pbc: tuple[bool, bool, bool], seed: int) -> None:
    """Every step against a fresh search; some steps reuse the list, some do not."""
    rng = np.random.default_rng(seed)
    atoms = lattice_with_noise(9 if seed == 0 else 4, pbc, seed)
    half, cutoff, steps = NeighbourList(rng.uniform(0.5, 2.0)), 4.0, 60
    lateral = np.where(np.outer(pbc, pbc), 1.0, np.eye(3))  # strains leave the normal of a slab perpendicular
    for step in range(steps):
        affine = np.eye(3) + rng.normal(scale=0.004, size=(3, 3)) * lateral
        affine *= 0.995 if seed != 1 else 1.0
        positions = atoms.positions @ affine + rng.normal(scale=0.03, size=(len(atoms), 3))
        if step % 20 == 19:
            jumping = rng.integers(len(atoms), size=3)
            positions[jumping] += rng.normal(scale=12.0, size=(3, 3))
        if step % 3 == 0:  # engines write atoms where they like
            positions += (rng.integers(-1, 2, positions.shape) * pbc) @ (atoms.cell @ affine)
        atoms = atoms.moved(positions, atoms.cell @ affine)
        half.update(atoms, cutoff)
        assert_right(half, atoms, cutoff)
    assert 3 < half.builds < steps


def test_built_anew_for_other_atoms_boundaries_and_longer_cutoffs() -> None:
    atoms = lattice_with_noise(4, PERIODIC)
    half = listed(atoms, 3.0)
    half.update(atoms, 3.9)  # within the skin
    half.update(atoms, 2.0)
    assert (half.builds, half.sorts) == (1, 1)
    half.update(atoms, 4.1)
    assert (half.builds, half.sorts) == (2, 1)
    changes = (
        Atoms(atoms.positions[:-1], atoms.cell, PERIODIC, atoms.numbers[:-1]),
        Atoms(atoms.positions[:-1], atoms.cell, PERIODIC, atoms.numbers[:0:-1]),
        Atoms(atoms.positions[:-1], atoms.cell, (True, True, False), atoms.numbers[:0:-1]),
    )
    for count, change in enumerate(changes, start=1):
        half.update(change, 4.1)
        assert (half.builds, half.sorts) == (2 + count, 1 + count)
        assert_right(half, change, 4.1)


def test_order_is_kept_until_atoms_have_spread() -> None:
    atoms = lattice_with_noise(9, PERIODIC)
    half, rng = listed(atoms, 3.0), np.random.default_rng(2)
    order = half.order.copy()
    drift = rng.normal(size=atoms.positions.shape)
    drift /= np.sqrt((drift**2).sum(axis=1).mean())  # rms of 1 Angstrom
    for rms in np.arange(0.5, 4.0, 0.5):
        half.update(atoms.moved(atoms.positions + rms * drift), 3.0)
    assert half.sorts == 1
    assert half.builds > 3
    assert (half.order == order).all()
    half.update(atoms.moved(atoms.positions + 4.1 * drift), 3.0)
    assert half.sorts == 2
    assert (half.order != order).any()
    jumped = atoms.positions + 4.1 * drift
    jumped[3] += 6.0
    half.update(atoms.moved(jumped), 3.0)
    assert half.sorts == 3


# --- what is refused


@pytest.mark.parametrize("skin", [-0.1, np.inf, np.nan])
def test_skin_is_checked(skin: float) -> None:
    with pytest.raises(KqeqError, match="`skin` must be at least 0 Angstrom, got"):
        NeighbourList(skin)


@pytest.mark.parametrize("cutoff", [0.0, -1.0, np.inf, np.nan])
def test_cutoff_is_checked(cutoff: float) -> None:
    with pytest.raises(KqeqError, match="`cutoff` must be positive, got"):
        NeighbourList().update(spread_atoms(None), cutoff)


def test_pairs_beyond_the_list_are_refused() -> None:
    half = NeighbourList()
    with pytest.raises(KqeqError, match="`cutoff` must be positive and at most 0, as in `update`, got 4"):
        half.pairs(4.0)
    half.update(spread_atoms(None), 4.0)
    with pytest.raises(KqeqError, match=r"`cutoff` must be positive and at most 4, .* got 4\.5"):
        half.pairs(4.5)  # within the skin of now, but not after the next step


@pytest.mark.parametrize("pbc", [OPEN, PERIODIC])
def test_overlap_names_the_atoms_of_the_structure(pbc: tuple[bool, bool, bool]) -> None:
    atoms = lattice_with_noise(9, pbc)
    positions = atoms.positions.copy()
    positions[700] = positions[13] + [0.0, 0.1, 0.0]
    half = listed(atoms.moved(positions), 4.0)
    assert (half.order != np.arange(len(atoms))).any()
    for look in (lambda: half.pairs(3.0), lambda: find_pairs(atoms.moved(positions), 3.0)):  # type: ignore[arg-type]
        with pytest.raises(StructureError, match=r"atoms (13 and 700|700 and 13) overlap, 0\.1 Angstrom"):
            look()


def test_cells_far_too_small_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before one of their 1e13 images is looked at, which would take hours."""
    small = Structure([11], [[0.0, 0, 0]], cell=np.diag([0.02, 0.02, 0.02]), pbc=True)
    half = listed(spread_atoms(None), 4.0)
    for atoms in (small, Atoms(np.zeros((1, 3)), 1e-3 * np.eye(3), PERIODIC, np.array([11]))):
        refusal = r"`cell` must be larger: neighbours within 16 Angstrom .* got \[\[0"
        with monkeypatch.context() as without:
            without.setattr(search, "images_in_box", None)
            with pytest.raises(StructureError, match=refusal):
                half.update(atoms, 15.0)
    half.update(spread_atoms(None), 4.0)  # a refusal leaves no half a list behind
    assert_right(half, spread_atoms(None), 4.0)


def test_too_many_pairs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "MOST_PAIRS", 1000)
    with pytest.raises(StructureError, match="must leave more room: .* pairs within 6 Angstrom, at most 1000, got"):
        listed(lattice_with_noise(4, PERIODIC), 5.0)


@pytest.mark.parametrize("far", [1e4, 1e6, 1e8])
def test_far_atoms_cost_nothing(far: float) -> None:
    """A grid over the space between would have 1e9 bins and more, a walk over them no end; digits of coordinates: 1e8
    of 1e16."""
    atoms = lattice_with_noise(9, OPEN)
    positions = np.concatenate([atoms.positions, [[far, -far, far], [far + 2.0, -far, far]]])
    apart = Atoms(positions, atoms.cell, OPEN, np.append(atoms.numbers, [1, 1]))
    half, near = listed(apart, 4.0), listed(atoms, 4.0)
    pairs, alone = half.pairs(4.0), near.pairs(4.0)
    assert len(pairs.vectors) == len(alone.vectors) + 2
    rows = sorted_rows(half.order[pairs.centre], half.order[pairs.neighbour], pairs.vectors)
    wanted = sorted_rows(near.order[alone.centre], near.order[alone.neighbour], alone.vectors)
    n = len(atoms)
    assert_same_pairs(rows[rows[:, 0] < n], wanted)
    assert rows[rows[:, 0] >= n].tolist() == [[n, n + 1, 2.0, 0.0, 0.0], [n + 1, n, -2.0, 0.0, 0.0]]


def test_coordinates_without_digits_are_refused() -> None:
    with pytest.raises(StructureError, match=r"`positions` must lie within 1e\+09 Angstrom, got 2e\+09"):
        listed(Structure([11], [[0.0, -2e9, 0.0]]), 4.0)


def test_memory_is_that_of_the_list() -> None:
    """Peak of numpy's arrays while a list is replaced by a new one, 20,000 atoms of the density of water."""
    n, rng = 20000, np.random.default_rng(1)
    edge = (n / 0.1) ** (1 / 3)
    atoms = atoms_in(edge * np.eye(3), n, seed=7, spread=0.0)
    half = listed(atoms, 8.6)
    here = atoms.moved(atoms.positions + rng.normal(scale=0.4, size=(n, 3)))
    tracemalloc.start()  # the old list was made before and does not count
    half.update(here, 8.6)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert half.builds == 2
    assert peak < 2 * half.neighbour.nbytes


def test_scatter_is_the_reverse_of_pair_vectors() -> None:
    rng = np.random.default_rng(3)
    pairs = Pairs(np.array([0, 2, 3]), np.array([1, 2, 0]), rng.normal(size=(3, 3)))
    gradient = rng.normal(size=(3, 3))
    wanted = np.zeros((3, 3))
    for pair, (i, j) in enumerate([(0, 1), (0, 2), (1, 0)]):
        wanted[j] += gradient[pair]
        wanted[i] -= gradient[pair]
    np.testing.assert_allclose(pairs.scatter(gradient, 3), wanted, atol=1e-15)  # sums of at most three numbers
