"""What the page says of a model's limits: the threshold of its measure of extrapolation, and what it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kqeq_md.train.calibration import MARGIN
from kqeq_md.train.report.markup import paragraph, table, warning

ENOUGH_ATOMS = 500
"""Held-out atoms. With fewer, a 95 % error of one row of the table is that of one atom or two."""

MEASURE = (
    "The measure of an atom says how far its surroundings, and those of its neighbours, are from what the model was "
    "trained on. It grows with the force on the atom, and with charges outside of the ranges below. It has no unit."
)
ROWS = (
    "How far forces on held-out atoms are from their labels, |ΔF|, by measure. Each row holds about {each} atoms, and "
    "no error is shown smaller than in the row above."
)


def limits_of_model(calibration: Mapping[str, Any]) -> list[str]:
    """Sentences and tables of the section.

    Args:
        calibration: of `train.calibration.calibrate`.
    """
    n_atoms, quantiles, errors = (calibration[key] for key in ("n_atoms", "quantiles", "expected_force_error"))
    threshold = f"{calibration['threshold']:.3g}"
    out = [
        paragraph(f"{MEASURE} Beyond the threshold of {threshold} an atom counts as extrapolating."),
        paragraph(
            f"The threshold is {MARGIN:g} times what 99.9 % of the held-out atoms measure at most. It rests on "
            f"{_atoms(n_atoms)} of frames that were held out, as a model fitted without these frames sees them. Half "
            f"of the atoms measure up to {quantiles['0.5']:.2f}, 95 % up to {quantiles['0.95']:.2f}, all up to "
            f"{quantiles['1']:.2f}."
        ),
    ]
    if n_atoms < ENOUGH_ATOMS:
        out.append(
            warning(
                f"{_atoms(n_atoms)}, fewer than {ENOUGH_ATOMS}, tell the threshold and the errors below only roughly. "
                "More training frames, or a larger held_out in [fit], tell them better."
            )
        )
    rows = list(zip(errors["upper"], errors["median"], errors["p95"], strict=True))
    head = ["measure up to", "median force error / eV/A", "95 % below / eV/A"]
    return [
        *out,
        paragraph(ROWS.format(each=round(n_atoms / len(rows)))),
        table(head, [[f"{upper:.2f}", f"{median:.3f}", f"{p95:.3f}"] for upper, median, p95 in rows]),
        *_ranges(calibration),
    ]


def _ranges(calibration: Mapping[str, Any]) -> list[str]:
    """Charges that occurred in training."""
    low, high = calibration["charge_per_atom"]
    rows = [[symbol, *(f"{charge:.3f}" for charge in both)] for symbol, both in calibration["charges"].items()]
    return [
        paragraph(
            f"In training, total charges lay between {low:.3g} and {high:.3g} e per atom, those of atoms between:"
        ),
        table(["element", "lowest charge / e", "highest charge / e"], rows),
    ]


def _atoms(number: int) -> str:
    return f"{number} atom{'' if number == 1 else 's'}"
