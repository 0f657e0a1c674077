"""How far the work is: a bar on terminals, in log files a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

INTERVAL = 30.0
"""Seconds between two lines."""


def progress(items: Sequence[Any], title: str) -> Iterable[Any]:
    """The items, while stderr says how many are done and how long the others take."""
    if sys.stderr.isatty():
        try:
            from tqdm import tqdm
        except ImportError:  # of the extra `train`
            pass
        else:
            return tqdm(items, desc=title, leave=False)
    return _with_lines(items, title)


def _with_lines(items: Sequence[Any], title: str) -> Iterator[Any]:
    begin = told = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - told > INTERVAL:
            left = (now - begin) / done * (len(items) - done)
            sys.stderr.write(f"{title}: {done} of {len(items)}, {left:.0f} s left\n")
            told = now
        yield item
