"""`kqeq demo`."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from kqeq_md.cli.arguments import Commands, add_command, add_common
from kqeq_md.cli.output import report, say

NAME = "demo"


def add(commands: Commands) -> None:
    """Its part of the command line."""
    command = add_command(
        commands,
        NAME,
        "a LAMMPS run and an i-PI run with the shipped model",
        "Run the shipped NaCl model in LAMMPS and i-PI (under two minutes on two cores) and plot it.",
        ["kqeq demo", "kqeq demo -o my_demo --json"],
        _run,
    )
    files = command.add_argument_group("output")
    files.add_argument(
        "-o", "--output", metavar="FOLDER", default="kqeq_demo", type=Path,
        help="for inputs, logs, charges, energies and a plot (default: kqeq_demo)",
    )  # fmt: skip
    add_common(command, json="what was run, where, and what came out")


def _run(arguments: argparse.Namespace) -> int:
    from kqeq_md.demo import run_demo

    results, text = run_demo(arguments.output, say=partial(say, arguments))
    report(arguments, results, text)
    return 0
