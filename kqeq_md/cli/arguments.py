"""What the command lines of all subcommands share: one parser, one form of help, common options."""

from __future__ import annotations

import argparse
import difflib
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from kqeq_md.cli.terminal import error_line

Commands = Any
"""What `add_subparsers` gives, whose type has no public name."""


class Help(argparse.HelpFormatter):
    """Fills paragraphs, and leaves those alone whose lines are indented: examples, exit codes."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        blocks = text.strip().split("\n\n")
        return "\n\n".join(
            block if "\n  " in block else textwrap.fill(" ".join(block.split()), width, break_on_hyphens=False)
            for block in blocks
        )


class Parser(argparse.ArgumentParser):
    """Errors on one line, with the nearest option that there is."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=Help, add_help=False, **settings)
        self._positionals.title = "arguments"

    def error(self, message: str) -> NoReturn:
        """Leave with exit code 2."""
        self.exit(2, error_line(self.prog, message))

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse does, but what is unknown is told before what is missing."""
        if args is not None:
            self._refuse_unknown_options(args)
        return super().parse_known_args(args, namespace)

    def _refuse_unknown_options(self, words: Sequence[str]) -> None:
        known = list(self._option_string_actions)
        for word in words:
            name = word.partition("=")[0]
            if word == "--" or (self._subparsers is not None and not word.startswith("-")):
                return  # what follows are no options, or those of a subcommand
            if len(name) < 2 or name[0] != "-" or " " in name or name[1].isdecimal() or name[1] == ".":
                continue
            if name.startswith("--"):
                if not any(option.startswith(name) for option in known):
                    self.error(f"unknown option `{name}`{nearest(name, known)}")
            elif name[:2] not in known:
                self.error(f"unknown option `{name}`{nearest(f'-{name}', known)}")


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: the one that was meant, if one is near."""
    found = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean `{found[0]}`?" if found else ""


def add_command(
    commands: Commands,
    name: str,
    summary: str,
    description: str,
    examples: Sequence[str],
    run: Callable[[argparse.Namespace], int],
    exit_codes: str = "",
) -> Parser:
    """A subcommand without arguments yet.

    Args:
        commands: of `kqeq`.
        name: of the subcommand.
        summary: its line in `kqeq --help`.
        description: above its options.
        examples: command lines.
        run: what it does; returns the exit code.
        exit_codes: that are its own.
    """
    epilog = "\n".join(["examples:", *(f"  {line}" for line in examples)])
    if exit_codes:
        epilog += f"\n\nexit codes:\n  {exit_codes}"
    command: Parser = commands.add_parser(name, help=summary, description=description, epilog=epilog)
    command.set_defaults(run=run)
    return command


def add_common(command: Parser, json: str = "", threads: bool = False) -> None:
    """Options that many subcommands have.

    Args:
        command: of which they become options.
        json: what `--json` prints; "" for none.
        threads: whether it computes.
    """
    group = command.add_argument_group("common options")
    if json:
        group.add_argument("--json", action="store_true", help=f"{json}: one JSON document on stdout")
    if threads:
        group.add_argument(
            "--threads", metavar="N", type=int,
            help="how many work at once (default: KQEQ_NUM_THREADS, or what the scheduler gives)",
        )  # fmt: skip
    add_volume(group, argparse.SUPPRESS)


def add_volume(group: Any, default: Any = None) -> None:
    """`-q`, `-v` and `-h`; those before a subcommand have a default, those after it count where they are given."""
    either = group.add_mutually_exclusive_group()
    either.add_argument(
        "-q", "--quiet", action="store_true", default=default or False,
        help="no progress and no summaries: only what was asked for, warnings and errors",
    )  # fmt: skip
    either.add_argument(
        "-v", "--verbose", action="count", default=default or 0,
        help="say what is read, chosen and written, and how long it takes; -vv: more",
    )  # fmt: skip
    group.add_argument("-h", "--help", action="help", help="show this help and leave")
