"""Plots of a diagnosis, one file for each measurement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kqeq_md.diagnose.diagnosis import Diagnosis, Measurement
from kqeq_md.errors import KqeqError

STYLES = {
    "qeq": {"color": "tab:red", "marker": "o"},
    "fragments": {"color": "tab:blue", "marker": "s", "linestyle": "--"},
    "split": {"color": "tab:green", "marker": "^", "linestyle": ":"},
}
SCALES = {
    "polarizability_exponent": ("log", "log"),
    "dissociation_charge": ("log", "linear"),
    "field_transfer": ("log", "linear"),
    "lowest_eigenvalue": ("linear", "linear"),
    "molecule_charges": ("linear", "linear"),
}


def check_plots(folder: Path) -> None:
    """Refuse before the work what could not be plotted after it.

    Raises:
        KqeqError: matplotlib is not installed, or `folder` is none.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise KqeqError("`--plot` needs matplotlib: pip install 'kqeq_md[all]'") from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KqeqError(f"`--plot` must be a folder that can be written, got {folder}: {error.strerror}") from None


def plot_diagnosis(diagnosis: Diagnosis, folder: Path) -> list[Path]:
    """Write NAME.png for each measurement into `folder`; returns the paths."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    paths = []
    for measured in diagnosis.measurements:
        figure = Figure(figsize=(6.4, 4.8), layout="constrained")
        FigureCanvasAgg(figure)
        plot_measurement(figure.subplots(), measured)
        paths.append(folder / f"{measured.name}.png")
        figure.savefig(paths[-1], dpi=120)
    return paths


def plot_measurement(axes: Any, measured: Measurement) -> None:
    """The curves of all charge models with their numbers in the legend."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

    for name, curve in measured.curves.items():
        values = np.array([np.nan if value is None else value for value in curve])
        if not np.isfinite(values).any():
            continue
        label = f"{name}: {measured.findings[name].number(measured.unit)}"
        axes.plot(measured.x, values, label=label, fillstyle="none", **STYLES[name])
    across, up = SCALES[measured.name]
    axes.set(xlabel=measured.abscissa, ylabel=measured.ordinate, xscale=across, yscale=up)
    if across == "log":
        axes.xaxis.set(major_locator=LogLocator(subs=(1.0, 2.0, 5.0)), major_formatter=ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
    elif len(measured.x) == 1:
        axes.set_xticks(measured.x)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(measured.title, fontsize="small", wrap=True)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
