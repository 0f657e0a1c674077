"""Where the configurations of the NaCl example come from: a classical potential, Langevin dynamics, close contacts.

Only positions leave this file; every label is computed by GFN2-xTB in `make_data.py`.
"""

from __future__ import annotations

import numpy as np
from ase import units
from ase.data import atomic_masses

from kqeq_md.examples.reference_data import Floats, Forces, Ints, with_wall
from kqeq_md.units import COULOMB_CONSTANT

NA, CL = 11, 17
STIFFNESS = 2.0  # eV/Angstrom^2, of the wall around a cluster
G_PER_CM3 = 1e-3 * units.kg / (1e-2 * units.m) ** 3  # in amu/Angstrom^3
BOND = {(NA, CL): 2.45, (NA, NA): 3.2, (CL, CL): 3.5}
"""Usual nearest distances in hot GFN2 NaCl, Angstrom; GFN2 packs NaCl about 9 % more tightly than experiment."""

# Fumi-Tosi: A (eV), sigma (Angstrom), C (eV Angstrom^6), D (eV Angstrom^8) per pair, one softness.
# M. P. Tosi, F. G. Fumi, J. Phys. Chem. Solids 25, 45 (1964), https://doi.org/10.1016/0022-3697(64)90160-X
SOFTNESS = 0.317
FUMI_TOSI = {
    (NA, NA): (0.2637, 2.340, 1.0486, 0.4994),
    (NA, CL): (0.2110, 2.755, 6.9906, 8.6758),
    (CL, CL): (0.1582, 3.170, 72.4022, 145.4285),
}


def pair_of(z_i: int, z_j: int) -> tuple[int, int]:
    """The key of a pair of elements in the tables above, whatever the order."""
    return (min(z_i, z_j), max(z_i, z_j))


def born_mayer_forces(numbers: Ints) -> Forces:
    """Forces (eV/Angstrom) of the Fumi-Tosi potential with full ionic charges and open boundaries.

    u(r) = kC z_i z_j / r + A exp((sigma - r) / rho) - C / r^6 - D / r^8

    Args:
        numbers: atomic numbers, 11 or 17, shape (n,).
    """
    table = np.array([[FUMI_TOSI[pair_of(i, j)] for j in numbers] for i in numbers])
    a, sigma, c, d = np.moveaxis(table, -1, 0)
    z = np.where(numbers == NA, 1.0, -1.0)
    coulomb = COULOMB_CONSTANT * np.outer(z, z)

    def forces(x: Floats) -> Floats:
        d_ijc = x[:, None] - x[None]
        r2 = np.einsum("ijc,ijc->ij", d_ijc, d_ijc)
        np.fill_diagonal(r2, np.inf)
        r = np.sqrt(r2)
        push = coulomb / r2 + a / SOFTNESS * np.exp((sigma - r) / SOFTNESS) - 6 * c / r2**3 / r - 8 * d / r2**4 / r
        return np.einsum("ij,ijc->ic", push / r, d_ijc)

    return forces


def langevin(
    forces: Forces, numbers: Ints, x: Floats, kelvin: float, n_steps: int, dt_fs: float, rng: np.random.Generator
) -> Floats:
    """Positions (Angstrom) after `n_steps` of Langevin dynamics from `x`, BAOAB splitting, friction 0.05/fs.

    Starts with thermal velocities. B. Leimkuhler, C. Matthews, Appl. Math. Res. Express 2013, 34,
    https://doi.org/10.1093/amrx/abs010
    """
    mass = atomic_masses[numbers][:, None]
    dt = dt_fs * units.fs
    thermal = np.sqrt(units.kB * kelvin / mass)
    keep = np.exp(-0.05 * dt_fs)
    velocity = thermal * rng.normal(size=x.shape)
    f = forces(x)
    for _ in range(n_steps):
        velocity = velocity + dt / 2 * f / mass
        x = x + dt / 2 * velocity
        velocity = keep * velocity + np.sqrt(1 - keep**2) * thermal * rng.normal(size=x.shape)
        x = x + dt / 2 * velocity
        f = forces(x)
        velocity = velocity + dt / 2 * f / mass
    return x


def sphere_radius(numbers: Ints, density: float) -> float:
    """Radius (Angstrom) of the sphere that holds the atoms at `density` (g/cm^3)."""
    volume = atomic_masses[numbers].sum() / (density * G_PER_CM3)
    return float((0.75 * volume / np.pi) ** (1 / 3))


def random_start(numbers: Ints, radius: float, rng: np.random.Generator, apart: float = 2.0) -> Floats:
    """Random positions in a sphere, no two closer than `apart` (Angstrom)."""
    placed: list[Floats] = []
    while len(placed) < len(numbers):
        x = rng.uniform(-radius, radius, size=3)
        if np.linalg.norm(x) < radius and all(np.linalg.norm(x - y) > apart for y in placed):
            placed.append(x)
    return np.array(placed)


def hot_cluster(numbers: Ints, kelvin: float, density: float, scale: float, rng: np.random.Generator) -> Floats:
    """A configuration (Angstrom) of its own Fumi-Tosi trajectory, 3 ps long, walled in at `density` (g/cm^3).

    Lengths are multiplied by `scale` (about 0.91: GFN2's bonds against Fumi-Tosi's) so that GFN2 finds the result
    thermal; the wall is set such that the density holds after scaling.
    """
    radius = sphere_radius(numbers, density) / scale
    forces = with_wall(born_mayer_forces(numbers), radius, STIFFNESS)
    start = random_start(numbers, radius, rng)
    melted = langevin(forces, numbers, start, max(kelvin, 1500.0), 500, 2.0, rng)
    return scale * langevin(forces, numbers, melted, kelvin, 1000, 2.0, rng)


def rock_salt(n_edge: int, spacing: float, rattle: float, rng: np.random.Generator) -> tuple[Ints, Floats]:
    """Numbers and positions of an n x n x n rock-salt cube, every coordinate displaced by N(0, rattle), Angstrom."""
    grid = np.indices((n_edge,) * 3).reshape(3, -1).T
    numbers = np.where(grid.sum(axis=1) % 2, CL, NA)
    return numbers, spacing * grid + rattle * rng.normal(size=grid.shape)


def distances(x: Floats) -> Floats:
    """All distances (Angstrom), shape (n, n), infinite on the diagonal."""
    r = np.linalg.norm(x[:, None] - x[None], axis=2)
    np.fill_diagonal(r, np.inf)
    return r


def shortest(numbers: Ints, x: Floats, pair: tuple[int, int]) -> tuple[float, int, int]:
    """The shortest distance (Angstrom) between the two elements of `pair`, and the two atoms."""
    wanted = (numbers[:, None] == pair[0]) & (numbers[None] == pair[1])
    r = np.where(wanted, distances(x), np.inf)
    i, j = np.unravel_index(int(np.argmin(r)), r.shape)
    return float(r[i, j]), int(i), int(j)


def push_together(numbers: Ints, x: Floats, pair: tuple[int, int], fraction: float) -> Floats:
    """`x` with the nearest atoms of `pair` moved along their axis to `fraction` of the usual distance."""
    r, i, j = shortest(numbers, x, pair)
    shift = 0.5 * (1 - fraction * BOND[pair] / r) * (x[j] - x[i])
    moved = x.copy()
    moved[i] += shift
    moved[j] -= shift
    return moved
