"""The power spectrum against a direct expansion with SciPy, its kernels against numpy, its invariances, its reverse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kqeq_md.descriptor.power_spectrum import Descriptor, contract, contract_vjp, normalise, normalise_vjp
from kqeq_md.descriptor.radial import SoapParameters
from kqeq_md.neighbours.half_list import Pairs, find_pairs
from kqeq_md.structure import Structure
from kqeq_md.switch import switch

PARAMETERS = SoapParameters(cutoff=4.0, cutoff_width=0.8, n_max=3, l_max=3, sigma=0.5, radial_scale=3.0)
SPECIES = np.array([0, 1, 1, 0, 1])
NO_PAIRS = Pairs(np.array([0, 0]), np.zeros(0, np.int64), np.zeros((0, 3)))


@pytest.fixture(scope="module")
def descriptor() -> Descriptor:
    return Descriptor(PARAMETERS, n_species=2)


def five_atoms() -> np.ndarray:
    """Five atoms within the cutoff of each other, one pair of them inside the switch."""
    return np.array([[0.0, 0, 0], [1.9, 0.3, -0.4], [-0.7, 2.2, 0.5], [0.4, -0.6, 2.4], [1.5, 1.6, 1.4]])


def pairs_of(positions: np.ndarray) -> Pairs:
    return find_pairs(Structure([1] * len(positions), positions), PARAMETERS.cutoff)


def spectrum(descriptor: Descriptor, pairs: Pairs, species: np.ndarray) -> np.ndarray:
    """p of all centres, shape (n, size)."""
    unit, length = descriptor.spectrum(descriptor.density(np.arange(len(pairs.first) - 1), pairs, species))
    return (unit * length).T


def unit_vjp(descriptor: Descriptor, pairs: Pairs, species: np.ndarray, grad_unit: np.ndarray) -> np.ndarray:
    """dE/d(pair vectors) from dE/d(p / |p|) of all centres, shape (size, n)."""
    rows, out = np.arange(len(pairs.first) - 1), np.zeros_like(pairs.vectors)
    c = descriptor.density(rows, pairs, species)
    descriptor.spectrum_vjp(rows, pairs, species, c, *descriptor.spectrum(c), grad_unit.copy(), out)
    return out


# --- kernels

CHANNELS = [1, 2, 3, 5, 8, 12, 15]
"""Numbers of elements times radial functions, odd and even."""


@pytest.mark.parametrize("lanes", [1, 3, 16, 64, 100])
@pytest.mark.parametrize("l_max", [0, 1, 2, 6])
@pytest.mark.parametrize("channels", CHANNELS)
def test_contraction(channels: int, l_max: int, lanes: int) -> None:
    """Into and from some columns of a larger array."""
    rng, begin = np.random.default_rng(channels), lanes // 2
    c = rng.normal(size=((l_max + 1) ** 2, channels, lanes))
    a, b = upper = np.triu_indices(channels)
    # of each degree: the rows of c, shape (m, a, lanes), and sqrt(w_ab / (2 l + 1)) over a <= b
    degrees = [(c[d**2 : (d + 1) ** 2], np.where(a == b, 1, 2)[:, None] / (2 * d + 1)) for d in range(l_max + 1)]
    p, grad_p = np.full((len(a) * (l_max + 1), lanes + begin + 2), 7.5), rng.normal(size=(len(a) * (l_max + 1), lanes))

    contract(c, l_max + 1, begin, p)
    wanted = [np.sqrt(w) * np.einsum("mak,mbk->abk", x, x)[upper] for x, w in degrees]
    # thirteen products of order 1, up to ten
    np.testing.assert_allclose(p[:, begin : begin + lanes], np.concatenate(wanted), rtol=0, atol=1e-13)
    assert (np.delete(p, np.s_[begin : begin + lanes], axis=1) == 7.5).all()

    p[:, begin : begin + lanes], wanted = grad_p, []
    for (x, w), g in zip(degrees, np.split(grad_p, l_max + 1), strict=True):
        matrix = np.zeros((channels, channels, lanes))
        matrix[upper] = np.sqrt(w) * g
        wanted.append(np.einsum("abk,mbk->mak", matrix + matrix.transpose(1, 0, 2), x))
    got = contract_vjp(c, l_max + 1, begin, p)
    np.testing.assert_allclose(got, np.concatenate(wanted), rtol=0, atol=1e-13)  # fifteen products


@pytest.mark.parametrize("lanes", [1, 3, 16, 64, 100])
def test_normalisation(lanes: int) -> None:
    p, grad_p = np.random.default_rng(lanes).normal(size=(2, 42, lanes))
    norm = np.linalg.norm(p, axis=0)
    unit, got = p.copy(), grad_p.copy()
    np.testing.assert_allclose(normalise(unit), norm, rtol=1e-14)  # the same 42 squares
    np.testing.assert_allclose(unit, p / norm, rtol=1e-14)
    normalise_vjp(unit, norm, got)
    np.testing.assert_allclose(got, (grad_p - unit * (unit * grad_p).sum(axis=0)) / norm, atol=1e-14)


def test_no_density_stays_zero() -> None:
    """An atom without any, beside one that has some."""
    p = np.array([[3.0, 0.0], [4.0, 0.0]])
    length, gradient = normalise(p), np.ones((2, 2))
    assert length.tolist() == [5.0, 0.0]
    normalise_vjp(p, length, gradient)
    np.testing.assert_allclose(p, [[0.6, 0.0], [0.8, 0.0]], rtol=1e-15)
    np.testing.assert_allclose(gradient, [[0.16 / 5, 0.0], [-0.12 / 5, 0.0]], rtol=1e-14)  # 1 - 0.6 * 1.4, ...


# --- the whole


def reference(helpers: Any, positions: np.ndarray, species: np.ndarray, centre: int) -> np.ndarray:
    """p of one atom by the definition: sum over neighbours and the centre, then over m, for a <= b."""
    l_max, n_max = PARAMETERS.l_max, PARAMETERS.n_max
    c = np.zeros(((l_max + 1) ** 2, 2 * n_max))
    degree = np.repeat(np.arange(l_max + 1), 2 * np.arange(l_max + 1) + 1)
    for r, element in zip(positions - positions[centre], species, strict=True):
        distance = np.linalg.norm(r)
        # on the centre itself only l = 0 survives, in any direction
        harmonics = helpers.real_harmonics(l_max, r) if distance else np.eye(len(c))[0] / np.sqrt(4 * np.pi)
        envelope = switch(distance, 3.2, 4.0)[0] / (1 + (distance / 3.0) ** 4)
        radial = envelope * helpers.radial_reference(PARAMETERS, distance)
        c[:, element * n_max : (element + 1) * n_max] += harmonics[:, None] * radial[degree]
    full = [c[degree == d].T @ c[degree == d] / np.sqrt(2 * d + 1) for d in range(l_max + 1)]
    a, b = np.triu_indices(2 * n_max)
    return np.concatenate([p[a, b] * np.where(a == b, 1, np.sqrt(2)) for p in full])


@pytest.mark.parametrize("centre", range(5))
def test_definition(descriptor: Descriptor, centre: int, helpers: Any) -> None:
    wanted = reference(helpers, five_atoms(), SPECIES, centre)
    got = spectrum(descriptor, pairs_of(five_atoms()), SPECIES)[centre]
    assert got.shape == (descriptor.size,)
    np.testing.assert_allclose(got, wanted, atol=1e-8 * wanted.max())  # the table's 1e-10, times r^l up to 4^3


def test_dot_product_is_the_sum_over_all_channel_pairs(descriptor: Descriptor) -> None:
    pairs = pairs_of(five_atoms())
    p, (c,) = spectrum(descriptor, pairs, SPECIES), descriptor.density(np.arange(5), pairs, SPECIES)
    wanted = 0.0
    for degree in range(PARAMETERS.l_max + 1):
        first, second = (c[degree**2 : (degree + 1) ** 2, :, i] for i in (0, 1))
        wanted += np.sum((first.T @ first) * (second.T @ second)) / (2 * degree + 1)
    assert p[0] @ p[1] == pytest.approx(wanted, rel=1e-13)  # rounding of 144 terms


@pytest.mark.parametrize("operation", ["rotation", "inversion", "translation"])
def test_invariance(descriptor: Descriptor, operation: str, helpers: Any) -> None:
    r = five_atoms()
    image = {
        "rotation": r @ helpers.random_rotation(5),
        "inversion": -r,
        "translation": r + np.array([7.0, -3.0, 11.0]),
    }[operation]
    p = spectrum(descriptor, pairs_of(r), SPECIES)
    # equal distances up to 1e-15 and the m-sum of 7 products: rounding
    np.testing.assert_allclose(spectrum(descriptor, pairs_of(image), SPECIES), p, atol=1e-12 * p.max())


def test_permutation(descriptor: Descriptor) -> None:
    order = np.array([3, 0, 4, 2, 1])
    p = spectrum(descriptor, pairs_of(five_atoms()), SPECIES)
    again = spectrum(descriptor, pairs_of(five_atoms()[order]), SPECIES[order])
    np.testing.assert_allclose(again, p[order], atol=1e-13 * p.max())  # only the order of the sums differs


def test_elements_matter(descriptor: Descriptor) -> None:
    pairs = pairs_of(five_atoms())
    p = spectrum(descriptor, pairs, SPECIES)
    swapped = spectrum(descriptor, pairs, np.array([0, 0, 1, 0, 1]))
    assert np.abs(p - swapped).max() > 0.01 * p.max()


@pytest.mark.parametrize("n_species", [1, 2, 3, 4])
@pytest.mark.parametrize(("n_max", "l_max"), [(2, 0), (1, 2), (3, 3), (2, 6)])
def test_reverse(n_max: int, l_max: int, n_species: int, helpers: Any) -> None:
    descriptor = Descriptor(SoapParameters(cutoff=4.0, n_max=n_max, l_max=l_max, sigma=0.6), n_species)
    species, pairs = np.array([0, 1, 2, 3, 1]) % n_species, pairs_of(five_atoms())
    assert descriptor.size == (l_max + 1) * n_species * n_max * (n_species * n_max + 1) // 2
    grad_unit = np.random.default_rng(6).normal(size=(descriptor.size, 5))

    def total(vectors: np.ndarray) -> float:
        c = descriptor.density(np.arange(5), Pairs(pairs.first, pairs.neighbour, vectors), species)
        return float((grad_unit * descriptor.spectrum(c)[0]).sum())

    got, wanted = unit_vjp(descriptor, pairs, species, grad_unit), helpers.five_point(total, pairs.vectors, 2e-4)
    # at a knot the third derivative of the table jumps, by h f'''' = 0.3: (2e-4)^2 * 0.3 / 6; rounding 2e-16 / 2e-4
    np.testing.assert_allclose(got, wanted, atol=1e-8 * np.abs(wanted).max())


def test_neighbour_leaves_smoothly(descriptor: Descriptor) -> None:
    species = np.array([0, 1])
    alone = spectrum(descriptor, NO_PAIRS, species)
    alone /= np.linalg.norm(alone)
    changes = []
    for gap in (0.02, 0.01):  # below the cutoff
        pairs = Pairs(np.array([0, 1]), np.array([1]), np.array([[0.0, 0.0, PARAMETERS.cutoff - gap]]))
        p = spectrum(descriptor, pairs, species)
        slope = unit_vjp(descriptor, pairs, species, np.ones((descriptor.size, 1)))
        changes.append((np.abs(p / np.linalg.norm(p) - alone).max(), np.abs(slope).max()))
    value, slope = np.array(changes[0]) / np.array(changes[1])
    # the switch leaves as gap^3, its slope as gap^2; next order: gap / width = 2.5 %, times 3/2 and a little more
    assert value == pytest.approx(8.0, rel=0.1)
    assert slope == pytest.approx(4.0, rel=0.1)


@pytest.mark.parametrize("distance", [4.0, 4.0 + 1e-9, 5.0])
def test_beyond_the_cutoff_nothing(descriptor: Descriptor, distance: float) -> None:
    species = np.array([0, 1])
    pairs = Pairs(np.array([0, 1]), np.array([1]), np.array([[0.0, 0.0, distance]]))
    np.testing.assert_array_equal(spectrum(descriptor, pairs, species), spectrum(descriptor, NO_PAIRS, species))
    assert not unit_vjp(descriptor, pairs, species, np.ones((descriptor.size, 1))).any()


def test_lone_atom_sees_itself(descriptor: Descriptor, helpers: Any) -> None:
    p = spectrum(descriptor, NO_PAIRS, np.array([1]))[0]
    wanted = reference(helpers, np.zeros((1, 3)), np.array([1]), 0)
    assert np.linalg.norm(p) > 0.1 * wanted.max() > 0  # so that p / |p| exists
    np.testing.assert_allclose(p, wanted, atol=1e-9 * wanted.max())  # the table's 1e-10


def test_lone_atom_that_does_not_see_itself() -> None:
    """Beside two that see each other: no spectrum, no gradient, nothing undefined."""
    positions = np.array([[0.0, 0, 0], [1.9, 0.3, -0.4], [0, 0, 9.0]])
    blind = Descriptor(SoapParameters(cutoff=4.0, n_max=2, l_max=1, central_weight=0.0), 1)
    pairs, species = pairs_of(positions), np.zeros(3, dtype=np.int64)
    lengths = np.linalg.norm(spectrum(blind, pairs, species), axis=1)
    assert (lengths > 0).tolist() == [True, True, False]
    gradient = unit_vjp(blind, pairs, species, np.random.default_rng(9).normal(size=(blind.size, 3)))
    assert np.isfinite(gradient).all()
    assert gradient.any()
