"""How far surroundings are from the sparse points: against loops, in limits, and where the shipped model goes wrong."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest

from kqeq_md.extrapolation import FARTHEST, LARGEST_IMPORTED, LARGEST_MEASURE, Extrapolation, Limits, spacing
from kqeq_md.local_part import LARGEST_GROUP, LocalKernels
from kqeq_md.model import Model, SoapTerm, load_model
from kqeq_md.models import NACL
from kqeq_md.neighbours.half_list import Pairs, find_pairs
from kqeq_md.pair_potential import PairTerm
from kqeq_md.potential import Potential
from kqeq_md.structure import Structure
from kqeq_md.train.fit.sparse import farthest_points

FRAMES = Path(__file__).parents[1] / "examples" / "train_nacl"
FAR = {"cutoff": 4.5, "cutoff_width": 1.5, "n_max": 2, "l_max": 3, "sigma": 0.6}


def uncalibrated() -> Model:
    """The shipped model with the distance alone, as models of earlier versions have it."""
    model = load_model(NACL)
    return replace(model, training={key: value for key, value in model.training.items() if key != "extrapolation"})


def measure(model: Model, structure: Structure, threads: int = 1) -> np.ndarray:
    numbers = {number: index for index, number in enumerate(model.numbers)}
    species = np.array([numbers[number] for number in structure.numbers.tolist()])
    pairs = find_pairs(structure, model.cutoff)
    return Extrapolation(LocalKernels(model)).measure(species, pairs, species, threads)


def unit_vectors(n: int, size: int = 6, seed: int = 3) -> np.ndarray:
    """With overlaps that are not negative, shape (n, size)."""
    vectors = np.abs(np.random.default_rng(seed).normal(size=(n, size)))
    return vectors / np.linalg.norm(vectors, axis=1)[:, None]


def with_points(term: SoapTerm, *points: np.ndarray) -> SoapTerm:
    columns = term.weights[0].shape[1]
    return replace(term, sparse_points=points, weights=tuple(np.ones((len(p), columns)) for p in points))


def formula(term: SoapTerm, structure: Structure, species: np.ndarray, helpers: Any) -> np.ndarray:
    """The measure atom by atom and point by point."""
    out = np.zeros(len(species))
    for i, u in enumerate(helpers.spectra(term.soap, structure, species, len(term.sparse_points))):
        points = term.sparse_points[species[i]]
        alone = [min(np.linalg.norm(points[m] - q) for q in np.delete(points, m, axis=0)) for m in range(len(points))]
        out[i] = min(np.linalg.norm(u - p) for p in points) / np.quantile(alone, 0.9)
    return out


# --- the formula


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_largest_of_all_kernels(columns: int, helpers: Any) -> None:
    terms = helpers.soap_term(2, 2, columns), helpers.soap_term(2, 4, columns, 7, **FAR)
    structure, species = helpers.mixture(30, 2, 7.0)
    each = [formula(term, structure, species, helpers) for term in terms]
    assert 0 < (each[0] > each[1]).sum() < len(species)
    got = measure(helpers.local_model(2, *terms), structure)
    np.testing.assert_allclose(got, np.maximum(*each), rtol=1e-12, atol=0)  # the same sums in another order


def test_sparse_points_are_at_home(helpers: Any) -> None:
    """Atoms that became sparse points measure 0; others of the same kind do not."""
    structure, _ = helpers.mixture(24, 2, edge=9.0, seed=40)  # that of `soap_term`
    model = helpers.local_model(2, helpers.soap_term(2, 2, 2))
    # distances are roots of rounding: sqrt(1e-16) over a scale of order 0.1
    np.testing.assert_allclose(measure(model, structure), 0.0, rtol=0, atol=1e-6)
    moved = Structure(structure.numbers, structure.positions + 0.1 * helpers.crowd(24, 9.0))
    assert measure(model, moved).min() > 1e-3


def test_low_rank_changes_nothing() -> None:
    """The points of a kernel of low rank are no surroundings of any atom."""
    model = uncalibrated()
    exact = replace(model, terms=(replace(model.terms[0], low_rank=None),))
    structure = structure_of("melt")
    assert model.terms[0].low_rank is not None
    np.testing.assert_array_equal(measure(model, structure), measure(exact, structure))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_groups_threads_and_order(threads: int, helpers: Any) -> None:
    n = 2 * LARGEST_GROUP + 40  # two groups of one element
    structure, _ = helpers.mixture(n, 2, 19.0)
    model = helpers.local_model(2, helpers.soap_term(2, 2, 2))
    order = np.random.default_rng(1).permutation(n)
    shuffled = Structure(structure.numbers[order], structure.positions[order])
    single = measure(model, structure)
    # roots of rounding in sums of another order
    np.testing.assert_allclose(measure(model, shuffled, threads), single[order], rtol=1e-7, atol=0)


def test_calibrated_models_share_with_neighbours(helpers: Any) -> None:
    """sqrt(sum_j exp(-r_ij^2 / a^2) d_j^2) sqrt(1 + F_i^2 / F_0^2) atom by atom, images among the neighbours."""
    record = {"threshold": 2.0, "charges": {}, "charge_per_atom": [-1.0, 1.0]}
    model = uncalibrated()
    calibrated = replace(model, training={"extrapolation": record})
    structure = helpers.rock_salt(1, rattle=0.3)
    alone, potential = measure(model, structure), Potential(calibrated)
    pairs = find_pairs(structure, model.cutoff)
    wanted = alone**2
    for i, j, vector in zip(pairs.centre, pairs.neighbour, pairs.vectors, strict=True):
        wanted[i] += np.exp(-(vector @ vector) / 2.0**2) * alone[j] ** 2
    np.testing.assert_allclose(potential.extrapolation(structure), np.sqrt(wanted), rtol=1e-9)  # other order of sums
    result = potential.compute(structure)
    assert result.forces is not None
    steep = np.sqrt(wanted * (1.0 + (result.forces**2).sum(axis=1) / 4.0**2))
    np.testing.assert_allclose(potential.extrapolation(structure, result=result), steep, rtol=1e-9)
    np.testing.assert_allclose(Potential(model).extrapolation(structure, result=result), alone, rtol=1e-9)


def test_foreign_surroundings_count_where_the_threshold_is_high() -> None:
    """Close contacts in a training set make it so: at the usual limit of the distance an atom is beyond it anyhow."""
    limits = Limits(10.0, np.zeros((1, 2)), np.zeros(2))
    far = limits.far(np.array([1.0, LARGEST_MEASURE / 1.5, LARGEST_MEASURE, 2.0]))
    np.testing.assert_allclose(far[:3], [0.0, 0.0, 10.0], atol=1e-12)  # rounding
    assert far[3] == pytest.approx(10.0 * (1.5 * 2.0 / LARGEST_MEASURE - 1.0) / 0.5)
    chlorine = Structure(np.array([17, 17]), np.array([[0.0, 0, 0], [0, 0, 2.0]]))
    potential = Potential(NACL)
    assert potential.extrapolation(chlorine).max() > potential.largest_measure


# --- the scale


def test_training_atoms_are_within_one() -> None:
    """Gonzalez' bound: all rows that farthest points were chosen from are nearer to one than these to each other."""
    rows = unit_vectors(2000)
    points = farthest_points(rows, 60, np.random.default_rng(2))
    nearest = np.linalg.norm(rows[:, None] - points, axis=2).min(axis=1)
    apart = np.linalg.norm(points[:, None] - points, axis=2) + 2.0 * np.eye(60)
    assert 0.5 * spacing(points) < nearest.max() <= apart.min() + 1e-7 <= spacing(points)  # rounded to single precision


def test_spacing_in_groups() -> None:
    points = unit_vectors(LARGEST_GROUP + 90)
    apart = np.linalg.norm(points[:, None] - points, axis=2) + 2.0 * np.eye(len(points))
    assert spacing(points) == pytest.approx(np.quantile(apart.min(axis=1), 0.9), rel=1e-12)


def test_doubles_and_outliers_do_not_set_the_scale() -> None:
    points = unit_vectors(100)
    doubles = np.repeat(points, 2, axis=0)
    outlier = np.concatenate([points, np.eye(6)[:1]])
    # the tenth largest of a hundred distances changes places with its neighbours
    for changed in (doubles, outlier):
        assert spacing(changed) == pytest.approx(spacing(points), rel=0.1)


def test_points_without_distances(helpers: Any) -> None:
    """One point, the same points, none: the largest scale, so that nothing is called far; 0 without a kernel."""
    one = unit_vectors(1)
    assert spacing(one) == spacing(np.repeat(one, 5, axis=0)) == spacing(one[:0]) == FARTHEST
    structure, species = helpers.mixture(12, 2)
    term = helpers.soap_term(2, 2, 2)
    hydrogen, oxygen = term.sparse_points
    for points, largest in ((oxygen[:1], 1.0), (oxygen[[0, 0, 0]], 1.0), (oxygen[:0], 0.0)):
        got = measure(helpers.local_model(2, with_points(term, hydrogen, points)), structure)
        assert got[species == 1].max() <= largest
        assert (got[species == 0] > 0.0).all()
    assert got[species == 1].max() == 0.0


def test_pair_terms_alone(helpers: Any) -> None:
    pair = PairTerm((0, 0), np.array([0.9, 1.7]), np.array([3.0, -4.0]), 0.6, 4.0, 1.5)
    structure, _ = helpers.mixture(6, 2)
    assert measure(helpers.local_model(2, pair_terms=(pair,)), structure).tolist() == [0.0] * 6


def test_no_density_at_all(helpers: Any) -> None:
    """A lone atom that does not see itself has no spectrum: as far from every point as these are long."""
    term = helpers.soap_term(2, 2, 2, central_weight=0.0)
    got = measure(helpers.local_model(2, term), Structure([1], [[0.0, 0.0, 0.0]]))
    assert got[0] == pytest.approx(1.0 / spacing(term.sparse_points[0]), rel=1e-12)


def test_a_rank_without_atoms(helpers: Any) -> None:
    none = np.empty(0, dtype=np.int64)
    extrapolation = Extrapolation(LocalKernels(helpers.local_model(2, helpers.soap_term(2, 2, 2))))
    got = extrapolation.measure(none, Pairs(np.array([0]), none, np.empty((0, 3))), np.array([0, 1]))
    assert got.shape == (0,)


def test_ghosts_are_surroundings(helpers: Any) -> None:
    """The first atoms alone, the others as their ghosts."""
    model = helpers.local_model(2, helpers.soap_term(2, 2, 2))
    structure, species = helpers.mixture(20, 2)
    pairs = find_pairs(structure, model.cutoff)
    owned = Pairs(pairs.first[:9], pairs.neighbour[: pairs.first[8]], pairs.vectors[: pairs.first[8]])
    got = Extrapolation(LocalKernels(model)).measure(species[:8], owned, species)
    np.testing.assert_allclose(got, measure(model, structure)[:8], rtol=1e-7, atol=0)  # roots of rounding


# --- the shipped model: where it was trained, and where its forces go wrong


@cache
def frames(name: str) -> list[Any]:
    return list(ase.io.read(FRAMES / name, ":"))


def structure_of(kind: str, scale: float = 1.0) -> Structure:
    """The first held-out frame of a kind."""
    atoms = next(atoms for atoms in frames("test.xyz") if atoms.info["name"].startswith(kind))
    return Structure(atoms.numbers, scale * atoms.positions)


def test_training_and_test_frames_are_near() -> None:
    """All training atoms within 1 (the bound above), no atom of the test set beyond the threshold."""
    model = uncalibrated()
    known, unknown = (
        np.concatenate([measure(model, Structure(a.numbers, a.positions)) for a in frames(name)[::step]])
        for name, step in (("train.xyz", 8), ("test.xyz", 1))
    )
    assert 0.7 < known.max() <= 1.0
    assert 1.0 < unknown.max() < LARGEST_MEASURE
    assert (unknown > 1.0).mean() < 0.01


@pytest.mark.parametrize(
    ("name", "structure"),
    [
        ("compressed melt", lambda: structure_of("melt", 0.75)),
        ("compressed crystal", lambda: structure_of("solid", 0.8)),
        ("chlorine molecule", lambda: Structure([17, 17], [[0, 0, 0], [0, 0, 2.0]])),
        ("sodium metal", lambda: Structure([11] * 27, 3.6 * np.array(list(np.ndindex(3, 3, 3))))),
        ("ions exchanged", lambda: exchanged(structure_of("melt"))),
    ],
)
def test_foreign_structures_are_far(name: str, structure: Any) -> None:
    """Where forces of the model miss those of GFN2-xTB by 0.8 (metal) to 9 eV/Angstrom (chlorine), rms."""
    assert measure(uncalibrated(), structure()).max() > LARGEST_MEASURE, name


def test_potential_measures_in_the_order_of_the_structure(helpers: Any) -> None:
    """More atoms than are left unsorted, and a threshold of its own for points that were chosen otherwise."""
    potential, model = Potential(uncalibrated()), uncalibrated()
    melt = structure_of("melt")
    big = helpers.rock_salt(4, rattle=0.1)
    assert len(big) > 500
    for one in (melt, big):
        np.testing.assert_allclose(potential.extrapolation(one), measure(model, one), rtol=1e-9)
    assert potential.largest_measure == LARGEST_MEASURE
    assert Potential(replace(model, training={"imported": "QUIP GAP"})).largest_measure == LARGEST_IMPORTED


def exchanged(structure: Structure) -> Structure:
    """Five sodium atoms in the places of chlorine atoms and the other way round."""
    numbers = structure.numbers.copy()
    for old, new in ((11, 17), (17, 11)):
        numbers[np.flatnonzero(structure.numbers == old)[:5]] = new
    return Structure(numbers, structure.positions)


def test_grows_with_compression() -> None:
    """From the density of the training set on, with that of each step beyond it."""
    model = uncalibrated()
    largest = [measure(model, structure_of("melt", scale)).max() for scale in (1.0, 0.9, 0.85, 0.8, 0.75, 0.7)]
    assert largest == sorted(largest)
    assert largest[0] < 1.0 < LARGEST_MEASURE < largest[3]
