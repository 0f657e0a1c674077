"""Folders for what is compiled on the user's machine."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def cache_places() -> Iterator[Path]:
    """The folders of this user, best first: `cache_folder`, `private_folder`; not all of them can be written."""
    with suppress(RuntimeError):  # no home folder
        yield cache_folder()
    with suppress(OSError):
        yield private_folder()


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/kqeq_md, or ~/.cache/kqeq_md.

    Raises:
        RuntimeError: the user has no home folder.
    """
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # relative ones are to be ignored: https://specifications.freedesktop.org/basedir-spec/latest/
    return (chosen if chosen.is_absolute() else Path.home() / ".cache") / "kqeq_md"


def private_folder() -> Path:
    """A folder for temporary files that belongs to this user, where the home folder cannot be written.

    Raises:
        OSError: it cannot be made, or somebody else could put code there.
    """
    folder = Path(tempfile.gettempdir()) / f"kqeq_md-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise OSError(f"{folder} is not this user's alone")
    return folder


def can_write(folder: Path) -> bool:
    """True if the folder is there, or can be made, and takes a file."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True
