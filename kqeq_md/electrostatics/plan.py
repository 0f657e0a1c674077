"""From the accuracy to the numbers of a particle-mesh Ewald sum: splitting, cutoff, window and mesh.

With r_cut = x / alpha and k_cut = 2 alpha x the rms force errors of Kolafa and Perram for charges of 1 e add up to
4 kC / sqrt(r_cut v) exp(-x^2), v the volume per atom; x brings this below the accuracy. For each cutoff of a ladder
alpha follows, and with it the coarsest mesh whose aliases stay below the truncation (`window`). The cheapest of these
plans is taken, by the work of a step. A plan depends on the cell, the number of atoms, the widths and the accuracy
alone, never on what was computed before.

Reference: Kolafa and Perram, Mol. Simul. 9, 351 (1992), doi:10.1080/08927029208049126.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf, log, pi, sqrt

import numpy as np
from scipy import fft

from kqeq_md.electrostatics.mesh_layout import MeshPoints
from kqeq_md.electrostatics.window import SUPPORTS, Window, best_window, narrow_window
from kqeq_md.structure import Floats
from kqeq_md.units import COULOMB_CONSTANT

DENSE = 10.0
"""Angstrom^3 per atom: about the densest matter. Atoms in a box of vacuum are taken as so dense where they are."""

TYPICAL = 0.04
"""Atoms per Angstrom^3 where there are atoms, for boxes that are mostly vacuum."""

CUTOFFS = tuple(4.0 * 1.04**step for step in range(70))
"""Angstrom. Steps of 4 % keep a plan, and the tables that belong to it, while a cell breathes."""

FINEST = 1e-11
"""eV/Angstrom. No better accuracy can be had in double precision."""

PER_PAIR, PER_WEIGHT, PER_POINT = 2.0, 0.4, 4.0
"""Nanoseconds on one core, measured: one pair's part in setup, products and forces; one of the support^3 weights of
an atom, there and back; one mesh point in both Fourier transforms. Only their ratios matter."""

ROUGH_WINDOW = narrow_window(support=4, x=1.8)
"""Of a second mesh with the same splitting, for corrections that are small against the charges: a tenth of the points,
and potentials to some thousandths."""

SHARPEST = 5.4
"""Exponent of the sharpest window that double precision has."""

LARGEST_MESH = 2**28
"""Points; 2 GB for each array."""

EMPTIEST_MESH = 2**23
"""Points that few atoms may have; some 0.5 GB with all arrays."""

POINTS_PER_ATOM = 1000
"""That many atoms may have: matter takes less than a tenth of it."""


@dataclass(frozen=True)
class Plan:
    """Parameters of one sum.

    Attributes:
        splitting: alpha, 1/Angstrom.
        cutoff: of the real-space sum, Angstrom.
        window: how charges are spread.
        points: mesh points along the cell vectors.
        rough_points: of the mesh of `ROUGH_WINDOW`.
        cost: nanoseconds for one product with J, as estimated.
    """

    splitting: float
    cutoff: float
    window: Window
    points: MeshPoints
    rough_points: MeshPoints
    cost: float


def exponent_for(cutoff: float, volume_per_atom: float, accuracy: float) -> float:
    """The smallest x, in steps of 0.05, with 4 kC / sqrt(r_cut v) exp(-x^2) below the accuracy."""
    scale = 4.0 * COULOMB_CONSTANT / sqrt(cutoff * min(volume_per_atom, DENSE))
    return max(20, ceil(20.0 * sqrt(max(log(scale / accuracy), 0.0)))) / 20.0


def plan_mesh(
    n: int, lengths: Floats, volume: float, widest: float, accuracy: float, doubled: bool, longest: float = inf
) -> Plan | None:
    """The cheapest plan for n atoms, or None if every mesh is too large.

    Args:
        n: number of atoms.
        lengths: of the mesh's cell vectors, Angstrom, shape (3,).
        volume: of the cell, Angstrom^3.
        widest: largest Gaussian width, Angstrom; alpha stays below 1 / (2 widest), the smallest g_ij, so that the
            real-space term decays like erfc(alpha r).
        accuracy: target rms force error for charges of about 1 e, eV/Angstrom.
        doubled: open boundaries, whose mesh of twice the points is half empty along each axis.
        longest: cutoff of the pairs that are known, Angstrom.
    """
    if not doubled:
        accuracy = max(accuracy / coherence(float(np.min(lengths))), FINEST)
    best: Plan | None = None
    largest = largest_mesh(n)
    density = max(n / volume, TYPICAL)
    for cutoff in CUTOFFS:
        x = exponent_for(cutoff, volume / n, accuracy)
        splitting = x / cutoff
        if splitting > 1.0 / (2.0 * widest):
            continue
        if cutoff > longest:
            break
        pairs = PER_PAIR * n * density * 2.0 / 3.0 * pi * cutoff**3
        if best is not None and pairs > best.cost:
            break
        for support in SUPPORTS:
            window = best_window(support, window_exponent(x, lengths, doubled))
            if window is None:
                continue
            points = mesh_points(lengths, window, splitting, open_ends=doubled)
            n_points = float(np.prod(points, dtype=float)) * (4.7 if doubled else 1.0)
            cost = pairs + PER_WEIGHT * n * support**3 + PER_POINT * n_points
            if n_points <= largest and cost < (best.cost if best else inf):
                rough = mesh_points(lengths, ROUGH_WINDOW, splitting, open_ends=doubled)
                best = Plan(splitting, cutoff, window, points, rough, cost)
    return best


def largest_mesh(n: int) -> int:
    """Mesh points that n atoms may have: a cell that is nearly empty must not take minutes and all memory."""
    return min(LARGEST_MESH, max(EMPTIEST_MESH, POINTS_PER_ATOM * n))


def coherence(narrowest: float) -> float:
    """How much more than random charges those in a cell of `narrowest` Angstrom add up with their own images."""
    return 1.0 + (3.0 / narrowest) ** 2


def window_exponent(x: float, lengths: Floats, doubled: bool) -> float:
    """x for the window of a cell that is no cube: long waves are more there than in free space, and so are aliases.

    A cell with vectors a <= b <= c has 1 + pi / (a k) + 2 pi / (a b k^2) times the waves of length k that its volume
    would have; here at its longest wave, k = 2 pi / c, relative to a cube. In cells of some Angstrom width few waves
    are left to average over. The power 1.2 is measured with random charges in cells up to 60 times as long as wide;
    open boundaries count as twice a cube.
    """
    a, b, c = sorted(float(length) for length in lengths)
    excess = 2.0 if doubled else (1.0 + 0.5 * c / a + c * c / (2.0 * pi * a * b)) / (1.5 + 0.5 / pi)
    excess *= coherence(a)
    wanted = ceil(20.0 * sqrt(x * x + 1.2 * log(excess)) - 1e-9) / 20.0
    return max(x, min(wanted, SHARPEST))


def mesh_points(lengths: Floats, window: Window, splitting: float, open_ends: bool) -> MeshPoints:
    """Points along each axis: a spacing below coarseness / alpha, lengths that suit the Fourier transform."""
    wanted = np.asarray(lengths) * splitting / window.coarseness
    margin = window.support + 1 if open_ends else 0
    nx, ny, nz = (fft.next_fast_len(max(ceil(w) + margin, window.support), real=True) for w in wanted)
    return nx, ny, nz
