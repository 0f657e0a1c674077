"""The command `kqeq-ipi`: connects to i-PI, answers its requests for forces, leaves when it leaves."""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from kqeq_md.errors import KqeqError
from kqeq_md.ipi_driver.connection import await_first_word, close, connect, open_inet, open_unix
from kqeq_md.ipi_driver.conversation import serve
from kqeq_md.ipi_driver.evaluation import Evaluation, read_template
from kqeq_md.ipi_driver.protocol import Answer, Request, ServerGone, Stream
from kqeq_md.ipi_driver.settings import OPEN, PERIODIC, READERS, Settings
from kqeq_md.ipi_driver.shared_memory import SharedMemory
from kqeq_md.model import load_model

logger = logging.getLogger("kqeq_md.ipi_driver")

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
<parameters> may be absent. They take the names of the options charge, efield, charges, fragments, part, extras
(names with blanks between them), pbc and slab; what they say must not contradict the command line.
<batch_size> 8 </batch_size> sends 8 beads at once: --threads share them, and each keeps its charges to start from.
The extras of each reply are one JSON object: charges (e), dipole (e bohr) where it has a meaning, and BEC (e).

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
        await_first_word(connection, place, arguments.wait)
        wire = SharedMemory(n_atoms) if arguments.shm else Stream(n_atoms)
        serve(connection, wire, client, client.served)
    except (ServerGone, ConnectionError, TimeoutError):
        logger.warning("i-PI closed the connection without EXIT")
        return False
    finally:
        close(connection)
    logger.info("i-PI said EXIT")
    return True


class _Parser(argparse.ArgumentParser):
    """Errors on one line, as everywhere else: argparse would print the usage before them."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


class _PrintPesPath(argparse.Action):
    """Like --version: prints, and leaves."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        parser.exit(0, f"{Path(__file__).with_name('pes.py')}\n")


def _setting(name: str) -> Callable[[str], Any]:
    """The reader of a setting, as argparse wants it."""

    def read(text: str) -> Any:
        try:
            return READERS[name][1](text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{error}, got {text!r}") from None

    return read


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of seconds, 0 or more, got {text!r}")
    return seconds


def _port(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text) < 65536):
        raise argparse.ArgumentTypeError(f"must be a port from 1 to 65535, got {text!r}")
    return int(text)


def _threads(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    """The command line; address, port and prefix default to i-PI's own defaults."""
    parser = _Parser(
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
    _add_settings(parser)
    add(
        "--threads", type=_threads, metavar="N",
        help="how many work at once (default: KQEQ_NUM_THREADS, or what the scheduler gives)",
    )  # fmt: skip
    add("--pes-path", action=_PrintPesPath, nargs=0, help="print the file that <ffdirect> takes as <pes_path>")
    add("-v", "--verbose", action="store_true", help="say what happens")
    return parser


def _add_connection(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("-u", "--unix", action="store_true", help="unix socket instead of a network (inet) socket")
    mode.add_argument("--shm", action="store_true", help="shared memory beside a unix socket (<ffsocket mode='shm'>)")
    add("-a", "--address", default="localhost", help="host, or name of a unix socket (default: %(default)s)")
    add("-p", "--port", type=_port, default=65535, help="port of the inet socket (default: %(default)s)")
    add(
        "-S", "--sockets-prefix", "--sockets_prefix", default="/tmp/ipi_", metavar="PREFIX",
        help="what i-PI puts before the name of a unix socket (default: %(default)s)",
    )  # fmt: skip
    add("--wait", type=_seconds, default=60.0, metavar="SECONDS", help="time to wait for i-PI (default: 60)")
    add("--reconnect", action="store_true", help="wait for i-PI again when it closes the connection without EXIT")


def _add_settings(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--charge", type=_setting("charge"), metavar="Q", help="total charge in e (default: 0)")
    add("--efield", type=_setting("efield"), metavar='"X Y Z"', help='static field in V/Angstrom (default: "0 0 0")')
    add(
        "--charges", type=_setting("charges"), metavar="qeq|fragments|split",
        help="how charge flows (default: as the model was trained)",
    )  # fmt: skip
    add(
        "--fragments", type=_setting("fragments"), metavar="connectivity|ARRAY",
        help="charge stays in molecules, found in the template or numbered by one of its arrays",
    )  # fmt: skip
    add(
        "--part", type=_setting("part"), metavar="all|short|charge",
        help="a part of the energy, for multiple time steps and ring-polymer contraction (default: all)",
    )  # fmt: skip
    add(
        "--extras", type=_setting("extras"), metavar="dipole,charges,bec|none",
        help="what goes to i-PI beside forces; bec: Born effective charges (default: dipole and charges, if defined)",
    )  # fmt: skip
    boundary = parser.add_mutually_exclusive_group()
    boundary.add_argument(
        "--pbc", action="store_const", const=PERIODIC,
        help="periodic boundaries instead of the template's: i-PI always sends a cell, which tells nothing",
    )  # fmt: skip
    boundary.add_argument("--no-pbc", action="store_const", const=OPEN, dest="pbc", help="open boundaries")
    boundary.add_argument(
        "--slab", type=_setting("slab"), dest="pbc", metavar="x|y|z", help="open along one lattice vector"
    )


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
