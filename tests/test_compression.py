"""The rank that forces on given structures allow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kqeq_md.compression import LARGEST_FORCE_ERROR, STEP, Compressed, compress, forces_on
from kqeq_md.errors import KqeqError
from kqeq_md.kernel import SparseKernel, low_rank
from kqeq_md.model import Model, SoapTerm
from kqeq_md.potential import Potential


@pytest.fixture(scope="module")
def many_points(helpers: Any) -> Model:
    """A model with 64 sparse points per element, of surroundings like those in which it is used."""
    model = helpers.random_model()
    soap, rng = model.terms[0].soap, np.random.default_rng(5)
    solids = [helpers.rock_salt(2, rattle=0.7, seed=seed) for seed in (31, 32)]
    spectra = [helpers.spectra(soap, solid, (solid.numbers == 17).astype(np.int64)) for solid in solids]
    points = tuple(
        np.concatenate([unit[solid.numbers == z] for unit, solid in zip(spectra, solids, strict=True)])
        for z in (11, 17)
    )
    weights = tuple(np.array([5.0, 200.0]) * rng.normal(size=(len(p), 2)) for p in points)
    return replace(model, terms=(SoapTerm(soap, 2, points, weights),))


@pytest.fixture(scope="module")
def structures(helpers: Any) -> list[Any]:
    return [helpers.rock_salt(rattle=0.6, seed=33), helpers.cluster(seed=34, charge=1.0)]


@pytest.fixture(scope="module")
def compressed(many_points: Model, structures: list[Any]) -> Compressed:
    return compress(many_points, forces_on(structures))


def error_of(model: Model, structures: list[Any]) -> float:
    """rms of the change of all forces over their rms."""
    low, exact = (
        np.concatenate([Potential(model, kernel=kernel).compute(s).forces for s in structures])
        for kernel in ("low_rank", "exact")
    )
    return float(np.linalg.norm(low - exact) / np.linalg.norm(exact))


def rank_of(model: Model) -> float:
    (term,) = model.terms
    assert term.low_rank is not None
    return float(np.mean([len(p) for p in term.low_rank.points]))


def test_error_is_small_and_told(compressed: Compressed, structures: list[Any]) -> None:
    assert compressed.force_error is not None
    assert 0.0 < compressed.force_error < LARGEST_FORCE_ERROR
    assert error_of(compressed.model, structures) == pytest.approx(compressed.force_error, rel=1e-4)


def test_no_lower_rank_would_do(compressed: Compressed, structures: list[Any]) -> None:
    (term,), rank = compressed.model.terms, rank_of(compressed.model)
    assert rank % STEP == 0
    assert STEP < rank < 64
    lower = low_rank(SparseKernel(term.sparse_points, term.weights), int(rank) - STEP)
    other = replace(compressed.model, terms=(replace(term, low_rank=lower),))
    assert error_of(other, structures) > LARGEST_FORCE_ERROR


def test_the_sparse_points_stay(compressed: Compressed, many_points: Model, structures: list[Any]) -> None:
    exact = Potential(compressed.model, kernel="exact").compute(structures[0])
    assert exact.energy == Potential(many_points).compute(structures[0]).energy
    with pytest.raises(KqeqError, match="the model has no kernel of low rank"):
        Potential(many_points, kernel="low_rank")


@pytest.mark.parametrize("zeta", [1, 3, 2.5])
def test_other_exponents_have_none(many_points: Model, structures: list[Any], zeta: float) -> None:
    (term,) = many_points.terms
    other = replace(many_points, terms=(replace(term, zeta=zeta),))
    found = compress(other, forces_on(structures))
    assert (found.model, found.force_error) == (other, None)


def test_few_points_have_none(helpers: Any, structures: list[Any]) -> None:
    found = compress(helpers.random_model(), forces_on(structures))
    assert found.force_error is None
    assert found.model.terms[0].low_rank is None
