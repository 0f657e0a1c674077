"""`<!-- options of kqeq eval -->` in a page becomes usage, description and arguments of a command, from its parser."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from importlib import import_module

from sphinx.application import Sphinx

PARSERS = ("kqeq_md.cli.program.parser", "kqeq_md.ipi_driver.client.build_parser", "kqeq_md.mdi.engine.build_parser")
"""Functions that make the parsers."""

MARK = re.compile(r"<!-- options of (.+) -->")


def parsers() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command by its name, "kqeq eval"."""
    for path in PARSERS:
        module, _, name = path.rpartition(".")
        parser = getattr(import_module(module), name)()
        groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        if not groups:
            yield parser.prog, parser
        for group in groups:
            yield from ((command.prog, command) for command in group.choices.values())


def options(command: str) -> str:
    """Usage, description and a table of all arguments, as Markdown.

    Raises:
        KeyError: no such command.
    """
    parser = dict(parsers())[command]
    formatter = argparse.HelpFormatter(parser.prog, width=85)
    formatter.add_usage(None, parser._actions, parser._mutually_exclusive_groups, prefix="")
    text = ["```text", formatter.format_help().rstrip(), "```", "", parser.description or "", ""]
    text += ["| argument | meaning |", "|---|---|"]
    return "\n".join([*text, *(row(action, parser.prog) for action in parser._actions if action.dest != "help")])


def row(action: argparse.Action, prog: str) -> str:
    """An argument in a table."""
    value = "" if action.nargs == 0 else str(action.metavar or action.dest.upper())
    names = [f"`{name} {value}`" if value else f"`{name}`" for name in action.option_strings] or [f"`{value}`"]
    meaning = (action.help or "") % {"default": action.default, "prog": prog}
    needed = "required" if action.option_strings and action.required else ""
    cells = (", ".join(names), "; ".join(filter(None, (needed, meaning))))
    return "| {} | {} |".format(*(cell.replace("|", r"\|") for cell in cells))  # a bar would end the cell


def expand(_: Sphinx, __: str, source: list[str]) -> None:
    source[0] = MARK.sub(lambda match: options(match[1]), source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", expand)
    return {"parallel_read_safe": True}
