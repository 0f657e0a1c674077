"""From the accuracy to the numbers of a mesh: the window's transform and aliases, and what a plan keeps to."""

from __future__ import annotations

from math import exp, pi, sqrt

import numpy as np
import pytest
from scipy.fft import next_fast_len
from scipy.integrate import quad

from kqeq_md.electrostatics.plan import (
    CUTOFFS,
    DENSE,
    LARGEST_MESH,
    Plan,
    exponent_for,
    largest_mesh,
    mesh_points,
    plan_mesh,
)
from kqeq_md.electrostatics.window import SUPPORTS, Window, alias_error, best_window, transform
from kqeq_md.errors import StructureError
from kqeq_md.model import Model
from kqeq_md.potential import Potential
from kqeq_md.structure import Structure
from kqeq_md.units import COULOMB_CONSTANT


def window_at(z: float, shape: float) -> float:
    """w(z) as the module's docstring has it."""
    return float((np.cosh(shape * sqrt(max(1.0 - z * z, 0.0))) - 1.0) / (np.cosh(shape) - 1.0))


def found(support: int, x: float) -> Window:
    window = best_window(support, x)
    assert window is not None
    return window


# --- the window


@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize("steepness", [1.0, 2.0, 2.8])
def test_transform_by_quadrature(support: int, steepness: float) -> None:
    """Over the waves and their nearest aliases."""
    shape = steepness * support
    omega = np.array([0.0, 0.3, 1.7, pi, 4.6, 2 * pi])
    wanted = [
        support * quad(lambda z, w=w: window_at(z, shape) * np.cos(0.5 * w * support * z), 0, 1,
                       epsabs=2e-14, epsrel=1e-12, limit=200)[0]
        for w in omega
    ]  # fmt: skip
    got = transform(support, shape, omega)
    # 64 nodes for 16 half waves of z; rounding of the largest value
    np.testing.assert_allclose(got, wanted, rtol=0.0, atol=1e-13 * got[0])


@pytest.mark.parametrize("x", [1.0, 2.6, 3.7, 4.9])
@pytest.mark.parametrize("support", SUPPORTS)
def test_best_window_is_the_coarsest_one(support: int, x: float) -> None:
    window, bound = best_window(support, x), exp(-2.0 * x * x) / (4.0 * x)
    shapes = np.linspace(0.5, pi, 400) * support
    if window is None:
        assert min(alias_error(support, s, 0.25 * pi / x, x) for s in shapes) > bound
        return
    assert window.support == support
    assert alias_error(support, window.shape, window.coarseness, x) <= bound
    # found to half a percent; a shape that does a few percent better may hide behind another minimum
    coarser = 1.05 * window.coarseness
    assert coarser > pi / x or min(alias_error(support, s, coarser, x) for s in shapes) > bound


def test_wide_windows_serve_coarse_meshes_and_rough_sums_too() -> None:
    for x in (2.6, 3.2, 3.7):
        by_support = [w.coarseness for w in (best_window(support, x) for support in SUPPORTS) if w is not None]
        assert len(by_support) >= 4
        assert by_support == sorted(by_support)
    by_exponent = [found(12, x).coarseness for x in (2.0, 2.8, 3.6, 4.4)]
    assert by_exponent == sorted(by_exponent, reverse=True)


@pytest.mark.parametrize(("support", "x"), [(6, 2.6), (8, 3.2), (10, 3.7), (16, 4.6)])
def test_aliases_of_waves_read_off_a_mesh(support: int, x: float) -> None:
    """Waves on the points of a line, read anywhere between them, divided by w^: what is left are all their aliases.

    Its mean square, weighed as `alias_error` weighs waves in three dimensions, stays below the truncation.
    """
    window = found(support, x)
    u, m = (np.arange(40) + 0.5) / 40, np.arange(-support, support + 2)
    z = 2 * (m - u[:, None]) / support
    weight = np.array([[window_at(v, window.shape) if abs(v) < 1 else 0.0 for v in row] for row in z])
    kappa = np.linspace(0.025, x, 400)
    omega = 2.0 * window.coarseness * kappa
    got = (weight @ np.exp(1j * np.outer(m, omega))) * np.exp(-1j * np.outer(u, omega))
    error = got / transform(support, window.shape, omega) - 1.0
    damped = 3.0 * np.exp(-2.0 * kappa**2) * (np.abs(error) ** 2).mean(axis=0)
    # aliases of forces are larger by k' / k, by which the sum for potentials has room for the further ones
    assert float(damped.mean()) * (x - 0.025) < exp(-2.0 * x * x) / (4.0 * x)


# --- plans

SYSTEMS = [  # atoms, lengths, widest Gaussian
    (1, (8.0, 8.0, 8.0), 0.3),
    (24, (3.0, 3.2, 40.0), 2.0),
    (500, (17.0, 17.0, 17.0), 0.66),
    (8000, (43.0, 43.0, 43.0), 1.66),
    (300, (300.0, 300.0, 300.0), 1.0),
]


def plan(n: int, lengths: tuple[float, ...], widest: float, accuracy: float, doubled: bool = False) -> Plan:
    made = plan_mesh(n, np.array(lengths), float(np.prod(lengths)), widest, accuracy, doubled)
    assert made is not None
    return made


@pytest.mark.parametrize("accuracy", [1e-3, 1e-5, 1e-7, 1e-9])
@pytest.mark.parametrize("doubled", [False, True])
@pytest.mark.parametrize(("n", "lengths", "widest"), SYSTEMS)
def test_what_a_plan_keeps_to(
    n: int, lengths: tuple[float, ...], widest: float, doubled: bool, accuracy: float
) -> None:
    made = plan(n, lengths, widest, accuracy, doubled)
    assert made.cutoff in CUTOFFS
    assert made.splitting <= 1.0 / (2.0 * widest)  # pair terms decay like erfc(alpha r)
    x, volume_per_atom = made.splitting * made.cutoff, float(np.prod(lengths)) / n
    error = 4.0 * COULOMB_CONSTANT / sqrt(made.cutoff * min(volume_per_atom, DENSE)) * exp(-x * x)
    assert error <= accuracy * (1 + 1e-9)  # rounding
    spacing = made.window.coarseness / made.splitting
    for length, m in zip(lengths, made.points, strict=True):
        assert m >= made.window.support
        assert m == next_fast_len(m, real=True)
        room = m - made.window.support - 1 if doubled else m
        assert length <= room * spacing * (1 + 1e-9)  # rounding
    assert np.prod(made.points, dtype=float) <= LARGEST_MESH


@pytest.mark.parametrize(
    ("edges", "pbc"), [((1e6, 20.0, 20.0), True), ((3e3, 3e3, 3e3), True), ((2e3, 2e3, 20.0), (True, True, False))]
)
def test_a_cell_that_is_nearly_empty_is_refused(
    edges: tuple[float, ...], pbc: bool | tuple[bool, ...], model: Model
) -> None:
    """At once: the first one took 22 s and 2.3 GB."""
    pair = Structure([11, 17], [[0, 0, 0], [0, 0, 2.4]], cell=np.diag(edges), pbc=pbc)
    with pytest.raises(StructureError, match=r"`cell` must not be so large .* no mesh .*8388608 points.*for 2 atoms"):
        Potential(model).compute(pair)


def test_points_that_atoms_may_have() -> None:
    assert [largest_mesh(n) for n in (1, 8388, 100_000, 10**9)] == [2**23, 2**23, 10**8, 2**28]
    assert plan_mesh(8, np.array([20.0, 20.0, 1e6]), 4e8, 1.2, 1e-5, doubled=False) is None
    made = plan_mesh(8, np.full(3, 1000.0), 1e9, 1.2, 1e-5, doubled=False)
    assert made is not None
    assert np.prod(made.points) <= 2**23


def test_a_plan_is_a_pure_function() -> None:
    first = [plan(*system, accuracy) for system in SYSTEMS for accuracy in (1e-3, 1e-6)]
    best_window.cache_clear()
    again = [plan(*system, accuracy) for system in SYSTEMS[::-1] for accuracy in (1e-6, 1e-3)][::-1]
    assert again == first


def test_a_breathing_cell_keeps_its_splitting() -> None:
    """Over 4 % in length the cutoff, and with it the tables of the pairs, changes a few times at most."""
    plans = [plan(8000, (edge,) * 3, 0.66, 1e-5) for edge in np.linspace(43.0, 44.8, 40)]
    assert len({(made.cutoff, made.splitting) for made in plans}) <= 4


def test_more_accuracy_costs_more() -> None:
    costs = [plan(2000, (27.0,) * 3, 0.66, accuracy).cost for accuracy in (1e-3, 1e-5, 1e-7, 1e-9)]
    assert costs == sorted(costs)
    assert costs[-1] < 100 * costs[0]  # pairs (x_9 / x_3)^3 = 5 times, mesh as many, weights (16 / 6)^3 = 19 times


@pytest.mark.parametrize("accuracy", [1e-3, 1e-5, 1e-9])
def test_exponent_is_the_smallest_step_that_is_enough(accuracy: float) -> None:
    for cutoff, volume_per_atom in ((4.0, 10.0), (9.0, 10.0), (9.0, 1e6), (20.0, 3.0)):
        x = exponent_for(cutoff, volume_per_atom, accuracy)
        scale = 4.0 * COULOMB_CONSTANT / sqrt(cutoff * min(volume_per_atom, DENSE))
        assert scale * exp(-x * x) <= accuracy * (1 + 1e-9)  # rounding
        assert scale * exp(-((x - 0.05) ** 2)) > accuracy
        assert 20.0 * x == pytest.approx(round(20.0 * x), abs=1e-9)  # rounding
    assert exponent_for(9.0, 10.0, 1e6) == 1.0  # the sums make no sense below


@pytest.mark.parametrize("lengths", [(3.0, 3.0, 1e7), (1e5, 1e5, 1e5), (3.0, 1e6, 1e6)])
@pytest.mark.parametrize("doubled", [False, True])
def test_meshes_beyond_reason_have_no_plan(lengths: tuple[float, ...], doubled: bool) -> None:
    assert plan_mesh(2, np.array(lengths), float(np.prod(lengths)), 1.0, 1e-5, doubled) is None


def test_no_window_serves_every_accuracy() -> None:
    """Beyond the window's reach there is no plan; far before that double precision ends."""
    assert best_window(6, 6.0) is None
    assert plan(500, (17.0, 17.0, 17.0), 0.66, 1e-11).window.support >= 12


def test_points_of_an_open_mesh_leave_room_for_the_window() -> None:
    window = Window(support=8, shape=16.0, coarseness=0.5)
    closed = mesh_points(np.array([10.0, 20.0, 1.0]), window, 0.25, open_ends=False)
    assert closed == (8, 10, 8)  # 5, 10 and 0.5 points: at least the support
    assert mesh_points(np.array([10.0, 20.0, 1.0]), window, 0.25, open_ends=True) == (15, 20, 10)  # nine more each
