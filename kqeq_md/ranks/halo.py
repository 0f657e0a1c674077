"""The seam for domain decomposition: how values travel between ranks, and between the owners of atoms and ghosts.

A rank owns the first `n_local` atoms of its arrays; the others, up to `n_all`, are ghosts: images of atoms that
some rank owns. Whatever the core computes per centre needs neighbours' values (`forward`), whatever it
differentiates leaves contributions on ghosts that belong to their owners (`reverse`), and totals are sums over
ranks (`sum`). All ranks call the same methods in the same order; whatever decides which ones comes out of `sum`
or `gather`, and so is the same on all. The core knows no more of parallel runs than this and `domain`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kqeq_md.structure import Floats


class Halo(Protocol):
    """Communication between ranks.

    Attributes:
        rank: which one this is, counted from 0.
        size: how many there are.
    """

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def forward(self, x_local: NDArray[np.generic]) -> NDArray[np.generic]:
        """Values of owners, shape (n_local, ...), copied to their ghosts: shape (n_all, ...)."""

    def reverse(self, y_all: NDArray[np.float64]) -> NDArray[np.float64]:
        """Contributions on owners and ghosts, shape (n_all, ...), added up at home: shape (n_local, ...)."""

    def sum(self, value: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum of `value` over all ranks, the same on each."""

    def gather(self, x_local: NDArray[np.float64]) -> NDArray[np.float64]:
        """The rows of all ranks, one rank after the other, the same on each; shape (n, ...)."""

    def exchange(
        self, pieces: Sequence[NDArray[np.float64]], shapes: Sequence[tuple[int, ...]]
    ) -> list[NDArray[np.float64]]:
        """What each rank has sent to this one, of the given shapes, for `pieces` to each rank."""


class SerialHalo:
    """One process that owns every atom: all maps are the identity."""

    rank, size = 0, 1

    def forward(self, x_local: NDArray[np.generic]) -> NDArray[np.generic]:
        return x_local

    def reverse(self, y_all: NDArray[np.float64]) -> NDArray[np.float64]:
        return y_all

    def sum(self, value: NDArray[np.float64]) -> NDArray[np.float64]:
        return value

    def gather(self, x_local: NDArray[np.float64]) -> NDArray[np.float64]:
        return x_local

    def exchange(
        self, pieces: Sequence[NDArray[np.float64]], shapes: Sequence[tuple[int, ...]]
    ) -> list[NDArray[np.float64]]:
        return list(pieces)


SERIAL = SerialHalo()


def extent(values: Floats, halo: Halo) -> tuple[Floats, Floats]:
    """Smallest and largest of values of all ranks, each shape (k,), from (n_local, k)."""
    own = np.stack([values.min(axis=0, initial=np.inf), -values.max(axis=0, initial=-np.inf)])
    low, high = halo.gather(own[None]).min(axis=0)
    return low, -high


def smallest(values: Floats, halo: Halo) -> float:
    """The smallest of all ranks' values, shape (n_local,)."""
    return float(extent(values[:, None], halo)[0][0])


def total(value: float, halo: Halo) -> float:
    """The sum of one number of each rank."""
    return float(halo.sum(np.asarray(value, dtype=np.float64)))


def dot(x: Floats, y: Floats, halo: Halo) -> float:
    """x.y over the atoms of all ranks."""
    return total(float(x @ y), halo)


def norm(x: Floats, halo: Halo) -> float:
    """|x| over the atoms of all ranks."""
    return float(np.sqrt(dot(x, x, halo)))
