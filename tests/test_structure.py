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
    "NaN cell": ({"cell": np.full((3, 3), np.nan), "pbc": True}, "`cell` must be finite"),
    "slab": ({"cell": 9 * np.eye(3), "pbc": (True, True, False)}, "`pbc` must be all True or all False, got .*slabs"),
    "wire": ({"cell": 9 * np.eye(3), "pbc": (False, False, True)}, "`pbc` must be all True or all False"),
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


def test_values_cannot_change_afterwards() -> None:
    positions = np.array([[0.0, 0, 0], [0, 0, 3]])
    structure = Structure([11, 17], positions)
    positions[1, 2] = 99.0
    assert structure.positions[1, 2] == 3.0
    with pytest.raises(ValueError, match="read-only"):
        structure.positions[0, 0] = 1.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        structure.charge = 1.0  # type: ignore[misc]
