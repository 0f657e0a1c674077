"""Names of data files: paths and globs, relative to the configuration."""

from __future__ import annotations

from collections.abc import Sequence
from glob import glob
from pathlib import Path

from kqeq_md.errors import ConfigError


def data_files(folder: Path, names: Sequence[str], where: str) -> list[str]:
    """Paths of all files: names as they stand, globs (`*`, `?`, `**`) sorted.

    Args:
        folder: what relative names are relative to.
        names: paths or globs.
        where: key of the configuration, for messages.

    Raises:
        ConfigError: a glob that matches no file, a file that is named twice.
    """
    files: list[str] = []
    for name in names:
        is_glob = any(letter in name for letter in "*?[") and not (folder / name).exists()
        hits = sorted(glob(name, root_dir=folder, recursive=True)) if is_glob else [name]
        found = [str(folder / hit) for hit in hits if not is_glob or (folder / hit).is_file()]
        if not found:
            raise ConfigError(f"`{where}`: {name!r} matches no file")
        for file in found:
            if file in files:
                raise ConfigError(f"`{where}` must name a file once, {file} is named twice")
            files.append(file)
    return files
