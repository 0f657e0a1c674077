"""Which points of a mesh a process has: all of them, or those around the atoms of one rank.

A rank spreads its charges over a brick of points around its atoms. For the Fourier transforms the mesh is cut into
planes along x, a range of them for each rank, and, between the transforms along y, z and those along x, into columns of
a range of waves along y. So no rank holds more than its part of the mesh, and what travels is the bricks, there and
back, and the planes' spectra, there and back.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, product
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kqeq_md.neighbours.search import Ints
from kqeq_md.ranks.halo import Halo
from kqeq_md.structure import Floats

MeshPoints = tuple[int, int, int]
Waves = NDArray[np.complex128]


class MeshLayout(Protocol):
    """Where the points of a mesh are.

    Attributes:
        coordinates: of the atoms on the process' own points, in mesh spacings, shape (n, 3).
        shape: of its own points, the support of an atom's window included.
        last: along each axis, the first coordinate that is one of the next cell and belongs to 0, shape (3,).
    """

    coordinates: Floats
    shape: MeshPoints
    last: Ints

    def collect(self, brick: Floats) -> Floats:
        """Charges on the own points of all processes, added up on planes, shape (n_x here, n_y, n_z)."""

    def hand_out(self, planes: Floats) -> Floats:
        """Potential on planes to the own points of all processes."""

    def columns(self, spectrum: Waves) -> Waves:
        """Waves along y, z of planes to columns of all planes, shape (n_x, waves along y here, waves along z)."""

    def planes(self, columns: Waves, n_waves: int) -> Waves:
        """The way back, with `n_waves` along y."""


class WholeMesh:
    """All points, in one process. They repeat along x and y by themselves, along z by `support` more points.

    Args:
        points: of the mesh along the cell vectors.
        support: points that the window of an atom reaches.
        fractional: coordinates of the atoms, shape (n, 3).
    """

    def __init__(self, points: MeshPoints, support: int, fractional: Floats) -> None:
        nx, ny, nz = points
        self.coordinates: Floats = (fractional % 1.0) * np.array(points)
        self.shape, self.last = (nx, ny, nz + support), np.array(points)
        self._support = support

    def collect(self, brick: Floats) -> Floats:
        brick[:, :, : self._support] += brick[:, :, -self._support :]
        return brick[:, :, : -self._support]

    def hand_out(self, planes: Floats) -> Floats:
        return np.concatenate([planes, planes[:, :, : self._support]], axis=2)

    def columns(self, spectrum: Waves) -> Waves:
        return spectrum

    def planes(self, columns: Waves, n_waves: int) -> Waves:
        return columns


class SharedMesh:
    """The points around the atoms of one rank; all ranks call its methods together.

    Args:
        points: of the whole mesh along the cell vectors.
        support: points that the window of an atom reaches.
        fractional: coordinates of the owned atoms, shape (n, 3): not wrapped, so that they are beside each other.
        halo: of the ranks.
    """

    def __init__(self, points: MeshPoints, support: int, fractional: Floats, halo: Halo) -> None:
        self._points, self._halo = points, halo
        absolute = fractional * np.array(points)
        low = high = np.zeros(3)
        if len(absolute) > 0:
            low, high = np.floor(absolute.min(axis=0)), np.floor(absolute.max(axis=0)) + support + 1
        nx, ny, nz = (int(length) for length in high - low)
        self.coordinates: Floats = absolute - low
        self.shape, self.last = (nx, ny, nz), np.array((nx, ny, nz))
        # of each rank: the point at which its brick begins, and its shape when it is folded, shape (n_ranks, 6)
        self._bricks = halo.gather(np.concatenate([low % points, np.minimum(self.shape, points)])[None]).astype(
            np.int64
        )
        self._edges = edges(points[0], halo.size)

    def collect(self, brick: Floats) -> Floats:
        for axis, n in enumerate(self._points):
            brick = folded(brick, axis, n)
        here, ranks = self._halo.rank, range(self._halo.size)
        pieces = [np.concatenate([brick[:0], *(brick[own] for own, _ in self._planes_of(here, d))]) for d in ranks]
        out = np.zeros((self._edges[here + 1] - self._edges[here], *self._points[1:]))
        received = self._halo.exchange(pieces, [self._piece(s, here) for s in ranks])
        for s, piece in zip(ranks, received, strict=True):
            for in_piece, in_planes in self._regions(s):
                out[in_planes] += piece[in_piece]
        return out

    def hand_out(self, planes: Floats) -> Floats:
        here, ranks = self._halo.rank, range(self._halo.size)
        pieces = [np.empty(self._piece(s, here)) for s in ranks]
        for s, piece in zip(ranks, pieces, strict=True):
            for in_piece, in_planes in self._regions(s):
                piece[in_piece] = planes[in_planes]
        out = np.empty(self.shape)
        brick = out[tuple(slice(length) for length in self._bricks[here, 3:])]
        received = self._halo.exchange(pieces, [self._piece(here, d) for d in ranks])
        for d, piece in zip(ranks, received, strict=True):
            for own, begin in self._planes_of(here, d):
                brick[own] = piece[begin : begin + own.stop - own.start]
        repeat(out, brick.shape)
        return out

    def columns(self, spectrum: Waves) -> Waves:
        rows, here = edges(spectrum.shape[1], self._halo.size), self._halo.rank
        pieces = [as_floats(spectrum[:, a:b]) for a, b in pairwise(rows)]
        shapes = [(b - a, rows[here + 1] - rows[here], 2 * spectrum.shape[2]) for a, b in pairwise(self._edges)]
        return as_waves(np.concatenate(self._halo.exchange(pieces, shapes)))

    def planes(self, columns: Waves, n_waves: int) -> Waves:
        here = self._halo.rank
        pieces = [as_floats(columns[a:b]) for a, b in pairwise(self._edges)]
        n_planes = self._edges[here + 1] - self._edges[here]
        shapes = [(n_planes, b - a, 2 * columns.shape[2]) for a, b in pairwise(edges(n_waves, self._halo.size))]
        return as_waves(np.concatenate(self._halo.exchange(pieces, shapes), axis=1))

    def _along_x(self, s: int, d: int) -> Iterator[tuple[int, int, int]]:
        """Runs of planes that the brick of rank s has on rank d, as `overlaps` gives them."""
        origin, length = self._bricks[s, 0], self._bricks[s, 3]
        return overlaps(origin, length, self._points[0], self._edges[d], self._edges[d + 1])

    def _planes_of(self, s: int, d: int) -> list[tuple[slice, int]]:
        """Planes of the brick of rank s that lie on rank d, and where they begin in the piece that goes there."""
        found, begin = [], 0
        for own, _, count in self._along_x(s, d):
            found.append((slice(own, own + count), begin))
            begin += count
        return found

    def _piece(self, s: int, d: int) -> MeshPoints:
        """Shape of what the brick of rank s has on rank d."""
        count = sum(count for _, _, count in self._along_x(s, d))
        return count, int(self._bricks[s, 4]), int(self._bricks[s, 5])

    def _regions(self, s: int) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
        """Boxes of points that the brick of rank s has on the planes here: where in its piece, and on the planes."""
        first, begin = self._edges[self._halo.rank], 0
        axes: list[list[tuple[slice, slice]]] = [[]]
        for _, x, count in self._along_x(s, self._halo.rank):
            axes[0].append((slice(begin, begin + count), slice(x - first, x - first + count)))
            begin += count
        for axis in (1, 2):
            origin, length, n = self._bricks[s, axis], self._bricks[s, 3 + axis], self._points[axis]
            runs = overlaps(origin, length, n, 0, n)
            axes.append([(slice(own, own + count), slice(x, x + count)) for own, x, count in runs])
        for box in product(*axes):
            yield tuple(own for own, _ in box), tuple(there for _, there in box)


def edges(n: int, ranks: int) -> list[int]:
    """Where the share of each rank in n planes begins, and the end of the last."""
    return [n * rank // ranks for rank in range(ranks + 1)]


def overlaps(origin: int, length: int, n: int, low: int, high: int) -> Iterator[tuple[int, int, int]]:
    """Runs of a brick's points along an axis of n points that lie in [low, high): where each begins in the brick and on
    the axis, and its number of points.

    Args:
        origin: point of the axis at which the brick begins.
        length: of the brick, at most n.
    """
    for begin, x, end in ((0, origin, min(origin + length, n)), (n - origin, 0, origin + length - n)):
        first, last = max(x, low), min(end, high)
        if last > first:
            yield int(begin + first - x), int(first), int(last - first)


def folded(brick: Floats, axis: int, n: int) -> Floats:
    """Points of a brick that is longer than the axis of n points, added to those that they repeat."""
    if brick.shape[axis] <= n:
        return brick
    whole, rest = np.split(brick, [n], axis)
    rest = folded(rest, axis, n)
    np.moveaxis(whole, axis, 0)[: rest.shape[axis]] += np.moveaxis(rest, axis, 0)
    return whole


def repeat(brick: Floats, shape: tuple[int, ...]) -> None:
    """The way back of `folded`: fill a brick from its first corner, of that shape."""
    for axis, n in enumerate(shape):
        rows = np.moveaxis(brick, axis, 0)
        for begin in range(n, len(rows), max(n, 1)):
            end = min(begin + n, len(rows))
            rows[begin:end] = rows[: end - begin]


def as_floats(waves: Waves) -> Floats:
    """Real and imaginary parts side by side on the last axis."""
    return np.ascontiguousarray(waves).view(np.float64)


def as_waves(parts: Floats) -> Waves:
    """The way back."""
    return np.ascontiguousarray(parts).view(np.complex128)
