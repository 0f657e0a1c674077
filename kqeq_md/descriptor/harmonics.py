"""Real solid harmonics r^l Y_lm and their gradients, of many vectors side by side.

With R_l^m = r^l P_l^m(cos theta) exp(i m phi) / (l + m)! (Condon-Shortley phase; real part C, imaginary part S)

    R_m^m = -(x + i y) R_(m-1)^(m-1) / (2 m)
    (l^2 - m^2) R_l^m = (2 l - 1) z R_(l-1)^m - r^2 R_(l-2)^m

and all derivatives are solid harmonics of the next lower degree:

    d/dz R_l^m = R_(l-1)^m,   (d/dx +- i d/dy) R_l^m = +- R_(l-1)^(m +- 1),   R_l^(-m) = (-1)^m conj(R_l^m).

C_lm stands in row l^2 + l + m, S_lm in row l^2 + l - m. The last axis runs over the vectors: loops over it are what a
processor does several numbers at a time.

Reference: Epton and Dembart, SIAM J. Sci. Comput. 16, 865 (1995), doi:10.1137/0916051.
"""

from __future__ import annotations

from math import factorial, pi, sqrt

import numpy as np

from kqeq_md.machine.jit import compiled
from kqeq_md.structure import Floats


def normalisation(l_max: int) -> Floats:
    """N_lm such that N C_lm and N S_lm are r^l times orthonormal real spherical harmonics, shape ((l_max + 1)^2,)."""
    out = np.zeros((l_max + 1) ** 2)
    for degree in range(l_max + 1):
        for m in range(-degree, degree + 1):
            area = (2 * degree + 1) / (4 * pi) * factorial(degree - m) * factorial(degree + m)
            out[degree * degree + degree + m] = sqrt(area) * (sqrt(2.0) if m else 1.0)
    return out


@compiled
def solid_harmonics(x: Floats, y: Floats, z: Floats, n_l: int, h: Floats) -> None:
    """Fill C_lm and S_lm up to degree n_l - 1 of vectors (x, y, z), shape (n,), into h, shape (n_l^2, n)."""
    n = len(x)
    for k in range(n):
        h[0, k] = 1.0
    for degree in range(1, n_l):
        zero, below, second = degree * degree + degree, degree * degree - degree, (degree - 2) * (degree - 1)
        top = -0.5 / degree
        if degree == 1:
            for k in range(n):
                h[zero + 1, k] = top * x[k]
                h[zero - 1, k] = top * y[k]
        else:
            m = degree - 1
            for k in range(n):
                h[zero + degree, k] = top * (x[k] * h[below + m, k] - y[k] * h[below - m, k])
                h[zero - degree, k] = top * (x[k] * h[below - m, k] + y[k] * h[below + m, k])
        for m in range(-degree + 1, degree):
            b = 1.0 / (degree * degree - m * m)
            a = (2 * degree - 1) * b
            if abs(m) == degree - 1:
                for k in range(n):
                    h[zero + m, k] = a * z[k] * h[below + m, k]
            else:
                for k in range(n):
                    r2 = x[k] * x[k] + y[k] * y[k] + z[k] * z[k]
                    h[zero + m, k] = a * z[k] * h[below + m, k] - b * r2 * h[second + m, k]


@compiled
def solid_harmonics_vjp(h: Floats, n_l: int, grad_h: Floats, grad: Floats) -> None:
    """Add the gradient in (x, y, z) of sum_lm grad_h h, all shape (n_l^2, n), to `grad`, shape (3, n)."""
    n = h.shape[1]
    for degree in range(1, n_l):
        zero, below = degree * degree + degree, degree * degree - degree
        for m in range(-degree + 1, degree):
            for k in range(n):
                grad[2, k] += grad_h[zero + m, k] * h[below + m, k]
        if degree > 1:  # m = 0 from m = 1
            for k in range(n):
                grad[0, k] += grad_h[zero, k] * h[below + 1, k]
                grad[1, k] += grad_h[zero, k] * h[below - 1, k]
        for k in range(n):  # m = 1 from m = 0
            grad[0, k] -= 0.5 * grad_h[zero + 1, k] * h[below, k]
            grad[1, k] -= 0.5 * grad_h[zero - 1, k] * h[below, k]
        for m in range(1, degree - 1):  # m from m + 1
            cosine, sine = below + m + 1, below - m - 1
            for k in range(n):
                grad[0, k] += 0.5 * (grad_h[zero + m, k] * h[cosine, k] + grad_h[zero - m, k] * h[sine, k])
                grad[1, k] += 0.5 * (grad_h[zero + m, k] * h[sine, k] - grad_h[zero - m, k] * h[cosine, k])
        for m in range(2, degree + 1):  # m from m - 1
            cosine, sine = below + m - 1, below - m + 1
            for k in range(n):
                grad[0, k] -= 0.5 * (grad_h[zero + m, k] * h[cosine, k] + grad_h[zero - m, k] * h[sine, k])
                grad[1, k] += 0.5 * (grad_h[zero + m, k] * h[sine, k] - grad_h[zero - m, k] * h[cosine, k])
