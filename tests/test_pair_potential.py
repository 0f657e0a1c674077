"""Sums of Gaussians between two elements."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kqeq_md.errors import ModelError
from kqeq_md.neighbours.half_list import Pairs, find_pairs
from kqeq_md.pair_potential import PairTables, PairTerm, add_pair_terms, pair_tables
from kqeq_md.structure import Structure

TERM = PairTerm((1, 0), np.array([0.9, 1.7, 2.6, 4.1]), np.array([30.0, -41.0, 22.0, -3.0]), 0.6, 4.5, 1.5)
OTHER = PairTerm((0, 0), np.array([1.1, 2.0]), np.array([-1.0, 2.5]), 0.9, 3.1, 0.4)


def pair_sums(pairs: Pairs, species: np.ndarray, tables: PairTables) -> tuple[np.ndarray, np.ndarray]:
    """Energies and gradient from nothing."""
    energies, gradient = np.zeros(len(pairs.first) - 1), np.zeros_like(pairs.vectors)
    add_pair_terms(pairs, species, tables, energies, gradient)
    return energies, gradient


def formula(r: float, term: PairTerm = TERM) -> float:
    inside = term.cutoff - term.cutoff_width
    switch = 1.0 if r <= inside else 0.5 + 0.5 * np.cos(np.pi * (r - inside) / term.cutoff_width)
    gaussians = np.exp(-((r - term.points) ** 2) / (2 * term.length**2))
    return float(switch * gaussians @ term.weights) if r < term.cutoff else 0.0


def dimer(r: float, *terms: PairTerm, numbers: tuple[int, int] = (11, 17)) -> tuple[float, np.ndarray]:
    """Energy of Na-Cl (elements 0 and 1) and the gradient in the pair vectors."""
    structure = Structure(numbers, [[0, 0, 0], [0.6 * r, 0, 0.8 * r]])
    species = (structure.numbers == 17).astype(np.int64)
    energies, gradient = pair_sums(find_pairs(structure, 6.0), species, pair_tables(terms, 2))
    return float(energies.sum()), gradient


@pytest.mark.parametrize("r", [0.2001, 0.777, 1.5, 2.99, 3.0, 3.01, 3.8765, 4.4999, 4.5, 5.0])
def test_energy(r: float) -> None:
    # interpolation 1e-14 and rounding 2e-16 of the weights, 41 eV; |r| of the vector has an error of 1e-16 r
    assert dimer(r, TERM)[0] == pytest.approx(formula(r), abs=1e-12)


@pytest.mark.parametrize("r", [0.25, 0.777, 1.5, 2.5, 3.2, 3.8765, 4.45])
def test_gradient(r: float, helpers: Any) -> None:
    _, gradient = dimer(r, TERM)
    wanted = float(helpers.five_point(lambda x: formula(float(x)), np.array(r), 2e-3))
    # five points: h^4 f^(5) / 30, f^(5) up to 30 w / theta^5 = 2e4 eV/Angstrom^5: 1e-8; rounding 41e-16 / h
    np.testing.assert_allclose(gradient[1] - gradient[0], -wanted * np.array([0.6, 0, 0.8]), atol=2e-8)


@pytest.mark.parametrize("r", [0.303, 1.5061, 2.9999, 3.0001, 3.7, 4.4983])
def test_slope_is_that_of_the_tabulated_energy(r: float) -> None:
    step = 1e-5
    wanted = (dimer(r + step, TERM)[0] - dimer(r - step, TERM)[0]) / (2 * step)
    gradient = dimer(r, TERM)[1]
    # rounding 1e-14 / 1e-5; third derivative 1e3 eV/Angstrom^3 times 1e-10 / 6
    assert (gradient[0] - gradient[1]) @ [0.6, 0, 0.8] == pytest.approx(wanted, abs=5e-8)


def test_leaves_smoothly() -> None:
    far, near = dimer(4.5 - 2e-2, TERM), dimer(4.5 - 1e-2, TERM)
    # the switch leaves as gap^2, its slope as gap; the Gaussians change by 2 % over the gap
    assert far[0] / near[0] == pytest.approx(4.0, rel=0.05)
    assert far[1][0, 2] / near[1][0, 2] == pytest.approx(2.0, rel=0.05)
    for r in (4.5, 4.6):
        energy, gradient = dimer(r, TERM)
        assert energy == 0.0
        assert not gradient.any()


def test_terms_of_the_same_elements_add_up_and_others_do_not_count() -> None:
    second = replace(TERM, species=(0, 1), cutoff=5.5, length=0.8)
    assert dimer(2.2, TERM, OTHER, second)[0] == pytest.approx(formula(2.2) + formula(2.2, second), abs=1e-12)
    assert dimer(2.2, TERM, OTHER, second, numbers=(11, 11))[0] == pytest.approx(formula(2.2, OTHER), abs=1e-12)
    assert dimer(2.2, TERM, OTHER, second, numbers=(17, 17))[0] == 0.0


def test_each_atom_carries_half_of_its_pairs() -> None:
    structure = Structure([11, 17, 11], [[0, 0, 0], [0, 0, 2.1], [0, 2.3, 0]])
    energies, _ = pair_sums(find_pairs(structure, 6.0), np.array([0, 1, 0]), pair_tables([TERM, OTHER], 2))
    salt, metal, diagonal = formula(2.1), formula(2.3, OTHER), formula(np.hypot(2.1, 2.3))
    np.testing.assert_allclose(
        energies, [(salt + metal) / 2, (salt + diagonal) / 2, (metal + diagonal) / 2], atol=1e-12
    )


def test_images_of_one_atom() -> None:
    structure = Structure([11], [[0, 0, 0]], np.diag([2.0, 20.0, 20.0]), (True, True, True))
    energies, gradient = pair_sums(find_pairs(structure, 6.0), np.array([0]), pair_tables([OTHER], 1))
    assert energies.tolist() == pytest.approx([formula(2.0, OTHER)], abs=1e-12)  # half of two images
    np.testing.assert_allclose(gradient.sum(axis=0), 0.0, atol=1e-13)


def test_no_terms_and_no_pairs() -> None:
    assert dimer(2.0)[0] == 0.0
    none = Pairs(np.array([0, 0]), np.zeros(0, dtype=np.int64), np.zeros((0, 3)))
    energies, gradient = pair_sums(none, np.array([1]), pair_tables([TERM], 2))
    assert energies.tolist() == [0.0]
    assert gradient.shape == (0, 3)


REFUSED = {
    "weights": ({"weights": np.ones(3)}, "`weights` of a pair term must be 4 finite numbers"),
    "points": ({"points": np.array([1.0, 2.0, np.nan, 3.0])}, "`points` of a pair term must be 4 finite numbers"),
    "length": ({"length": 0.0}, "`length` of a pair term must lie between 0.01 and 100, got 0.0"),
    "cutoff": ({"cutoff": -1.0}, "`cutoff` of a pair term must lie between 0.01 and 100, got -1.0"),
    "width": ({"cutoff_width": 4.6}, "`cutoff_width` of a pair term must not exceed the cutoff 4.5, got 4.6"),
    "undefined": (
        {"cutoff_width": float("nan")},
        "`cutoff_width` of a pair term must lie between 0.001 and 100, got nan",
    ),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refusal(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        replace(TERM, **change)
