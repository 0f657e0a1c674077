"""Priors by the error on rows that have no part in the fit: ridge problems whose best prior is known."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from kqeq_md.train.fit.normal_equations import NormalEquations
from kqeq_md.train.fit.regularisation import LARGEST_FACTOR, NARROWER, STEP, choose_factors

FACTORS = [STEP**p for p in range(-2, 3)]


class Ridge:
    """Labels of linear models: each column of ten unknowns has its own true width; all have the prior 1.

    Args:
        widths: true standard deviation of the unknowns of each column.
        noise: of the labels, in units of their sigma.
        rows: fitted; ten times as many are held out.
    """

    def __init__(self, widths: tuple[float, ...], noise: float, rows: int = 60) -> None:
        rng, n = np.random.default_rng(4), 10 * len(widths)
        self.columns, self.width = len(widths), np.repeat(widths, 10)
        x = self.width * rng.normal(size=n)
        self.fitted, self.held_out = NormalEquations(n), NormalEquations(n)
        for equations, count in ((self.fitted, rows), (self.held_out, 10 * rows)):
            a = rng.normal(size=(count, n))
            equations.add(a, a @ x + noise * rng.normal(size=count))

    def solve(self, factors: tuple[float, ...]) -> np.ndarray:
        return self.fitted.solve(np.repeat(factors, 10))

    def error(self, factors: tuple[float, ...]) -> float:
        return self.held_out.error(self.solve(factors)) / self.held_out.rows


@pytest.mark.parametrize(
    ("widths", "rows", "expected"),
    [
        ((30.0,), 12, (LARGEST_FACTOR,)),  # few rows: a narrow prior keeps too much back
        ((0.02,), 12, (1.0 / LARGEST_FACTOR,)),  # nothing to be learned but noise
        ((30.0, 0.02), 24, (LARGEST_FACTOR, 1.0 / LARGEST_FACTOR)),
    ],
)
def test_wide_and_narrow_truths_are_found(widths: tuple[float, ...], rows: int, expected: tuple[float, ...]) -> None:
    ridge = Ridge(widths, 1.0, rows)
    assert choose_factors(ridge.fitted, ridge.held_out, ridge.solve, ridge.columns).factors == pytest.approx(expected)


@pytest.mark.parametrize("widths", [(0.3,), (1.0,), (3.0,), (3.0, 0.3), (0.1, 3.0)])
def test_as_good_as_the_best_of_all(widths: tuple[float, ...]) -> None:
    """Against all factors of the grid; what is traded for narrower priors is a percent for each of four steps."""
    ridge = Ridge(widths, 1.0, rows=12 * len(widths))
    found = choose_factors(ridge.fitted, ridge.held_out, ridge.solve, ridge.columns)
    best = min(ridge.error(factors) for factors in product(FACTORS, repeat=ridge.columns))
    assert found.before == pytest.approx(ridge.error((1.0,) * ridge.columns), rel=1e-12)
    assert found.after == pytest.approx(ridge.error(found.factors), rel=1e-12)
    assert found.after <= 1.04 * best


def test_the_narrowest_of_equals() -> None:
    """Of so many labels no prior matters, and all go down to the last."""
    ridge = Ridge((1.0, 1.0), 1.0, rows=100_000)
    errors = [ridge.error(factors) for factors in product(FACTORS, repeat=2)]
    assert max(errors) < NARROWER * min(errors)
    found = choose_factors(ridge.fitted, ridge.held_out, ridge.solve, 2)
    assert found.factors == pytest.approx((1.0 / LARGEST_FACTOR,) * 2)


def test_nothing_is_chosen_without_rows_that_are_held_out() -> None:
    ridge = Ridge((1.0, 1.0), 1.0)
    for fitted, held_out in ((ridge.fitted, NormalEquations(20)), (NormalEquations(20), ridge.held_out)):
        found = choose_factors(fitted, held_out, ridge.solve, 2)
        assert (found.factors, found.before, found.after) == ((1.0, 1.0), None, None)
