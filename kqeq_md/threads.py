"""Threads: how many there are, and how work is shared among them.

OpenBLAS' threads wait by spinning: for the small matrices of an MD step they cost more than they gain, most of all
beside other processes on the same cores. OpenBLAS reads its variables when numpy is first imported, so entry points
call `one_blas_thread` before. The package's own kernels release the interpreter's lock; a pool of plain threads that
sleep while they wait runs them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

from kqeq_md.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Work = TypeVar("Work")
Done = TypeVar("Done")


def one_blas_thread() -> None:
    """One thread for OpenBLAS and MKL, unless the user has said otherwise."""
    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")


def kernel_threads() -> int:
    """How many threads run the package's kernels: KQEQ_NUM_THREADS, at most one for each core; one if it is not set.

    Raises:
        ConfigError: the variable is no positive integer.
    """
    text = os.environ.get("KQEQ_NUM_THREADS", "1")
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise ConfigError(f"`KQEQ_NUM_THREADS` must be a positive integer, got {text!r}")
    return min(int(text), os.cpu_count() or 1)


def in_parallel(function: Callable[[Work], Done], pieces: Sequence[Work]) -> list[Done]:
    """The results of `function` for each piece, one thread for each of them."""
    if len(pieces) == 1:
        return [function(pieces[0])]
    return list(_pool(len(pieces)).map(function, pieces))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="kqeq")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


def row_blocks(first: NDArray[np.int64], threads: int) -> list[tuple[int, int]]:
    """Consecutive rows (begin, end), one block for each thread; all blocks hold like numbers of pairs."""
    n = len(first) - 1
    cuts = [int(first.searchsorted(first[-1] * block / threads)) for block in range(1, threads)]
    edges = [0, *(min(cut, n) for cut in cuts), n]
    return [(begin, end) for begin, end in pairwise(edges) if end > begin]
