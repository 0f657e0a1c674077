"""Threads of the linear algebra library under an engine.

OpenBLAS' threads wait by spinning: for the small matrices of an MD step they cost more than they gain, most of all
beside other processes on the same cores. OpenBLAS reads its variables when numpy is first imported, so entry points
call this before.
"""

from __future__ import annotations

import os


def one_blas_thread() -> None:
    """One thread for OpenBLAS and MKL, unless the user has said otherwise."""
    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
