"""Threads: how many there are, and how work is shared among them.

The package's own kernels release the interpreter's lock; a pool of plain threads that sleep while they wait runs them.
OpenBLAS' threads wait by spinning: for the small matrices of an MD step they cost more than they gain, most of all
beside other processes on the same cores. They are switched off while the package computes (`one_blas_thread`), and for
good where the package is the program (`start_with_one_blas_thread`).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import cache, partial
from itertools import pairwise
from math import inf
from numbers import Integral
from pathlib import Path
from threading import Lock, local
from typing import TYPE_CHECKING, Any, TypeVar

from kqeq_md.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Work = TypeVar("Work")
Done = TypeVar("Done")

THREADS = ("KQEQ_NUM_THREADS", "OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK")
"""Variables that say how many threads a process has; the first that is set counts."""

CORES = ("SLURM_CPUS_ON_NODE", "NCPUS", "NSLOTS", "LSB_DJOB_NUMPROC")
"""Variables in which Slurm, PBS, Grid Engine and LSF say what the job has, on this node or on all: no rank has more."""

RANKS = (
    "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_LOCAL_SIZE", "PMI_LOCAL_SIZE", "PALS_LOCAL_SIZE",
    "SLURM_STEP_TASKS_PER_NODE",
)  # fmt: skip
"""Variables in which Open MPI, MPICH and Intel MPI, MVAPICH, Cray and Slurm say how many processes share this node."""


ATOMS_EACH = 1000
"""A product with J takes a microsecond per atom, in ten parts: a thread needs so many to do more than wake up."""


def kernel_threads(threads: int | None = None) -> int:
    """How many threads run the package's kernels, at most one for each core that this process may use.

    Args:
        threads: as many; None for the first of `THREADS` that is set, and without any for an equal part of the job's
            cores on this node for each of its `RANKS`.

    Raises:
        ConfigError: `threads` or a variable is no positive integer.
    """
    available = usable_cores()
    if threads is not None:
        if not isinstance(threads, Integral) or isinstance(threads, bool) or threads < 1:
            raise ConfigError(f"`threads` must be a positive integer, got {threads!r}")
        return min(int(threads), available)
    for name in THREADS:
        if os.environ.get(name):
            return min(_counts(name)[0], available)
    cores = min([available, *(_counts(name)[0] for name in CORES if os.environ.get(name))])
    ranks = max([1, *(max(_counts(name)) for name in RANKS if os.environ.get(name))])
    return max(1, cores // ranks)


def _counts(name: str) -> list[int]:
    """Of a variable: "8"; "4,2" where OpenMP is nested; "4(x2),3" where Slurm's nodes differ, here [4, 3]."""
    text = os.environ[name]
    words = [word.partition("(")[0] for word in text.split(",")]
    if not all(word.isascii() and word.isdecimal() and int(word) > 0 for word in words):
        raise ConfigError(f"`{name}` must be a positive integer, got {text!r}")
    return [int(word) for word in words]


def usable_cores() -> int:
    """Cores that this process may run on, and that its control group pays for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(cores, cgroup_quota())))


def cgroup_quota(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float:
    """Processor time per time of the control groups of this process (containers, batch systems); infinite without.

    Args:
        groups: one line `number:controllers:path` for each hierarchy; that of version 2 has no controllers.
        root: where the hierarchies are mounted.
    """
    quota = inf
    for line in groups.read_text().splitlines() if groups.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "cpu" if controllers else root
        own = top / path.lstrip("/")
        for folder in (own, *own.parents):  # a container may see its own group as the top: what is absent is skipped
            quota = min(quota, _quota_of(folder))
            if folder == top:
                break
    return quota


def _quota_of(folder: Path) -> float:
    """Quota over period of one control group: version 2 has one file for both, version 1 two."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return float(quota) / float(period) if float(quota) > 0 else inf
    except (OSError, ValueError):  # no such group; "max"
        return inf


def start_with_one_blas_thread() -> None:
    """One thread for OpenBLAS and MKL, unless the user has said otherwise: for programs, before they import numpy."""
    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")


class _OneBlasThread:
    """`with one_blas_thread:` BLAS has one thread inside, and afterwards what the user had set.

    The number belongs to the process, not to a thread: of all threads that are inside at once the first takes it down
    and the last puts it back. Takes 20 us.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._inside = 0
        self._limited: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                _take_control()
                self._limited = _libraries().limit(limits=1, user_api="blas")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                _take_control()
                self._limited.restore_original_limits()


one_blas_thread = _OneBlasThread()
"""One for the process, as is what it counts."""


@cache
def _libraries() -> Any:
    """The BLAS and OpenMP libraries of this process. Looking for them takes milliseconds, hence once."""
    from threadpoolctl import ThreadpoolController  # here, for it finds what is loaded: numpy and scipy come first

    return ThreadpoolController()


def _take_control() -> None:
    """threadpoolctl (since 3.8) lets a single thread set OpenBLAS' number, until that thread gives the right up."""
    for library in _libraries().lib_controllers:
        if hasattr(library, "clear_controlling_thread"):
            library.clear_controlling_thread(force=True)


def in_parallel(function: Callable[[Work], Done], pieces: Sequence[Work], threads: int | None = None) -> list[Done]:
    """The results of `function` for each piece, in their order.

    Each thread takes the next piece when it is done with one. The calling thread is one of them, so that nobody waits
    for a thread that waits itself; from within `function` all is done in turn. What one piece yields must not depend on
    the others; then neither it depends on the threads.

    Args:
        threads: how many work at once; None for one for each piece.

    Raises:
        Exception: of the first piece, in their order, that has failed; pieces behind it may be left out.
    """
    workers = min(len(pieces), len(pieces) if threads is None else threads)
    if workers <= 1 or getattr(_here, "working", False):
        return [function(piece) for piece in pieces]
    shared = _Shared(function, pieces)
    # numpy's `errstate` is part of the context
    helpers = [_pool().submit(copy_context().run, shared.work) for _ in range(workers - 1)]
    try:
        shared.work()
    finally:
        for helper in helpers:
            if not helper.cancel():  # one that has not begun, as others keep the pool busy, is not needed any more
                helper.result()
    if shared.failed:
        raise shared.failed[min(shared.failed)]
    return shared.results


_here = local()
"""`working` is true in threads that are inside `in_parallel`."""


class _Shared:
    """Pieces of work that several threads take from."""

    def __init__(self, function: Callable[[Any], Any], pieces: Sequence[Any]) -> None:
        self._function = function
        self._left = deque(enumerate(pieces))
        self.results: list[Any] = [None] * len(pieces)
        self.failed: dict[int, BaseException] = {}

    def work(self) -> None:
        """Take pieces until none is left."""
        _here.working = True
        try:
            while self._left:
                self._next()
        finally:
            _here.working = False

    def _next(self) -> None:
        try:
            index, piece = self._left.popleft()
        except IndexError:  # another thread was faster
            return
        try:
            self.results[index] = self._function(piece)
        except BaseException as error:
            self.failed[index] = error
            self._left.clear()  # pieces are taken in order: all before this one are done or under way


@cache
def _pool() -> ThreadPoolExecutor:
    """Starts a thread when there is work and no idle one, up to one for each core."""
    # OpenMP keeps its number for each thread, and so does a BLAS that is built on it
    quiet = partial(_libraries().limit, limits=1, user_api="openmp")
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="kqeq", initializer=quiet)


def _after_fork() -> None:
    """Threads, and locks that they hold, do not survive a fork."""
    _pool.cache_clear()
    one_blas_thread.__init__()  # type: ignore[misc]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def worthwhile(threads: int, n_atoms: int) -> int:
    """How many of the threads the charges of so many atoms keep busy."""
    return max(1, min(threads, n_atoms // ATOMS_EACH))


def row_blocks(first: NDArray[np.int64], threads: int) -> list[tuple[int, int]]:
    """Consecutive rows (begin, end), one block for each thread; all blocks hold like numbers of pairs."""
    n = len(first) - 1
    cuts = [int(first.searchsorted(first[-1] * block / threads)) for block in range(1, threads)]
    edges = [0, *(min(cut, n) for cut in cuts), n]
    return [(begin, end) for begin, end in pairwise(edges) if end > begin]
