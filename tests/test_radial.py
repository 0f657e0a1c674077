"""Radial functions against numerical integration of their definition."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.integrate import trapezoid

from kqeq_md.descriptor.basis import BASES
from kqeq_md.descriptor.density import radial_functions_and_slopes
from kqeq_md.descriptor.radial import RadialTable, SoapParameters, radial_table
from kqeq_md.errors import ConfigError
from kqeq_md.switch import cosine_switch, switch

PARAMETERS = SoapParameters(cutoff=5.0, cutoff_width=1.0, n_max=4, l_max=3, sigma=0.5)
MIDDLE = PARAMETERS.cutoff - PARAMETERS.cutoff_width - 1e-3  # below it the switch is 1


QUIP = [name for name in BASES if name.startswith("quip")]


def evaluate(table: RadialTable, r: float) -> tuple[np.ndarray, np.ndarray]:
    """f_nl and df_nl/dr, each shape (l_max + 1, n_max)."""
    shape, flat = table.values.shape[2:], table.values.reshape(len(table.values), 2, -1)
    f, df = np.empty((2, flat.shape[2], 1))
    radial_functions_and_slopes(np.array([r]), table.start, table.spacing, flat, f, df)
    return f.reshape(shape), df.reshape(shape)


def density(degree: int, q: np.ndarray, r: float, sigma: float) -> np.ndarray:
    """h_l(q; r) from the closed forms of the Bessel functions at the argument q r / sigma^2."""
    x = q * r / sigma**2
    bessel = [
        np.sinh(x) / x,
        np.cosh(x) / x - np.sinh(x) / x**2,
        (1 / x + 3 / x**3) * np.sinh(x) - 3 * np.cosh(x) / x**2,
    ]
    return np.exp(-(q**2 + r**2) / (2 * sigma**2)) * bessel[degree]


@pytest.fixture(scope="module")
def table() -> RadialTable:
    return radial_table(PARAMETERS)


@pytest.mark.parametrize("r", [0.0, 1e-4, 0.0312, 0.777, 2.0, 3.3333, MIDDLE])
def test_defining_integral(table: RadialTable, r: float, helpers: Any) -> None:
    wanted = helpers.radial_reference(PARAMETERS, r)
    got, _ = evaluate(table, r)
    # Hermite interpolation: h^4 f'''' / 384 with h = 0.005 A, f'''' of about 3 / sigma^4 of the maximum: 1e-10
    np.testing.assert_allclose(got, wanted, atol=1e-9 * np.abs(wanted).max())


def test_finer_sigma(helpers: Any) -> None:
    sharp = replace(PARAMETERS, sigma=0.3)
    table, r = radial_table(sharp), 1.2345
    wanted = helpers.radial_reference(sharp, r)
    # as above with sigma = 0.3 A, 7.7 times the error, and r^-l in f
    np.testing.assert_allclose(evaluate(table, r)[0], wanted, atol=1e-8 * np.abs(wanted).max())


@pytest.mark.parametrize("r", [0.0021, 0.5003, 2.7182, 4.2024, 4.7513, 4.9971])
def test_derivative_is_that_of_the_values(table: RadialTable, r: float) -> None:
    step = 1e-4  # stays between two knots, where the table is a cubic and five points are exact
    line = [evaluate(table, r + k * step)[0] for k in (-2, -1, 1, 2)]
    wanted = (line[0] - 8 * line[1] + 8 * line[2] - line[3]) / (12 * step)
    scale = np.abs(table.values[:, 0]).max()
    np.testing.assert_allclose(evaluate(table, r)[1], wanted, atol=1e-11 * scale)  # rounding 1e-16 / 1e-4, few terms


@pytest.mark.parametrize("r", [0.25, 2.0, 3.9, 4.3, 4.9])
def test_tabulated_slope(table: RadialTable, r: float) -> None:
    k = round((r - table.start) / table.spacing)
    line = [table.values[k + m, 0] for m in (-2, -1, 1, 2)]
    wanted = (line[0] - 8 * line[1] + 8 * line[2] - line[3]) / (12 * table.spacing)
    # h^4 f^(5) / 30 with h = 0.005 A and f^(5) up to 60 / cutoff_width^5 of the maximum and more: 1e-9
    np.testing.assert_allclose(table.values[k, 1], wanted, atol=1e-8 * np.abs(table.values[:, 0]).max())


def test_even_in_r(table: RadialTable) -> None:
    scale = np.abs(table.values[:, 0]).max()
    np.testing.assert_allclose(evaluate(table, 0.0)[1], 0.0, atol=1e-8 * scale)  # error of the table's slope, h^3


@pytest.mark.parametrize("width", [1.0, 0.7, 0.333, 5.0])
def test_knots_on_the_cutoff_and_where_the_switch_begins(width: float) -> None:
    table = radial_table(replace(PARAMETERS, cutoff_width=width))
    for edge in (PARAMETERS.cutoff, PARAMETERS.cutoff - width):
        u = (edge - table.start) / table.spacing
        assert u == pytest.approx(round(u), abs=1e-9)  # rounding of 1000 steps
    assert table.start <= 1e-12
    assert table.spacing <= 0.005
    last = round((PARAMETERS.cutoff - table.start) / table.spacing)
    assert not table.values[last:].any()
    assert len(table.values) > last + 1  # the interval that begins on the cutoff exists


@pytest.mark.parametrize("basis", QUIP)
def test_knots_of_imported_models_follow_what_is_narrow(basis: str) -> None:
    parameters = replace(PARAMETERS, basis=basis)
    assert radial_table(parameters).spacing == pytest.approx(0.00125)
    assert radial_table(replace(parameters, sigma=0.25)).spacing == pytest.approx(0.000625)
    assert radial_table(replace(parameters, cutoff_width=0.25)).spacing == pytest.approx(0.0003125)
    assert radial_table(replace(parameters, cutoff_width=0.01)).spacing == pytest.approx(0.00025)


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("width", [1.0, 0.333])
def test_the_centre_need_not_be_a_knot(basis: str, width: float) -> None:
    table = radial_table(replace(PARAMETERS, basis=basis, cutoff_width=width))
    scale = np.abs(table.at_zero).max()
    # interpolation as above: 1e-10; with width 0.333 no knot lies at 0, and the nearest is off by 1e-5
    np.testing.assert_allclose(evaluate(table, 0.0)[0][0], table.at_zero, atol=1e-9 * scale)


@pytest.mark.parametrize("basis", BASES)
def test_limit_at_zero(basis: str) -> None:
    """f_nl(0) = sum_g exp(-q_g^2 / 2 sigma^2) (q_g / sigma^2)^l / (2 l + 1)!! T_l,gn."""
    sigma = PARAMETERS.sigma
    table, shape = radial_table(replace(PARAMETERS, basis=basis)), BASES[basis](5.0, sigma, 4, 3)
    for degree, odd in enumerate((1, 3, 15, 105)):
        q = shape.radii
        wanted = (np.exp(-0.5 * (q / sigma) ** 2) * (q / sigma**2) ** degree / odd) @ shape.projection[degree]
        # knots lie at zero here; a sum of terms that cancel to 1e-2 in QUIP's bases
        np.testing.assert_allclose(evaluate(table, 0.0)[0][degree], wanted, atol=1e-12 * np.abs(wanted).max())


@pytest.mark.parametrize("basis", QUIP)
@pytest.mark.parametrize("degree", [0, 1, 2])
def test_quip_basis_is_a_fit_in_orthonormal_functions(basis: str, degree: int) -> None:
    """The coefficients' squares add up to the integral of the fit's square, fitted and integrated without the basis."""
    cutoff, sigma, n_max, r = 4.0, 0.5, 5, 1.7
    shape, end = BASES[basis](cutoff, sigma, n_max, 2), cutoff + np.sqrt(20 * np.log(10.0)) * sigma
    q = np.linspace(0.0, end + 4.0, 8001)[1:]
    if basis == "quip_gto":
        radius = end * np.arange(1, n_max + 1) / n_max
        exponent = np.log(radius**degree / 1e-3) / radius**2
        functions = [lambda t, a=a: t**degree * np.exp(-a * t**2) for a in exponent]
        fitted_at, q = end * np.arange(3 * n_max) / (3 * n_max), q[q < end]
    else:
        fitted_at = end * np.arange(n_max) / n_max
        functions = [lambda t, m=m: np.exp(-((t - m) ** 2) / (2 * sigma**2)) for m in fitted_at]
    np.testing.assert_allclose(shape.radii, fitted_at, atol=1e-14)
    target = density(degree, np.maximum(fitted_at, 1e-4), r, sigma)  # the closed forms have no value at 0
    matrix = np.array([f(fitted_at) for f in functions]).T
    fit = np.array([f(q) for f in functions]).T @ np.linalg.lstsq(matrix, target, rcond=None)[0]
    coefficients = density(degree, np.maximum(shape.radii, 1e-4), r, sigma) @ shape.projection[degree]
    # trapezoidal rule with 1e-3 Angstrom on functions of width 0.2: 1e-6
    assert coefficients @ coefficients == pytest.approx(trapezoid(q**2 * fit**2, q), rel=1e-5)


@pytest.mark.parametrize("n_max", [1, 3, 8, 16])
def test_the_centre_is_the_first_gaussian_of_quip(n_max: int) -> None:
    """At r = 0 the density is exp(-q^2 / 2 sigma^2), whose square integrates to sqrt(pi) sigma^3 / 4."""
    table = radial_table(replace(PARAMETERS, basis="quip_equispaced_gauss", n_max=n_max))
    # n_max = 16: Gaussians 0.53 Angstrom apart with width 0.5; their overlap has a condition number of 1e5
    assert table.at_zero @ table.at_zero == pytest.approx(np.sqrt(np.pi) * PARAMETERS.sigma**3 / 4, rel=1e-10)


def test_cosine_switch(helpers: Any) -> None:
    r = np.linspace(1.93, 3.57, 18)
    value, slope = cosine_switch(r, 2.0, 3.5)
    inside = (r > 2.0) & (r < 3.5)
    np.testing.assert_allclose(value[inside], np.cos(0.5 * np.pi * (r[inside] - 2.0) / 1.5) ** 2, atol=1e-15)
    assert value[r <= 2.0].tolist() == [1.0]
    assert value[r >= 3.5].tolist() == [0.0]
    wanted = [helpers.five_point(lambda x: float(cosine_switch(x, 2.0, 3.5)[0]), np.array(x), 1e-3) for x in r]
    np.testing.assert_allclose(slope, wanted, atol=5e-12)  # (pi / 1.5)^5 / 2 = 20: 1e-12 * 20 / 30, and rounding
    assert cosine_switch(np.array([2.0, 3.5]), 2.0, 3.5)[1].tolist() == [0.0, 0.0]


def test_cosine_switching_of_the_density(table: RadialTable) -> None:
    cosine = radial_table(replace(PARAMETERS, switching="cosine"))
    for r in (4.3, 4.8):
        ratio = float(cosine_switch(np.array(r), 4.0, 5.0)[0] / switch(np.array(r), 4.0, 5.0)[0])
        # interpolation errs by 1e-10 of the largest value
        np.testing.assert_allclose(evaluate(cosine, r)[0], ratio * evaluate(table, r)[0], atol=1e-8)
    assert not evaluate(cosine, 5.0)[0].any()
    assert not evaluate(cosine, 5.0)[1].any()


def test_switch_has_two_continuous_derivatives() -> None:
    inner, outer, h = 2.0, 3.5, 1e-4
    for edge, value in ((inner, 1.0), (outer, 0.0)):
        s, ds = switch(edge + h * np.arange(-1.0, 2.0), inner, outer)
        assert s[1] == value
        assert ds[1] == 0.0
        # inside, s'' = 60 t / width^2 near an end: 60 h / width^3 = 2e-3, second difference accordingly
        assert abs(s[0] - 2 * s[1] + s[2]) / h**2 < 60 * h / (outer - inner) ** 3
    assert switch(np.array([0.0, 9.0]), inner, outer)[0].tolist() == [1.0, 0.0]


def test_switch_derivative(helpers: Any) -> None:
    r = np.linspace(1.93, 3.57, 18)  # no point within 2e-3 of an edge, where the third derivative jumps
    wanted = [helpers.five_point(lambda x: float(switch(x, 2.0, 3.5)[0]), np.array(x), 1e-3) for x in r]
    # fifth derivative of the quintic is 720 / 1.5^5 = 95: 1e-12 * 95 / 30
    np.testing.assert_allclose(switch(r, 2.0, 3.5)[1], wanted, atol=5e-12)


def test_radial_scaling(table: RadialTable) -> None:
    scaled = radial_table(replace(PARAMETERS, radial_scale=2.5, radial_exponent=6))
    r = 2.5
    k = round((r - table.start) / table.spacing)
    np.testing.assert_allclose(scaled.values[k, 0], 0.5 * table.values[k, 0], rtol=1e-12)  # u(r0) = 1/2
    slope = 0.5 * table.values[k, 1] - 0.25 * 6 / 2.5 * table.values[k, 0]
    np.testing.assert_allclose(scaled.values[k, 1], slope, rtol=1e-10, atol=1e-14)  # the two terms cancel in part


REFUSED = {
    "cutoff": ({"cutoff": 0.0}, "`cutoff` must lie between 0.5 and 30.0, got 0.0"),
    "cutoff_width": ({"cutoff_width": -1.0}, "`cutoff_width` must lie between 0.01 and 30.0, got -1.0"),
    "wide switch": ({"cutoff_width": 5.5}, "`cutoff_width` must not exceed the cutoff 5.0, got 5.5"),
    "sigma": ({"sigma": float("nan")}, "`sigma` must lie between 0.05 and 5.0, got nan"),
    "n_max": ({"n_max": 0}, "`n_max` must lie between 1 and 16, got 0"),
    "l_max": ({"l_max": -1}, "`l_max` must lie between 0 and 20, got -1"),
    "radial_scale": ({"radial_scale": -2.0}, "`radial_scale` must lie between 0.0 and 1000.0, got -2.0"),
    "odd exponent": ({"radial_exponent": 3}, "`radial_exponent` must be even, got 3"),
    "fractional n_max": ({"n_max": 3.5}, "`n_max` must be a whole number, got 3.5"),
    "fractional l_max": ({"l_max": 2.5}, "`l_max` must be a whole number, got 2.5"),
    "basis": ({"basis": "poly"}, "`basis` must be one of gto, quip_gto, quip_equispaced_gauss, got 'poly'"),
    "switching": ({"switching": "none"}, "`switching` must be one of quintic, cosine, got 'none'"),
    "central_weight": ({"central_weight": -1.0}, "`central_weight` must lie between 0.0 and 1000.0, got -1.0"),
    "infinite cutoff": ({"cutoff": float("inf")}, "`cutoff` must lie between 0.5 and 30.0, got inf"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refusal(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(PARAMETERS, **change)
