"""Computing without warnings, where they would be said of what nobody asked for, or again and again."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quietly() -> Iterator[None]:
    """Without the warnings of the core."""
    log = logging.getLogger("kqeq_md")

    def errors_only(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    log.addFilter(errors_only)
    try:
        yield
    finally:
        log.removeFilter(errors_only)


@contextmanager
def saying_once() -> Iterator[None]:
    """Warnings of the core come once, however many potentials are at work; the first one's numbers are told."""
    log, said = logging.getLogger("kqeq_md"), set[str]()

    def is_new(record: logging.LogRecord) -> bool:
        text = record.getMessage() if record.msg == "%s" else str(record.msg)
        new = record.levelno < logging.WARNING or text not in said
        said.add(text)
        return new

    log.addFilter(is_new)
    try:
        yield
    finally:
        log.removeFilter(is_new)
