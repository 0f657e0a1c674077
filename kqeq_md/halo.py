"""The seam for domain decomposition: how values travel between the owners of atoms and their ghosts.

A rank owns the first `n_local` atoms of its arrays; the others, up to `n_all`, are ghosts: images of atoms that
some rank owns. Whatever the core computes per centre needs neighbours' values (`forward`), whatever it
differentiates leaves contributions on ghosts that belong to their owners (`reverse`), and totals are sums over
ranks (`sum`). The core knows no more of parallel runs than this.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Halo(Protocol):
    """Communication between owned atoms and ghosts."""

    def forward(self, x_local: NDArray[np.generic]) -> NDArray[np.generic]:
        """Values of owners, shape (n_local, ...), copied to their ghosts: shape (n_all, ...)."""

    def reverse(self, y_all: NDArray[np.float64]) -> NDArray[np.float64]:
        """Contributions on owners and ghosts, shape (n_all, ...), added up at home: shape (n_local, ...)."""

    def sum(self, value: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum of `value` over all ranks, the same on each."""


class SerialHalo:
    """One process that owns every atom: the three maps are the identity."""

    def forward(self, x_local: NDArray[np.generic]) -> NDArray[np.generic]:
        return x_local

    def reverse(self, y_all: NDArray[np.float64]) -> NDArray[np.float64]:
        return y_all

    def sum(self, value: NDArray[np.float64]) -> NDArray[np.float64]:
        return value


class OrderedHalo:
    """A halo for owned atoms in another order: row k is the halo's atom order[k]; ghosts keep their rows."""

    def __init__(self, halo: Halo, order: NDArray[np.int64]) -> None:
        self._halo, self._order = halo, order

    def forward(self, x_local: NDArray[np.generic]) -> NDArray[np.generic]:
        out = np.empty_like(x_local)
        out[self._order] = x_local
        return np.concatenate([x_local, self._halo.forward(out)[len(x_local) :]])

    def reverse(self, y_all: NDArray[np.float64]) -> NDArray[np.float64]:
        out = y_all.copy()
        out[self._order] = y_all[: len(self._order)]
        return self._halo.reverse(out)[self._order]

    def sum(self, value: NDArray[np.float64]) -> NDArray[np.float64]:
        return self._halo.sum(value)


SERIAL = SerialHalo()
