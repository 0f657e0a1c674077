"""Sums of least squares against numpy, whole and in tiles, by one thread and by two."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import lsq_linear

from kqeq_md.errors import ConfigError
from kqeq_md.machine.threads import one_blas_thread
from kqeq_md.train.fit.normal_equations import TILE, NormalEquations


def problem(rows: int, columns: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, targets and priors."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, columns)), rng.normal(size=rows), rng.uniform(0.5, 2.0, size=columns)


def summed(a: np.ndarray, y: np.ndarray, parts: int = 9) -> NormalEquations:
    out = NormalEquations(a.shape[1])
    for block in np.array_split(np.arange(len(a)), parts):
        out.add(a[block], y[block])
    return out


def test_bounds_of_the_last_unknowns() -> None:
    """The minimum within them, as a solver of the whole problem finds it; unknowns that depend on each other leave
    another vertex than each one's own nearest bound."""
    rng = np.random.default_rng(5)
    a, y, prior = rng.normal(size=(60, 7)), rng.normal(size=60), rng.uniform(0.5, 2.0, size=7)
    a[:, 5] = a[:, 4] + 0.05 * a[:, 5]
    low, high = np.array([-0.02, -0.01, 0.03]), np.array([0.01, 0.2, 0.04])
    wide = np.full(4, np.inf)
    whole, targets = np.concatenate([a, np.diag(1.0 / prior)]), np.concatenate([y, np.zeros(7)])
    expected = lsq_linear(
        whole, targets, (np.append(-wide, low), np.append(wide, high)), method="bvls", tol=1e-14
    ).x  # fmt: skip
    equations = summed(a, y)
    found = equations.solve(prior, bounds=(low, high))
    np.testing.assert_allclose(found, expected, atol=1e-10)
    assert (np.abs(found[4:] - np.clip(equations.solve(prior)[4:], low, high)) > 1e-3).any()
    held = equations.solve(prior, bounds=(low, low))
    np.testing.assert_array_equal(held[4:], low)
    rest = np.linalg.lstsq(whole[:, :4], targets - whole[:, 4:] @ low, rcond=None)[0]
    np.testing.assert_allclose(held[:4], rest, atol=1e-12)
    np.testing.assert_array_equal(equations.solve(prior, bounds=(-wide[:3], wide[:3])), equations.solve(prior))


@pytest.mark.parametrize("columns", [7, TILE, 2 * TILE + 37])
def test_solution_is_that_of_the_normal_equations(columns: int) -> None:
    a, y, prior = problem(columns + 90, columns)
    expected = np.linalg.solve(a.T @ a + np.diag(prior**-2), a.T @ y)
    # rounding times the condition of a random matrix with priors
    np.testing.assert_allclose(summed(a, y).solve(prior), expected, atol=1e-10 * np.abs(expected).max())


def test_priors_around_a_centre() -> None:
    a, y, prior = problem(90, 7)
    centre = np.arange(7.0)
    expected = np.linalg.solve(a.T @ a + np.diag(prior**-2), a.T @ y + centre / prior**2)
    np.testing.assert_allclose(summed(a, y).solve(prior, centre), expected, rtol=1e-10)  # well conditioned
    nothing = NormalEquations(7)
    np.testing.assert_allclose(nothing.solve(prior, centre), centre, rtol=1e-14)


@pytest.mark.parametrize("columns", [7, TILE + 1])
def test_error_is_that_of_the_rows(columns: int) -> None:
    a, y, prior = problem(columns + 30, columns)
    other, targets, _ = problem(columns + 50, columns, seed=1)
    equations, held_out = summed(a, y), summed(other, targets)
    x = equations.solve(prior)
    for part, rows, want in ((equations, a, y), (held_out, other, targets)):
        direct = float(((rows @ x - want) ** 2).sum())
        assert part.rows == len(rows)
        assert part.error(x) == pytest.approx(direct, rel=1e-10)  # differences of sums a few times as large


def test_error_is_never_negative() -> None:
    """Where rows are met exactly, rounding of the three sums is all that is left."""
    a, _, _ = problem(20, 5)
    x = np.arange(1.0, 6.0)
    assert 0.0 <= summed(a, a @ x).error(x) < 1e-10 * float(((a @ x) ** 2).sum())


def test_sums_add_up() -> None:
    a, y, prior = problem(60, 7)
    both = summed(a[:20], y[:20]) + summed(a[20:], y[20:])
    whole = summed(a, y)
    assert both.rows == whole.rows == 60
    np.testing.assert_allclose(both.solve(prior), whole.solve(prior), rtol=1e-12)  # another order of sums
    assert both.error(np.ones(7)) == pytest.approx(whole.error(np.ones(7)), rel=1e-12)


def test_a_sum_leaves_its_parts_alone() -> None:
    a, y, prior = problem(60, 7)
    first, second = summed(a[:20], y[:20]), summed(a[20:], y[20:])
    before = first.solve(prior)
    _ = first + second
    second.add(a, y)
    np.testing.assert_array_equal(first.solve(prior), before)


def test_the_same_digits_by_one_thread_and_by_two(monkeypatch: pytest.MonkeyPatch) -> None:
    a, y, prior = problem(700, 2 * TILE + 37)
    found = []
    for threads in ("1", "2"):
        monkeypatch.setenv("KQEQ_NUM_THREADS", threads)
        with one_blas_thread:
            equations = summed(a, y)
            found.append(equations.solve(prior).tobytes())
    assert found[0] == found[1]


def test_priors_that_labels_outweigh_are_refused() -> None:
    equations = NormalEquations(2)
    equations.add(np.full((3, 2), 1e10), np.ones(3))
    with pytest.raises(ConfigError, match="`fit` must have priors that the labels do not outweigh by more than 16"):
        equations.solve(np.full(2, 1e10))
