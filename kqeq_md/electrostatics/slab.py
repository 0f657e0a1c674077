"""Slabs: what turns a sum over a lattice with vacuum into the sum over two periodic vectors alone.

Average the three-dimensional sum (without k = 0) over the plane, at z = (R_i - R_j).n, cell length L along n and
area A: it is (2 pi / A) [L / 6 - |z| + z^2 / L], smeared by both Gaussians, where a slab has -(2 pi / A) |z|. Smearing
turns z^2 into z^2 + s_i^2 + s_j^2, and the slab term takes the difference off:

    J_ij += -kC { (2 pi / V) [(z_i - z_j)^2 + s_i^2 + s_j^2] + pi L^2 / (3 V) },   V = A L, i = j included.

It stands beside the neutralising background of the lattice sum, which is what leaves k = 0 out, and it is exact for
any total charge. What is left are the waves in the plane, which decay across the vacuum: `image_error` bounds them.
Away from a slab with Q != 0 the potential falls like -(2 pi kC / A) Q |z|; that is its zero.

References: Yeh and Berkowitz, J. Chem. Phys. 111, 3155 (1999), doi:10.1063/1.479595; charged slabs: Ballenegger,
Arnold and Cerda, J. Chem. Phys. 131, 094107 (2009), doi:10.1063/1.3216473.
"""

from __future__ import annotations

from itertools import product
from math import ceil, log, pi, sqrt

import numpy as np

from kqeq_md.electrostatics.lattice import greedy_reduction
from kqeq_md.errors import ChargeError
from kqeq_md.ranks.halo import SERIAL, Halo, extent
from kqeq_md.structure import Floats
from kqeq_md.units import COULOMB_CONSTANT

RUNG = 1.02
"""Lengths of the padded cell are powers of it, so that moving atoms rarely change the cell."""

LARGEST_ERROR = 1e-8
"""eV/e^2. Images across the vacuum change no element of J by more, however loose the accuracy."""

WAVES = np.array([(m, n) for m, n in product(range(5), range(-4, 5)) if m > 0 or n > 0])
"""Half of the reciprocal vectors of a plane, in units of its reduced basis; the others are over four times as long as
the shortest, and exp(-4 G d) is nothing where exp(-G d) is small."""


def slab_matrix(z: Floats, gaussian_width: Floats, length: float, area: float) -> Floats:
    """The slab term of J, eV/e^2, shape (n, n).

    Args:
        z: positions along the normal, Angstrom, shape (n,).
        gaussian_width: s_i, Angstrom, shape (n,).
        length: L, length of the padded cell along the normal, Angstrom.
        area: A, of the periodic plane, Angstrom^2.
    """
    volume, s2 = area * length, gaussian_width**2
    squares = (z[:, None] - z) ** 2 + s2[:, None] + s2
    out: Floats = -COULOMB_CONSTANT * (2.0 * pi / volume * squares + pi * length**2 / (3.0 * volume))
    return out


def slab_potential(
    z: Floats, gaussian_width: Floats, charges: Floats, length: float, area: float, halo: Halo = SERIAL
) -> Floats:
    """The slab term of J times q by the moments of q, eV/e, shape (n,); arguments as for `slab_matrix`.

    (J q)_i = -kC { (2 pi / V) [Q (z_i^2 + s_i^2) - 2 z_i sum q z + sum q (z^2 + s^2)] + pi L^2 Q / (3 V) }
    """
    volume, z, s2 = area * length, centred(z, halo), gaussian_width**2
    total, first, second = halo.sum(np.array([charges.sum(), charges @ z, charges @ (z**2 + s2)]))
    squares = total * (z**2 + s2) - 2.0 * first * z + second
    out: Floats = -COULOMB_CONSTANT * (2.0 * pi / volume * squares + pi * length**2 / (3.0 * volume) * total)
    return out


def slab_field(
    z: Floats, gaussian_width: Floats, charges: Floats, length: float, area: float, halo: Halo = SERIAL
) -> Floats:
    """-d/dz of the potential of the slab term at each atom, V/Angstrom, shape (n,); arguments as for `slab_matrix`.

    kC (4 pi / V) (Q z_i - sum q z), whatever the widths; with E = 1/2 q.J.q, dE/dz_i is -q_i times it.
    """
    z = centred(z, halo)
    total, first = halo.sum(np.array([charges.sum(), charges @ z]))
    out: Floats = COULOMB_CONSTANT * 4.0 * pi / (area * length) * (total * z - first)
    return out


def slab_strain(
    lattice_strain: Floats, slab_energy: float, grad_r: Floats, positions: Floats, normal: Floats, halo: Halo = SERIAL
) -> Floats:
    """dE/d(strain) of a slab from that of the lattice sum, eV, shape (3, 3), symmetric.

    In the plane the length L stays, and the slab term goes as 1 / A. A strain that moves atoms along the normal or by
    their height shifts positions alone, R_i += z_i e, and the energy of a slab does not know L; turning it about an
    axis in the plane costs nothing, so that both orders of the indices agree:

        P (dE_lattice/d(strain) - E_slab) P + n v + v n - n (v.n) n,   P = 1 - n n,   v = sum_i z_i dE/dR_i.

    Args:
        lattice_strain: of the sum over the padded cell, eV, shape (3, 3).
        slab_energy: 1/2 q.J.q of the slab term, eV.
        grad_r: dE/dR of both together, eV/Angstrom, shape (n, 3); it adds up to zero.
        positions: Angstrom, shape (n, 3).
        normal: unit normal n of the slab, shape (3,).
        halo: how sums go over all ranks.
    """
    plane = np.eye(3) - np.outer(normal, normal)
    lifted = halo.sum(centred(positions @ normal, halo) @ grad_r)
    mixed = np.outer(normal, lifted)
    out: Floats = plane @ lattice_strain @ plane - slab_energy * plane
    out += mixed + mixed.T - (lifted @ normal) * np.outer(normal, normal)
    return out


def centred(z: Floats, halo: Halo = SERIAL) -> Floats:
    """z from the middle of the slab: the terms depend on differences, and a far origin would cost digits."""
    low, high = extent(z[:, None], halo)
    return z - 0.5 * (low + high)


def padded_cell(lateral_cell: Floats, normal: Floats, length: float) -> Floats:
    """The cell of the three-dimensional sum: reduced periodic vectors and `length` along the normal, shape (3, 3)."""
    return np.vstack([greedy_reduction(lateral_cell), length * normal])


def rung(length: float) -> float:
    """The next power of 1.02 from `length` on, and from 1 Angstrom on."""
    return float(RUNG ** ceil(log(max(length, 1.0)) / log(RUNG) - 1e-9))


def padded_length(
    z: Floats, lateral_cell: Floats, widest: float, accuracy: float, real_cutoff: float, vacuum: float | None = None
) -> float:
    """Length of the padded cell along the normal, Angstrom: thickness and vacuum, rounded up to a power of 1.02.

    Args:
        z: positions along the normal, Angstrom, shape (n,).
        lateral_cell: the two periodic vectors, Angstrom, shape (2, 3).
        widest: the largest Gaussian width, Angstrom.
        accuracy: target rms force error, eV/Angstrom.
        real_cutoff: cutoff of the pair sum, Angstrom: the vacuum is at least as long.
        vacuum: Angstrom; as short as `needed_vacuum` allows if None.

    Raises:
        ChargeError: `vacuum` is too small for the accuracy.
    """
    needed = needed_vacuum(lateral_cell, widest, accuracy, real_cutoff)
    if vacuum is not None and not vacuum >= needed:
        raise ChargeError(f"`vacuum` must be at least {needed:.4g} Angstrom, got {vacuum:.4g}")
    length = float(np.ptp(z)) + (needed if vacuum is None else vacuum)
    return rung(length)


def needed_vacuum(lateral_cell: Floats, widest: float, accuracy: float, real_cutoff: float) -> float:
    """The shortest vacuum that keeps images along the normal apart, Angstrom, to 1 % of it; see `padded_length`.

    It exceeds the cutoff of the pair sum, and `image_error` is below min(1e-8 eV/e^2, 1e-3 Angstrom/e^2 accuracy).
    """
    bound = min(LARGEST_ERROR, 1e-3 * accuracy)
    reduced = greedy_reduction(lateral_cell)
    low, high = 0.0, max(widest, 1.0)
    while image_error(reduced, widest, high) > bound:
        low, high = high, 2.0 * high
    while high - low > 0.01 * high:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if image_error(reduced, widest, middle) > bound else (low, middle)
    return max(high, real_cutoff)


def image_error(lateral_cell: Floats, widest: float, vacuum: float) -> float:
    """Bound on what images across the vacuum d add to an element of J beyond the slab term, eV/e^2.

        2 kC { (2 pi / A) sum_(G != 0) 1 / (G (exp(G d) - 1))
               + exp(-g^2 d^2) / (sqrt(pi) g d^2) (1 + sqrt(pi) / (g a)) (1 + sqrt(pi) / (g h)) }

    First the waves in the plane of point charges at d, 2 d, ..., then erfc(g r) / r, by which Gaussians differ from
    points, over all images in the plane; g belongs to the two widest, a is the shortest vector and h = A / a.

    Args:
        lateral_cell: the two periodic vectors, reduced, Angstrom, shape (2, 3).
        widest: the largest Gaussian width, Angstrom.
        vacuum: d, Angstrom.
    """
    metric = lateral_cell @ lateral_cell.T
    area, shortest, g = sqrt(np.linalg.det(metric)), sqrt(metric[0, 0]), 1.0 / (2.0 * widest)
    wave = 2.0 * pi * np.sqrt(np.einsum("ka,ab,kb->k", WAVES, np.linalg.inv(metric), WAVES))
    with np.errstate(over="ignore"):  # 1 / inf is the right answer
        waves = 4.0 * pi / area * (1.0 / (wave * np.expm1(wave * vacuum))).sum()
    images = (1.0 + sqrt(pi) / (g * shortest)) * (1.0 + sqrt(pi) * shortest / (g * area))
    overlap = np.exp(-((g * vacuum) ** 2)) / (sqrt(pi) * g * vacuum**2) * images
    return float(2.0 * COULOMB_CONSTANT * (waves + overlap))
