"""The smeared neighbour density of a group of atoms in radial functions and spherical harmonics, and its reverse.

    c_lm,a,i = w delta_(l,0) f_n0(0) Y_00 [own element] + sum_j f_nl(r_ij) r_ij^l Y_lm(r_ij),   a = (element of j, n)

The atoms of a group stand side by side on the last axis (index k), so that every loop over it works on several atoms
at a time. Step t takes the t-th neighbour of one element of each atom; an atom that has none left sees one half a knot
beyond the cutoff, where the table is zero (on the cutoff rounding decides on which side of the last knot it is).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kqeq_md.descriptor.harmonics import solid_harmonics, solid_harmonics_vjp
from kqeq_md.machine.jit import compiled
from kqeq_md.structure import Floats

Ints = NDArray[np.int64]

TOGETHER = 4
"""Steps of which `add_neighbours` sums the density before it is stored: fewer trips to memory."""


@compiled
def neighbours_by_element(
    rows: Ints, first: Ints, neighbour: Ints, vectors: Floats, species: Ints, n_species: int, cutoff: float
) -> tuple[Ints, Ints]:
    """The pairs of each atom within the cutoff, sorted by the element of the neighbour.

    Returns:
        pair[e, t, k], the t-th pair of atom rows[k] with element e, -1 where there is none; and how many steps each
        element needs. The number of steps in `pair` is a multiple of `TOGETHER`.
    """
    lanes = len(rows)
    counts = np.zeros((n_species, lanes), dtype=np.int64)
    for k in range(lanes):
        for p in range(first[rows[k]], first[rows[k] + 1]):
            if vectors[p, 0] ** 2 + vectors[p, 1] ** 2 + vectors[p, 2] ** 2 < cutoff * cutoff:
                counts[species[neighbour[p]], k] += 1
    steps = np.zeros(n_species, dtype=np.int64)
    for e in range(n_species):
        steps[e] = counts[e].max()
    most = (steps.max() + TOGETHER - 1) // TOGETHER * TOGETHER
    pair = np.full((n_species, most, lanes), -1, dtype=np.int64)
    counts[:] = 0
    for k in range(lanes):
        for p in range(first[rows[k]], first[rows[k] + 1]):
            if vectors[p, 0] ** 2 + vectors[p, 1] ** 2 + vectors[p, 2] ** 2 < cutoff * cutoff:
                e = species[neighbour[p]]
                pair[e, counts[e, k], k] = p
                counts[e, k] += 1
    return pair, steps


@compiled
def look_up(pair: Ints, vectors: Floats, outside: float, x: Floats, y: Floats, z: Floats, r: Floats) -> None:
    """Vectors and distances of the pairs of one step, each shape (lanes,); a missing one has the distance `outside`."""
    for k in range(len(pair)):
        p = pair[k]
        if p >= 0:
            x[k], y[k], z[k] = vectors[p, 0], vectors[p, 1], vectors[p, 2]
        else:
            x[k], y[k], z[k] = 0.0, 0.0, outside
    for k in range(len(pair)):
        r[k] = np.sqrt(x[k] * x[k] + y[k] * y[k] + z[k] * z[k])


@compiled
def place_in_table(r: float, start: float, spacing: float) -> tuple[int, float, float, float, float]:
    """The knot on the left, the part u of the way to the next one, and the weights h01, h10, h11 of cubic Hermite
    interpolation: f = f_0 + h01 (f_1 - f_0) + h10 f_0' + h11 f_1'."""
    u = (r - start) / spacing
    left = int(u)
    u -= left
    return left, u, u * u * (3.0 - 2.0 * u), spacing * u * (1.0 - u) ** 2, spacing * u * u * (u - 1.0)


@compiled
def radial_functions(r: Floats, start: float, spacing: float, table: Floats, f: Floats) -> None:
    """f_nl(r) by interpolation in a table (knots, 2, q), q = (l, n), into f, shape (q, lanes)."""
    for k in range(len(r)):
        left, _, h01, h10, h11 = place_in_table(r[k], start, spacing)
        for q in range(table.shape[2]):
            rise = table[left + 1, 0, q] - table[left, 0, q]
            f[q, k] = table[left, 0, q] + h01 * rise + h10 * table[left, 1, q] + h11 * table[left + 1, 1, q]


@compiled
def radial_functions_and_slopes(r: Floats, start: float, spacing: float, table: Floats, f: Floats, df: Floats) -> None:
    """f_nl(r) as `radial_functions`, and df_nl/dr, the derivative of the same interpolation, into df, shape of f."""
    for k in range(len(r)):
        left, u, h01, h10, h11 = place_in_table(r[k], start, spacing)
        e01, e10, e11 = 6.0 * u * (1.0 - u) / spacing, 1.0 + u * (3.0 * u - 4.0), u * (3.0 * u - 2.0)
        for q in range(table.shape[2]):
            rise = table[left + 1, 0, q] - table[left, 0, q]
            f[q, k] = table[left, 0, q] + h01 * rise + h10 * table[left, 1, q] + h11 * table[left + 1, 1, q]
            df[q, k] = e01 * rise + e10 * table[left, 1, q] + e11 * table[left + 1, 1, q]


@compiled
def add_neighbours(h: Floats, f: Floats, e: int, c: Floats) -> None:
    """c_lm,en += sum_t h_t,lm f_t,ln for one element e, t over `TOGETHER` steps; shape of c (lm, e, n, lanes)."""
    for degree in range(f.shape[1]):
        for lm in range(degree * degree, (degree + 1) * (degree + 1)):
            for n in range(f.shape[2]):
                for k in range(c.shape[3]):
                    c[lm, e, n, k] += (
                        (h[0, lm, k] * f[0, degree, n, k] + h[1, lm, k] * f[1, degree, n, k])
                        + (h[2, lm, k] * f[2, degree, n, k] + h[3, lm, k] * f[3, degree, n, k])
                    )  # fmt: skip


@compiled
def scale_rows(factor: Floats, given: Floats, out: Floats) -> None:
    """out_lm,... = factor_lm given_lm,..., shape (lm, e, n, lanes)."""
    for lm in range(len(factor)):
        for e in range(given.shape[1]):
            for n in range(given.shape[2]):
                for k in range(given.shape[3]):
                    out[lm, e, n, k] = factor[lm] * given[lm, e, n, k]


@compiled
def expand_density(
    rows: Ints, first: Ints, neighbour: Ints, vectors: Floats, species: Ints, n_species: int,
    cutoff: float, start: float, spacing: float, table: Floats, centre: Floats, norm: Floats,
) -> Floats:  # fmt: skip
    """c_lm,a of the atoms `rows`, shape (lm, a, lanes).

    Args:
        rows: the centres, of any elements, shape (lanes,).
        first, neighbour, vectors: of `Pairs`.
        species: element index of owned atoms and ghosts, shape (n_all,).
        n_species, cutoff: of the descriptor.
        start, spacing, table: of the radial functions, the table with shape (knots, 2, q).
        centre: what each atom adds to its own density in l = 0, shape (n_max,).
        norm: N_lm of the solid harmonics, shape (lm,).
    """
    lanes, n_max = len(rows), len(centre)
    n_l = table.shape[2] // n_max
    pair, steps = neighbours_by_element(rows, first, neighbour, vectors, species, n_species, cutoff)
    x, y, z, r = np.empty(lanes), np.empty(lanes), np.empty(lanes), np.empty(lanes)
    h, f = np.empty((TOGETHER, n_l * n_l, lanes)), np.empty((TOGETHER, n_l, n_max, lanes))
    c = np.zeros((n_l * n_l, n_species, n_max, lanes))
    for k in range(lanes):
        for n in range(n_max):
            c[0, species[rows[k]], n, k] = centre[n]
    for e in range(n_species):
        for step in range(0, steps[e], TOGETHER):
            for t in range(TOGETHER):
                look_up(pair[e, step + t], vectors, cutoff + 0.5 * spacing, x, y, z, r)
                solid_harmonics(x, y, z, n_l, h[t])
                radial_functions(r, start, spacing, table, f[t].reshape(n_l * n_max, lanes))
            add_neighbours(h, f, e, c)
    scale_rows(norm, c, c)
    return c.reshape(n_l * n_l, n_species * n_max, lanes)


@compiled
def sum_channels(g: Floats, f: Floats, df: Floats, e: int, t: Floats, u: Floats) -> None:
    """t_lm = sum_n g_lm,en f_ln and u_lm = sum_n g_lm,en df_ln/dr for one element e; shape of g (lm, e, n, lanes)."""
    lanes, n_max = g.shape[3], g.shape[2]
    fours = n_max - n_max % 4  # four at a time: fewer trips to memory
    for degree in range(f.shape[0]):
        for lm in range(degree * degree, (degree + 1) * (degree + 1)):
            for k in range(lanes):
                t[lm, k] = u[lm, k] = 0.0
            for n in range(0, fours, 4):
                for k in range(lanes):
                    g0, g1, g2, g3 = g[lm, e, n, k], g[lm, e, n + 1, k], g[lm, e, n + 2, k], g[lm, e, n + 3, k]
                    t[lm, k] += (
                        (g0 * f[degree, n, k] + g1 * f[degree, n + 1, k])
                        + (g2 * f[degree, n + 2, k] + g3 * f[degree, n + 3, k])
                    )  # fmt: skip
                    u[lm, k] += (
                        (g0 * df[degree, n, k] + g1 * df[degree, n + 1, k])
                        + (g2 * df[degree, n + 2, k] + g3 * df[degree, n + 3, k])
                    )  # fmt: skip
            for n in range(fours, n_max):
                for k in range(lanes):
                    t[lm, k] += g[lm, e, n, k] * f[degree, n, k]
                    u[lm, k] += g[lm, e, n, k] * df[degree, n, k]


@compiled
def expand_density_vjp(
    rows: Ints, first: Ints, neighbour: Ints, vectors: Floats, species: Ints, n_species: int,
    cutoff: float, start: float, spacing: float, table: Floats, centre: Floats, norm: Floats,
    grad_c: Floats, out: Floats,
) -> None:  # fmt: skip
    """Add dE/d(pair vectors) of the pairs of `rows` to `out`, shape (n_pairs, 3), from dE/dc, shape (lm, a, lanes).

    With t_lm = sum_n g_lm,a f_nl and u_lm = sum_n g_lm,a df_nl/dr the gradient of one pair is
    sum_lm t_lm grad(r^l Y_lm) + (r / |r|) sum_lm u_lm r^l Y_lm. Other arguments as in `expand_density`.
    """
    lanes, n_max = len(rows), len(centre)
    n_l = table.shape[2] // n_max
    pair, steps = neighbours_by_element(rows, first, neighbour, vectors, species, n_species, cutoff)
    x, y, z, r = np.empty(lanes), np.empty(lanes), np.empty(lanes), np.empty(lanes)
    h, t, u = np.empty((n_l * n_l, lanes)), np.empty((n_l * n_l, lanes)), np.empty((n_l * n_l, lanes))
    f, df = np.empty((n_l * n_max, lanes)), np.empty((n_l * n_max, lanes))
    f_ln, df_ln = f.reshape(n_l, n_max, lanes), df.reshape(n_l, n_max, lanes)
    grad, along = np.empty((3, lanes)), np.empty(lanes)
    g = np.empty((n_l * n_l, n_species, n_max, lanes))
    scale_rows(norm, grad_c.reshape(g.shape), g)
    for e in range(n_species):
        for step in range(steps[e]):
            look_up(pair[e, step], vectors, cutoff + 0.5 * spacing, x, y, z, r)
            solid_harmonics(x, y, z, n_l, h)
            radial_functions_and_slopes(r, start, spacing, table, f, df)
            sum_channels(g, f_ln, df_ln, e, t, u)
            for k in range(lanes):
                along[k] = 0.0
            for lm in range(n_l * n_l):
                for k in range(lanes):
                    along[k] += u[lm, k] * h[lm, k]
            for k in range(lanes):
                along[k] /= r[k]
                grad[0, k], grad[1, k], grad[2, k] = along[k] * x[k], along[k] * y[k], along[k] * z[k]
            solid_harmonics_vjp(h, n_l, t, grad)
            for k in range(lanes):
                p = pair[e, step, k]
                if p >= 0:
                    for b in range(3):
                        out[p, b] += grad[b, k]
