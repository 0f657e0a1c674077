"""Errors over the number of training frames: would more data help?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kqeq_md.errors import ConfigError, KqeqError
from kqeq_md.model import Model
from kqeq_md.train.data import Frame
from kqeq_md.train.fit.design import Progress
from kqeq_md.train.report.errors import error_table
from kqeq_md.train.report.figures import BLUE, GREY, ORANGE, SMALL, new_figure, save
from kqeq_md.train.report.predictions import QUANTITIES, predict
from kqeq_md.train.report.text import NAMES, as_printed, thousandth

PARTS = (8, 4, 2, 1)
"""Training on 1/8, 1/4, 1/2 and all of the frames."""

COLUMNS = 5
LEAST_SPAN = 5.0
"""Of the error axes, highest over lowest: little changes shall look little."""

HELD_OUT = 10
"""One frame in so many is held out where there is no test set."""


def learning_curve(
    frames: Sequence[Frame],
    test: Sequence[Frame],
    fit: Callable[[Sequence[Frame]], Model],
    progress: Progress,
    seed: int = 0,
    whole: Model | None = None,
) -> dict[str, Any]:
    """Train on nested random subsets and measure each model on the same frames.

    Args:
        frames: for training.
        test: to be measured on; a tenth of `frames` is held out where it is empty.
        fit: the training, with one configuration.
        progress: shown over the frames that are measured.
        seed: of the order in which frames are taken.
        whole: the model of all `frames`, if it is known: it is not trained again for a test set.

    Returns:
        `seed`, `measured_on`, `n_measured`, and `points` from few frames to many: `n_frames` with `errors`
        (`{quantity: {rmse, mae}}`, units of QUANTITIES) or, where the training refused, `skipped` with the reason.

    Raises:
        ConfigError: fewer than two frames.
    """
    if len(frames) < 2:
        raise ConfigError(f"`frames` of a learning curve must be at least 2, got {len(frames)}")
    order = nested_order(frames, np.random.default_rng(seed))
    held_out = len(frames) // HELD_OUT or 1
    if test:
        measured, words = list(test), "the test set"
    else:
        measured, words = order[-held_out:], f"{held_out} training frames that were held out"
        order, whole = order[:-held_out], None
    points = []
    for count in sorted({len(order) // part or 1 for part in PARTS}):
        point: dict[str, Any] = {"n_frames": count}
        try:
            model = whole if whole is not None and count == len(order) else fit(order[:count])
            table = error_table(measured, predict(model, measured, progress))
            point["errors"] = {name: table[name] for name in QUANTITIES if name in table}
        except KqeqError as error:
            point["skipped"] = str(error)
        points.append(point)
    return {"seed": seed, "measured_on": words, "n_measured": len(measured), "points": points}


def nested_order(frames: Sequence[Frame], generator: np.random.Generator) -> list[Frame]:
    """The frames in random order; those that hold an element for the first time come before all others, so that no
    subset lacks an element unless it is smaller than their number."""
    shuffled = [frames[index] for index in generator.permutation(len(frames))]
    known: set[int] = set()
    first: list[Frame] = []
    later: list[Frame] = []
    for frame in shuffled:
        elements = set(frame.structure.numbers.tolist())
        (first if elements - known else later).append(frame)
        known |= elements
    return first + later


def plot_learning_curve(curve: Mapping[str, Any], path: Path) -> bool:
    """RMSE and MAE over the number of frames, both logarithmic and all panels over equally many decades.

    Returns:
        False, and there is no file, where nothing was measured.
    """
    points = [point for point in curve["points"] if "errors" in point]
    values = {name: _positive(points, name) for name in QUANTITIES}
    values = {name: numbers for name, numbers in values.items() if numbers}
    if not values:
        return False
    columns, rows = min(len(values), COLUMNS), -(-len(values) // COLUMNS)
    figure = new_figure(max(2.0 * columns, 4.0), 2.4 * rows)
    figure.set_layout_engine("constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    span = 1.3 * max([LEAST_SPAN, *(max(map(max, n.values())) / min(map(min, n.values())) for n in values.values())])
    for axes, (name, numbers) in zip(panels, values.items(), strict=False):
        _draw(axes, [point["n_frames"] for point in points], numbers, span)
        axes.set_title(as_printed(f"{NAMES[name]} / {thousandth(QUANTITIES[name])}"), fontsize=SMALL)
    for axes in panels[len(values) :]:
        axes.set_visible(False)
    panels[0].legend(fontsize=SMALL, frameon=False)
    save(figure, path)
    return True


def _positive(points: Sequence[Mapping[str, Any]], name: str) -> dict[str, list[float]]:
    """RMSE and MAE at each point in thousandths; nothing where one is missing or zero, which has no logarithm."""
    entries = [point["errors"].get(name) for point in points]
    if not all(entry is not None and entry["mae"] > 0 for entry in entries):
        return {}
    return {measure: [1e3 * entry[measure] for entry in entries] for measure in ("rmse", "mae") if entries}


def _draw(axes: Any, frames: Sequence[int], numbers: Mapping[str, Sequence[float]], span: float) -> None:
    """One panel, `span` times as high as low."""
    from matplotlib.ticker import FixedLocator, FormatStrFormatter, NullLocator

    for (measure, values), colour, marker in zip(numbers.items(), (BLUE, ORANGE), "o^", strict=True):
        axes.plot(frames, values, color=colour, marker=marker, markersize=4, linewidth=1.2, label=measure.upper())
    middle = float(np.sqrt(max(map(max, numbers.values())) * min(map(min, numbers.values()))))
    low, high = middle / np.sqrt(span), middle * np.sqrt(span)
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))))
    ticks = [first * 10.0**decade for decade in decades for first in (1, 2, 5)]
    axes.set(xscale="log", yscale="log", ylim=(low, high))
    for axis, places in ((axes.xaxis, frames), (axes.yaxis, [tick for tick in ticks if low <= tick <= high])):
        axis.set_major_locator(FixedLocator(places))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FormatStrFormatter("%g"))
    axes.tick_params(labelsize=SMALL)
    axes.grid(color=GREY, alpha=0.3, linewidth=0.5)
    axes.set_xlabel("training frames", fontsize=SMALL)
