"""A search along one hyperparameter after the other, from neighbour to neighbour."""

from __future__ import annotations

from collections.abc import Callable

from kqeq_md.train.tune.grid import Grid, Point

LEAST_GAIN = 0.99
"""A neighbour is taken if it costs at most this part: smaller differences between trials are noise of a few frames."""


class Walk:
    """Where the search has come to; the order of its trials depends on their costs alone.

    Args:
        grid: values by name.
        start: a point of it.
        cost: of a point; it may raise to end the walk, which leaves `at` in place.

    Attributes:
        at: the point of the walk.
    """

    def __init__(self, grid: Grid, start: Point, cost: Callable[[Point], float]) -> None:
        self.at = start
        self._grid, self._cost = grid, cost

    def run(self) -> None:
        """Until no neighbour is better."""
        moved = True
        while moved:
            moved = False
            for name in self._grid:
                # one way first, and the other way only where that led nowhere
                moved = self._along(name, 1) or self._along(name, -1) or moved

    def _along(self, name: str, step: int) -> bool:
        """As far as it pays; whether it went anywhere."""
        values, moved = self._grid[name], False
        while 0 <= (index := values.index(self.at[name]) + step) < len(values):
            near = {**self.at, name: values[index]}
            if self._cost(near) > LEAST_GAIN * self._cost(self.at):
                break
            self.at, moved = near, True
        return moved
