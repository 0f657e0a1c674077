"""The power spectrum against a direct expansion with SciPy, its invariances and its reverse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kqeq_md.descriptor.power_spectrum import Descriptor
from kqeq_md.descriptor.radial import SoapParameters
from kqeq_md.neighbours import Pairs, find_pairs
from kqeq_md.structure import Structure
from kqeq_md.switch import switch

PARAMETERS = SoapParameters(cutoff=4.0, cutoff_width=0.8, n_max=3, l_max=3, sigma=0.5, radial_scale=3.0)
SPECIES = np.array([0, 1, 1, 0, 1])


@pytest.fixture(scope="module")
def descriptor() -> Descriptor:
    return Descriptor(PARAMETERS, n_species=2)


def five_atoms() -> np.ndarray:
    """Five atoms within the cutoff of each other, one pair of them inside the switch."""
    return np.array([[0.0, 0, 0], [1.9, 0.3, -0.4], [-0.7, 2.2, 0.5], [0.4, -0.6, 2.4], [1.5, 1.6, 1.4]])


def pairs_of(positions: np.ndarray) -> Pairs:
    return find_pairs(Structure([1] * len(positions), positions), PARAMETERS.cutoff)


def spectrum(descriptor: Descriptor, positions: np.ndarray, species: np.ndarray = SPECIES) -> np.ndarray:
    return descriptor.power_spectrum(pairs_of(positions), species)[0]


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
    got = spectrum(descriptor, five_atoms())[centre]
    assert got.shape == (descriptor.size,)
    np.testing.assert_allclose(got, wanted, atol=1e-8 * wanted.max())  # the table's 1e-10, times r^l up to 4^3


def test_dot_product_is_the_sum_over_all_channel_pairs(descriptor: Descriptor) -> None:
    p, c = descriptor.power_spectrum(pairs_of(five_atoms()), SPECIES)
    wanted = 0.0
    for degree in range(PARAMETERS.l_max + 1):
        first, second = (c[i, degree**2 : (degree + 1) ** 2] for i in (0, 1))
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
    p = spectrum(descriptor, r)
    # equal distances up to 1e-15 and the m-sum of 7 products: rounding
    np.testing.assert_allclose(spectrum(descriptor, image), p, atol=1e-12 * p.max())


def test_permutation(descriptor: Descriptor) -> None:
    order = np.array([3, 0, 4, 2, 1])
    p = spectrum(descriptor, five_atoms())
    # only the order of the sums over neighbours differs
    np.testing.assert_allclose(
        spectrum(descriptor, five_atoms()[order], SPECIES[order]), p[order], atol=1e-13 * p.max()
    )


def test_elements_matter(descriptor: Descriptor) -> None:
    p = spectrum(descriptor, five_atoms())
    swapped = spectrum(descriptor, five_atoms(), np.array([0, 0, 1, 0, 1]))
    assert np.abs(p - swapped).max() > 0.01 * p.max()


def test_reverse(descriptor: Descriptor, helpers: Any) -> None:
    pairs = pairs_of(five_atoms())
    p, c = descriptor.power_spectrum(pairs, SPECIES)
    grad_p = np.random.default_rng(6).normal(size=p.shape)
    got = descriptor.power_spectrum_vjp(pairs, SPECIES, c, grad_p)

    def total(vectors: np.ndarray) -> float:
        displaced = Pairs(pairs.first, pairs.neighbour, vectors)
        return float((grad_p * descriptor.power_spectrum(displaced, SPECIES)[0]).sum())

    wanted = helpers.five_point(total, pairs.vectors, 2e-3)
    # the interpolated values are 1e-10 off a smooth curve, which a step of 2e-3 turns into 5e-8 of the radial slope
    np.testing.assert_allclose(got, wanted, atol=1e-7 * np.abs(wanted).max())


@pytest.mark.parametrize("l_max", [0, 1, 6])
def test_reverse_for_other_orders(l_max: int, helpers: Any) -> None:
    descriptor = Descriptor(SoapParameters(cutoff=4.0, n_max=2, l_max=l_max, sigma=0.6), n_species=3)
    species, pairs = np.array([2, 0, 1]), pairs_of(five_atoms()[:3])
    p, c = descriptor.power_spectrum(pairs, species)
    assert p.shape[1] == (l_max + 1) * 6 * 7 // 2
    got = descriptor.power_spectrum_vjp(pairs, species, c, p)

    def half_norm(vectors: np.ndarray) -> float:
        return 0.5 * float(
            (descriptor.power_spectrum(Pairs(pairs.first, pairs.neighbour, vectors), species)[0] ** 2).sum()
        )

    wanted = helpers.five_point(half_norm, pairs.vectors, 2e-3)
    np.testing.assert_allclose(got, wanted, atol=1e-7 * np.abs(wanted).max())  # as in test_reverse


def test_neighbour_leaves_smoothly(descriptor: Descriptor) -> None:
    species = np.array([0, 1])
    alone, _ = descriptor.power_spectrum(Pairs(np.array([0, 0]), np.zeros(0, np.int64), np.zeros((0, 3))), species)
    changes = []
    for gap in (0.02, 0.01):  # below the cutoff
        pairs = Pairs(np.array([0, 1]), np.array([1]), np.array([[0.0, 0.0, PARAMETERS.cutoff - gap]]))
        p, c = descriptor.power_spectrum(pairs, species)
        slope = descriptor.power_spectrum_vjp(pairs, species, c, np.ones_like(p))
        changes.append((np.abs(p - alone).max(), np.abs(slope).max()))
    value, slope = np.array(changes[0]) / np.array(changes[1])
    # the switch leaves as gap^3, its slope as gap^2; next order: gap / width = 2.5 %, times 3/2 and a little more
    assert value == pytest.approx(8.0, rel=0.1)
    assert slope == pytest.approx(4.0, rel=0.1)


@pytest.mark.parametrize("distance", [4.0, 4.0 + 1e-9, 5.0])
def test_beyond_the_cutoff_nothing(descriptor: Descriptor, distance: float) -> None:
    species = np.array([0, 1])
    pairs = Pairs(np.array([0, 1]), np.array([1]), np.array([[0.0, 0.0, distance]]))
    alone, _ = descriptor.power_spectrum(Pairs(np.array([0, 0]), np.zeros(0, np.int64), np.zeros((0, 3))), species)
    p, c = descriptor.power_spectrum(pairs, species)
    np.testing.assert_array_equal(p, alone)
    assert not descriptor.power_spectrum_vjp(pairs, species, c, np.ones_like(p)).any()


def test_lone_atom_sees_itself(descriptor: Descriptor, helpers: Any) -> None:
    p = spectrum(descriptor, np.zeros((1, 3)), np.array([1]))[0]
    wanted = reference(helpers, np.zeros((1, 3)), np.array([1]), 0)
    assert np.linalg.norm(p) > 0.1 * wanted.max() > 0  # so that p / |p| exists
    np.testing.assert_allclose(p, wanted, atol=1e-9 * wanted.max())  # the table's 1e-10
