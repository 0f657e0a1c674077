"""`kqeq tune`: a search over hyperparameters by the error on training frames that trials hold out.

First comes a small problem, where a trial takes seconds: the configured values, a few points spread over the grid,
since hyperparameters depend on each other, and from the best of them a walk along one hyperparameter after the other
(`walk`). The best few, and the configured values, then meet on a larger problem, where the walk goes on from the
winner. The sequence of trials follows from the seed and their results; a clock only ends it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kqeq_md import __version__
from kqeq_md.errors import ConfigError, KqeqError
from kqeq_md.train.checkpoint import fingerprint
from kqeq_md.train.config import Config
from kqeq_md.train.data import Frame, read_set
from kqeq_md.train.data.composition import atom_energies
from kqeq_md.train.data.findings import inspect_frames, warn_of
from kqeq_md.train.tune.grid import Grid, Point, grid_of, spread_points, start_of, with_values
from kqeq_md.train.tune.record import Trial, Trials
from kqeq_md.train.tune.trial import Level, Problem
from kqeq_md.train.tune.walk import Walk

LEVELS = (Level(120, 60), Level(300, 150))
"""Of the search: many cheap trials, then some that are nearer to the full fit."""

SPREAD = 8
"""Points spread over the grid."""

ENTRANTS = 3
"""How many of the small problem, besides the configured values, meet on the larger one."""

PRICE = 0.05
"""Power of the operations in the cost: twice the work has to lower the error by 3.4 %."""

CONVERGED, TIME, COUNT, INTERRUPTED = "no neighbour is better", "time", "number of trials", "interrupted"


@dataclass(frozen=True)
class Tuned:
    """What a search has found.

    Attributes:
        start, best: configured and chosen values.
        trials: in their order.
        ended: why the search ended.
    """

    start: Point
    best: Point
    trials: list[Trial]
    ended: str

    def trial_of(self, point: Point) -> Trial | None:
        """The trial of a point on the largest problem that it was tried on."""
        return max((t for t in self.trials if t.values == point), key=lambda t: t.level, default=None)


def tune(
    config: Config,
    minutes: float,
    most_trials: int | None = None,
    record: Path | None = None,
    say: Callable[[Trial, int], None] = lambda *_: None,
) -> Tuned:
    """Search for hyperparameters with a small error on held-out training frames; test files are not read.

    The same data, configuration, version and number of trials give the same values. An interruption (KeyboardInterrupt)
    ends the search with what it has.

    Args:
        config: where the search starts; [tune] says what is searched.
        minutes: budget for new trials. At least one is made.
        most_trials: ends the search after so many, among them those of `record`.
        record: file for the trials; a search with the same configuration goes on from it.
        say: told of every trial, with its number.

    Raises:
        ConfigError: a budget that is not positive, nothing to search, too few frames, or configured values with which
            no fit is possible.
    """
    if not 0.0 < minutes < float("inf"):
        raise ConfigError(f"`minutes` must be positive, got {minutes:g}")
    if most_trials is not None and most_trials < 1:
        raise ConfigError(f"`trials` must be at least 1, got {most_trials}")
    grid = grid_of(config)
    frames = read_set(config.data)
    warn_of(inspect_frames(frames, ()))
    search = _Search(config, grid, frames, Trials(record, _mark(config)), minutes, most_trials, say)
    ended = search.run()
    return Tuned(search.start, search.best, search.trials, ended)


def as_json(tuned: Tuned) -> dict[str, Any]:
    """What was found, with every trial; see `Trial` for units."""
    return {
        "ended": tuned.ended,
        "start": tuned.start,
        "best": tuned.best,
        "n_trials": len(tuned.trials),
        "trials": [trial.as_json() for trial in tuned.trials],
    }


def _mark(config: Config) -> str:
    """Of everything that the results depend on; the data by their contents, wherever they lie."""
    settings = asdict(config)
    del settings["tune"]  # other ranges: trials stay what they are
    settings["data"]["train"] = [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in config.data.train]
    del settings["data"]["test"]
    return fingerprint({"kqeq_md": __version__, "config": settings, "levels": [asdict(level) for level in LEVELS]})


class _BudgetSpentError(Exception):
    """Ends the walk; the argument says what is spent."""


class _Search:
    """The trials so far, and where the walk stands."""

    def __init__(
        self,
        config: Config,
        grid: Grid,
        frames: Sequence[Frame],
        known: Trials,
        minutes: float,
        most_trials: int | None,
        say: Callable[[Trial, int], None],
    ) -> None:
        self._config, self._grid, self._known, self._say = config, grid, known, say
        self._end, self._most = time.monotonic() + 60.0 * minutes, most_trials
        self.start = self.best = start_of(grid, config)
        self.trials: list[Trial] = []
        free_atoms = atom_energies(frames, config.data)
        small, large = LEVELS
        self._problems = [Problem(frames, config, free_atoms, small)]
        if len(frames) > small.frames or config.kernel.sparse_points > small.sparse_points:
            self._problems.append(Problem(frames, config, free_atoms, large, like=self._problems[0]))
        self._made = 0

    def run(self) -> str:
        """The whole search; why it ended."""
        entrants = [self.start, *spread_points(self._grid, SPREAD, self._config.seed)]
        try:
            for level in range(len(self._problems)):
                self._compare(level, entrants)
                self._walk(level)
                entrants = [self.start, *self._least(level)]
        except _BudgetSpentError as spent:
            return str(spent)
        except KeyboardInterrupt:
            if not self.trials:
                raise
            return INTERRUPTED
        return CONVERGED

    def _compare(self, level: int, entrants: Sequence[Point]) -> None:
        """The best of them; on the larger problem, whose costs are others, only once all are known."""
        known: list[Point] = []
        for point in entrants:
            self._cost(level, point)
            known.append(point)
            if level == 0 or len(known) == len(entrants):
                self.best = min(known, key=lambda near: self._cost(level, near))

    def _walk(self, level: int) -> None:
        walk = Walk(self._grid, self.best, lambda point: self._cost(level, point))
        try:
            walk.run()
        finally:
            self.best = walk.at

    def _least(self, level: int) -> list[Point]:
        own = [trial for trial in self.trials if trial.level == level]
        return [trial.values for trial in sorted(own, key=lambda trial: trial.cost)[:ENTRANTS]]

    def _cost(self, level: int, point: Point) -> float:
        made = next((t for t in self.trials if t.level == level and t.values == point), None)
        if made is None:
            made = self._next(level, point)
            self.trials.append(made)
            self._say(made, len(self.trials))
        return made.cost

    def _next(self, level: int, point: Point) -> Trial:
        """The next trial of the sequence: from the file, or made now."""
        if self._most is not None and len(self.trials) >= self._most:
            raise _BudgetSpentError(COUNT)
        if (known := self._known.recall(level, point)) is not None:
            return known
        longest = max((trial.seconds for trial in self.trials if trial.level == level), default=0.0)
        if self._made and time.monotonic() + longest > self._end:
            raise _BudgetSpentError(TIME)
        trial = self._try(level, point)
        self._known.keep(trial)
        self._made += 1
        return trial

    def _try(self, level: int, point: Point) -> Trial:
        problem, config = self._problems[level], with_values(self._config, point)
        operations, physical = problem.operations(config), problem.physical
        begin = time.monotonic()
        try:
            found = problem.run(config, physical)
        except KqeqError as error:
            if point == self.start:
                raise
            return Trial(level, point, operations, seconds=time.monotonic() - begin, failure=str(error))
        cost = found.error * operations**PRICE
        seconds = time.monotonic() - begin
        return Trial(level, point, operations, cost, found.error, found.errors, found.microseconds, seconds)
