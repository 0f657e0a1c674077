"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def write_whole(path: str | Path, content: bytes) -> None:
    """Write a file; where that fails (a full disk) or is cut short, what stood there before is still there.

    Raises:
        OSError: it cannot be written.
    """
    path = Path(path).resolve()  # what a link leads to
    in_place = (path.exists() and not path.is_file()) or not os.access(path.parent, os.W_OK)
    if in_place:  # a device, or a folder in which nothing new may stand
        path.write_bytes(content)
        return
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
