"""The molecule that a model carries for its diagnosis."""

from __future__ import annotations

import numpy as np

from kqeq_md.structure import Structure
from kqeq_md.train.data import Frame
from kqeq_md.train.fit.molecules import smallest_fragment

WATER = [[0.0, 0.0, 0.0], [0.76, 0.59, 0.0], [-0.76, 0.59, 0.0]]


def water_frame(count: int, charge: float = 0.0, labels: bool = True) -> Frame:
    """Waters 3 Angstrom apart; the last one carries the charge."""
    positions = np.concatenate([np.array(WATER) + [0.0, 0.0, 3.0 * k] for k in range(count)])
    charges = np.tile([-0.6, 0.3, 0.3], count)
    charges[-1] += charge
    structure = Structure([8, 1, 1] * count, positions, charge=charge)
    return Frame(structure, None, None, charges if labels else None, None)


def test_smallest_fragment() -> None:
    single = {"numbers": [8, 1, 1], "positions": (np.array(WATER) - np.mean(WATER, axis=0)).tolist()}
    assert smallest_fragment([water_frame(2), water_frame(1)]) == single
    assert smallest_fragment([water_frame(1, charge=1.0)]) == {}
    assert smallest_fragment([water_frame(2, labels=False)]) == {}  # nobody says what each of them carries
    noble = Structure([8, 1, 1, 8, 1, 1, 2], np.concatenate([water_frame(2).structure.positions, [[9.0, 9.0, 9.0]]]))
    atom_alone = Frame(noble, None, None, np.array([-0.6, 0.3, 0.3, -0.6, 0.3, 0.3, 0.0]), None)
    assert smallest_fragment([atom_alone])["numbers"] == [8, 1, 1]
    found = smallest_fragment([water_frame(3, charge=1.0)])
    assert found["numbers"] == [8, 1, 1]
    np.testing.assert_allclose(found["positions"], single["positions"], atol=1e-12)
