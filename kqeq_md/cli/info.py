"""`kqeq info`."""

from __future__ import annotations

import argparse

from kqeq_md.cli.arguments import Commands, add_command, add_common
from kqeq_md.cli.output import answer, read_model

NAME = "info"


def add(commands: Commands) -> None:
    """Its part of the command line."""
    command = add_command(
        commands,
        NAME,
        "what a model file holds",
        "Print what a model file holds: elements, kernels, charges, training data and errors.",
        ["kqeq info nacl.kqeq", "kqeq info nacl.kqeq --json"],
        _run,
    )
    command.add_argument("model", metavar="MODEL.kqeq", help="a model")
    add_common(command, json="the header of the file")


def _run(arguments: argparse.Namespace) -> int:
    from kqeq_md.model import model_header
    from kqeq_md.train.report.description import describe

    model = read_model(arguments.model)
    text = "" if arguments.json else f"{arguments.model}: " + "\n".join(describe(model))
    answer(arguments, model_header(model), text)
    return 0
