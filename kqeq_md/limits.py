"""What an engine does about atoms that extrapolate: one warning, the end of the run, or nothing."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kqeq_md.errors import ExtrapolationError, KqeqError
from kqeq_md.structure import Floats

log = logging.getLogger("kqeq_md")

ACTIONS = ("warn", "stop", "off")

LOOKS = 100
"""Steps between two looks at how far atoms extrapolate, each of which takes about as long as a step."""

JUMP = 1.0
"""Angstrom. No time step moves an atom that far: what moves further is another structure, and is looked at."""

NAMED = 8
"""Atoms in a message, worst first."""


class Watch:
    """Decides when to look at the measure of extrapolation, and what to do about it.

    Args:
        action: "warn" (once, then no more looks), "stop" (an error) or "off" (no looks at all).
        largest: measure beyond which atoms extrapolate.

    Raises:
        KqeqError: another action.
    """

    def __init__(self, action: str, largest: float) -> None:
        if action not in ACTIONS:
            raise KqeqError(f"`extrapolation` must be {', '.join(ACTIONS)}, got {action!r}")
        self.action, self._largest = action, largest
        self._said, self._calls = False, 0
        self._before: Floats | None = None

    def due(self, positions: Floats | None = None) -> bool:
        """Whether this step is to be looked at; every step has to ask.

        The first one is, every `LOOKS`-th from there, and one whose atoms are not those of the step before.

        Args:
            positions: Angstrom, shape (n, 3), the same array for no step to come; None where steps follow each other.
        """
        if self.action == "off" or self._said:
            return False
        due = self._calls % LOOKS == 0
        self._calls += 1
        before, self._before = self._before, positions
        if positions is None or before is None:
            return due
        return due or before.shape != positions.shape or bool(np.abs(positions - before).max() > JUMP)

    def look(self, measure: Floats, names: ArrayLike | None = None, where: str = "counted from 0") -> None:
        """Warn, or stop, if atoms extrapolate.

        Args:
            measure: shape (n,).
            names: numbers of the atoms in messages, shape (n,); None for their places in the structure.
            where: what these numbers are.

        Raises:
            ExtrapolationError: they do, and the action is "stop".
        """
        far = np.flatnonzero(measure > self._largest)
        if self.action == "off" or len(far) == 0:
            return
        text = self._text(measure, far, np.arange(len(measure)) if names is None else np.asarray(names), where)
        if self.action == "stop":
            raise ExtrapolationError(text)
        if not self._said:
            self._said = True
            log.warning("%s", text)

    def _text(self, measure: Floats, far: NDArray[np.int64], names: NDArray[np.int64], where: str) -> str:
        worst = far[np.argsort(-measure[far], kind="stable")][:NAMED]
        named = ", ".join(f"{int(names[i])} ({measure[i]:.2f})" for i in worst)
        more = f" and {len(far) - NAMED} more" if len(far) > NAMED else ""
        count = f"{len(far)} atom{'s extrapolate' if len(far) > 1 else ' extrapolates'}"
        return (
            f"{count}, with measures beyond the model's threshold of {self._largest:.2f}: {named}{more} ({where}): "
            "energies, forces and charges are not to be trusted there"
        )
