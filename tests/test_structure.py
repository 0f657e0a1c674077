"""Structures refuse what cannot be computed: the argument, the rule and the value, in one line."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from kqeq_md.errors import StructureError
from kqeq_md.structure import Structure

REFUSED = {
    "no atoms": ({"numbers": []}, "`numbers` must be a non-empty list of integers"),
    "fractional numbers": ({"numbers": [11.0, 17.0]}, "`numbers` must be a non-empty list of integers"),
    "symbols": ({"numbers": ["Na", "Cl"]}, "`numbers` must be a non-empty list of integers"),
    "nested numbers": ({"numbers": [[11], [17]]}, "`numbers` must be a non-empty list of integers"),
    "ragged numbers": ({"numbers": [[11], [17, 17]]}, "`numbers` must be"),
    "too few positions": ({"positions": [[0, 0, 0]]}, r"`positions` must have shape \(2, 3\), got \(1, 3\)"),
    "flat positions": ({"positions": [0, 0, 0, 0, 0, 3]}, r"`positions` must have shape \(2, 3\), got \(6,\)"),
    "ragged positions": ({"positions": [[0, 0, 0], [1, 2]]}, "`positions` must be numbers"),
    "words": ({"positions": [["a", "b", "c"]] * 2}, "`positions` must be numbers"),
    "NaN position": (
        {"positions": [[0, 0, 0], [0, np.nan, 3]]},
        r"`positions` must be finite, got nan at index \[1, 1\]",
    ),
    "infinite position": ({"positions": [[0, 0, np.inf], [0, 0, 3]]}, r"`positions` must be finite, got inf"),
    "flat cell": ({"cell": [[9, 0, 0], [0, 9, 0], [9, 9, 0]], "pbc": True}, "`cell` must have a volume"),
    "no cell": ({"pbc": True}, "`cell` must have a volume"),
    "three lengths": ({"cell": [9, 9, 9], "pbc": True}, r"`cell` must have shape \(3, 3\), got \(3,\)"),
    "huge cell": ({"cell": 2e9 * np.eye(3), "pbc": True}, "`cell` must lie within 1e\\+09 Angstrom, got 2e\\+09"),
    "NaN cell": ({"cell": np.full((3, 3), np.nan), "pbc": True}, "`cell` must be finite"),
    "wire": (
        {"cell": 9 * np.eye(3), "pbc": (False, False, True)},
        r"`pbc` must be True for all axes, for two \(slab\) or for none, got \(False, False, True\): wires",
    ),
    "tilted slab": (
        {"cell": [[9, 0, 0], [0, 9, 0], [0, 1e-4, 9]], "pbc": (True, True, False)},
        "`cell` vector 2 must be perpendicular to the periodic ones",
    ),
    "slab tilted against the plane": (
        {"cell": [[9, 0, 0], [0, 9, 0], [0, 1, 9]], "pbc": (True, False, True)},
        "`cell` vector 1 must be perpendicular to the periodic ones",
    ),
    "flat slab": (
        {"cell": [[9, 9, 0], [3, 3, 0], [0, 0, 9]], "pbc": (True, True, False)},
        "`cell` must have an area",
    ),
    "slab without a cell": ({"pbc": (True, True, False)}, "`cell` must have an area"),
    "two axes": ({"pbc": (True, True)}, "`pbc` must be one or three booleans"),
    "NaN charge": ({"charge": np.nan}, "`charge` must be finite, got nan"),
    "infinite charge": ({"charge": -np.inf}, "`charge` must be finite, got -inf"),
    "word as charge": ({"charge": "neutral"}, "`charge` must be"),
    "charges per atom": ({"charge": [1.0, -1.0]}, "`charge` must"),
    "scalar field": ({"field": 0.1}, r"`field` must have shape \(3\), got \(\)"),
    "NaN field": ({"field": [0, 0, np.nan]}, r"`field` must be finite, got nan at index \[2\]"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refusal_in_one_line(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"numbers": [11, 17], "positions": [[0, 0, 0], [0, 0, 3]]}
    with pytest.raises(StructureError, match=message) as caught:
        Structure(**(arguments | change))
    assert "\n" not in str(caught.value)


def test_open_by_default() -> None:
    structure = Structure([11, 17], [[0, 0, 0], [0, 0, 3]])
    assert (len(structure), structure.periodic, structure.pbc) == (2, False, (False,) * 3)
    assert structure.charge == 0.0
    assert not structure.field.any()


def test_periodic_volume() -> None:
    structure = Structure([11], [[0, 0, 0]], cell=[[0, 3, 0], [4, 0, 0], [1, 1, 5]], pbc=True)
    assert structure.periodic
    assert structure.volume == pytest.approx(60.0, rel=1e-14)  # a left-handed cell; rounding of one determinant


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slab_has_an_open_axis_and_a_normal(axis: int) -> None:
    cell = np.roll(np.array([[3.0, 0, 0], [1, 4, 0], [0, 0, 1e-8]]), axis + 1, axis=(0, 1))
    structure = Structure([11], [[0, 0, 0]], cell=cell, pbc=[k != axis for k in range(3)])
    assert (structure.boundary, structure.open_axis, structure.periodic) == ("slab", axis, False)
    # rounding of a cross product
    np.testing.assert_allclose(structure.normal, np.eye(3)[axis], atol=1e-15)
    np.testing.assert_allclose(structure.cell[axis], structure.normal, atol=1e-15)
    assert np.linalg.det(structure.cell) == pytest.approx(12.0, rel=1e-14)


def test_open_vector_of_a_slab_is_kept() -> None:
    """Whatever its length and direction; up to 1e-6 it may be out of the normal."""
    cell = np.array([[3.0, 0, 0], [1, 4, 0], [5e-6, 0, -9]])
    structure = Structure([11], [[0, 0, 0]], cell=cell, pbc=(True, True, False))
    np.testing.assert_array_equal(structure.cell, cell)
    np.testing.assert_array_equal(structure.normal, [0, 0, 1])
    with pytest.raises(ValueError, match="read-only"):
        structure.cell[2, 2] = 1.0


@pytest.mark.parametrize(("pbc", "boundary"), [(True, "periodic"), (False, "open")])
def test_only_slabs_have_a_normal(pbc: bool, boundary: str) -> None:
    structure = Structure([11], [[0, 0, 0]], cell=5 * np.eye(3), pbc=pbc)
    assert (structure.boundary, structure.open_axis) == (boundary, None)
    with pytest.raises(StructureError, match="`normal` needs a slab"):
        _ = structure.normal


def test_values_cannot_change_afterwards() -> None:
    positions = np.array([[0.0, 0, 0], [0, 0, 3]])
    structure = Structure([11, 17], positions)
    positions[1, 2] = 99.0
    assert structure.positions[1, 2] == 3.0
    with pytest.raises(ValueError, match="read-only"):
        structure.positions[0, 0] = 1.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        structure.charge = 1.0  # type: ignore[misc]


def test_moved_keeps_the_rest_and_checks_what_is_new() -> None:
    cell = np.diag([4.0, 5.0, 6.0])
    start = Structure([11, 17], np.zeros((2, 3)) + [[0], [2]], cell, True, charge=1.0)
    there = start.positions + 0.5
    for new_cell in (None, cell, 1.1 * cell):
        out = start.moved(there, new_cell)
        np.testing.assert_array_equal(out.positions, there)
        np.testing.assert_array_equal(out.cell, cell if new_cell is None else new_cell)
        assert (list(out.numbers), out.pbc, out.charge) == ([11, 17], (True,) * 3, 1.0)
    assert (start.positions != there).all()
    assert not out.positions.flags.writeable
    with pytest.raises(StructureError, match="`positions` must be finite, got nan"):
        start.moved(np.full((2, 3), np.nan))
    with pytest.raises(StructureError, match="`positions` must have shape"):
        start.moved(np.zeros((3, 3)))
    with pytest.raises(StructureError, match="`cell` must have a volume"):
        start.moved(there, np.zeros((3, 3)))
