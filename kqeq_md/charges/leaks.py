"""Warnings of the two old diseases of charge equilibration: overpolarization, and charge that leaks."""

from __future__ import annotations

import logging

import numpy as np

from kqeq_md.charges.fragments import Fragments, connected_fragments
from kqeq_md.neighbours.search import Ints
from kqeq_md.structure import Floats, Structure

log = logging.getLogger("kqeq_md")

LEAK = 0.1
"""e. A fragment's charge that is further from the nearest integer has leaked."""

ADVICE = 'see `kqeq diagnose`; charges="fragments" and charges="split" do not do that'


class LeakWatch:
    """Looks at freely flowing charges, and says each thing once."""

    def __init__(self) -> None:
        self._found: tuple[Ints, Fragments] | None = None
        self._field_said = self._leak_said = False

    def look(self, structure: Structure, charges: Floats) -> None:
        """Warn of a field on several fragments, and of a fragment whose charge is no integer.

        Args:
            structure: its bonds are looked at once, when these atoms come first.
            charges: e, shape (n,).
        """
        in_field = structure.field.any() and not self._field_said
        if self._leak_said and not in_field:
            return
        fragments = self._fragments(structure)
        if len(fragments) == 1:
            return
        if in_field:
            self._field_said = True
            log.warning(
                'charges="qeq" in a field: charge flows between the %d separate fragments as if wires joined them, '
                "further the further they are apart; %s", len(fragments), ADVICE,
            )  # fmt: skip
        sums = np.bincount(fragments.group, charges)
        leaked = np.abs(sums - np.rint(sums))
        worst = int(np.argmax(leaked))
        if leaked[worst] > LEAK and not self._leak_said:
            self._leak_said = True
            log.warning(
                'charges="qeq": a separate fragment of %d atoms (the first is atom %d) has the charge %+.2f e, %.2f '
                "from the nearest integer; %s",
                int((fragments.group == worst).sum()), int(np.argmax(fragments.group == worst)), sums[worst],
                leaked[worst], ADVICE,
            )  # fmt: skip

    def _fragments(self, structure: Structure) -> Fragments:
        if self._found is None or not np.array_equal(self._found[0], structure.numbers):
            self._found = structure.numbers, connected_fragments(structure)
        return self._found[1]
