"""How plots of the report look: colours, sizes, and a sheet of equal panels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"
"""Told apart by the colour-blind: Okabe and Ito, https://jfly.uni-koeln.de/color/."""

SMALL = 8
"""Points, of the text in a panel."""

COLUMNS = 4
WIDTH, LEFT, RIGHT, BETWEEN = 2.0, 0.72, 0.12, 0.16
HEADING, TITLE, BOTTOM, GAP = 0.5, 0.24, 0.42, 0.07
"""Inches: sides of a panel, margins, distances."""


def have_matplotlib() -> bool:
    """Whether there can be plots."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def new_figure(width: float, height: float) -> Any:
    """A figure of inches that belongs to no screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: Path) -> None:
    """As PNG; the same figure gives the same bytes."""
    figure.savefig(path, dpi=144, metadata={"Software": None})


class Sheet:
    """Square panels in rows of up to COLUMNS, each with a strip below it, all to one scale.

    Args:
        count: of panels.
        strip: height of the strip in sides of the square.
    """

    def __init__(self, count: int, strip: float) -> None:
        self.count, self.rows, self.strip = count, -(-count // COLUMNS), strip * WIDTH
        self.columns = -(-count // self.rows)
        self.row = TITLE + WIDTH + GAP + self.strip
        self.width = max(LEFT + self.columns * (WIDTH + BETWEEN) - BETWEEN + RIGHT, 4.0)
        self.height = HEADING + self.rows * self.row + (self.rows - 1) * BETWEEN + BOTTOM
        self.figure = new_figure(self.width, self.height)
        self.axes: list[tuple[Any, Any]] = []

    def panel(self, index: int) -> tuple[Any, Any]:
        """The square and the strip of a panel."""
        row, column = divmod(index, self.columns)
        left = LEFT + column * (WIDTH + BETWEEN)
        top = self.height - HEADING - row * (self.row + BETWEEN) - TITLE
        square = self._axes(left, top - WIDTH, WIDTH)
        strip = self._axes(left, top - WIDTH - GAP - self.strip, self.strip)
        self.axes.append((square, strip))
        return square, strip

    def trim(self, index: int, across: str, up: str, strip_up: str) -> None:
        """Labels and numbers only where no other panel has them already."""
        from matplotlib.ticker import MaxNLocator

        square, strip = self.axes[index]
        for axes, bins in ((square, 4), (strip, 2)):
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.yaxis.set_major_locator(MaxNLocator(bins, symmetric=axes is strip))
            axes.tick_params(labelsize=SMALL, length=2.5, width=0.6, labelleft=index % self.columns == 0)
            for spine in axes.spines.values():
                spine.set_linewidth(0.6)
        square.tick_params(labelbottom=False)
        lowest = index + self.columns >= self.count
        strip.tick_params(labelbottom=lowest)
        if lowest:
            strip.set_xlabel(across, fontsize=SMALL, labelpad=2)
        if index % self.columns == 0:
            for axes, words in ((square, up), (strip, strip_up)):
                axes.set_ylabel(words, fontsize=SMALL)
                axes.yaxis.set_label_coords(-0.5 / WIDTH, 0.5)

    def heading(self, title: str, legend: Sequence[tuple[str, str, str]]) -> None:
        """A title for all panels; text, colour and marker of the legend below it."""
        from matplotlib.lines import Line2D

        up = 1.0 - 0.12 / self.height
        self.figure.text(LEFT / self.width, up, title, ha="left", va="top", fontsize=SMALL + 2, fontweight="bold")
        if legend:
            handles = [Line2D([], [], color=c, marker=m, linestyle="", markersize=4, label=t) for t, c, m in legend]
            self.figure.legend(
                handles=handles, loc="upper left", ncols=2, fontsize=SMALL, frameon=False, borderaxespad=0.0,
                bbox_to_anchor=(LEFT / self.width, up - 0.22 / self.height), handletextpad=0.1, columnspacing=1.0,
                handlelength=1.0, borderpad=0.0,
            )  # fmt: skip

    def _axes(self, left: float, bottom: float, height: float) -> Any:
        return self.figure.add_axes((left / self.width, bottom / self.height, WIDTH / self.width, height / self.height))
