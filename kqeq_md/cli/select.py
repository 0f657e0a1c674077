"""`kqeq select`."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from kqeq_md.cli.arguments import Commands, add_command, add_common
from kqeq_md.cli.output import check_output, read_model, report

NAME = "select"

log = logging.getLogger("kqeq_md")


def add(commands: Commands) -> None:
    """Its part of the command line."""
    command = add_command(
        commands,
        NAME,
        "frames of trajectories that are worth labelling next",
        "Pick the frames that the model knows least of: each one has the largest measure of extrapolation beside the "
        "training set and the frames picked before. `total_charge` (e) and `electric_field` (V/A) of a frame count "
        "where it has them.",
        ["kqeq select nacl.kqeq melt.dump -n 20 -o picked.xyz",
         "kqeq select water.kqeq run1.xyz run2.xyz -n 50 --charge 1 --open -o picked.xyz"],
        _run,
    )  # fmt: skip
    command.add_argument("model", metavar="MODEL.kqeq", help="as trained so far")
    command.add_argument("trajectories", metavar="TRAJECTORY", nargs="+", help="files that ASE reads, with all frames")
    picked = command.add_argument_group("selection")
    picked.add_argument("-n", "--number", metavar="N", type=int, required=True, help="at most so many frames")
    picked.add_argument("-o", "--output", metavar="PICKED.xyz", type=Path, required=True, help="extended XYZ")
    picked.add_argument("--charge", metavar="Q", type=float, default=0.0, help="of frames without `total_charge`, e")
    picked.add_argument("--open", action="store_true", help="without cells: i-PI writes them around clusters too")
    add_common(command, json="what was picked, and why", threads=True)


def _run(arguments: argparse.Namespace) -> int:
    from kqeq_md.select import select
    from kqeq_md.select.report import as_json, as_text, write_picked

    check_output(arguments.output, inputs=[arguments.model, *arguments.trajectories])
    model = read_model(arguments.model)
    selection = select(model, arguments.trajectories, arguments.number, arguments.charge, arguments.open)
    write_picked(selection, arguments.output)
    log.info("wrote %s", arguments.output)
    report(arguments, as_json(selection), as_text(selection))
    return 0
