"""`kqeq` itself: its parser, and how every subcommand ends."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from kqeq_md import __version__
from kqeq_md.cli import check, demo, diagnose, evaluate, import_gap, info, ir, models, select, train, tune
from kqeq_md.cli.arguments import Commands, Parser, add_volume, nearest
from kqeq_md.cli.completion import SHELLS, PrintCompletion
from kqeq_md.cli.terminal import error_line, logging_to_stderr
from kqeq_md.errors import KqeqError
from kqeq_md.machine.threads import kernel_threads, start_with_one_blas_thread

log = logging.getLogger("kqeq_md")

GROUPS = {
    "from data to a model": (train, tune, evaluate, select),
    "look at a model": (info, check, diagnose),
    "tools": (import_gap, ir, models, demo),
}
"""Subcommands as `kqeq --help` lists them."""

_EPILOG = """\
`kqeq help COMMAND` and `kqeq COMMAND --help` tell more.

exit codes:
  0    done
  1    `kqeq check` found deviations
  2    an error, told in one line on stderr
  130  interrupted (Ctrl-C, SIGINT)
  141  whoever read the output has closed it, as in `kqeq info MODEL | head`
  143  ended by SIGTERM, as batch systems do; `kqeq train` goes on from there
"""


class _Program(Parser):
    """The parser of `kqeq`, whose help has subcommands by their purpose."""

    commands: Commands

    def format_help(self) -> str:
        """As argparse writes it, with one section for each group of subcommands."""
        formatter, lines = self._get_formatter(), {action.dest: action for action in self.commands._get_subactions()}
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        for title, modules in GROUPS.items():
            formatter.start_section(title)
            formatter.add_arguments([lines[module.NAME] for module in modules])
            formatter.end_section()
        formatter.start_section(self._optionals.title)
        formatter.add_arguments(self._optionals._group_actions)
        formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        names = self.commands.choices
        if action is self.commands and value not in names:
            self.error(f"unknown command `{value}`{nearest(value, names)}")
        super()._check_value(action, value)


def parser() -> argparse.ArgumentParser:
    """The command line of `kqeq`."""
    out = _Program(prog="kqeq", description="Machine-learned charge equilibration for MD.", epilog=_EPILOG)
    out._optionals.title = "options"
    out.add_argument("--version", action="version", version=f"kqeq_md {__version__}")
    out.add_argument(
        "--print-completion", metavar="|".join(SHELLS), choices=SHELLS, action=PrintCompletion,
        help="print a script that makes a shell complete this command line",
    )  # fmt: skip
    add_volume(out)
    out.set_defaults(run=lambda _: _help(out, None))
    out.commands = out.add_subparsers(metavar="COMMAND", parser_class=Parser)
    for modules in GROUPS.values():
        for module in modules:
            module.add(out.commands)
    helper: Parser = out.commands.add_parser("help", help="help of a subcommand", description="Show help.")
    helper.add_argument("command", metavar="COMMAND", nargs="?", help="a subcommand (default: all of them)")
    add_volume(helper, argparse.SUPPRESS)
    helper.set_defaults(run=lambda arguments: _help(out, arguments.command))
    return out


def _help(program: _Program, name: str | None) -> int:
    if name is None:
        program.print_help()
    elif name in program.commands.choices:
        program.commands.choices[name].print_help()
    else:
        raise KqeqError(f"unknown command `{name}`{nearest(name, program.commands.choices)}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; its exit code, as `kqeq --help` tells."""
    start_with_one_blas_thread()  # the fit has threads of its own
    arguments = parser().parse_args(argv)
    with logging_to_stderr(arguments.verbose):
        return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    begin = time.monotonic()
    try:
        _set_threads(getattr(arguments, "threads", None))
        status = int(arguments.run(arguments))
        if sys.stdout is not None:  # None where the shell has closed it
            sys.stdout.flush()
        log.info("done in %.1f s", time.monotonic() - begin)
        return status
    except KqeqError as error:
        sys.stderr.write(error_line("kqeq", error))
    except KeyboardInterrupt:
        sys.stderr.write("kqeq: interrupted\n")
        return 130
    except BrokenPipeError:  # as in `kqeq info MODEL | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        sys.stderr.write(error_line("kqeq", error))
    return 2


def _set_threads(threads: int | None) -> None:
    """For everything that this process computes."""
    if threads is not None:
        os.environ["KQEQ_NUM_THREADS"] = str(kernel_threads(threads))
    log.debug("kqeq_md %s, Python %s, %d threads", __version__, sys.version.split()[0], kernel_threads())
