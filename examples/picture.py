"""Figures of the examples as small files: PNG with a palette."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

COLOURS = 48
"""Enough for lines and their smooth edges; a third of the bytes of full colour."""


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size, inches, that needs no screen."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: str | Path, dpi: int = 100) -> None:
    """Draw and write it."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    pixels.quantize(COLOURS).save(path, optimize=True)
