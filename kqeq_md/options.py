"""What the commands of engines share: how values are read, options on the command line, the template."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
from ase import Atoms
from ase.io import read as read_structure
from numpy.typing import NDArray

from kqeq_md.ase import molecule_numbers
from kqeq_md.charges.charge_model import CHARGE_MODELS, CONNECTIVITY
from kqeq_md.errors import StructureError
from kqeq_md.limits import ACTIONS

Vector = tuple[float, float, float]
Axes = tuple[bool, bool, bool]

ROOM = 20.0
"""Angstrom around the atoms of a template without a cell."""

OPEN, PERIODIC = (False, False, False), (True, True, True)


def read_number(text: str) -> float:
    """A finite number."""
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not abs(number) < float("inf"):
        raise ValueError("must be a finite number")
    return number


def read_vector(text: str) -> Vector:
    """Three numbers, `0 0 0.1`."""
    try:
        x, y, z = (read_number(word) for word in text.split())
    except ValueError:
        raise ValueError("must be three numbers in V/Angstrom") from None
    return x, y, z


def read_numbers(text: str) -> tuple[float, ...]:
    """One number or more, `1 0 0`."""
    numbers = tuple(read_number(word) for word in text.split())
    if not numbers:
        raise ValueError("must be one number or more")
    return numbers


def one_of(choices: tuple[str, ...]) -> Callable[[str], str]:
    """A reader of one of these words."""

    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return text

    return read


def read_name(text: str) -> str:
    """Any word."""
    if not text:
        raise ValueError("must not be empty")
    return text


def read_slab(text: str) -> Axes:
    """Open along one lattice vector, x (the first), y or z."""
    if text not in ("x", "y", "z"):
        raise ValueError("must be x, y or z, the lattice vector along which the slab is open")
    return text != "x", text != "y", text != "z"


def read_count(text: str) -> int:
    """A positive integer."""
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise ValueError("must be a positive integer")
    return int(text)


def option(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """A reader, whose ValueError is the rule, as argparse wants it."""

    def convert(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{error}, got {text!r}") from None

    return convert


class Parser(argparse.ArgumentParser):
    """Errors on one line, as everywhere else: argparse would print the usage before them."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def add_system_options(parser: argparse.ArgumentParser) -> None:
    """Total charge, field, charge model, boundary, threads and what is done about atoms that extrapolate.

    The names are `charge`, `efield`, `charges`, `fragments`, `fragment_charges`, `pbc`, `threads` and `extrapolation`;
    None for what is not given.
    """
    add = parser.add_argument
    add("--charge", type=option(read_number), metavar="Q", help="total charge in e (default: 0)")
    add("--efield", type=option(read_vector), metavar='"X Y Z"', help='static field in V/Angstrom (default: "0 0 0")')
    add(
        "--charges", type=option(one_of(CHARGE_MODELS)), metavar="|".join(CHARGE_MODELS),
        help="how charge flows (default: as the model was trained)",
    )  # fmt: skip
    add(
        "--fragments", type=option(read_name), metavar=f"{CONNECTIVITY}|ARRAY",
        help="charge stays in molecules, found by their bonds or numbered by an array of the template",
    )  # fmt: skip
    add(
        "--fragment-charges", type=option(read_numbers), metavar='"Q1 Q2 ..."',
        help="of the fragments, in the order of their numbers or first atoms, e (default: neutral)",
    )  # fmt: skip
    boundary = parser.add_mutually_exclusive_group()
    boundary.add_argument(
        "--pbc", action="store_const", const=PERIODIC, help="periodic boundaries, whatever else tells of them"
    )
    boundary.add_argument("--no-pbc", action="store_const", const=OPEN, dest="pbc", help="open boundaries")
    boundary.add_argument(
        "--slab", type=option(read_slab), dest="pbc", metavar="x|y|z", help="open along one lattice vector"
    )
    add(
        "--threads", type=option(read_count), metavar="N",
        help="how many work at once (default: KQEQ_NUM_THREADS, or what the scheduler gives)",
    )  # fmt: skip
    add(
        "--extrapolation", type=option(one_of(ACTIONS)), metavar="|".join(ACTIONS),
        help="what is done about atoms unlike those of the training set (default: warn, once)",
    )  # fmt: skip


def read_template(path: str) -> Atoms:
    """The first frame of a file that ASE reads.

    Raises:
        StructureError: a file that ASE cannot read.
    """
    try:
        atoms: Atoms = read_structure(path, index=0)
    except Exception as error:  # the readers of ASE raise whatever a foreign file makes them stumble over
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise StructureError(f"`--template` must be a file that ASE can read, got {path}: {reason}") from None
    return atoms


def template_in(atoms: Atoms, pbc: Axes | None, cell_follows: bool = False) -> Atoms:
    """The template with a boundary, or with its own.

    Args:
        atoms: as read.
        pbc: the boundary that was asked for, or None.
        cell_follows: the engine brings a cell with each structure: where a boundary was asked for and the template has
            no cell, it gets a roomy one until then.

    Raises:
        StructureError: no cell where one is needed.
    """
    out = atoms.copy()
    if pbc is not None:
        out.pbc = pbc
    if out.cell.rank < {0: 0, 2: 2}.get(int(out.pbc.sum()), 3):
        if pbc is None or not cell_follows:
            raise StructureError(
                "`--template` must have a cell for periodic boundaries, got none: ASE reads that of extended XYZ "
                '(Lattice="..." in the second line), not i-PI\'s comment CELL(...)'
            )
        out.cell = np.ptp(out.positions, axis=0) + ROOM
    return out


def fragments_of(name: str | None, atoms: Atoms | None) -> str | NDArray[np.int64] | None:
    """What `Potential` takes: molecule numbers from the array of the template with that name.

    Raises:
        KqeqError: no template, or no such array.
    """
    if name in (None, CONNECTIVITY):
        return name
    if atoms is None:
        raise StructureError(f"`--fragments` must be {CONNECTIVITY} without a template, got {name!r}")
    assert name is not None
    return molecule_numbers(atoms, name)
