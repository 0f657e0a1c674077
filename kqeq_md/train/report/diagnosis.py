"""What `kqeq diagnose` finds in the new model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kqeq_md.diagnose.diagnosis import Diagnosis, diagnose
from kqeq_md.diagnose.fragment import formula, reference_fragment
from kqeq_md.diagnose.plots import plot_measurement
from kqeq_md.diagnose.report import as_json
from kqeq_md.errors import KqeqError
from kqeq_md.model import Model
from kqeq_md.structure import Structure
from kqeq_md.train.data import Frame
from kqeq_md.train.report.figures import SMALL, new_figure, save

DIAGNOSIS = "diagnosis.png"
LETTERS = "abcdefgh"
"""Of the measurements, in headings and panels."""

MOST_STRUCTURES = 3
"""Where the model has no fragment: of the smallest neutral frames."""

MOST_ATOMS = 32
"""Of a fragment or structure: up to 32 copies of it are solved densely. One of 64 atoms took 78 s."""


@dataclass(frozen=True, eq=False)
class Findings:
    """A diagnosis, or why there is none; and in words what it was measured on."""

    diagnosis: Diagnosis | None
    measured_on: str = ""
    skipped: str = ""

    @property
    def content(self) -> dict[str, Any]:
        """As JSON."""
        if self.diagnosis is None:
            return {"skipped": self.skipped}
        return {"measured_on": self.measured_on, **as_json(self.diagnosis)}


def diagnose_model(model: Model, frames: Sequence[Frame]) -> Findings:
    """Diagnose a model on its reference fragment, or else on a few of the smallest neutral frames without field.

    Args:
        model: with or without charges; nothing is diagnosed without.
        frames: to choose from where the model has no fragment.
    """
    if not model.has_charges:
        return Findings(None, skipped="the model has no charges")
    structures: list[Structure] = []
    try:
        fragment = reference_fragment(model)
        size, measured_on = len(fragment), f"the model's reference fragment {formula(fragment.numbers)}"
    except KqeqError as error:
        structures = smallest_neutral(frames)
        if not structures:
            return Findings(None, skipped=f"{error}, and there is no neutral frame without field")
        size = len(structures[-1])
        names = ", ".join(formula(structure.numbers) for structure in structures)
        measured_on = f"the smallest neutral frames without field: {names}"
    if size > MOST_ATOMS:
        return Findings(None, skipped=f"{measured_on} has {size} atoms, more than {MOST_ATOMS}: run kqeq diagnose")
    try:
        return Findings(diagnose(model, structures), measured_on)
    except KqeqError as error:
        return Findings(None, skipped=str(error))


def smallest_neutral(frames: Sequence[Frame]) -> list[Structure]:
    """Up to MOST_STRUCTURES neutral structures of different size, the smallest ones of the frames without field."""
    by_size: dict[int, Structure] = {}
    for frame in frames:
        structure = frame.structure
        if structure.charge == 0 and not structure.field.any() and len(structure) > 1:
            by_size.setdefault(len(structure), structure)
    return [by_size[size] for size in sorted(by_size)[:MOST_STRUCTURES]]


def plot_findings(diagnosis: Diagnosis, path: Path) -> None:
    """All measurements on one sheet, two in a row."""
    from matplotlib import rc_context

    with rc_context({"font.size": SMALL, "lines.markersize": 4, "lines.linewidth": 1.2, "axes.linewidth": 0.6}):
        rows = -(-len(diagnosis.measurements) // 2)
        figure = new_figure(7.0, 2.5 * rows)
        figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.06)
        panels = figure.subplots(rows, 2, squeeze=False).ravel()
        for letter, axes, measured in zip(LETTERS, panels, diagnosis.measurements, strict=False):
            plot_measurement(axes, measured)
            axes.set_title(f"({letter}) {measured.name.replace('_', ' ')}", fontsize=SMALL + 1)
        for axes in panels[len(diagnosis.measurements) :]:
            axes.set_visible(False)
        save(figure, path)
