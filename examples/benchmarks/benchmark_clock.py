"""A program under a clock: `benchmark_ipi.py` starts drivers of i-PI, or i-PI itself, through this file.

    python benchmark_clock.py LOG MODULE:CLASS.METHOD PROGRAM [ARGUMENTS]

PROGRAM runs as it is; each call of METHOD leaves a row in the file LOG, which another process may read meanwhile. The
clock is that of the machine: rows of several processes fit together.
"""

from __future__ import annotations

import runpy
import sys
from functools import wraps
from importlib import import_module
from itertools import count
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

import numpy as np

from kqeq_md.structure import Floats

COLUMNS = ("start", "end", "cpu_start", "cpu_end")
"""Of a row, seconds: the machine's clock around a call, and the processor time of the calling thread."""
ROWS = 200_000
"""Room for so many calls; the file is sparse, and what is not used takes no place."""


def new_log(path: Path) -> Floats:
    """An empty log, shape (ROWS, 4)."""
    return np.memmap(path, np.float64, "w+", shape=(ROWS, len(COLUMNS)))


def watch(method: str, log: Floats) -> None:
    """Write down every call of a method from now on.

    Args:
        method: "module:Class.method".
        log: takes a row for each call when it ends.
    """
    module, _, name = method.partition(":")
    kind, _, name = name.partition(".")
    owner = getattr(import_module(module), kind)
    call, numbers = getattr(owner, name), count()

    @wraps(call)
    def timed(*arguments: Any, **keywords: Any) -> Any:
        start, cpu_start = perf_counter(), thread_time()
        out = call(*arguments, **keywords)
        cpu_end, end = thread_time(), perf_counter()
        log[next(numbers)] = start, end, cpu_start, cpu_end
        return out

    setattr(owner, name, timed)


def calls_of(log: Floats) -> Floats:
    """The rows that have been written, shape (calls, 4)."""
    return np.array(log[: np.count_nonzero(log[:, 0])])


def main() -> None:
    path, method, program, *arguments = sys.argv[1:]
    watch(method, np.memmap(path, np.float64, "r+", shape=(ROWS, len(COLUMNS))))
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main()
