"""Short-range repulsion: what keeps hot atoms from falling into each other where no data was.

    E = 1/2 sum_ij s(r_ij) kC Z_i Z_j / r_ij phi(r_ij / a_ij),   a_ij = 0.46850 / (Z_i^0.23 + Z_j^0.23) Angstrom

with the universal screening function phi of Ziegler, Biersack and Littmark (The Stopping and Range of Ions in
Matter, Pergamon, 1985) and a switch s from 1 at half of the outer radius to 0 at the outer radius of the pair.
The learned part of the short-range energy is a column of the kernel (`kernel.py`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kqeq_md.machine.jit import compiled
from kqeq_md.neighbours.half_list import Pairs
from kqeq_md.structure import Floats
from kqeq_md.switch import switch
from kqeq_md.units import COULOMB_CONSTANT

ZBL_AMPLITUDES = np.array([0.18175, 0.50986, 0.28022, 0.02817])
ZBL_DECAYS = np.array([3.19980, 0.94229, 0.40290, 0.20162])


def screened_nuclear_repulsion(r: Floats, z_i: Floats, z_j: Floats) -> tuple[Floats, Floats]:
    """kC Z_i Z_j phi(r / a_ij) / r (eV) and its derivative (eV/Angstrom), without the switch; shape of r."""
    length = 0.46850 / (z_i**0.23 + z_j**0.23)
    terms = ZBL_AMPLITUDES * np.exp(-ZBL_DECAYS * (r / length)[:, None])
    phi, dphi = terms.sum(axis=1), -(terms * ZBL_DECAYS).sum(axis=1) / length
    bare = COULOMB_CONSTANT * z_i * z_j / r
    return bare * phi, bare * (dphi - phi / r)


def add_repulsion(
    pairs: Pairs, numbers_all: Floats, outer_radius_all: Floats, energies: Floats, gradient: Floats
) -> None:
    """Add the energy of each centre and the gradient of the total in the pair vectors.

    Args:
        pairs: directed pairs.
        numbers_all: atomic numbers, shape (n_all,).
        outer_radius_all: r_i with s = 0 from r_i + r_j on, Angstrom, shape (n_all,).
        energies: eV, shape (n_local,).
        gradient: eV/Angstrom, shape (n_pairs, 3).
    """
    centre, close = close_pairs(pairs.first, pairs.neighbour, pairs.vectors, outer_radius_all)
    neighbour, vectors = pairs.neighbour[close], pairs.vectors[close]
    r = np.linalg.norm(vectors, axis=1)
    outer = outer_radius_all[centre] + outer_radius_all[neighbour]
    bare, slope = screened_nuclear_repulsion(r, numbers_all[centre], numbers_all[neighbour])
    s, ds = switch(r, 0.5 * outer, outer)
    np.add.at(energies, centre, 0.5 * s * bare)
    gradient[close] += (0.5 * (s * slope + ds * bare) / r)[:, None] * vectors


@compiled
def close_pairs(
    first: NDArray[np.int64], neighbour: NDArray[np.int64], vectors: Floats, radius: Floats
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Centres and indices of the pairs with r < r_i + r_j."""
    centre, close = np.empty(len(vectors), dtype=np.int64), np.empty(len(vectors), dtype=np.int64)
    n = 0
    for i in range(len(first) - 1):
        for p in range(first[i], first[i + 1]):
            outer = radius[i] + radius[neighbour[p]]
            if vectors[p, 0] ** 2 + vectors[p, 1] ** 2 + vectors[p, 2] ** 2 < outer * outer:
                centre[n], close[n] = i, p
                n += 1
    return centre[:n].copy(), close[:n].copy()
