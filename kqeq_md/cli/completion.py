"""Scripts with which shells complete the command line of `kqeq`."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

from kqeq_md.models import SHIPPED

SHELLS = ("bash", "zsh", "fish")


class PrintCompletion(argparse.Action):
    """Like --version: prints, and leaves."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, *_: Any) -> NoReturn:
        sys.stdout.write(completion(parser, values))
        parser.exit(0)


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script of a shell.

    Args:
        parser: of which the arguments get completions from their metavars: files with the ending of MODEL.kqeq.
        shell: one of `SHELLS`.
    """
    import shtab

    for action, commands in _arguments(parser):
        name = str(action.metavar)
        endings = re.findall(r"\.[a-z]+", name)
        if endings:
            action.complete = shtab.glob(*(f"*{ending}" for ending in endings))  # type: ignore[attr-defined]
        elif name == "FOLDER":
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif name in ("FILE", "DIPOLE_FILE", "STRUCTURES", "TRAJECTORY"):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif name == "NAME":
            action.choices = list(SHIPPED)
        elif name == "COMMAND" and action.choices is None:
            action.choices = commands
        elif name.islower() and "|" in name:
            action.choices = name.split("|")
    return str(shtab.complete(parser, shell))


def _arguments(parser: argparse.ArgumentParser) -> Iterator[tuple[argparse.Action, list[str]]]:
    """All of them, those of subcommands too, with the names of the subcommands."""
    (subparsers,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for each in (parser, *subparsers.choices.values()):
        for action in each._actions:
            yield action, list(subparsers.choices)
