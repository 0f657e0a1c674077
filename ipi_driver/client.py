"""The command `kqeq-ipi`: connects to i-PI, answers its requests for forces, leaves when it leaves."""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from kqeq_md.errors import KqeqError
from kqeq_md.ipi_driver.connection import await_first_word, close, connect, open_inet, open_unix
from kqeq_md.ipi_driver.conversation import serve
from kqeq_md.ipi_driver.evaluation import Evaluation
from kqeq_md.ipi_driver.protocol import Answer, DriverError, Request, ServerGone, Stream
from kqeq_md.ipi_driver.settings import READERS, Settings, read_extras
from kqeq_md.ipi_driver.shared_memory import SharedMemory
from kqeq_md.model import load_model
from kqeq_md.options import Parser, add_system_options, one_of, option, read_number, read_template
from kqeq_md.potential import PARTS

logger = logging.getLogger("kqeq_md.ipi_driver")

_BEFORE_NEXT = 0.5
"""Seconds between two servers: one that takes connections only to drop them does not keep a core busy."""

_EPILOG = """\
example, to be started before or after `i-pi input.xml`:
  kqeq-ipi -m nacl.kqeq -t start.xyz -u -a nacl --charge 1 --efield "0 0 0.05"

and in input.xml:
  <ffsocket name='kqeq' mode='unix' pbc='false'>
    <address> nacl </address>
    <parameters> {charge: 1, efield: 0 0 0.05} </parameters>
  </ffsocket>

Without -u or --shm, give <ffsocket mode='inet'> with the same <address> (a host) and <port>.
Keep pbc='false': i-PI would otherwise fold the atoms into its cell and tear a cluster apart.
<parameters> may be absent. They take the names of the options charge, efield, charges, fragments, fragment_charges,
part, extras (names with blanks between them), extrapolation, pbc and slab; what they say must not contradict the
command line.
<batch_size> 8 </batch_size> sends 8 beads at once: --threads share them, and each keeps its charges to start from.
The extras of each reply are one JSON object: charges (e), dipole (e bohr) where it has a meaning, BEC (e)
and extrapolation (each atom's measure), which are asked for by --extras.

Inside i-PI, without a socket:
  <ffdirect name='kqeq' pbc='false'>
    <pes> custom </pes> <pes_path> (what `kqeq-ipi --pes-path` prints) </pes_path>
    <parameters> {model: nacl.kqeq, template: start.xyz, charge: 1, efield: 0 0 0.05} </parameters>
  </ffdirect>
"""


class Client:
    """Answers i-PI over one connection after the other."""

    def __init__(self, evaluation: Evaluation) -> None:
        self._before, self._evaluation = evaluation, evaluation
        self.replies = 0

    def begin(self, parameters: Mapping[str, str]) -> None:
        """Take the `<parameters>` of the ffsocket beside the command line's settings.

        Raises:
            KqeqError: parameters that are unknown, contradict the command line, or are refused.
        """
        self._evaluation = self._before.with_parameters(parameters)

    def evaluate(self, requests: Sequence[Request]) -> list[Answer]:
        """One answer for each structure; errors as for `Evaluation`."""
        return self._evaluation(requests)

    def served(self, n_structures: int) -> None:
        """Count the structures that i-PI has got."""
        self.replies += n_structures


def _run(arguments: argparse.Namespace) -> None:
    """From the model to the end of i-PI's run.

    Raises:
        KqeqError: anything that is refused, the absence of the server included.
    """
    settings = Settings(**{name: getattr(arguments, name) for name, _ in READERS.values()})
    model, atoms = load_model(arguments.model), read_template(arguments.template)
    client = Client(Evaluation(model, atoms, settings, arguments.threads))
    while not _serve_once(arguments, client, len(atoms)) and arguments.reconnect:
        logger.warning("trying to connect again (--reconnect)")
        time.sleep(_BEFORE_NEXT)
    logger.info("%d structures in all", client.replies)


def _serve_once(arguments: argparse.Namespace, client: Client, n_atoms: int) -> bool:
    """Connect and answer; whether i-PI has said EXIT.

    Raises:
        KqeqError: anything that is refused, the absence of the server included.
    """
    if arguments.unix or arguments.shm:
        place = arguments.sockets_prefix + arguments.address
        open_socket = partial(open_unix, place)
    else:
        place = f"{arguments.address}:{arguments.port}"
        open_socket = partial(open_inet, arguments.address, arguments.port)
    connection = connect(open_socket, place, arguments.wait)
    logger.info("connected to i-PI at %s", place)
    try:
        if not await_first_word(connection, place, arguments.wait):
            if not arguments.reconnect:
                raise DriverError(f"{place} closed the connection before its first message: is it i-PI?")
            raise ServerGone
        wire = SharedMemory(n_atoms) if arguments.shm else Stream(n_atoms)
        serve(connection, wire, client, client.served)
    except (ServerGone, ConnectionError, TimeoutError):
        logger.warning("the server closed the connection without EXIT")
        return False
    finally:
        close(connection)
    logger.info("i-PI said EXIT")
    return True


class _PrintPesPath(argparse.Action):
    """Like --version: prints, and leaves."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        # not by `exit`, which writes to stderr: $(kqeq-ipi --pes-path) would be empty
        sys.stdout.write(f"{Path(__file__).with_name('pes.py')}\n")
        parser.exit(0)


def _read_seconds(text: str) -> float:
    seconds = read_number(text)
    if seconds < 0:
        raise ValueError("must be a number of seconds, 0 or more")
    return seconds


def _read_port(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text) < 65536):
        raise ValueError("must be a port from 1 to 65535")
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    """The command line; address, port and prefix default to i-PI's own defaults."""
    parser = Parser(
        prog="kqeq-ipi",
        description="i-PI driver of a kQEq model: charges are equilibrated again at every step.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("-m", "--model", required=True, metavar="MODEL", help="a .kqeq file")
    add(
        "-t", "--template", required=True, metavar="FILE",
        help="a structure that ASE reads: the elements in i-PI's order, and the boundary",
    )  # fmt: skip
    _add_connection(parser)
    add_system_options(parser)
    _add_results(parser)
    add("--pes-path", action=_PrintPesPath, nargs=0, help="print the file that <ffdirect> takes as <pes_path>")
    add("-v", "--verbose", action="store_true", help="say what happens")
    return parser


def _add_connection(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("-u", "--unix", action="store_true", help="unix socket instead of a network (inet) socket")
    mode.add_argument("--shm", action="store_true", help="shared memory beside a unix socket (<ffsocket mode='shm'>)")
    add("-a", "--address", default="localhost", help="host, or name of a unix socket (default: %(default)s)")
    add("-p", "--port", type=option(_read_port), default=65535, help="port of the inet socket (default: %(default)s)")
    add(
        "-S", "--sockets-prefix", "--sockets_prefix", default="/tmp/ipi_", metavar="PREFIX",
        help="what i-PI puts before the name of a unix socket (default: %(default)s)",
    )  # fmt: skip
    add(
        "--wait",
        type=option(_read_seconds),
        default=60.0,
        metavar="SECONDS",
        help="time to wait for i-PI (default: 60)",
    )
    add("--reconnect", action="store_true", help="wait for i-PI again when it closes the connection without EXIT")


def _add_results(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--part", type=option(one_of(PARTS)), metavar="|".join(PARTS),
        help="a part of the energy, for multiple time steps and ring-polymer contraction (default: all)",
    )  # fmt: skip
    add(
        "--extras", type=option(read_extras), metavar="dipole,charges,bec,extrapolation|none",
        help="what goes to i-PI beside forces; bec: Born effective charges; extrapolation: how far atoms are from the "
        "training set (default: dipole and charges, if defined)",
    )  # fmt: skip


@contextlib.contextmanager
def _leaving_on_signals() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into SystemExit, so that the socket is closed: exit codes 130 and 143."""

    def leave(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the driver; 0 when i-PI has ended, 2 after an error, told on one line."""
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(stream=sys.stderr, format="kqeq-ipi: %(message)s")
    if arguments.verbose:
        logging.getLogger("kqeq_md").setLevel(logging.INFO)
    with _leaving_on_signals():
        try:
            _run(arguments)
        except KqeqError as error:
            logger.error("error: %s", error)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
