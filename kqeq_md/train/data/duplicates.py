"""Frames that are one structure: same composition, cell, charge, field, and positions up to a translation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from scipy.spatial import cKDTree

from kqeq_md.structure import Floats, Structure

SAME_POSITION = 1e-3
"""Angstrom. Files with three decimals still count as copies."""

CANDIDATES = 8
"""Nearest fingerprints that are compared atom by atom."""

DIRECTIONS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1]], dtype=np.float64)
WAVES = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1], [2, 0, 0], [0, 2, 0], [0, 0, 2]])


def find_duplicates(structures: Sequence[Structure]) -> list[tuple[int, int]]:
    """Pairs (earlier, later) of one structure; a later frame stands in one pair at most.

    Frames of one composition, cell, charge and field are looked up by a fingerprint that no translation or order of
    atoms changes and that moves by less than SAME_POSITION where all atoms do, in a k-d tree: O(n log n). What is near
    is compared atom by atom: in open frames in any order, in others in the order of the files.
    """
    kinds: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for index, structure in enumerate(structures):
        kinds[_kind(structure)].append(index)
    pairs = [pair for members in kinds.values() if len(members) > 1 for pair in _within(structures, members)]
    return sorted(pairs, key=lambda pair: pair[1])


def _kind(structure: Structure) -> tuple[object, ...]:
    """Equal for frames that may be one structure; rounding is that of files."""
    numbers = tuple(np.sort(structure.numbers).tolist())
    lattice = () if structure.boundary == "open" else tuple(np.round(structure.cell, 3).ravel().tolist())
    field = tuple((np.round(structure.field, 5) + 0.0).tolist())
    return numbers, structure.pbc, lattice, round(structure.charge, 4), field


def _within(structures: Sequence[Structure], members: Sequence[int]) -> Iterator[tuple[int, int]]:
    prints = np.array([_fingerprint(structures[index]) for index in members])
    # exact copies share one point of the tree, which would lose its balance with thousands of them
    points, first, point_of = np.unique(np.round(prints, 9), axis=0, return_index=True, return_inverse=True)
    point_of = point_of.ravel()
    reach = SAME_POSITION * np.sqrt(prints.shape[1])
    count = min(CANDIDATES, len(points))
    distances, near = cKDTree(points).query(points, k=count, distance_upper_bound=reach)
    distances, near = np.reshape(distances, (len(points), count)), np.reshape(near, (len(points), count))
    for row, point in enumerate(point_of):
        rivals = {int(first[p]) for p, d in zip(near[point], distances[point], strict=True) if np.isfinite(d)}
        for rival in sorted(rivals):
            if rival < row and _same(structures[members[rival]], structures[members[row]]):
                yield members[rival], members[row]
                break


def _fingerprint(structure: Structure) -> Floats:
    """Open: widths along six directions and places of the elements' centres. Else: sizes of structure factors."""
    elements = np.unique(structure.numbers)
    if structure.boundary == "open":
        r = structure.positions - structure.positions.mean(axis=0)
        widths = np.sqrt(np.mean((r @ DIRECTIONS.T) ** 2, axis=0)) / np.linalg.norm(DIRECTIONS, axis=1)
        centres = [r[structure.numbers == z].mean(axis=0) for z in elements[1:]]
        return np.concatenate([widths, *centres])
    waves = WAVES[(WAVES[:, ~np.array(structure.pbc)] == 0).all(axis=1)]
    inverse = np.linalg.inv(structure.cell)
    phases = np.exp(2j * np.pi * (structure.positions @ inverse) @ waves.T)
    # in units of length: a displacement by d changes each by less than d
    lengths = 1.0 / (2.0 * np.pi * np.linalg.norm(inverse @ waves.T, axis=0))
    return np.concatenate([lengths * np.abs(phases[structure.numbers == z].mean(axis=0)) for z in elements])


def _same(one: Structure, other: Structure) -> bool:
    """Whether a translation takes all atoms onto each other."""
    if np.array_equal(one.numbers, other.numbers):
        shift = other.positions - one.positions
        if one.boundary != "open":
            fractions = (shift - shift[0]) @ np.linalg.inv(one.cell)
            fractions[:, np.array(one.pbc)] -= np.round(fractions[:, np.array(one.pbc)])
            shift = fractions @ one.cell
        if np.linalg.norm(shift - shift.mean(axis=0), axis=1).max() < SAME_POSITION:
            return True
    return one.boundary == "open" and _same_in_any_order(one, other)


def _same_in_any_order(one: Structure, other: Structure) -> bool:
    here, there = (s.positions - s.positions.mean(axis=0) for s in (one, other))
    distances, match = cKDTree(there).query(here)
    return bool(
        distances.max() < SAME_POSITION
        and len(np.unique(match)) == len(match)
        and np.array_equal(one.numbers, other.numbers[match])
    )
