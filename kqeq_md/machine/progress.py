"""How far the work is: a bar on terminals, in log files a line now and then."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

INTERVAL = 30.0
"""Seconds between two lines."""


def progress(items: Sequence[Any], title: str) -> Iterable[Any]:
    """The items, while stderr says how many are done and how long the others take."""
    if sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb":  # a bar is written over itself
        try:
            from tqdm import tqdm
        except ImportError:  # of the extra `train`
            pass
        else:
            return tqdm(items, desc=title, leave=False)
    return _with_lines(items, title)


def _with_lines(items: Sequence[Any], title: str) -> Iterator[Any]:
    begin = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if title and now - _Told.last > INTERVAL:
            left = f", {(now - begin) / done * (len(items) - done):.0f} s left" if done else ""
            sys.stderr.write(f"{title}: {done} of {len(items)}{left}\n")
            _Told.last = now
        yield item


class _Told:
    """When the last line was written, of whatever work."""

    last = time.monotonic()
