"""Parity plots: predictions over labels, with their differences below, one panel for each total charge or group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kqeq_md.structure import Floats
from kqeq_md.train.report.content import ReportInput
from kqeq_md.train.report.figures import BLUE, GREY, ORANGE, SMALL, Sheet, save
from kqeq_md.train.report.panels import Points, panels_by_charge, panels_by_group
from kqeq_md.train.report.predictions import Prediction
from kqeq_md.train.report.text import thousandth

AXES = {
    "energy_per_atom": ("energy per atom", "eV"),
    "forces": ("force component", "eV/Å"),
    "charges": ("charge", "e"),
    "dipole": ("dipole component", "e Å"),
    "polarizability": ("polarizability component", "e²Å²/eV"),
    "born_charges": ("Born charge component", "e"),
    "stress": ("stress component", "eV/Å³"),
}
CELLS = 400
"""Along each axis of a panel. Points in one cell are drawn once, darker the more there are: nobody sees a difference,
and a million points cost as much as thousands."""

FAINTEST = 0.35
"""Opacity of a single point."""

BEYOND = 6.0
"""RMSEs: differences beyond it are drawn at the edge and counted, or one outlier would hide all others."""


def plot_parity(given: ReportInput, predictions: Mapping[str, Sequence[Prediction]], folder: Path) -> list[str]:
    """Write parity_QUANTITY_SET.png and, for several groups, parity_QUANTITY_SET_groups.png; returns the names."""
    names = []
    for quantity in AXES:
        for name, frames in reversed(list(given.sets.items())):
            for kind, words, panels_of in (("", "", panels_by_charge), ("_groups", ", by group", panels_by_group)):
                panels = panels_of(given.model, quantity, frames, predictions[name])
                if panels:
                    names.append(f"parity_{quantity}_{name}{kind}.png")
                    save(parity_figure(quantity, panels, f"{name} set{words}"), folder / names[-1])
    return names


def parity_figure(quantity: str, panels: Sequence[Points], title: str) -> Any:
    """A matplotlib figure with all panels to one scale."""
    words, unit = AXES[quantity]
    everything = np.concatenate([values for p in panels for values in (p.label, p.predicted)])
    low, high = float(everything.min()), float(everything.max())
    margin = 0.05 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    errors = np.concatenate([p.error for p in panels])
    reach = 1e3 * min(float(np.abs(errors).max()), BEYOND * float(np.sqrt(np.mean(errors**2)))) or 1.0
    sheet = Sheet(len(panels), strip=0.32)
    for index, points in enumerate(panels):
        square, strip = sheet.panel(index)
        _draw_square(square, points, limits, thousandth(unit))
        _draw_strip(strip, points, limits, 1.1 * reach)
        sheet.trim(index, f"reference / {unit}", f"model / {unit}", f"Δ / {thousandth(unit)}")
    sheet.heading(f"{words[0].upper()}{words[1:]}, {title}", _legend(panels))
    return sheet.figure


def _legend(panels: Sequence[Points]) -> list[tuple[str, str, str]]:
    """Text, colour and marker of both kinds of points, where both are there."""
    if len({bool(value) for points in panels for value in np.unique(points.in_field)}) < 2:
        return []
    return [("without field", BLUE, "o"), ("in a field", ORANGE, "^")]


def _draw_square(axes: Any, points: Points, limits: tuple[float, float], unit: str) -> None:
    axes.plot(limits, limits, color=GREY, linewidth=0.8, zorder=1)
    _draw(axes, points, points.predicted, limits, limits)
    rmse, mae = float(np.sqrt(np.mean(points.error**2))), float(np.mean(np.abs(points.error)))
    axes.set_title(points.title, fontsize=SMALL + 1, pad=4)
    text = f"RMSE {1e3 * rmse:.3g} {unit}\nMAE {1e3 * mae:.3g} {unit}\n{len(points.label):,} points"
    axes.text(0.04, 0.96, text, transform=axes.transAxes, ha="left", va="top", fontsize=SMALL - 1, linespacing=1.25)
    axes.set(xlim=limits, ylim=limits)


def _draw_strip(axes: Any, points: Points, limits: tuple[float, float], reach: float) -> None:
    axes.axhline(0.0, color=GREY, linewidth=0.8, zorder=1)
    error = 1e3 * points.error
    edge = 0.95 * reach
    _draw(axes, points, np.clip(error, -edge, edge), limits, (-reach, reach))
    outside = int((np.abs(error) > edge).sum())
    if outside:
        axes.text(0.98, 0.95, f"{outside:,} beyond", transform=axes.transAxes, ha="right", va="top", fontsize=SMALL - 1)
    axes.set(xlim=limits, ylim=(-reach, reach))


def _draw(
    axes: Any, points: Points, up: Floats, across_limits: tuple[float, float], up_limits: tuple[float, float]
) -> None:
    """Points without a field below those in a field, the fewer of the two on top."""
    kinds = [(~points.in_field, BLUE, "o"), (points.in_field, ORANGE, "^")]
    for chosen, colour, marker in sorted(kinds, key=lambda kind: -int(kind[0].sum())):
        if chosen.any():
            x, y, opacity = cells(points.label[chosen], up[chosen], across_limits, up_limits)
            size = 16.0 if len(x) < 100 else 9.0 if len(x) < 500 else 4.0
            axes.scatter(x, y, s=size, c=colour, alpha=opacity, marker=marker, linewidths=0, zorder=2)


def cells(
    x: Floats, y: Floats, x_limits: tuple[float, float], y_limits: tuple[float, float]
) -> tuple[Floats, Floats, Floats]:
    """Middle of each occupied cell of the panel and its opacity, from FAINTEST for one point to 1 for the fullest."""
    scaled = [
        np.clip((CELLS * (v - low) / (high - low)).astype(np.int64), 0, CELLS - 1)
        for v, (low, high) in ((x, x_limits), (y, y_limits))
    ]
    cell, counts = np.unique(scaled[0] * CELLS + scaled[1], return_counts=True)
    middles = [
        low + (index + 0.5) * (high - low) / CELLS
        for index, (low, high) in zip(np.divmod(cell, CELLS), (x_limits, y_limits), strict=True)
    ]
    fullness = np.log1p(counts - 1.0) / max(float(np.log1p(counts.max() - 1.0)), 1.0)
    return middles[0], middles[1], FAINTEST + (1.0 - FAINTEST) * fullness
