"""Where the configurations of the water example come from: random starts, Langevin dynamics, spheres out of a liquid.

Only positions leave this file; every label is computed by GFN2-xTB in `make_data.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from ase import units

from kqeq_md.examples.reference_data import Floats, Forces, Ints

WATER, HYDRONIUM, HYDROXIDE = "water", "hydronium", "hydroxide"
CHARGE = {WATER: 0, HYDRONIUM: 1, HYDROXIDE: -1}

# O first; lengths of about 0.96 and 1.0 Angstrom; dynamics finds the method's own
SHAPES = {
    WATER: np.array([[0.0, 0.0, 0.0], [0.757, 0.586, 0.0], [-0.757, 0.586, 0.0]]),
    HYDRONIUM: np.array([[0.0, 0.0, 0.0], [0.94, 0.0, 0.33], [-0.47, 0.81, 0.33], [-0.47, -0.81, 0.33]]),
    HYDROXIDE: np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0]]),
}
STIFFNESS = 1.0  # eV/Angstrom^2, of the wall around a cluster
VOLUME = 29.9  # Angstrom^3 per molecule at 1 g/cm^3
MASSES = {8: 15.999, 1: 4.0}
"""amu. Where atoms are found does not depend on masses; heavy hydrogen allows steps of 1.5 fs."""


def numbers_of(kind: str, n_water: int) -> Ints:
    """Atomic numbers of one ion (unless `kind` is water) and `n_water` waters, molecule by molecule."""
    first = [] if kind == WATER else [8] + [1] * (len(SHAPES[kind]) - 1)
    return np.array(first + [8, 1, 1] * n_water)


def turned(shape: Floats, rng: np.random.Generator) -> Floats:
    """A molecule in a random orientation."""
    axes, upper = np.linalg.qr(rng.normal(size=(3, 3)))
    turned_shape: Floats = shape @ (axes * np.sign(np.diag(upper))).T
    return turned_shape


def sphere_radius(n_molecules: int, density: float) -> float:
    """Radius (Angstrom) of the sphere that holds the molecules at `density` (g/cm^3)."""
    return float((0.75 * n_molecules * VOLUME / density / np.pi) ** (1 / 3))


def random_cluster(kind: str, n_water: int, radius: float, rng: np.random.Generator) -> Floats:
    """Molecules at random in a sphere: O atoms at least 2.6, other atoms of two molecules 1.6 Angstrom apart.

    The sphere grows by 1 % whenever the next molecule finds no place.
    """
    shapes = ([SHAPES[kind]] if kind != WATER else []) + [SHAPES[WATER]] * n_water
    placed: list[Floats] = []
    while len(placed) < len(shapes):
        x = turned(shapes[len(placed)], rng) + rng.uniform(-radius, radius, size=3)
        near = [np.linalg.norm(x[:, None] - y[None], axis=2) for y in placed]
        if np.linalg.norm(x[0]) < radius and all(d[0, 0] > 2.6 and d.min() > 1.6 for d in near):
            placed.append(x)
        else:
            radius *= 1.01 ** (1 / 50)
    return np.concatenate(placed)


def lattice_box(n_edge: int, density: float, rng: np.random.Generator) -> tuple[Floats, float]:
    """n^3 waters in random orientations on a cubic lattice: positions and edge of the periodic cell, Angstrom."""
    edge = (n_edge**3 * VOLUME / density) ** (1 / 3)
    sites = np.indices((n_edge,) * 3).reshape(3, -1).T * edge / n_edge
    return np.concatenate([site + turned(SHAPES[WATER], rng) for site in sites]), float(edge)


def langevin(
    forces: Forces, numbers: Ints, x: Floats, kelvin: float, rng: np.random.Generator, dt_fs: float = 1.5
) -> Iterator[tuple[Floats, Floats]]:
    """Positions (Angstrom) and forces (eV/Angstrom) after each step of Langevin dynamics, without end.

    BAOAB splitting, friction 0.05/fs, thermal velocities at the start. B. Leimkuhler, C. Matthews, Appl. Math. Res.
    Express 2013, 34, https://doi.org/10.1093/amrx/abs010
    """
    mass = np.array([MASSES[int(z)] for z in numbers])[:, None]
    dt = dt_fs * units.fs
    thermal = np.sqrt(units.kB * kelvin / mass)
    keep = np.exp(-0.05 * dt_fs)
    velocity = thermal * rng.normal(size=x.shape)
    f = forces(x)
    while True:
        velocity = velocity + dt / 2 * f / mass
        x = x + dt / 2 * velocity
        velocity = keep * velocity + np.sqrt(1 - keep**2) * thermal * rng.normal(size=x.shape)
        x = x + dt / 2 * velocity
        f = forces(x)
        velocity = velocity + dt / 2 * f / mass
        yield x, f


def distorted_molecule(rng: np.random.Generator) -> Floats:
    """One water: bonds of 0.75 to 1.45 Angstrom, an angle of 75 to 150 degrees."""
    first, second = rng.uniform(0.75, 1.45, size=2)
    angle = np.radians(rng.uniform(75.0, 150.0))
    x = np.array([[0.0, 0.0, 0.0], [first, 0.0, 0.0], [second * np.cos(angle), second * np.sin(angle), 0.0]])
    return turned(x, rng)


def push_molecules(x: Floats, fraction: float) -> Floats:
    """Waters with the two that are nearest (any atoms) moved along that line to `fraction` of the distance."""
    r = np.linalg.norm(x[:, None] - x[None], axis=2)
    molecule = np.arange(len(x)) // 3
    r[molecule[:, None] == molecule[None]] = np.inf
    i, j = np.unravel_index(int(np.argmin(r)), r.shape)
    shift = 0.5 * (1 - fraction) * (x[j] - x[i])
    moved = x.copy()
    moved[molecule == molecule[i]] += shift
    moved[molecule == molecule[j]] -= shift
    return moved


def nearest_molecules(x: Floats, edge: float, centre: Floats, n_molecules: int) -> Floats:
    """The waters of a periodic cubic liquid that are nearest to a point, whole, about the origin.

    Atoms are ordered O, H, H and each molecule is whole; images may appear beside each other if asked for more
    molecules than the cell holds.

    Args:
        x: positions, Angstrom, shape (3 m, 3).
        edge: of the cell, Angstrom.
        centre: Angstrom, shape (3,).
        n_molecules: how many to take.
    """
    molecules = x.reshape(-1, 3, 3) - centre
    molecules = molecules - edge * np.round(molecules[:, :1] / edge)
    images = np.indices((3, 3, 3)).reshape(3, -1).T - 1.0
    every = (molecules[None] + edge * images[:, None, None]).reshape(-1, 3, 3)
    order = np.argsort(np.linalg.norm(every[:, 0], axis=1), kind="stable")
    return every[order[:n_molecules]].reshape(-1, 3)
