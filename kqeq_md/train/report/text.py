"""Error tables as text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from kqeq_md.train.report.predictions import QUANTITIES

RARE = ("polarizability", "born_charges", "stress")
"""Quantities that have a column only where there are labels."""


NAMES = {
    "energy_per_atom": "energy per atom", "forces": "forces", "charges": "charges", "dipole": "dipole",
    "polarizability": "polarizability", "born_charges": "Born charges", "stress": "stress",
}  # fmt: skip
"""Quantities in words, for the page and its plots."""

ANGSTROM = re.compile(r"(?<=[\de] )A\b|(?<=/)A\b|\bAngstrom\b")
"""Where the letter is the unit: "3 A", "e A", "eV/A"."""


def format_table(table: Mapping[str, Any]) -> str:
    """The table as text: RMSE (MAE) in meV, meV/A, me, me A, ...; one line per group, and what else is in it."""
    shown = shown_quantities(table)
    head = [f"{name} / {thousandth(QUANTITIES[name])}" for name in shown]
    rows = table_rows(table)
    width = max(15, *(len(name) + 1 for name, _ in rows))
    lines = [f"{'':<{width}}{'frames':>7}" + _cells(head, head)]
    for name, group in rows:
        cells = [cell(group.get(quantity)) for quantity in shown]
        lines.append(f"{name:<{width}}{group['n_frames']:>7}" + _cells(cells, head))
    return "\n".join([*lines, *remarks(table)])


def shown_quantities(table: Mapping[str, Any]) -> list[str]:
    """Names of the columns."""
    return [name for name in QUANTITIES if name in table or name not in RARE]


def table_rows(table: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """All frames, then their groups, with the words that name them."""
    rows = [("all", table)]
    rows += [(f"Q = {charge}", group) for charge, group in table["by_total_charge"].items()]
    rows += [(f"{name} field", group) for name, group in table["by_field"].items()]
    rows += [(f"group {name}", group) for name, group in table.get("by_group", {}).items()]
    return rows


def cell(entry: Mapping[str, float] | None) -> str:
    """RMSE (MAE) in thousandths of the unit."""
    return "-" if entry is None else f"{1e3 * entry['rmse']:.2f} ({1e3 * entry['mae']:.2f})"


def remarks(table: Mapping[str, Any]) -> list[str]:
    """What a table holds beside its rows, in sentences."""
    lines = []
    if "reference_charge_residual" in table:
        lines.append(f"reference charges miss their sums by {1e3 * table['reference_charge_residual']:.2f} me (rms)")
    if "mean_polarizability" in table:
        lines.append(
            f"mean polarizability {table['mean_polarizability']:.4f} e^2 A^2/eV = "
            f"{table['mean_polarizability_volume']:.3f} A^3"
        )
    return lines


def thousandth(unit: str) -> str:
    """The unit of a thousandth, "meV" for "eV"."""
    return f"m({unit})" if set("^²³") & set(unit) else f"m{unit}"


def as_printed(text: str) -> str:
    """Units as on paper, "eV/Å³" for "eV/A^3"."""
    return ANGSTROM.sub("Å", text).replace("^2", "²").replace("^3", "³")


def _cells(cells: Sequence[str], head: Sequence[str]) -> str:
    """Right-aligned under a head."""
    return "".join(f"{cell:>{max(18, len(title) + 2)}}" for cell, title in zip(cells, head, strict=True))
