"""What goes to stderr: one line for each message, with colours on terminals alone."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)
"""By the number of `-v`."""

_COLOURS = {"error": "1;31", "warning": "1;33"}


def has_colours() -> bool:
    """Whether stderr is a terminal that shows them, and nobody has set NO_COLOR (https://no-color.org)."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


def line(name: str, level: str, message: str) -> str:
    """`kqeq: error: what is wrong`, whatever line breaks the message has."""
    word = f"{level}:"
    if level in _COLOURS and has_colours():
        word = f"\033[{_COLOURS[level]}m{word}\033[0m"
    return f"{name}: {word} {' '.join(message.splitlines())}\n"


def error_line(name: str, message: object) -> str:
    """The line of an error."""
    return line(name, "error", str(message))


class _Lines(logging.Handler):
    """Log records on the stderr of the moment, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        text = line("kqeq", record.levelname.lower(), record.getMessage())
        tqdm = sys.modules.get("tqdm")
        if tqdm is None:
            sys.stderr.write(text)
        else:
            with tqdm.tqdm.external_write_mode(file=sys.stderr):
                sys.stderr.write(text)


@contextmanager
def logging_to_stderr(verbose: int) -> Iterator[None]:
    """Log records of all libraries from warnings on, and those of the package as `-v` says."""
    log, root, handler = logging.getLogger("kqeq_md"), logging.getLogger(), _Lines()
    before = log.level
    root.addHandler(handler)
    log.setLevel(LEVELS[min(verbose, 2)])
    try:
        yield
    finally:
        log.setLevel(before)
        root.removeHandler(handler)
