"""A plot of a spectrum."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from kqeq_md.errors import KqeqError
from kqeq_md.machine.files import write_whole
from kqeq_md.spectrum.absorption import Peak, Spectrum


def check_plot(path: Path) -> None:
    """Refuse before the work what could not be plotted after it.

    Raises:
        KqeqError: another kind of file, or no matplotlib.
    """
    if path.suffix.lower() not in (".png", ".pdf"):
        raise KqeqError(f"`--output` must end in .png or .pdf, got {path}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise KqeqError("`--output` needs matplotlib: pip install 'kqeq_md[all]'") from None


def plot_spectrum(spectrum: Spectrum, found: Sequence[Peak], maximum: float, path: Path) -> None:
    """Draw the spectrum up to `maximum` (cm^-1), with its peaks labelled, into a .png or .pdf."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    labels = {
        "cm^-1": r"absorption $n\alpha$ / cm$^{-1}$",
        "km/mol/cm^-1": r"absorption / (km mol$^{-1}$ / cm$^{-1}$)",
        "relative": "absorption, relative",
    }
    figure = Figure(figsize=(8.0, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(spectrum.frequencies, spectrum.intensities, color="black", linewidth=1.0)
    for peak in found:
        axes.annotate(f"{peak.frequency:.0f}", (peak.frequency, peak.intensity), (0, 3), textcoords="offset points",
                      ha="center", va="bottom", fontsize="small", color="tab:red")  # fmt: skip
    axes.set(xlabel=r"wavenumber / cm$^{-1}$", ylabel=labels[spectrum.unit])
    axes.set_xlim(0.0, maximum)
    axes.set_ylim(0.0, 1.08 * spectrum.intensities.max())
    date = {"CreationDate": None} if path.suffix.lower() == ".pdf" else None  # the same input, the same file
    whole = io.BytesIO()
    figure.savefig(whole, format=path.suffix[1:].lower(), dpi=120, metadata=date)
    write_whole(path, whole.getvalue())
