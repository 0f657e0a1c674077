"""Real solid harmonics r^l Y_lm and their gradients.

With R_l^m = r^l P_l^m(cos theta) exp(i m phi) / (l + m)! (Condon-Shortley phase; real part C, imaginary part S)

    R_m^m = -(x + i y) R_(m-1)^(m-1) / (2 m)
    (l^2 - m^2) R_l^m = (2 l - 1) z R_(l-1)^m - r^2 R_(l-2)^m

and all derivatives are solid harmonics of the next lower degree:

    d/dz R_l^m = R_(l-1)^m,   (d/dx +- i d/dy) R_l^m = +- R_(l-1)^(m +- 1),   R_l^(-m) = (-1)^m conj(R_l^m).

Reference: Epton and Dembart, SIAM J. Sci. Comput. 16, 865 (1995), doi:10.1137/0916051.
"""

from __future__ import annotations

from math import factorial, pi, sqrt

import numpy as np
from numba import njit

from kqeq_md.jit import JIT
from kqeq_md.structure import Floats


def normalisation(l_max: int) -> Floats:
    """N_lm such that N C_lm and N S_lm are r^l times orthonormal real spherical harmonics; (l_max + 1, l_max + 1)."""
    out = np.zeros((l_max + 1, l_max + 1))
    for degree in range(l_max + 1):
        for m in range(degree + 1):
            out[degree, m] = sqrt((2 * degree + 1) / (4 * pi) * factorial(degree - m) * factorial(degree + m))
            out[degree, m] *= sqrt(2.0) if m else 1.0
    return out


@njit(**JIT)
def solid_harmonics(x: float, y: float, z: float, cosine: Floats, sine: Floats) -> None:
    """Fill C_lm and S_lm, shape (l_max + 1, l_max + 1), m <= l, by the two recursions above."""
    l_max = cosine.shape[0] - 1
    r2 = x * x + y * y + z * z
    cosine[0, 0] = 1.0
    sine[0, 0] = 0.0
    for m in range(1, l_max + 1):
        cosine[m, m] = -(x * cosine[m - 1, m - 1] - y * sine[m - 1, m - 1]) / (2 * m)
        sine[m, m] = -(x * sine[m - 1, m - 1] + y * cosine[m - 1, m - 1]) / (2 * m)
    for m in range(l_max):
        cosine[m + 1, m] = z * cosine[m, m]
        sine[m + 1, m] = z * sine[m, m]
        for degree in range(m + 2, l_max + 1):
            a = (2 * degree - 1) * z / (degree * degree - m * m)
            b = r2 / (degree * degree - m * m)
            cosine[degree, m] = a * cosine[degree - 1, m] - b * cosine[degree - 2, m]
            sine[degree, m] = a * sine[degree - 1, m] - b * sine[degree - 2, m]


@njit(**JIT)
def solid_harmonics_vjp(cosine: Floats, sine: Floats, grad_c: Floats, grad_s: Floats) -> tuple[float, float, float]:
    """Gradient in (x, y, z) of sum_lm grad_c C_lm + grad_s S_lm, from C and S themselves."""
    l_max = cosine.shape[0] - 1
    gx = gy = gz = 0.0
    for degree in range(1, l_max + 1):
        low = degree - 1
        for m in range(degree + 1):
            gc, gs = grad_c[degree, m], grad_s[degree, m]
            if m <= low:
                gz += gc * cosine[low, m] + gs * sine[low, m]
            if m + 1 <= low:
                weight = 0.5 if m else 1.0
                gx += weight * (gc * cosine[low, m + 1] + gs * sine[low, m + 1])
                gy += weight * (gc * sine[low, m + 1] - gs * cosine[low, m + 1])
            if m >= 1:
                gx -= 0.5 * (gc * cosine[low, m - 1] + gs * sine[low, m - 1])
                gy += 0.5 * (gc * sine[low, m - 1] - gs * cosine[low, m - 1])
    return gx, gy, gz
