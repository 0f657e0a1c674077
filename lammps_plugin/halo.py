"""The halo of a LAMMPS rank: LAMMPS' own communication between owners and ghosts, MPI's between ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import POINTER, c_double, c_int
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kqeq_md.neighbours.search import Ints
from kqeq_md.ranks.halo import Halo

Exchange = Callable[[Any, int], Any]
"""Of the C++ side: what to do with an array of doubles, and its width or length."""


class LammpsHalo:
    """Values of the model's atoms in LAMMPS' order; atoms of types that are left out have none.

    Args:
        rows: LAMMPS' rows of owned atoms and ghosts of the model, owned ones first, shape (n_all,).
        n_local: how many of them are owned.
        n_lammps: all atoms and ghosts of this rank that LAMMPS has.
        rank: which one this is.
        size: how many ranks there are.
        forward: fills the ghosts' rows of an array (n_lammps, width) from those of their owners.
        reverse: adds the ghosts' rows to those of their owners.
        add: replaces an array by its sum over all ranks.
        gather: (own values, their number, room for all): one rank after the other.
        exchange: (values to all ranks, room for theirs, numbers of both, shape (2, size)).
    """

    def __init__(
        self, rows: Ints, n_local: int, n_lammps: int, rank: int, size: int, forward: Exchange, reverse: Exchange,
        add: Exchange, gather: Callable[[Any, int, Any], Any], exchange: Callable[[Any, Any, Any], Any],
    ) -> None:  # fmt: skip
        self._rows, self._n_lammps = rows, n_lammps
        self._forward, self._reverse, self._add, self._gather = forward, reverse, add, gather
        self._exchange, self.rank, self.size = exchange, rank, size
        self._all_rows = len(rows) == n_lammps  # of no type that is left out: rows are LAMMPS' own
        self._own: slice | Ints = slice(n_local) if self._all_rows else rows[:n_local]

    def forward(self, x_local: NDArray[np.generic]) -> NDArray[np.generic]:
        everywhere = np.empty((self._n_lammps, *x_local.shape[1:]))
        everywhere[self._own] = x_local
        self._forward(_address(everywhere), _width(everywhere))
        out = everywhere if self._all_rows else everywhere[self._rows]
        return out.astype(x_local.dtype, copy=False)

    def reverse(self, y_all: NDArray[np.float64]) -> NDArray[np.float64]:
        everywhere = np.array(y_all, dtype=np.float64)
        if not self._all_rows:
            everywhere = np.zeros((self._n_lammps, *y_all.shape[1:]))
            everywhere[self._rows] = y_all
        self._reverse(_address(everywhere), _width(everywhere))
        return everywhere[self._own]

    def sum(self, value: NDArray[np.float64]) -> NDArray[np.float64]:
        out = np.array(value, dtype=np.float64, order="C")
        self._add(_address(out), out.size)
        return out

    def gather(self, x_local: NDArray[np.float64]) -> NDArray[np.float64]:
        own = np.ascontiguousarray(x_local, dtype=np.float64)
        shape = (int(self.sum(np.array(float(len(own))))), *own.shape[1:])
        out = np.empty(shape)
        self._gather(_address(own), own.size, _address(out))
        return out

    def exchange(
        self, pieces: Sequence[NDArray[np.float64]], shapes: Sequence[tuple[int, ...]]
    ) -> list[NDArray[np.float64]]:
        counts = np.array([[piece.size for piece in pieces], [np.prod(shape) for shape in shapes]], dtype=np.int32)
        counts[:, self.rank] = 0  # what stays does not travel
        sent = np.concatenate([piece.ravel() for s, piece in enumerate(pieces) if s != self.rank])
        received = np.empty(counts[1].sum())
        self._exchange(_address(sent), _address(received), counts.ctypes.data_as(POINTER(c_int)))
        parts = np.split(received, np.cumsum(counts[1])[:-1])
        parts[self.rank] = pieces[self.rank]
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def _width(values: NDArray[Any]) -> int:
    """Numbers of each row."""
    return int(np.prod(values.shape[1:], dtype=int))


def _address(array: NDArray[np.float64]) -> Any:
    return array.ctypes.data_as(POINTER(c_double))


def in_order(halo: Halo, ids: Ints, values: NDArray[Any]) -> NDArray[np.float64]:
    """Values of the atoms of all ranks in the order of their ids."""
    everybody = halo.gather(np.asarray(ids, dtype=np.float64))
    return halo.gather(np.asarray(values, dtype=np.float64))[np.argsort(everybody)]
