"""How all kernels are compiled, and where the compiled code is kept.

By itself numba keeps it beside the sources or in the user's cache folder, refuses to work where it can write neither,
and takes it for good as long as the kernel's own file is the same: a kernel with an inlined function of another module
would stay as it was when only that module is updated (pip leaves the compiled code behind). So the folder is chosen
here, and is named after all sources of the package. And numba reads what it finds, so that half a file ends the
process, or worse: here each file has a checksum behind it, and a damaged one is compiled anew.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from numba import config, njit
from numba.core.caching import IndexDataCacheFile

from kqeq_md.machine.cache import cache_places, can_write

OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "nsz", "arcp"}}
"""Of `numba.njit`; of fast-math only flags that leave NaN and infinity alone. Not `reassoc`: with it a kernel that was
just compiled gives other last digits than the same one out of the cache."""


def compiled(function: Callable[..., Any]) -> Any:
    """Decorator: compile at the first call for given types, and load it from the cache in later processes."""
    folder = compiled_code()
    before = config.CACHE_DIR
    config.CACHE_DIR = str(folder or "")  # numba looks here once, when it decorates
    try:
        kernel = njit(cache=folder is not None, **OPTIONS)(function)
    finally:
        config.CACHE_DIR = before
    if folder is not None:
        kernel._cache._cache_file.__class__ = CheckedFiles
    return kernel


class CheckedFiles(IndexDataCacheFile):
    """numba's files of one kernel, with a SHA-256 at their end, which the pickles in them do not see."""

    @contextmanager
    def _open_for_write(self, filepath: str) -> Iterator[io.BytesIO]:
        content = io.BytesIO()
        yield content
        with super()._open_for_write(filepath) as file:
            file.write(content.getvalue() + hashlib.sha256(content.getvalue()).digest())

    def _load_index(self) -> Any:
        return super()._load_index() if _intact(self._index_path) else {}

    def _load_data(self, name: str) -> Any:
        if not _intact(self._data_path(name)):
            raise OSError(f"{name} is damaged")  # numba compiles where a file is missing
        return super()._load_data(name)

    def save(self, key: Any, data: Any) -> None:
        """Keep what was compiled, where there is room for it."""
        with suppress(OSError):
            super().save(key, data)


def _intact(path: str) -> bool:
    try:
        content = Path(path).read_bytes()
    except OSError:
        return False
    return hashlib.sha256(content[:-32]).digest() == content[-32:]


@cache
def compiled_code() -> Path | None:
    """The folder for compiled code; None where nothing can be written: each process then compiles for itself."""
    package = Path(__file__).parent.parent
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
