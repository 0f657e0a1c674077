"""Ziegler-Biersack-Littmark repulsion."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kqeq_md.neighbours.half_list import Pairs, find_pairs
from kqeq_md.short_range import add_repulsion, screened_nuclear_repulsion
from kqeq_md.structure import Structure
from kqeq_md.switch import switch
from kqeq_md.units import BOHR, COULOMB_CONSTANT, HARTREE


def repulsion(pairs: Pairs, numbers: np.ndarray, radii: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Energies of the centres and gradient in the pair vectors."""
    energies, gradient = np.zeros(len(pairs.first) - 1), np.zeros_like(pairs.vectors)
    add_repulsion(pairs, numbers.astype(np.float64), radii, energies, gradient)
    return energies, gradient


def pair_energy(r: float, outer: float = 4.0) -> tuple[float, np.ndarray]:
    """Energy of Na-Cl at a distance, repulsion radii adding up to `outer`, and its gradient in the pair vectors."""
    structure = Structure([11, 17], [[0, 0, 0], [0, 0, r]])
    radii = np.array([0.4 * outer, 0.6 * outer])
    energies, gradient = repulsion(find_pairs(structure, 6.0), structure.numbers, radii)
    return float(energies.sum()), gradient


@pytest.mark.parametrize(("z_i", "z_j", "r"), [(11, 17, 1.0), (1, 1, 0.3), (17, 17, 2.5), (79, 6, 0.7)])
def test_universal_potential(z_i: int, z_j: int, r: float) -> None:
    """In atomic units, as the book states it: a = 0.8854 bohr / (Z_i^0.23 + Z_j^0.23)."""
    x = r / BOHR * (z_i**0.23 + z_j**0.23) / 0.8854
    phi = 0.1818 * np.exp(-3.2 * x) + 0.5099 * np.exp(-0.9423 * x) + 0.2802 * np.exp(-0.4029 * x)
    phi += 0.02817 * np.exp(-0.2016 * x)
    value, _ = screened_nuclear_repulsion(np.array([r]), np.array([float(z_i)]), np.array([float(z_j)]))
    # the book's constants have four digits, and 0.46850 is a rounded 0.8854 * 0.529177
    assert value[0] == pytest.approx(z_i * z_j / (r / BOHR) * phi * HARTREE, rel=1e-3)


def test_bare_nuclei_at_contact() -> None:
    r = np.array([1e-4])
    value, _ = screened_nuclear_repulsion(r, np.array([11.0]), np.array([17.0]))
    # phi(0) = 0.99996 by its published amplitudes; slope of phi: about -1 / a = -8 / Angstrom
    assert value[0] == pytest.approx(COULOMB_CONSTANT * 11 * 17 / r[0], rel=2e-3)


@pytest.mark.parametrize("r", [0.5, 1.9, 2.2, 3.1, 3.9])
def test_slope_in_every_part_of_the_switch(r: float, helpers: Any) -> None:
    _, gradient = pair_energy(r)
    wanted = helpers.five_point(lambda x: pair_energy(float(x))[0], np.array(r), 1e-3)
    # 1e-12 f^(5) / 30: the potential varies over 0.2 Angstrom, f^(5) = 1e4 f
    assert gradient[0, 2] - gradient[1, 2] == pytest.approx(float(wanted), rel=1e-8)


def test_unswitched_inside_and_nothing_outside() -> None:
    inside = screened_nuclear_repulsion(np.array([1.99]), np.array([11.0]), np.array([17.0]))[0][0]
    assert pair_energy(1.99)[0] == pytest.approx(inside, rel=1e-14)  # half of the outer radius is 2: the same numbers
    for r in (4.0, 4.5):
        energy, gradient = pair_energy(r)
        assert energy == 0.0
        assert not gradient.any()


def test_leaves_smoothly() -> None:
    far, near = pair_energy(4.0 - 0.02), pair_energy(4.0 - 0.01)
    # the switch leaves as gap^3; next order 1.5 gap / width = 1.5 %, and the slope of the bare potential
    assert far[0] / near[0] == pytest.approx(8.0, rel=0.05)
    assert far[1][0, 2] / near[1][0, 2] == pytest.approx(4.0, rel=0.05)


def test_each_atom_carries_half_of_its_pairs() -> None:
    structure = Structure([11, 17, 17], [[0, 0, 0], [0, 0, 2.1], [0, 2.3, 0]])
    radii = np.array([1.5, 1.4, 1.4])
    energies, _ = repulsion(find_pairs(structure, 6.0), structure.numbers, radii)
    wanted = [pair_energy(r, 2.9)[0] for r in (2.1, 2.3)]
    np.testing.assert_allclose(
        energies, [sum(wanted) / 2, wanted[0] / 2, wanted[1] / 2], rtol=1e-13
    )  # Cl-Cl: 3.1 > 2.8


def test_radius_zero_switches_it_off() -> None:
    structure = Structure([11, 17], [[0, 0, 0], [0, 0, 0.5]])
    energies, gradient = repulsion(find_pairs(structure, 6.0), structure.numbers, np.zeros(2))
    assert not energies.any()
    assert not gradient.any()


def test_without_pairs() -> None:
    none = Pairs(np.array([0, 0]), np.zeros(0, dtype=np.int64), np.zeros((0, 3)))
    energies, gradient = repulsion(none, np.array([11]), np.array([2.0]))
    assert energies.tolist() == [0.0]
    assert gradient.shape == (0, 3)


def test_sum_over_pairs_with_ghosts(helpers: Any) -> None:
    """A plain loop over a crowd of which only the first 20 atoms are centres, added to what is there."""
    positions, rng = helpers.crowd(40, 7.0), np.random.default_rng(3)
    numbers, radii = rng.choice([1.0, 8.0, 17.0], size=40), rng.uniform(0.4, 1.6, size=40)
    everything = find_pairs(Structure(numbers.astype(int), positions), 4.0)
    owned = slice(everything.first[20])
    pairs = Pairs(everything.first[:21], everything.neighbour[owned], everything.vectors[owned])
    energies, gradient = np.full(20, 0.25), np.full(pairs.vectors.shape, -0.5)
    add_repulsion(pairs, numbers, radii, energies, gradient)

    wanted, slopes = np.full(20, 0.25), np.full(pairs.vectors.shape, -0.5)
    for p, (i, j) in enumerate(zip(pairs.centre, pairs.neighbour, strict=True)):
        r, outer = np.linalg.norm(positions[j] - positions[i]), radii[i] + radii[j]
        bare, bare_slope = (x[0] for x in screened_nuclear_repulsion(np.array([r]), *numbers[[i, j]][:, None]))
        s, ds = switch(r, 0.5 * outer, outer)
        wanted[i] += 0.5 * s * bare
        slopes[p] += 0.5 * (s * bare_slope + ds * bare) * (positions[j] - positions[i]) / r
    assert (wanted > 0.3).sum() > 5  # eV: there is something to see
    np.testing.assert_allclose(energies, wanted, rtol=1e-13)  # the same sums
    np.testing.assert_allclose(gradient, slopes, rtol=1e-12)
