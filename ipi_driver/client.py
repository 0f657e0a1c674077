"""The command `kqeq-ipi`: connects to i-PI, answers its requests for forces, leaves when it leaves."""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NoReturn

from ase import Atoms
from ase.io import read as read_structure

from kqeq_md.ase import structure_from_atoms
from kqeq_md.errors import KqeqError
from kqeq_md.ipi_driver.connection import await_first_word, close, connect, open_inet, open_unix, take_getforce
from kqeq_md.ipi_driver.protocol import (
    DriverError,
    Request,
    ServerGone,
    check_parameters,
    decode_header,
    decode_init,
    decode_request,
    encode_header,
    encode_result,
    read_exactly,
)
from kqeq_md.potential import NO_SUCH_CHARGES, NO_VIRIAL, Potential
from kqeq_md.quiet import quietly
from kqeq_md.structure import Result, Structure

logger = logging.getLogger("kqeq_md.ipi_driver")

_WANT = ("forces", "charges", "dipole")

_EPILOG = """\
example, to be started before or after `i-pi input.xml`:
  kqeq-ipi -m nacl.kqeq -t start.xyz -u -a nacl --charge 1 --efield "0 0 0.05"

and in input.xml:
  <ffsocket name='kqeq' mode='unix' pbc='false'>
    <address> nacl </address>
  </ffsocket>

Without -u, give <ffsocket mode='inet'> with the same <address> (a host) and <port>.
Keep pbc='false': i-PI would otherwise fold the atoms into its cell and tear a cluster apart.
The extras of each reply are one JSON object: charges (e) and, where it has a meaning, dipole (e bohr).
"""


@dataclass(frozen=True)
class Evaluation:
    """Answers requests that differ in positions and cell; all else is the template's.

    Attributes:
        template: elements in i-PI's order, boundary, total charge and field.
    """

    potential: Potential
    template: Structure

    def __call__(self, request: Request) -> bytes:
        """The reply to one request; errors as in `evaluate`."""
        return encode_result(self.evaluate(request), with_charges=self.potential.has_charges)

    def evaluate(self, request: Request) -> Result:
        """What the potential finds.

        Raises:
            KqeqError: the structure, the field or the result is refused.
        """
        # i-PI sends a cell even where the boundaries are open
        cell = self.template.cell if self.template.boundary == "open" else request.cell
        structure = replace(self.template, positions=request.positions, cell=cell)
        has_virial = self.potential.has_virial(structure)
        return self.potential.compute(structure, want=(*_WANT, "virial") if has_virial else _WANT)


def serve(connection: socket.socket, evaluate: Callable[[Request], bytes], n_atoms: int) -> int:
    """Answer i-PI until it says EXIT, and count the replies.

    Raises:
        ServerGone: the connection was closed without EXIT.
        KqeqError: a message, a structure or a result that is refused.
    """
    read = partial(read_exactly, connection)
    initialised = False
    reply: bytes | None = None
    replies = 0
    while (message := decode_header(read)) != "EXIT":
        wanted = message == "GETFORCE"
        if message == "STATUS":
            connection.sendall(encode_header(_status(initialised, reply)))
        elif message == "INIT":
            check_parameters(decode_init(read))
            initialised = True
        elif message == "POSDATA":
            request = decode_request(read, n_atoms)
            wanted = take_getforce(connection)
            reply = evaluate(request)
        if wanted:
            if reply is None:
                raise DriverError("GETFORCE must follow POSDATA, got it from i-PI before any positions")
            connection.sendall(reply)
            reply = None
            replies += 1
    return replies


def _status(initialised: bool, reply: bytes | None) -> str:
    # NEEDINIT comes first even though nothing is needed: only INIT tells the size of batches
    if not initialised:
        return "NEEDINIT"
    return "READY" if reply is None else "HAVEDATA"


def read_template(path: str, pbc: bool | None) -> Atoms:
    """The first frame of a file that ASE reads, with its boundary replaced unless `pbc` is None.

    Raises:
        DriverError: a file that ASE cannot read, or no cell where one is needed.
    """
    try:
        atoms = read_structure(path, index=0)
    except Exception as error:  # the readers of ASE raise whatever a foreign file makes them stumble over
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DriverError(f"`--template` must be a file that ASE can read, got {path}: {reason}") from None
    if pbc is not None:
        atoms.pbc = pbc
    if atoms.pbc.any() and atoms.cell.rank < 3:
        raise DriverError(f"`--template` must have a cell for periodic boundaries, got none in {path}")
    return atoms


def _prepare(arguments: argparse.Namespace) -> Evaluation:
    """Load the model and evaluate the template once: i-PI stalls on a driver that is connected but not ready.

    Raises:
        KqeqError: the model, the template or the field is refused.
    """
    potential = Potential(arguments.model, threads=arguments.threads)
    atoms = read_template(arguments.template, arguments.pbc)
    template = structure_from_atoms(atoms, arguments.charge, arguments.efield)
    evaluate = Evaluation(potential, template)
    # with a potential of its own, so that the first step starts from nothing, as in any other engine
    trial = Evaluation(Potential(potential.model, threads=potential.threads), template)
    with quietly():  # what is to be warned of is warned of in the first step
        result = trial.evaluate(Request(cell=template.cell, positions=template.positions))
    logger.info("%d atoms, boundary: %s, charge %g e", len(template), template.boundary, template.charge)
    if not potential.has_charges:
        logger.warning("%s", NO_SUCH_CHARGES)
    elif result.dipole is None:
        logger.warning("no dipole in the extras: it has no meaning for a cell whose charges flow freely")
    if result.virial is None:
        logger.warning("%s: i-PI gets nan, and the cell has to stay", NO_VIRIAL)
    return evaluate


def _run(arguments: argparse.Namespace) -> None:
    """From the model to the end of i-PI's run.

    Raises:
        KqeqError: anything that is refused, the absence of the server included.
    """
    evaluate = _prepare(arguments)
    if arguments.unix:
        place = arguments.sockets_prefix + arguments.address
        open_socket = partial(open_unix, place)
    else:
        place = f"{arguments.address}:{arguments.port}"
        open_socket = partial(open_inet, arguments.address, arguments.port)
    connection = connect(open_socket, place, arguments.wait)
    logger.info("connected to i-PI at %s", place)
    try:
        await_first_word(connection, place, arguments.wait)
        replies = serve(connection, evaluate, len(evaluate.template))
        logger.info("i-PI said EXIT after %d replies", replies)
    except (ServerGone, ConnectionError, TimeoutError):
        logger.warning("i-PI closed the connection without EXIT")
    finally:
        close(connection)


class _Parser(argparse.ArgumentParser):
    """Errors on one line, as everywhere else: argparse would print the usage before them."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def _field(text: str) -> tuple[float, float, float]:
    try:
        x, y, z = (float(word) for word in text.split())
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be three numbers in V/Angstrom, got {text!r}") from None
    return x, y, z


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
        "-t",
        "--template",
        required=True,
        metavar="FILE",
        help="a structure that ASE reads: the elements in i-PI's order, and the boundary",
    )
    add("-u", "--unix", action="store_true", help="unix socket instead of a network (inet) socket")
    add("-a", "--address", default="localhost", help="host, or name of a unix socket (default: %(default)s)")
    add("-p", "--port", type=_port, default=65535, help="port of the inet socket (default: %(default)s)")
    add(
        "-S",
        "--sockets-prefix",
        "--sockets_prefix",
        default="/tmp/ipi_",
        metavar="PREFIX",
        help="what i-PI puts before the name of a unix socket (default: %(default)s)",
    )
    add("--charge", type=float, default=0.0, metavar="Q", help="total charge in e (default: 0)")
    add(
        "--efield",
        type=_field,
        default=(0.0, 0.0, 0.0),
        metavar='"X Y Z"',
        help='static field in V/Angstrom (default: "0 0 0")',
    )
    add(
        "--pbc",
        action=argparse.BooleanOptionalAction,
        help="periodic or open boundaries, instead of the template's: "
        "i-PI always sends a cell, so the driver cannot tell from that",
    )
    add(
        "--threads",
        type=_threads,
        metavar="N",
        help="how many work at once (default: KQEQ_NUM_THREADS, or what the scheduler gives)",
    )
    add("--wait", type=_seconds, default=60.0, metavar="SECONDS", help="time to wait for i-PI (default: 60)")
    add("-v", "--verbose", action="store_true", help="say what happens")
    return parser


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
