"""The folder of a report: report.html, report.json and the plots, written as a whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kqeq_md.errors import ConfigError
from kqeq_md.machine.json_text import json_text
from kqeq_md.train.fit.design import Progress
from kqeq_md.train.report.content import ReportInput, predictions_of, report_content
from kqeq_md.train.report.diagnosis import DIAGNOSIS, Findings, diagnose_model, plot_findings
from kqeq_md.train.report.figures import have_matplotlib
from kqeq_md.train.report.learning_curve import plot_learning_curve
from kqeq_md.train.report.page import page
from kqeq_md.train.report.parity import plot_parity
from kqeq_md.train.report.predictions import Prediction

JSON, HTML = "report.json", "report.html"


def report_folder(model_file: Path) -> Path:
    """MODEL.report for MODEL.kqeq.

    Raises:
        ConfigError: something else stands there; a report may be replaced.
    """
    folder = model_file.with_name(f"{model_file.stem}.report")
    if folder == model_file:
        raise ConfigError(f"the model must not have the name of its report's folder, got {model_file}")
    if folder.exists() and not (folder.is_dir() and ((folder / JSON).is_file() or not any(folder.iterdir()))):
        raise ConfigError(f"the report's folder must be new, empty or an earlier report, got {folder}")
    return folder


def content_of(
    given: ReportInput, progress: Progress
) -> tuple[dict[str, Any], Mapping[str, Sequence[Prediction]], Findings]:
    """The report as JSON (`report_content`), with the predictions and the diagnosis that its plots are made of."""
    predictions = predictions_of(given, progress)
    found = diagnose_model(given.model, given.sets.get("test") or given.sets["train"])
    return report_content(given, predictions, found.content, progress), predictions, found


def write_report(folder: Path, given: ReportInput, progress: Progress) -> dict[str, Any]:
    """Write the report of a model; the same input gives the same bytes.

    `folder` gets report.html (one page, plots inside), report.json (see `report_content`) and the plots as PNG. An
    earlier report there is replaced when the new one is whole; without matplotlib there are no plots.

    Returns:
        the content of report.json.
    """
    content, predictions, found = content_of(given, progress)
    with replaced(folder) as new:
        plots = _plots(given, predictions, found, new) if have_matplotlib() else []
        content["plots"] = plots
        (new / JSON).write_text(json_text(content) + "\n", encoding="utf-8")
        images = {name: (new / name).read_bytes() for name in plots}
        (new / HTML).write_text(page(content, found, images), encoding="utf-8")
    return content


def _plots(
    given: ReportInput, predictions: Mapping[str, Sequence[Prediction]], found: Findings, folder: Path
) -> list[str]:
    """Names of all PNG files."""
    names = plot_parity(given, predictions, folder)
    if given.learning_curve is not None and plot_learning_curve(given.learning_curve, folder / "learning_curve.png"):
        names.append("learning_curve.png")
    if found.diagnosis is not None:
        plot_findings(found.diagnosis, folder / DIAGNOSIS)
        names.append(DIAGNOSIS)
    return names


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder` at the end; after an error the old one stays."""
    new, old = (folder.with_name(f".{folder.name}.{word}-{os.getpid()}") for word in ("new", "old"))
    new.mkdir()
    try:
        yield new
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    finally:
        for path in (new, old):
            shutil.rmtree(path, ignore_errors=True)
