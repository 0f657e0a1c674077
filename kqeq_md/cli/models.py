"""`kqeq models`."""

from __future__ import annotations

import argparse

from kqeq_md.cli.arguments import Commands, add_command, add_common, nearest
from kqeq_md.cli.output import answer
from kqeq_md.errors import KqeqError
from kqeq_md.models import SHIPPED

NAME = "models"


def add(commands: Commands) -> None:
    """Its part of the command line."""
    command = add_command(
        commands,
        NAME,
        "the shipped models and their files",
        'Print the file of a shipped model, as in `cp "$(kqeq models nacl)" .`, or the list of them.',
        ["kqeq models", "kqeq models nacl", "kqeq models --json"],
        _run,
    )
    command.add_argument("name", metavar="NAME", nargs="?", help=", ".join(SHIPPED))
    add_common(command, json="files by name")


def _run(arguments: argparse.Namespace) -> int:
    name = arguments.name
    if name is not None and name not in SHIPPED:
        raise KqeqError(f"`NAME` must be one of {', '.join(SHIPPED)}, got {name!r}{nearest(name, SHIPPED)}")
    chosen = {key: str(path) for key, path in SHIPPED.items() if name in (None, key)}
    listed = "\n".join(f"{key:<12}{path}" for key, path in chosen.items())
    answer(arguments, {"models": chosen}, listed if name is None else chosen[name])
    return 0
