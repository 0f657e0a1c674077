"""Pairs against a loop over all images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kqeq_md.errors import StructureError
from kqeq_md.neighbours import Pairs, find_pairs
from kqeq_md.structure import Structure

CELLS = {
    "open": None,
    "cubic": 6.0 * np.eye(3),
    "smaller than the cutoff": np.diag([3.0, 3.5, 2.5]),
    "triclinic": np.array([[5.0, 0, 0], [2.4, 6.0, 0], [-2.0, 1.5, 5.5]]),
    "very skewed": np.array([[5.0, 0, 0], [14.0, 4.0, 0], [9.0, -11.0, 5.0]]),
    "left-handed": np.array([[0, 5.0, 0], [6.0, 0, 0], [0, 0, 7.0]]),
}


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


def test_scatter_is_the_reverse_of_pair_vectors() -> None:
    rng = np.random.default_rng(3)
    pairs = Pairs(np.array([0, 2, 3]), np.array([1, 2, 0]), rng.normal(size=(3, 3)))
    gradient = rng.normal(size=(3, 3))
    wanted = np.zeros((3, 3))
    for pair, (i, j) in enumerate([(0, 1), (0, 2), (1, 0)]):
        wanted[j] += gradient[pair]
        wanted[i] -= gradient[pair]
    np.testing.assert_allclose(pairs.scatter(gradient, 3), wanted, atol=1e-15)  # sums of at most three numbers
