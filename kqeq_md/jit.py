"""How all kernels are compiled, and where the compiled code is kept.

By itself numba keeps it beside the sources or in the user's cache folder, refuses to work where it can write neither,
and takes it for good as long as the kernel's own file is the same: a kernel with an inlined function of another module
would stay as it was when only that module is updated (pip leaves the compiled code behind). So the folder is chosen
here, and is named after all sources of the package.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from numba import config, njit

from kqeq_md.cache import cache_places, can_write

OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "nsz", "arcp"}}
"""Of `numba.njit`; of fast-math only flags that leave NaN and infinity alone. Not `reassoc`: with it a kernel that was
just compiled gives other last digits than the same one out of the cache."""


def compiled(function: Callable[..., Any]) -> Any:
    """Decorator: compile at the first call for given types, and load it from the cache in later processes."""
    folder = compiled_code()
    before = config.CACHE_DIR
    config.CACHE_DIR = str(folder or "")  # numba looks here once, when it decorates
    try:
        return njit(cache=folder is not None, **OPTIONS)(function)
    finally:
        config.CACHE_DIR = before


@cache
def compiled_code() -> Path | None:
    """The folder for compiled code; None where nothing can be written: each process then compiles for itself."""
    package = Path(__file__).parent
    for place in _places(package):
        folder = place / f"numba-{digest(package)}"
        if can_write(folder):
            return folder
    return None


def _places(package: Path) -> Iterator[Path]:
    """Where compiled code may go, best first."""
    if config.CACHE_DIR:  # NUMBA_CACHE_DIR: the user's choice
        yield Path(config.CACHE_DIR)
    yield package / "__pycache__"
    yield from cache_places()


def digest(package: Path) -> str:
    """Twelve hexadecimal digits of all Python sources below a folder."""
    sources = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        sources.update(path.read_bytes())
    return sources.hexdigest()[:12]
