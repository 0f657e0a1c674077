"""The trials of a search in a file, one JSON object per line: an interrupted search goes on from there."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kqeq_md.machine.files import write_whole
from kqeq_md.train.tune.grid import Point

log = logging.getLogger("kqeq_md")


@dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        level: 0 for the small problem, 1 for the larger one.
        values: what was tried.
        cost: that the search compares; infinite where the fit failed.
        error: on held-out frames, see `trial`; None where the fit failed.
        errors: rms of each quantity.
        operations: estimate for the full model, per atom.
        microseconds: per atom, of the trial's model on one thread.
        seconds: that the trial took.
        failure: why the fit failed.
    """

    level: int
    values: Point
    operations: float
    cost: float = float("inf")
    error: float | None = None
    errors: dict[str, float] | None = None
    microseconds: float | None = None
    seconds: float = 0.0
    failure: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Without infinity, which JSON lacks."""
        return {**asdict(self), "cost": None if self.failure is not None else self.cost}


class Trials:
    """The trials that are known, in a file beside the output.

    Args:
        path: of the file; None keeps nothing.
        mark: of the configuration, the data and the version; a file with another one is begun anew.
    """

    def __init__(self, path: Path | None, mark: str) -> None:
        self._path = path
        self._known: dict[tuple[Any, ...], Trial] = {}
        if path is None:
            return
        if path.is_file():
            for trial in _read(path, mark):
                self._known[_key(trial.level, trial.values)] = trial
        lines = [{"mark": mark}, *(trial.as_json() for trial in self._known.values())]
        write_whole(path, "".join(f"{json.dumps(line)}\n" for line in lines).encode())

    def __len__(self) -> int:
        return len(self._known)

    def recall(self, level: int, point: Point) -> Trial | None:
        """A trial that was made before."""
        return self._known.get(_key(level, point))

    def keep(self, trial: Trial) -> None:
        """Write it down."""
        self._known[_key(trial.level, trial.values)] = trial
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{json.dumps(trial.as_json())}\n")


def _key(level: int, point: Point) -> tuple[Any, ...]:
    return (level, *sorted(point.items()))


def _read(path: Path, mark: str) -> list[Trial]:
    """What stands in the file up to the first line that is not whole."""
    found: list[Trial] = []
    try:
        first, *lines = path.read_text(encoding="utf-8").splitlines()
        if json.loads(first)["mark"] != mark:
            log.warning("%s is of another configuration, other data or another version: beginning anew", path)
            return []
        for line in lines:
            found.append(_trial(json.loads(line)))
    except (ValueError, KeyError, TypeError, UnicodeDecodeError):
        log.warning("%s holds %d whole trials: going on from them", path, len(found))
    else:
        if found:
            log.warning("going on from the %d trials of %s; remove it to begin anew", len(found), path)
    return found


def _trial(record: Mapping[str, Any]) -> Trial:
    return Trial(**{**record, "cost": float("inf") if record["cost"] is None else record["cost"]})
