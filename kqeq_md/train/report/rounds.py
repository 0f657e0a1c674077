"""What the page says of the fit: how far each round has come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kqeq_md.train.report.markup import paragraph, table, written

ROUNDS = (
    "Each round fits all unknowns together, starting where the round before has ended, the first one without any short "
    "range. σ is the standard deviation that [fit] below gives to a label: the rms of label errors is 1 σ where they "
    "are as large as the fit expects. What is minimised is the sum of all squared label errors, in units of σ, and of "
    "(unknown / prior)². Damping holds back the unknowns that make charges: 0 is a full step, or none where no step "
    "makes the sum smaller."
)
LAST = " The last round fits the held-out frames too, so that its sum has more terms than those before it."


def rounds_of_fit(history: Sequence[Mapping[str, Any]], held_out: bool) -> list[str]:
    """A sentence or more, and a table with one row for each round.

    Args:
        history: of `train.fit.Fitted`.
        held_out: whether frames were held out until the last round.
    """
    names = list(dict.fromkeys(name for entry in history for name in entry["rms_before"]))
    head = ["round", *(f"rms of {name} before / σ" for name in names), "damping", "sum of squares after"]
    rows = [
        [
            str(entry["round"]),
            *(_rms(entry, name) for name in names),
            *map(written, (entry["damping"], entry["square"])),
        ]
        for entry in history
    ]
    return [paragraph(ROUNDS + (LAST if held_out else "")), table(head, rows)]


def _rms(entry: Mapping[str, Any], name: str) -> str:
    value = entry["rms_before"].get(name)
    return written(None) if value is None else f"{value:.2f}"
