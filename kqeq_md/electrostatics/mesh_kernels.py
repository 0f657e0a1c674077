"""Charges to mesh and back, compiled once for each support of the window.

The window's weights w(u - m) of an atom are separable; the mesh is periodic along x and y, and along z it carries
`support` more points, so that the innermost loop runs over contiguous memory. Its index is unsigned: the compiler need
not look for negative ones, and handles several points at once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import exp, sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kqeq_md.machine.jit import compiled
from kqeq_md.structure import Floats


class MeshKernels(NamedTuple):
    """weigh(row, end, coordinates, shape, last, base, weight): weights of every atom along the three axes;
    spread(row, end, base, weight, charges, mesh): mesh += sum_i q_i w_i;
    interpolate(row, end, base, weight, mesh, out): out_i = sum over mesh points of w_i times the mesh;
    differentiate(row, end, coordinates, base, weight, shape, mesh, out): the same with the gradient of w_i, per mesh
    spacing."""

    weigh: Callable[..., Any]
    spread: Callable[..., Any]
    interpolate: Callable[..., Any]
    differentiate: Callable[..., Any]


@cache
def mesh_kernels(support: int) -> MeshKernels:
    """The four kernels for a window of `support` mesh points, a number that the compiler knows."""
    n_line = np.uint64(support)

    @compiled
    def weigh(
        row: int, end: int, coordinates: Floats, shape: float, last: NDArray[np.int64],
        base: NDArray[np.int32], weight: Floats,
    ) -> None:  # fmt: skip
        """(cosh(shape sqrt(1 - z^2)) - 1) / (cosh(shape) - 1) at the support's points, from base on."""
        floor = exp(-shape)
        norm = 1.0 / (1.0 - floor) ** 2
        for i in range(row, end):
            for c in range(3):
                u = coordinates[i, c]
                m = int(u)
                base[i, c] = m if m < last[c] else 0
                for k in range(support):
                    z = (k + 1 - (u - m)) * (2.0 / support) - 1.0
                    root = shape * sqrt(max(1.0 - z * z, 0.0))
                    e = exp(root - shape)
                    weight[i, c, k] = (e + floor * floor / e - 2.0 * floor) * norm

    @compiled
    def spread(row: int, end: int, base: NDArray[np.int32], weight: Floats, charges: Floats, mesh: Floats) -> None:
        """mesh += q_i w_x w_y w_z."""
        nx, ny, nz = mesh.shape
        points = mesh.reshape(-1)
        for i in range(row, end):
            w_z = weight[i, 2]
            for a in range(support):
                x = base[i, 0] + a
                x -= nx if x >= nx else 0
                w_x = charges[i] * weight[i, 0, a]
                for b in range(support):
                    y = base[i, 1] + b
                    y -= ny if y >= ny else 0
                    w_xy = w_x * weight[i, 1, b]
                    line = np.uint64((x * ny + y) * nz + base[i, 2])
                    for c in range(n_line):
                        points[line + c] += w_xy * w_z[c]

    @compiled
    def interpolate(row: int, end: int, base: NDArray[np.int32], weight: Floats, mesh: Floats, out: Floats) -> None:
        """out_i = sum w_x w_y w_z mesh."""
        nx, ny, nz = mesh.shape
        points, summed = mesh.reshape(-1), np.empty(support)
        for i in range(row, end):
            for c in range(support):
                summed[c] = 0.0
            for a in range(support):
                x = base[i, 0] + a
                x -= nx if x >= nx else 0
                for b in range(support):
                    y = base[i, 1] + b
                    y -= ny if y >= ny else 0
                    w_xy = weight[i, 0, a] * weight[i, 1, b]
                    line = np.uint64((x * ny + y) * nz + base[i, 2])
                    for c in range(n_line):
                        summed[c] += w_xy * points[line + c]
            total = 0.0
            for c in range(support):
                total += summed[c] * weight[i, 2, c]
            out[i] = total

    @compiled
    def differentiate(
        row: int, end: int, coordinates: Floats, base: NDArray[np.int32], weight: Floats, shape: float, mesh: Floats,
        out: Floats,
    ) -> None:  # fmt: skip
        """out_i = d/du of interpolate, one column for each axis; d w / d u = shape z sinh(..) / sqrt(1 - z^2) ..."""
        nx, ny, nz = mesh.shape
        points = mesh.reshape(-1)
        floor = exp(-shape)
        norm = 1.0 / (1.0 - floor) ** 2
        slope = np.empty((3, support))
        for i in range(row, end):
            for c in range(3):
                u = coordinates[i, c]
                u -= int(u)
                for k in range(support):
                    z = (k + 1 - u) * (2.0 / support) - 1.0
                    root = sqrt(max(1.0 - z * z, 1e-30))
                    e = exp(shape * (root - 1.0))
                    slope[c, k] = shape * z / root * (e - floor * floor / e) * norm * (2.0 / support)
            w_z, d_z = weight[i, 2], slope[2]
            x_total, y_total, z_total = 0.0, 0.0, 0.0
            for a in range(support):
                x = base[i, 0] + a
                x -= nx if x >= nx else 0
                for b in range(support):
                    y = base[i, 1] + b
                    y -= ny if y >= ny else 0
                    line, along, across = np.uint64((x * ny + y) * nz + base[i, 2]), 0.0, 0.0
                    for c in range(n_line):
                        along += points[line + c] * d_z[c]
                        across += points[line + c] * w_z[c]
                    x_total += slope[0, a] * weight[i, 1, b] * across
                    y_total += weight[i, 0, a] * slope[1, b] * across
                    z_total += weight[i, 0, a] * weight[i, 1, b] * along
            out[i, 0], out[i, 1], out[i, 2] = x_total, y_total, z_total

    return MeshKernels(weigh, spread, interpolate, differentiate)
