"""What a training run has reached, in a file beside the model: interrupted, it goes on from there."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kqeq_md.machine.files import write_whole
from kqeq_md.structure import Floats

log = logging.getLogger("kqeq_md")

Arrays = dict[str, Floats]


def fingerprint(record: Mapping[str, Any]) -> str:
    """Of the configuration, the data and the version: a run goes on from what the very same run has reached."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


class Checkpoint:
    """Arrays by stage. Without a path nothing is kept.

    Args:
        path: of the file; None for none.
        mark: of `fingerprint`; a file with another one is not used.
    """

    def __init__(self, path: Path | None = None, mark: str = "") -> None:
        self._path, self._mark = path, mark
        self._stages: dict[str, Arrays] = {}
        if path is not None and path.is_file():
            self._stages = _read(path, mark)
            if self._stages:
                log.warning("going on from %s (%s); remove it to begin anew", path, ", ".join(self._stages))

    def recall(self, stage: str) -> Arrays | None:
        """What was kept of a stage, None if it was not reached."""
        return self._stages.get(stage)

    def keep(self, stage: str, **arrays: Floats) -> None:
        """Write what a stage has found, whole or not at all."""
        self._stages[stage] = arrays
        if self._path is None:
            return
        named = {f"{stage}/{name}": value for stage, own in self._stages.items() for name, value in own.items()}
        buffer = io.BytesIO()
        head = {"fingerprint": np.array(self._mark), "digest": np.array(_digest(named))}
        np.savez(buffer, **head, **named)  # type: ignore[arg-type]
        write_whole(self._path, buffer.getvalue())


def _digest(named: Mapping[str, NDArray[Any]]) -> str:
    """Of all arrays with their names."""
    whole = hashlib.sha256()
    for name, value in named.items():
        whole.update(f"{name} {value.dtype} {value.shape}".encode())
        whole.update(np.ascontiguousarray(value).tobytes())
    return whole.hexdigest()


def _read(path: Path, mark: str) -> dict[str, Arrays]:
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:  # numpy leaves damaged files open
            named = {name: file[name] for name in file.files}
        its_mark, digest = (str(named.pop(name)) for name in ("fingerprint", "digest"))
        if _digest(named) != digest:
            raise ValueError("its contents have changed")
    except Exception as error:  # zipfile and numpy raise a dozen kinds on damaged content
        log.warning("%s is no checkpoint, or damaged (%s): beginning anew", path, type(error).__name__)
        return {}
    if its_mark != mark:
        log.warning("%s is of another configuration, other data or another version: beginning anew", path)
        return {}
    stages: dict[str, Arrays] = {}
    for name, value in named.items():
        stage, _, key = name.partition("/")
        stages.setdefault(stage, {})[key] = value
    return stages
