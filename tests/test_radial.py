"""Radial functions against numerical integration of their definition."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kqeq_md.descriptor.power_spectrum import interpolate
from kqeq_md.descriptor.radial import RadialTable, SoapParameters, radial_table
from kqeq_md.errors import ConfigError
from kqeq_md.switch import switch

PARAMETERS = SoapParameters(cutoff=5.0, cutoff_width=1.0, n_max=4, l_max=3, sigma=0.5)
MIDDLE = PARAMETERS.cutoff - PARAMETERS.cutoff_width - 1e-3  # below it the switch is 1


def evaluate(table: RadialTable, r: float) -> tuple[np.ndarray, np.ndarray]:
    f, df = np.empty(table.values.shape[2:]), np.empty(table.values.shape[2:])
    interpolate(r, table.start, table.spacing, table.values, f, df)
    return f, df


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
    "infinite cutoff": ({"cutoff": float("inf")}, "`cutoff` must lie between 0.5 and 30.0, got inf"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refusal(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(PARAMETERS, **change)
