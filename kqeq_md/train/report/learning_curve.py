"""Errors over the number of training frames: would more data help?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kqeq_md.errors import ConfigError, KqeqError
from kqeq_md.model import Model
from kqeq_md.train.data import Frame
from kqeq_md.train.design import Progress
from kqeq_md.train.report.errors import error_table
from kqeq_md.train.report.figures import BLUE, GREY, ORANGE, SMALL, new_figure, save
from kqeq_md.train.report.predictions import QUANTITIES, predict
from kqeq_md.train.report.text import thousandth

PARTS = (8, 4, 2, 1)
"""Training on 1/8, 1/4, 1/2 and all of the frames."""

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
    """RMSE and MAE over the number of frames, both logarithmic; False and no file where nothing was measured."""
    from matplotlib.ticker import FixedLocator, FormatStrFormatter, LogLocator, NullFormatter, NullLocator

    points = [point for point in curve["points"] if "errors" in point]
    names = [name for name in QUANTITIES if points and all(name in point["errors"] for point in points)]
    if not names:
        return False
    figure = new_figure(max(2.3 * min(len(names), 4), 4.0), 0.35 + 2.3 * -(-len(names) // 4))
    figure.set_layout_engine("constrained")
    grid = figure.subplots(-(-len(names) // 4), min(len(names), 4), squeeze=False).ravel()
    frames = [point["n_frames"] for point in points]
    for axes, name in zip(grid, names, strict=False):
        for measure, colour, marker in (("rmse", BLUE, "o"), ("mae", ORANGE, "^")):
            values = [1e3 * point["errors"][name][measure] for point in points]
            axes.plot(frames, values, color=colour, marker=marker, markersize=4, linewidth=1.2, label=measure.upper())
        axes.set(xscale="log", yscale="log")
        axes.set_title(f"{name} / {thousandth(QUANTITIES[name])}", fontsize=SMALL + 1)
        axes.xaxis.set_major_locator(FixedLocator(frames))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FormatStrFormatter("%d"))
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(labelsize=SMALL)
        axes.grid(color=GREY, alpha=0.3, linewidth=0.5)
        axes.set_xlabel("training frames", fontsize=SMALL)
    for axes in grid[len(names) :]:
        axes.set_visible(False)
    grid[0].legend(fontsize=SMALL, frameon=False)
    save(figure, path)
    return True
