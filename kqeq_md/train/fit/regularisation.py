"""How strongly weights are held to zero: chosen by the error on frames that have no part in the fit.

The priors of the three kernel columns (electronegativity, reference charge, short range) are multiplied by factors. The
sums of `NormalEquations` give the squared error on the held-out rows for any of them at the cost of one solution, so
that a search along each factor in turn is cheap. Of priors that serve nearly alike the narrowest is taken: errors on
held-out frames are noisy and know nothing of places without data, where wide priors let molecular dynamics fall.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kqeq_md.structure import Floats
from kqeq_md.train.fit.normal_equations import NormalEquations

STEP = float(np.sqrt(10.0))
"""Factor between priors that are tried."""

LARGEST_FACTOR = 10.0
"""Up and down, around the configured priors."""

WIDER = 0.97
"""A wider prior is taken if the squared error falls at least to this part of the least one."""

NARROWER = 1.01
"""A narrower one if it rises no higher than to this part."""


@dataclass(frozen=True)
class Regularisation:
    """Factors of the priors per column, and the squared errors of held-out rows (in units of sigma^2, per row) with
    the configured and with the chosen ones; None where nothing was held out."""

    factors: tuple[float, ...]
    before: float | None = None
    after: float | None = None


def choose_factors(
    fitted: NormalEquations, held_out: NormalEquations, solve: Callable[[tuple[float, ...]], Floats], columns: int
) -> Regularisation:
    """The factors with the smallest error on the rows of `held_out`.

    Args:
        fitted: rows that x is solved from.
        held_out: rows of frames that have no part in it.
        solve: x for factors of each column, from the rows of `fitted`.
        columns: number of factors.
    """
    if held_out.rows == 0 or fitted.rows == 0:
        return Regularisation((1.0,) * columns)
    known: dict[tuple[int, ...], float] = {}

    def error(powers: tuple[int, ...]) -> float:
        if powers not in known:
            known[powers] = held_out.error(solve(tuple(STEP**p for p in powers))) / held_out.rows
        return known[powers]

    most = round(np.log(LARGEST_FACTOR) / np.log(STEP))
    best = (0,) * columns
    error(best)
    for limit, step in ((WIDER, 1), (NARROWER, -1)):
        changed = True
        while changed:
            changed = False
            for column in range(columns):
                tried = (*best[:column], best[column] + step, *best[column + 1 :])
                if abs(tried[column]) <= most and tried not in known:
                    least = min(known.values())
                    if error(tried) <= limit * least:
                        best, changed = tried, True
    return Regularisation(tuple(STEP**p for p in best), error((0,) * columns), error(best))
