"""`kqeq diagnose`."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from kqeq_md.cli.arguments import Commands, add_command, add_common
from kqeq_md.cli.output import answer, read_model
from kqeq_md.errors import KqeqError

NAME = "diagnose"

log = logging.getLogger("kqeq_md")


def add(commands: Commands) -> None:
    """Its part of the command line."""
    command = add_command(
        commands,
        NAME,
        "overpolarization, leaking charge and instability, measured",
        "Measure the diseases of charge equilibration with every charge model, on structures or on the model's "
        "reference fragment.",
        ["kqeq diagnose water.kqeq", "kqeq diagnose water.kqeq water_box.xyz --plot plots",
         "kqeq diagnose nacl.kqeq pair.xyz --fragment-charges '1 -1' --json"],
        _run,
    )  # fmt: skip
    command.add_argument("model", metavar="MODEL.kqeq", help="a trained model")
    command.add_argument("structures", metavar="STRUCTURES", nargs="*", help="files that ASE reads, with all frames")
    measured = command.add_argument_group("measurements")
    measured.add_argument("--plot", metavar="FOLDER", type=Path, help="write a PNG file for each measurement")
    measured.add_argument("--spacing", metavar="D", type=float, help="closest contact in chains, A (default 3)")
    measured.add_argument(
        "--fragment-charges", metavar='"Q1 Q2"', help="of the two pieces that are pulled apart, e (default neutral)"
    )
    add_common(command, json="values, verdicts and curves, in eV, A, e", threads=True)


def _run(arguments: argparse.Namespace) -> int:
    from kqeq_md.diagnose.diagnosis import diagnose
    from kqeq_md.diagnose.plots import check_plots, plot_diagnosis
    from kqeq_md.diagnose.report import as_json, as_text
    from kqeq_md.diagnose.samples import SPACING
    from kqeq_md.frames import read_structures

    model = read_model(arguments.model)
    structures = [structure for file in arguments.structures for structure in read_structures(file)]
    if arguments.plot is not None:
        check_plots(arguments.plot)
    spacing = SPACING if arguments.spacing is None else arguments.spacing
    found = diagnose(model, structures, spacing, _numbers("--fragment-charges", arguments.fragment_charges))
    answer(arguments, as_json(found), as_text(found))
    if arguments.plot is not None:
        for path in plot_diagnosis(found, arguments.plot):
            log.info("wrote %s", path)
    return 0


def _numbers(name: str, text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise KqeqError(f"`{name}` must be numbers, got {text!r}") from None
