"""An engine of the MolSSI Driver Interface: the command `kqeq-mdi`.

A driver sends the system and asks for results, in bohr, hartree and e (https://doi.org/10.1016/j.cpc.2020.107688).
`<STRESS` is W/V with the virial W = -dE/d(strain), positive under compression, as in LAMMPS: minus the stress of ASE.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from kqeq_md.ase import NO_FIELD, structure_from_atoms
from kqeq_md.errors import KqeqError
from kqeq_md.limits import Watch
from kqeq_md.mdi.link import DriverGone, Link, MdiError, check_connection, connect
from kqeq_md.options import Axes, Parser, add_system_options, fragments_of, read_template, template_in
from kqeq_md.potential import NO_SUCH_CHARGES, NO_VIRIAL, Potential
from kqeq_md.structure import Floats, Result, Structure
from kqeq_md.units import BOHR, HARTREE

logger = logging.getLogger("kqeq_md.mdi")

NODE = "@DEFAULT"
"""The only node: the engine computes and does not move atoms."""

MOST_ATOMS = 1 << 24
"""Far more than one process can compute; a slip of the driver should not fill the memory."""

_NON_PERIODIC, _PERIODIC = 1, 2
"""What `<DIMENSIONS` says of a cell vector."""

_EPILOG = """\
example, with a driver that listens at port 8021 (started before or after):
  kqeq-mdi -m nacl.kqeq -mdi "-role ENGINE -name kqeq -method TCP -hostname localhost -port 8021"

The driver has to send >NATOMS, >ELEMENTS and >COORDS; with a template it may leave out what stays as it is there.
The boundary is that of --pbc, --no-pbc or --slab, or else the template's; without any it is open until the driver
sends >CELL, and periodic from then on. >TOTCHARGE replaces --charge.
"""


class System:
    """What is known of the driver's system, and the result for it.

    Args:
        potential: computes; threads and charge model are its own.
        pbc: the boundary, or None where it is that of `start`, or else where `>CELL` makes it periodic.
        charge: e.
        field: V/Angstrom.
        start: where the driver need not send everything.
        extrapolation: what is done about atoms that extrapolate, "warn", "stop" or "off".
    """

    def __init__(
        self,
        potential: Potential,
        pbc: Axes | None = None,
        charge: float = 0.0,
        field: Sequence[float] = NO_FIELD,
        start: Atoms | None = None,
        extrapolation: str = "warn",
    ) -> None:
        self.potential, self.charge, self.field = potential, charge, field
        self._watch = Watch(extrapolation, potential.largest_measure)
        self.pbc = pbc
        self.n_atoms = 0
        self.numbers: NDArray[np.int64] | None = None
        self.positions: Floats | None = None
        self.cell: Floats | None = None
        if start is not None:
            self.pbc = tuple(start.pbc)
            self.n_atoms, self.numbers, self.positions = len(start), start.numbers, start.positions
            self.cell = start.cell.array if start.cell.rank else None
        self.origin = np.zeros(3)
        self._result: Result | None = None

    def take(self, command: str, values: NDArray[Any]) -> None:
        """Replace what a command that begins with > brings, in MDI's units.

        Raises:
            MdiError: a number of atoms that cannot be.
        """
        self._result = None
        if command == ">NATOMS":
            self._take_count(int(values[0]))
        elif command == ">ELEMENTS":
            self.numbers = values.astype(np.int64)
        elif command == ">COORDS":
            self.positions = values.reshape(-1, 3) * BOHR
        elif command == ">CELL":
            self.cell = values.reshape(3, 3) * BOHR
        elif command == ">CELL_DISPL":
            self.origin = values * BOHR
        elif command == ">TOTCHARGE":
            self.charge = float(values[0])

    def _take_count(self, n_atoms: int) -> None:
        if n_atoms != self.n_atoms:
            self.numbers = self.positions = None
        self.n_atoms = n_atoms if 0 < n_atoms <= MOST_ATOMS else 0
        if self.n_atoms == 0:
            raise MdiError(f"`>NATOMS` must lie between 1 and {MOST_ATOMS}, got {n_atoms}")

    @property
    def boundary(self) -> Axes:
        """Periodic along each cell vector."""
        return (self.cell is not None,) * 3 if self.pbc is None else self.pbc

    @property
    def structure(self) -> Structure:
        """What the driver has sent.

        Raises:
            KqeqError: something is missing, or refused by `Structure`.
        """
        missing = [name for name, got in ((">ELEMENTS", self.numbers), (">COORDS", self.positions)) if got is None]
        if any(self.boundary) and self.cell is None:
            missing.append(">CELL")
        if missing:
            raise MdiError(f"`{missing[0]}` must come before results of {self.n_atoms} atoms are asked for")
        assert self.numbers is not None
        assert self.positions is not None
        cell = self.cell if any(self.boundary) else None
        return Structure(self.numbers, self.positions, cell, self.boundary, self.charge, self.field)

    @property
    def result(self) -> Result:
        """Of this structure; it is computed once, however much of it the driver asks for.

        Raises:
            KqeqError: the structure is refused, or atoms extrapolate and that is to stop the run.
        """
        if self._result is None:
            structure = self.structure
            result = self.potential.compute(structure)
            if self._watch.due(structure.positions):
                self._watch.look(self.potential.extrapolation(structure, result=result))
            self._result = result
        return self._result

    @property
    def elements(self) -> NDArray[np.int64]:
        """Atomic numbers, shape (n,)."""
        return _known("<ELEMENTS", self.numbers)

    @property
    def coordinates(self) -> Floats:
        """Positions, bohr, shape (n, 3)."""
        return _known("<COORDS", self.positions) / BOHR

    @property
    def lattice(self) -> Floats:
        """Cell vectors as rows, bohr, shape (3, 3); zeros where there is no cell."""
        return np.zeros((3, 3)) if self.cell is None else self.cell / BOHR

    @property
    def forces(self) -> Floats:
        """-dE/dR, hartree/bohr, shape (n, 3)."""
        forces = self.result.forces
        assert forces is not None  # everything that is defined was computed
        return forces * (BOHR / HARTREE)

    @property
    def charges(self) -> Floats:
        """q, e, shape (n,).

        Raises:
            MdiError: the model has none.
        """
        if not self.potential.has_charges:
            raise MdiError(f"`<CHARGES` is not defined: {NO_SUCH_CHARGES}")
        return self.result.charges

    @property
    def stress(self) -> Floats:
        """W/V, hartree/bohr^3, shape (3, 3); V of a slab is that of the cell with its open vector.

        Raises:
            MdiError: no periodic cell with a volume, or a field that leaves the virial undefined.
        """
        volume = 0.0 if self.cell is None else float(abs(np.linalg.det(self.cell)))
        if not any(self.boundary) or volume == 0.0:
            raise MdiError("`<STRESS` needs a periodic cell with a volume")
        if self.result.virial is None:
            raise MdiError(f"`<STRESS`: {NO_VIRIAL}")
        return self.result.virial * (BOHR**3 / HARTREE / volume)


def _known(command: str, values: NDArray[Any] | None) -> NDArray[Any]:
    if values is None:
        raise MdiError(f"`{command}` has no answer before the driver has sent `>{command[1:]}`")
    return values


_ANSWERS: dict[str, Callable[[System], Any]] = {
    "<@": lambda system: NODE,
    "<NATOMS": lambda system: np.array([system.n_atoms]),
    "<ELEMENTS": lambda system: system.elements,
    "<COORDS": lambda system: system.coordinates,
    "<CELL": lambda system: system.lattice,
    "<CELL_DISPL": lambda system: system.origin / BOHR,
    "<DIMENSIONS": lambda system: np.where(system.boundary, _PERIODIC, _NON_PERIODIC),
    "<TOTCHARGE": lambda system: np.array([system.charge]),
    "<ENERGY": lambda system: np.array([system.result.energy / HARTREE]),
    "<PE": lambda system: np.array([system.result.energy / HARTREE]),
    "<FORCES": lambda system: system.forces,
    "<STRESS": lambda system: system.stress,
    "<CHARGES": lambda system: system.charges,
}
"""What each question is answered with: whole numbers, real numbers or a text."""

_ORDERS: dict[str, tuple[type, Callable[[System], int]]] = {
    ">NATOMS": (np.int32, lambda system: 1),
    ">ELEMENTS": (np.int32, lambda system: system.n_atoms),
    ">COORDS": (np.float64, lambda system: 3 * system.n_atoms),
    ">CELL": (np.float64, lambda system: 9),
    ">CELL_DISPL": (np.float64, lambda system: 3),
    ">TOTCHARGE": (np.float64, lambda system: 1),
}
"""Type and number of the values that follow each order."""


def execute(system: System, link: Link, command: str) -> None:
    """Do what one command asks for.

    Raises:
        KqeqError: an unknown command, or one that has no answer.
    """
    if command in _ANSWERS:
        link.send(_ANSWERS[command](system))
    elif command in _ORDERS:
        kind, count = _ORDERS[command]
        if count(system) == 0:
            raise MdiError(f"`{command}` must follow `>NATOMS`")
        system.take(command, link.receive(command, count(system), kind))
    elif command != NODE:
        raise MdiError(f"command of the driver must be one of {', '.join(_commands())}, got {command!r}")


def _commands() -> list[str]:
    return [*_ANSWERS, *_ORDERS, NODE, "EXIT"]


def register(library: Any) -> None:
    """Tell the library what drivers may ask for."""
    library.MDI_Register_Node(NODE)
    for command in _commands():
        library.MDI_Register_Command(NODE, command)


def prepare(arguments: argparse.Namespace) -> System:
    """Load the model, and evaluate the template once: what is wrong with it is told before a driver waits.

    Raises:
        KqeqError: the model, the template or the field is refused.
    """
    charge, field = arguments.charge or 0.0, arguments.efield or NO_FIELD
    atoms = None if arguments.template is None else template_in(read_template(arguments.template), arguments.pbc)
    potential = Potential(
        arguments.model,
        charges=arguments.charges,
        fragments=fragments_of(arguments.fragments, atoms),
        fragment_charges=arguments.fragment_charges,
        threads=arguments.threads,
    )
    if atoms is not None:
        # a twin, so that the first step starts from nothing, as in any other engine
        potential.twin().compute(structure_from_atoms(atoms, charge, field))
    return System(potential, arguments.pbc, charge, field, atoms, arguments.extrapolation or "warn")


def serve(system: System, link: Link) -> None:
    """Answer until the driver says EXIT.

    Raises:
        KqeqError: a command that cannot be served; the caller has to end the process, or the driver would wait.
    """
    while (command := link.command()) != "EXIT":
        execute(system, link, command)
    logger.info("the driver said EXIT")


def build_parser(plugin: bool = False) -> argparse.ArgumentParser:
    """The command line; that of the plugin has no `-mdi`, which the library has read before."""
    parser = Parser(
        prog="kqeq-mdi",
        description="MDI engine of a kQEq model: charges are equilibrated again for every structure.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("-m", "--model", required=True, metavar="MODEL", help="a .kqeq file")
    add("-t", "--template", metavar="FILE", help="a structure that ASE reads, where the driver does not send all of it")
    if not plugin:
        add("-mdi", "--mdi", required=True, metavar='"..."', help="how to reach the driver: options of the MDI library")
    add_system_options(parser)
    add("-v", "--verbose", action="store_true", help="say what happens")
    return parser


def _joined(words: Sequence[str]) -> list[str]:
    """`-mdi X` as `-mdi=X`: argparse could take an X that begins with -method for the option -m."""
    out = list(words)
    for name in ("-mdi", "--mdi"):
        if name in out[:-1]:
            at = out.index(name)
            out[at : at + 2] = [f"{name}={out[at + 1]}"]
    return out


@contextlib.contextmanager
def _ending_at_interrupt() -> Iterator[None]:
    """Let SIGINT end the process: the library, which waits in C, would take an interrupted read for data."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the engine; 0 when the driver has ended, 2 after an error, told on one line."""
    arguments = build_parser().parse_args(_joined(sys.argv[1:] if argv is None else argv))
    logging.basicConfig(stream=sys.stderr, format="kqeq-mdi: %(message)s")
    if arguments.verbose:
        logging.getLogger("kqeq_md").setLevel(logging.INFO)
    try:
        check_connection(arguments.mdi)
        system = prepare(arguments)
        with _ending_at_interrupt(), contextlib.closing(connect(arguments.mdi)) as link:
            register(link.library)
            serve(system, link)
    except DriverGone as error:
        logger.warning("%s", error)
    except KqeqError as error:
        logger.error("error: %s", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
