"""The window that spreads a charge over mesh points, and how coarse a mesh it serves.

Along each axis a charge at grid coordinate u reaches the `support` mesh points m around it with the weight

    w(z) = (cosh(beta sqrt(1 - z^2)) - 1) / (cosh(beta) - 1),   z = 2 (m - u) / support,  |z| < 1,

which goes to zero smoothly, and whose Fourier transform falls off steeply behind beta: what a mesh of spacing h makes
of a wave k beside itself are its aliases 2 pi / h - k, damped by w^(2 pi / h - k) / w^(k).

Reference: Potts and Tasche, Appl. Comput. Harmon. Anal. 53, 1 (2021), doi:10.1016/j.acha.2021.01.003 (cosh-type
window; error of the non-uniform fast Fourier transform).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import exp, pi, sqrt

import numpy as np

from kqeq_md.structure import Floats

SUPPORTS = (6, 8, 10, 12, 14, 16, 18)
"""Widths of windows there are; each is compiled when it is first used."""

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


@dataclass(frozen=True)
class Window:
    """Support in mesh points, shape parameter beta, and `coarseness`, the largest alpha h that it serves."""

    support: int
    shape: float
    coarseness: float


def transform(support: int, shape: float | Floats, omega: Floats) -> Floats:
    """Fourier transform of the window, integral of w(u) cos(omega u) du.

    Args:
        shape: one beta, or several.
        omega: radians per mesh spacing, shape (n,).

    Returns:
        shape (n,), or (number of betas, n).
    """
    beta = np.asarray(shape)[..., None]
    # written with exp(-beta) so that large beta does not overflow
    root = beta * np.sqrt(1.0 - _NODES**2)
    value = (np.exp(root - beta) + np.exp(-root - beta) - 2.0 * np.exp(-beta)) / (1.0 - np.exp(-beta)) ** 2
    wave = np.cos(np.multiply.outer(0.5 * support * _NODES, omega))
    out: Floats = 0.5 * support * (_WEIGHTS * value) @ wave
    return out


def alias_error(support: int, shape: float | Floats, coarseness: float, x: float) -> Floats:
    """Mean square force error of the aliases, relative to that of all waves: the integral that `Window` bounds.

    For random charges a wave k adds (exp(-kappa^2) / k)^2 k^2 dk to the mean square force, kappa = k / (2 alpha).
    Of its six nearest aliases each adds that times the square of [w^(k') / w^(k)] k' / k, with k' = 2 pi / h - k; the
    factor k' / k comes from differentiating the window. Waves below a twentieth of alpha are taken as those there.
    One number for each shape.
    """
    kappa = 0.025 + 0.5 * (x - 0.025) * (_NODES + 1.0)
    omega = 2.0 * coarseness * kappa
    alias = 2.0 * pi - omega
    ratio = transform(support, shape, alias) / transform(support, shape, omega) * alias / omega
    error: Floats = 6.0 * 0.5 * x * (ratio**2 @ (_WEIGHTS * np.exp(-2.0 * kappa**2)))
    return error


@lru_cache(maxsize=256)
def best_window(support: int, x: float) -> Window | None:
    """The window of a given support with the largest spacing whose aliases stay below the truncation of the sum.

    Truncation at k = 2 alpha x leaves the integral of exp(-2 kappa^2) from x on, about exp(-2 x^2) / (4 x). None if
    no mesh up to two points per wave length of the shortest wave is fine enough.
    """
    bound = exp(-2.0 * x * x) / (4.0 * x)

    def shape_and_error(coarseness: float) -> tuple[float, float]:
        low, high = 0.5 * support, pi * support
        for _ in range(2):  # a grid, and a finer one around its best point
            shapes = np.linspace(low, high, 65)
            errors = alias_error(support, shapes, coarseness, x)
            best = int(errors.argmin())
            low, high = shapes[max(best - 1, 0)], shapes[min(best + 1, 64)]
        return float(shapes[best]), float(errors[best])

    fine, coarse = 0.25 * pi / x, pi / x  # twice as fine as, and twice as coarse as two points per shortest wave
    if shape_and_error(fine)[1] > bound:
        return None
    while coarse / fine > 1.005:
        middle = sqrt(fine * coarse)
        fine, coarse = (middle, coarse) if shape_and_error(middle)[1] <= bound else (fine, middle)
    return Window(support, shape_and_error(fine)[0], fine)


def narrow_window(support: int, x: float) -> Window:
    """`best_window` where it is known to exist."""
    window = best_window(support, x)
    assert window is not None
    return window
