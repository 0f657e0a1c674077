"""The neighbour density and its reverse against numpy, for groups of atoms of which some have no neighbours."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.interpolate import CubicHermiteSpline

from kqeq_md.descriptor.density import expand_density_vjp
from kqeq_md.descriptor.power_spectrum import Descriptor
from kqeq_md.descriptor.radial import SoapParameters, radial_table
from kqeq_md.neighbours.half_list import Pairs, find_pairs
from kqeq_md.structure import Structure

CUTOFF, L_MAX = 3.5, 6
DEGREE = np.repeat(np.arange(L_MAX + 1), 2 * np.arange(L_MAX + 1) + 1)
ORDER = np.random.default_rng(3).permutation(100)
GROUPS = {1: ORDER[:1], 3: ORDER[1:4], 16: ORDER[4:20], 64: ORDER[30:94], 100: ORDER}
ELEMENTS = np.random.default_rng(4).integers(4, size=100)
FIVE_POINTS = ((-2, 1.0), (-1, -8.0), (1, 8.0), (2, -1.0))


class Surroundings:
    """100 atoms: 70 in a crowd, 30 far from all others; pairs reach beyond the cutoff.

    Attributes:
        harmonics: r^l Y_lm of the pairs, shape (n_pairs, lm).
        slopes: their gradients, shape (3, n_pairs, lm).
    """

    def __init__(self, helpers: Any) -> None:
        far = np.stack([np.zeros(30), np.zeros(30), 20.0 * np.arange(1, 31)], axis=1)
        positions = np.concatenate([helpers.crowd(70, 9.0), far])
        self.pairs = find_pairs(Structure([1] * 100, positions), CUTOFF + 0.7)
        self.distance = np.linalg.norm(self.pairs.vectors, axis=1)

        def harmonics(vectors: np.ndarray) -> np.ndarray:
            return helpers.real_harmonics(L_MAX, vectors.T).T

        def slope(axis: np.ndarray, step: float = 1e-3) -> np.ndarray:
            return sum(factor * harmonics(self.pairs.vectors + k * step * axis) for k, factor in FIVE_POINTS) / (
                12 * step
            )

        self.harmonics = harmonics(self.pairs.vectors)
        self.slopes = np.stack([slope(axis) for axis in np.eye(3)])


@pytest.fixture(scope="module")
def around(helpers: Any) -> Surroundings:
    return Surroundings(helpers)


def splines(soap: SoapParameters) -> CubicHermiteSpline:
    """f_nl by SciPy from the same table; values of shape (n, l_max + 1, n_max)."""
    table = radial_table(soap)
    knots = table.start + table.spacing * np.arange(len(table.values))
    return CubicHermiteSpline(knots, table.values[:, 0], table.values[:, 1])


def density(soap: SoapParameters, around: Surroundings, species: np.ndarray, n_species: int) -> np.ndarray:
    """c, shape (lm, a, n), by the definition."""
    n_lm, near = (soap.l_max + 1) ** 2, (around.distance < CUTOFF)[:, None, None]
    radial = near * splines(soap)(around.distance)[:, DEGREE[:n_lm]]
    c = np.zeros((len(species), n_species, n_lm, soap.n_max))
    c[np.arange(len(species)), species, 0] = soap.central_weight * radial_table(soap).at_zero / np.sqrt(4 * np.pi)
    np.add.at(c, (around.pairs.centre, species[around.pairs.neighbour]), around.harmonics[:, :n_lm, None] * radial)
    return c.transpose(2, 1, 3, 0).reshape(n_lm, -1, len(species))


def gradient(soap: SoapParameters, around: Surroundings, species: np.ndarray, grad_c: np.ndarray) -> np.ndarray:
    """dE/d(pair vectors) from dE/dc, shape (lm, a, n), by the product rule."""
    n_lm, pairs, f = (soap.l_max + 1) ** 2, around.pairs, splines(soap)
    g = grad_c.reshape(n_lm, -1, soap.n_max, len(species))[:, species[pairs.neighbour], :, pairs.centre]
    t, u = (np.einsum("pmn,pmn->pm", g, x(around.distance)[:, DEGREE[:n_lm]]) for x in (f, f.derivative()))
    along = (u * around.harmonics[:, :n_lm]).sum(axis=1) / around.distance
    across = (t * around.slopes[:, :, :n_lm]).sum(axis=2).T
    return (around.distance < CUTOFF)[:, None] * (across + along[:, None] * pairs.vectors)


def expanded(descriptor: Descriptor, rows: np.ndarray, pairs: Pairs, species: np.ndarray) -> np.ndarray:
    """c of the atoms `rows` side by side, shape (lm, a, n)."""
    return np.concatenate(descriptor.density(rows, pairs, species), axis=2)


def carry_back(
    descriptor: Descriptor, rows: np.ndarray, pairs: Pairs, species: np.ndarray, grad_c: np.ndarray, out: np.ndarray
) -> None:
    """Add the gradient of the pairs of `rows` to `out`."""
    lists = (pairs.first, pairs.neighbour, pairs.vectors, species)
    expand_density_vjp(rows, *lists, *descriptor._expansion, np.ascontiguousarray(grad_c), out)


def close(got: np.ndarray, wanted: np.ndarray, relative: float) -> None:
    np.testing.assert_allclose(got, wanted, rtol=0, atol=relative * np.abs(wanted).max(initial=0.0))


@pytest.mark.parametrize("n_species", [1, 2, 3, 4])
@pytest.mark.parametrize("l_max", [0, 1, 2, 6])
@pytest.mark.parametrize("n_max", [1, 2, 3, 5, 7, 8])
def test_definition(n_max: int, l_max: int, n_species: int, around: Surroundings) -> None:
    soap = SoapParameters(cutoff=CUTOFF, cutoff_width=0.8, n_max=n_max, l_max=l_max, central_weight=0.7)
    descriptor, species = Descriptor(soap, n_species), ELEMENTS % n_species
    wanted = density(soap, around, species, n_species)
    grad_c = np.random.default_rng(5).normal(size=wanted.shape)
    gradients = gradient(soap, around, species, grad_c)
    for rows in GROUPS.values():
        # rounding of some tens of products, of recursions and of the place in the table (1e-13 of a knot)
        close(expanded(descriptor, rows, around.pairs, species), wanted[:, :, rows], 1e-12)
        out = np.full(around.pairs.vectors.shape, 0.5)
        carry_back(descriptor, rows, around.pairs, species, grad_c[:, :, rows], out)
        own = np.isin(around.pairs.centre, rows)
        close(out[own] - 0.5, gradients[own], 1e-10)  # five points: 1e-12 f^(5) / 30, rounding 1e-16 / 1e-3
        assert (out[~own] == 0.5).all()


def test_the_group_does_not_matter(around: Surroundings) -> None:
    """Whoever stands beside an atom: those without neighbours see places at which there is nothing at all."""
    soap = SoapParameters(cutoff=CUTOFF, n_max=3, l_max=2, central_weight=0.0)
    descriptor, species = Descriptor(soap, 2), ELEMENTS % 2
    together = expanded(descriptor, ORDER, around.pairs, species)
    for k, row in enumerate(ORDER):
        alone = expanded(descriptor, np.array([row]), around.pairs, species)[:, :, 0]
        close(together[:, :, k], alone, 1e-14)  # the same sums; vector units may fuse other products
        assert together[:, :, k].any() == (row < 70)


def test_centre_counts_as_much_as_its_weight(around: Surroundings) -> None:
    soap, species = SoapParameters(cutoff=CUTOFF, n_max=2, l_max=1, central_weight=0.0), ELEMENTS % 2
    without, usual, heavy = (
        expanded(Descriptor(replace(soap, central_weight=weight), 2), ORDER, around.pairs, species)
        for weight in (0.0, 1.0, 2.5)
    )
    np.testing.assert_allclose(heavy - without, 2.5 * (usual - without), atol=1e-14 * np.abs(usual).max())  # rounding
