"""Kernels and pair terms of all atoms: against loops, by finite differences, at the cutoff and in threads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kqeq_md.kernel import SparseKernel, low_rank
from kqeq_md.local_part import LARGEST_GROUP, LocalKernels, LocalPart, same_element
from kqeq_md.model import Model
from kqeq_md.neighbours.half_list import Pairs, find_pairs
from kqeq_md.pair_potential import PairTerm, add_pair_terms, pair_tables
from kqeq_md.structure import Structure

FAR = {"cutoff": 4.5, "cutoff_width": 1.5, "n_max": 2, "l_max": 3, "sigma": 0.6}
PAIR_TERMS = (
    PairTerm((0, 0), np.array([0.9, 1.7, 2.6]), np.array([3.0, -4.0, 2.0]), 0.6, 4.0, 1.5),
    PairTerm((0, 1), np.array([1.2, 2.0]), np.array([2.0, -3.0]), 0.8, 3.7, 1.0),
)
STEP = 2e-4
"""Angstrom, of finite differences: shorter than the spacing of tables, whose interpolant has jumps at the knots."""


def local_part(model: Model | LocalKernels, structure: Structure, species: np.ndarray, threads: int = 1) -> LocalPart:
    kernels = LocalKernels(model) if isinstance(model, Model) else model
    return LocalPart(kernels, species, find_pairs(structure, kernels.model.cutoff), threads=threads)


def acting(n: int, columns: int = 3) -> tuple[np.ndarray, np.ndarray | None]:
    """Charges, and what reference charges cost where the model learns them."""
    charges, reference = np.random.default_rng(8).normal(size=(2, n))
    return charges, reference if columns == 3 else None


def energy(local: LocalPart) -> float:
    """What `LocalPart.gradient` differentiates."""
    charges, reference = acting(len(local.species), local.model.columns)
    total = local.energies.sum()
    if local.model.charges != "none":
        total += charges @ local.electronegativity
    return float(total if reference is None else total + reference @ local.reference_charge)


def gradient(local: LocalPart) -> np.ndarray:
    """dE/dR of the same, eV/Angstrom, shape (n, 3)."""
    return local.pairs.scatter(local.gradient(*acting(len(local.species), local.model.columns)), len(local.species))


def of_pair_terms(pairs: Pairs, species: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Energies of the centres and gradient in the pair vectors of `PAIR_TERMS`."""
    energies, slopes = np.zeros(len(species)), np.zeros_like(pairs.vectors)
    add_pair_terms(pairs, species, pair_tables(PAIR_TERMS, 2), energies, slopes)
    return energies, slopes


def follows_the_energy(kernels: LocalKernels, structure: Structure, species: np.ndarray, helpers: Any) -> None:
    """The gradient by finite differences."""
    wanted = helpers.five_point(
        lambda r: energy(local_part(kernels, helpers.moved(structure, r), species)), structure.positions, STEP
    )
    got = gradient(local_part(kernels, structure, species))
    assert np.abs(wanted).max() > 0.1  # eV/Angstrom
    # at a knot the third derivative of a table jumps, by h f'''' = 0.3: (2e-4)^2 * 0.3 / 6; rounding 1e-15 / 2e-4
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-8 * np.abs(wanted).max())


def in_the_switch(kernels: LocalKernels, structure: Structure) -> int:
    """How many pairs see the end of the first term."""
    soap, r = kernels.model.terms[0].soap, np.linalg.norm(find_pairs(structure, 20.0).vectors, axis=1)
    return int(((soap.cutoff - soap.cutoff_width < r) & (r < soap.cutoff)).sum())


# --- the sparse kernel, atom by atom


def by_loops(model: Model, structure: Structure, species: np.ndarray, helpers: Any) -> np.ndarray:
    """y of all kernels over atoms and sparse points, shape (columns, n)."""
    y = np.zeros((model.columns, len(species)))
    for term in model.terms:
        unit = helpers.spectra(term.soap, structure, species, len(model.species))
        for i, element in enumerate(species):
            for point, w in zip(term.sparse_points[element], term.weights[element], strict=True):
                y[:, i] += w * (unit[i] @ point) ** term.zeta
    return y


@pytest.mark.parametrize("columns", [1, 2, 3])
@pytest.mark.parametrize("zeta", [1, 2, 2.5, 4])
@pytest.mark.parametrize("n_species", [1, 2, 3, 4])
def test_sparse_kernel(n_species: int, zeta: float, columns: int, helpers: Any) -> None:
    model = helpers.local_model(n_species, helpers.soap_term(n_species, zeta, columns))
    structure, species = helpers.mixture(30, n_species)
    y, local = by_loops(model, structure, species, helpers), local_part(model, structure, species)
    # rounding of 12 terms, and of as many eigenvectors where they stand for the sparse points
    wanted = y[model.energy_column] + model.atom_energy[species]
    np.testing.assert_allclose(local.energies, wanted, rtol=0, atol=1e-12)
    chi = model.electronegativity_offset[species] + (0.0 if columns == 1 else y[0])
    np.testing.assert_allclose(local.electronegativity, chi, rtol=0, atol=1e-12)
    q0 = model.reference_charge[species] + (y[2] if columns == 3 else 0.0)
    np.testing.assert_allclose(local.reference_charge, q0, rtol=0, atol=1e-12)


@pytest.mark.parametrize("zeta", [1, 2, 2.5, 4])
@pytest.mark.parametrize("n_species", [1, 2, 3, 4])
def test_gradient(n_species: int, zeta: float, helpers: Any) -> None:
    """Also of pairs inside the switch, for one column and for three."""
    structure, species = helpers.mixture(7, n_species, 4.5)
    for columns in (1, 3):
        term = helpers.soap_term(n_species, zeta, columns)
        kernels = LocalKernels(helpers.local_model(n_species, term))
        assert in_the_switch(kernels, structure) > 5
        follows_the_energy(kernels, structure, species, helpers)


@pytest.mark.parametrize("soap", [{"switching": "cosine", "basis": "quip_gto"}, {"basis": "quip_equispaced_gauss"}, {
    "central_weight": 0.0}, {"radial_scale": 2.0}], ids=str)  # fmt: skip
def test_gradient_of_other_descriptors(soap: dict[str, Any], helpers: Any) -> None:
    structure, species = helpers.mixture(7, 2, 4.5)
    follows_the_energy(
        LocalKernels(helpers.local_model(2, helpers.soap_term(2, 4, 2, **soap))), structure, species, helpers
    )


def test_short_range_has_a_factor_and_reference_charges_may_stay_out(helpers: Any) -> None:
    model = helpers.local_model(2, helpers.soap_term(2, 2, 3), pair_terms=PAIR_TERMS)
    local = local_part(model, *helpers.mixture(12, 2))
    charges, reference = acting(12)
    nothing = np.zeros(12)
    parts = [local.gradient(charges, None, 0.0), local.gradient(nothing, reference, 0.0), local.gradient(nothing)]
    for part in parts:
        assert np.abs(part).max() > 0.1
    got = local.gradient(charges, reference, 0.3)
    # the same sums
    np.testing.assert_allclose(got, parts[0] + parts[1] + 0.3 * parts[2], rtol=0, atol=1e-13 * np.abs(got).max())
    uncharged = local_part(
        helpers.local_model(2, helpers.soap_term(2, 2, 1), pair_terms=PAIR_TERMS), *helpers.mixture(12, 2)
    )
    np.testing.assert_allclose(uncharged.gradient(charges, None, 0.3), 0.3 * uncharged.gradient(nothing), rtol=1e-13)


# --- other kernels in their place


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_full_rank_is_the_exact_kernel(columns: int, helpers: Any) -> None:
    term = helpers.soap_term(2, 2, columns, 20)
    full = replace(term, low_rank=low_rank(SparseKernel(term.sparse_points, term.weights), 20 * columns))
    model, system = helpers.local_model(2, full), helpers.mixture(40, 2)
    approximate = local_part(model, *system)
    exact = local_part(LocalKernels(model, exact=True), *system)
    # where sparse points hardly differ their b_k are long: rounding times (s_1 / s_k)^2, up to 3e7
    np.testing.assert_allclose(approximate.energies, exact.energies, rtol=0, atol=1e-8)
    np.testing.assert_allclose(approximate.electronegativity, exact.electronegativity, rtol=0, atol=1e-8)
    np.testing.assert_allclose(approximate.reference_charge, exact.reference_charge, rtol=0, atol=1e-8)
    wanted = gradient(exact)
    np.testing.assert_allclose(gradient(approximate), wanted, rtol=0, atol=1e-8 * np.abs(wanted).max())


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_low_rank_has_its_own_energy(columns: int, helpers: Any) -> None:
    """What is left out changes energies, of which forces are still the derivatives."""
    term = helpers.soap_term(2, 2, columns, 20)
    short = replace(term, low_rank=low_rank(SparseKernel(term.sparse_points, term.weights), 3 * columns))
    model = helpers.local_model(2, short)
    structure, species = helpers.mixture(7, 2, 4.5)
    kernels = LocalKernels(model)
    exact = local_part(LocalKernels(model, exact=True), structure, species)
    assert abs(energy(local_part(kernels, structure, species)) - energy(exact)) > 1e-4  # eV
    follows_the_energy(kernels, structure, species, helpers)


@pytest.mark.parametrize("form", ["sparse", "fewest", "low rank"])
def test_elements_without_sparse_points(form: str, helpers: Any) -> None:
    """They have no kernel of their own, but are seen by others."""
    columns = 1 if form == "fewest" else 2
    term = helpers.soap_term(3, 2, columns)
    term = replace(
        term,
        sparse_points=(term.sparse_points[0], term.sparse_points[1][:0], term.sparse_points[2]),
        weights=(term.weights[0], term.weights[1][:0], term.weights[2]),
    )
    if form == "low rank":
        term = replace(term, low_rank=low_rank(SparseKernel(term.sparse_points, term.weights), 4))
    model, (structure, species) = helpers.local_model(3, term), helpers.mixture(7, 3, 4.5)
    local = local_part(model, structure, species)
    np.testing.assert_array_equal(local.energies[species == 1], model.atom_energy[1])
    np.testing.assert_array_equal(local.electronegativity[species == 1], model.electronegativity_offset[1])
    assert np.abs(gradient(local)[species == 1]).max() > 1e-2  # eV/Angstrom
    follows_the_energy(LocalKernels(model), structure, species, helpers)


# --- several terms


def test_terms_add_up(helpers: Any) -> None:
    """Of different cutoffs and zeta, one of low rank, beside pair terms."""
    near, far = helpers.soap_term(2, 2, 2), helpers.soap_term(2, 2.5, 2, 7, **FAR)
    near = replace(near, low_rank=low_rank(SparseKernel(near.sparse_points, near.weights), 9))
    structure, species = helpers.mixture(30, 2)
    together = local_part(helpers.local_model(2, near, far, pair_terms=PAIR_TERMS), structure, species)
    one, two = (local_part(helpers.local_model(2, term), structure, species) for term in (near, far))
    model, pairs = together.model, find_pairs(structure, 4.5)
    of_pairs, slopes = of_pair_terms(pairs, species)
    assert np.abs(of_pairs).max() > 1
    # sums of the same numbers in another order
    wanted = one.energies + two.energies + of_pairs - model.atom_energy[species]
    np.testing.assert_allclose(together.energies, wanted, rtol=0, atol=1e-13)
    wanted = one.electronegativity + two.electronegativity - model.electronegativity_offset[species]
    np.testing.assert_allclose(together.electronegativity, wanted, rtol=0, atol=1e-13)
    wanted = gradient(one) + gradient(two) + pairs.scatter(slopes, 30)
    np.testing.assert_allclose(gradient(together), wanted, rtol=0, atol=1e-12 * np.abs(wanted).max())


@pytest.mark.parametrize("columns", [1, 3])
def test_gradient_of_several_terms(columns: int, helpers: Any) -> None:
    terms = helpers.soap_term(2, 2, columns), helpers.soap_term(2, 4, columns, 7, **FAR)
    model = helpers.local_model(2, *terms, pair_terms=PAIR_TERMS, repulsion_radius=np.array([0.8, 1.1]))
    structure, species = helpers.mixture(7, 2, 4.5)
    follows_the_energy(LocalKernels(model), structure, species, helpers)


def test_pair_terms_alone(helpers: Any) -> None:
    model = helpers.local_model(2, pair_terms=PAIR_TERMS)
    structure, species = helpers.mixture(12, 2)
    local = local_part(model, structure, species)
    of_pairs, slopes = of_pair_terms(local.pairs, species)
    # the same sums from another start
    np.testing.assert_allclose(local.energies, of_pairs + model.atom_energy[species], rtol=0, atol=1e-14)
    np.testing.assert_array_equal(local.gradient(np.zeros(12)), slopes)


# --- at the cutoff, few atoms and many


def two_atoms(kernels: LocalKernels, r: float) -> LocalPart:
    structure = Structure([1, 8], [[0, 0, 0], [0, 0, r]])
    return LocalPart(kernels, np.array([0, 1]), find_pairs(structure, 4.0))


@pytest.mark.parametrize(("switching", "order"), [("quintic", 3), ("cosine", 2)])
@pytest.mark.parametrize("zeta", [1, 2, 2.5, 4])
def test_an_atom_leaves_smoothly(zeta: float, switching: str, order: int, helpers: Any) -> None:
    """Energy and slope of two atoms go to those of lone ones, one order apart."""
    kernels = LocalKernels(helpers.local_model(2, helpers.soap_term(2, zeta, 2, switching=switching)))
    alone = energy(two_atoms(kernels, 30.0))
    changes, slopes = [], []
    for gap in (0.02, 0.01):
        local = two_atoms(kernels, 3.5 - gap)
        changes.append(energy(local) - alone)
        slopes.append(gradient(local)[1, 2])
    # next order: gap / width = 2 %, times 3/2 and a little more
    assert changes[0] / changes[1] == pytest.approx(2.0**order, rel=0.1)
    assert slopes[0] / slopes[1] == pytest.approx(2.0 ** (order - 1), rel=0.1)
    for r in (3.5, 3.5 + 1e-9, 3.9):
        assert energy(two_atoms(kernels, r)) == pytest.approx(alone, rel=1e-14)
        assert not gradient(two_atoms(kernels, r)).any()


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_lone_atoms(weight: float, helpers: Any) -> None:
    """Alone, or in one group with others: they see themselves, or nothing at all."""
    kernels = LocalKernels(helpers.local_model(1, helpers.soap_term(1, 2, 2, central_weight=weight)))
    structure, _ = helpers.mixture(5, 1)
    positions = np.concatenate([structure.positions, [[0, 0, 30.0]]])
    together = local_part(kernels, Structure([1] * 6, positions), np.zeros(6, dtype=np.int64))
    alone = local_part(kernels, Structure([1], positions[5:]), np.zeros(1, dtype=np.int64))
    assert together.energies[5] == pytest.approx(alone.energies[0], rel=1e-14)  # the same numbers
    assert together.electronegativity[5] == pytest.approx(alone.electronegativity[0], rel=1e-14)
    assert (alone.energies[0] == kernels.model.atom_energy[0]) == (weight == 0.0)
    assert gradient(alone).tolist() == [[0.0, 0.0, 0.0]]
    assert np.isfinite(gradient(together)).all()
    assert gradient(together)[5].tolist() == [0.0, 0.0, 0.0]


def test_two_atoms_pull_along_their_axis(helpers: Any) -> None:
    kernels = LocalKernels(helpers.local_model(2, helpers.soap_term(2, 2, 2)))
    axis = np.array([0.6, 0.0, 0.8])
    structure = Structure([1, 8], [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0] + 1.7 * axis])
    got = gradient(local_part(kernels, structure, np.array([0, 1])))
    assert np.abs(got).max() > 0.1
    np.testing.assert_allclose(got[0], -got[1], rtol=0, atol=1e-14)  # the same numbers
    np.testing.assert_allclose(np.cross(got[0], axis), 0.0, atol=1e-13)  # rounding of some eV/Angstrom


class Ghosts:
    """A halo of one owned atom and ghosts of given elements."""

    def __init__(self, species_all: np.ndarray) -> None:
        self.forward = lambda species: species_all


@pytest.mark.parametrize("zeta", [2, 4])
def test_five_hundred_neighbours(zeta: float, helpers: Any) -> None:
    """Energy and gradient of one centre, from its pairs one by one and moved together."""
    grid = 0.85 * (np.stack(np.meshgrid(*[np.arange(-6, 7)] * 3), axis=-1).reshape(-1, 3) + 0.5)
    around = grid + np.random.default_rng(1).uniform(-0.1, 0.1, size=grid.shape)
    around = around[np.linalg.norm(around, axis=1) < 4.5]
    assert len(around) >= 500
    species = np.arange(len(around) + 1) % 3
    kernels = LocalKernels(helpers.local_model(3, helpers.soap_term(3, zeta, 1, 7, **FAR)))
    first, neighbour = np.array([0, len(around)]), np.arange(1, len(around) + 1)

    def of(vectors: np.ndarray) -> LocalPart:
        return LocalPart(kernels, species[:1], Pairs(first, neighbour, vectors), Ghosts(species))

    got = of(around).gradient(np.zeros(1))
    wanted = helpers.five_point(lambda shift: of(around + shift).energies[0], np.zeros(3), STEP)
    # 500 times the error of one pair (`follows_the_energy`), which do not add up; here the gradients nearly cancel
    np.testing.assert_allclose(got.sum(axis=0), wanted, rtol=0, atol=1e-7 * np.abs(got).max())

    few = slice(0, len(around), 50)

    def moved(vectors: np.ndarray) -> float:
        out = around.copy()
        out[few] = vectors
        return float(of(out).energies[0])

    np.testing.assert_allclose(got[few], helpers.five_point(moved, around[few], STEP), rtol=0,
                               atol=1e-7 * np.abs(got).max())  # fmt: skip


# --- groups and threads


@pytest.mark.parametrize("size", [1, 3, 64])
def test_every_atom_is_in_one_group(size: int) -> None:
    species = np.random.default_rng(2).integers(3, size=200) * 2  # no atoms of elements 1 and 3
    groups = list(same_element(species, size))
    np.testing.assert_array_equal(np.sort(np.concatenate([rows for _, rows in groups])), np.arange(200))
    for element, rows in groups:
        assert 1 <= len(rows) <= size
        assert (species[rows] == element).all()
    assert len(groups) == sum(-(-(species == element).sum() // size) for element in (0, 2, 4))


@pytest.mark.parametrize("columns", [1, 3])
def test_a_rank_without_atoms(columns: int, helpers: Any) -> None:
    none, empty = np.empty(0, dtype=np.int64), np.empty((0, 3))
    assert list(same_element(none, 8)) == []
    terms = {"pair_terms": PAIR_TERMS, "repulsion_radius": np.array([0.8, 1.1])}
    kernels = LocalKernels(helpers.local_model(2, helpers.soap_term(2, 2, columns), **terms))
    local = LocalPart(kernels, none, Pairs(np.array([0]), none, empty), Ghosts(np.array([0, 1])))
    assert len(local.energies) == len(local.electronegativity) == len(local.reference_charge) == 0
    assert local.gradient(np.empty(0), np.empty(0)).shape == (0, 3)


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("n", [1, 2, 3, 15, 16, 17, 63, 64, 65, 130, 300])
def test_threads_and_groups_change_rounding_alone(
    n: int, columns: int, monkeypatch: pytest.MonkeyPatch, helpers: Any
) -> None:
    terms = helpers.soap_term(2, 2, columns), helpers.soap_term(2, 4, columns, 7, **FAR)
    kernels = LocalKernels(helpers.local_model(2, *terms, pair_terms=PAIR_TERMS))
    structure, _ = helpers.mixture(n, 1, 14.0)
    species = (np.arange(n) % 7 == 3).astype(np.int64)  # large groups beside small ones
    monkeypatch.setattr("kqeq_md.local_part.LARGEST_GROUP", 1)
    single = local_part(kernels, structure, species)
    wanted = gradient(single)
    monkeypatch.setattr("kqeq_md.local_part.LARGEST_GROUP", LARGEST_GROUP)
    for threads in (1, 2, 3):
        local = local_part(kernels, structure, species, threads)
        for name in ("energies", "electronegativity", "reference_charge"):
            values = getattr(single, name)
            np.testing.assert_allclose(
                getattr(local, name), values, rtol=0, atol=1e-12 * np.abs(values).max(), err_msg=name
            )
        np.testing.assert_allclose(gradient(local), wanted, rtol=0, atol=1e-12 * np.abs(wanted).max(initial=0.0))


@pytest.mark.parametrize(
    ("n", "threads", "sizes"),
    [
        (600, 1, [256, 256, 88]),
        (600, 3, [48] * 12 + [24]),  # 600 / (4 * 3) = 50, down to whole vectors of eight
        (6000, 2, [256] * 23 + [112]),
        (40, 2, [16, 16, 8]),
    ],
)
def test_threads_share_atoms(n: int, threads: int, sizes: list[int], helpers: Any) -> None:
    """Several groups for each thread, so that none has to wait long for another; a single one takes the largest."""
    kernels = LocalKernels(helpers.local_model(1, helpers.soap_term(1, 2, 2)))
    pairs = Pairs(np.zeros(n + 1, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty((0, 3)))
    local = LocalPart(kernels, np.zeros(n, dtype=np.int64), pairs, threads=threads)
    pieces = local._pieces(kernels.terms[0])
    assert [len(rows) for _, rows in pieces] == sizes
    assert len(set(np.round(local.energies, 12))) == 1  # all are alone


# --- pairs to atoms


def test_scatter() -> None:
    """Minus on centres, plus on neighbours, of which some are ghosts and one is met twice."""
    rng = np.random.default_rng(3)
    first, neighbour = np.array([0, 0, 3, 4, 9]), rng.integers(7, size=9)
    pairs = Pairs(first, neighbour, rng.normal(size=(9, 3)))
    gradient_pc, wanted = rng.normal(size=(9, 3)), np.zeros((7, 3))
    np.subtract.at(wanted, pairs.centre, gradient_pc)
    np.add.at(wanted, neighbour, gradient_pc)
    np.testing.assert_allclose(pairs.scatter(gradient_pc, 7), wanted, rtol=0, atol=1e-15)  # sums of three in any order
