"""Structures of files that ASE reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ase import Atoms
from ase.io import iread

from kqeq_md.ase import NO_FIELD, structure_from_atoms
from kqeq_md.errors import KqeqError
from kqeq_md.structure import Structure


def read_atoms(file: str | Path, name: str = "structure file") -> Iterator[tuple[str, Atoms]]:
    """All frames of a file, one by one, each with its place.

    Args:
        file: its path.
        name: what messages call it.

    Raises:
        KqeqError: no such file, one that ASE cannot read, or one without frames.
    """
    if not Path(file).is_file():  # before ASE takes "-" for standard input and "@" for a slice
        raise KqeqError(f"{name} {file} does not exist")
    index = -1
    try:
        for index, atoms in enumerate(iread(Path(file), index=":")):
            yield f"{file}, frame {index}", atoms
    except KqeqError:
        raise
    except Exception as error:  # ASE's readers raise whatever their parsers meet
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise KqeqError(f"{name} {file} cannot be read: {reason}") from None
    if index < 0:
        raise KqeqError(f"{name} {file} holds no frames")


def read_structures(file: str | Path) -> list[Structure]:
    """All frames of a file, with `total_charge` (e) and `electric_field` (V/Angstrom) where they have them.

    Raises:
        KqeqError: as `read_atoms`, or a frame that is no `Structure`.
    """
    found = []
    for place, atoms in read_atoms(file):
        charge, field = atoms.info.get("total_charge", 0.0), atoms.info.get("electric_field", NO_FIELD)
        try:
            found.append(structure_from_atoms(atoms, charge, field))
        except KqeqError as error:
            raise KqeqError(f"{place}: {error}") from None
    return found
