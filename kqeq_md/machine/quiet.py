"""Computing without warnings, where they would be said of what nobody asked for, or again and again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager


@contextmanager
def _log_through(keep: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    """The package logs those records alone that this keeps."""
    log = logging.getLogger("kqeq_md")
    log.addFilter(keep)
    try:
        yield
    finally:
        log.removeFilter(keep)


def quietly() -> AbstractContextManager[None]:
    """Without the warnings of the core."""
    return _log_through(lambda record: record.levelno >= logging.ERROR)


def saying_once() -> AbstractContextManager[None]:
    """Warnings of the core come once, however many potentials are at work; the first one's numbers are told."""
    said = set[str]()

    def is_new(record: logging.LogRecord) -> bool:
        text = record.getMessage() if record.msg == "%s" else str(record.msg)
        new = record.levelno < logging.WARNING or text not in said
        said.add(text)
        return new

    return _log_through(is_new)
