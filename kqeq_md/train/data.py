"""Labelled structures from extended XYZ."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import read

from kqeq_md.elements import ATOMIC_NUMBERS, symbol_of
from kqeq_md.errors import ConfigError, KqeqError
from kqeq_md.neighbours import SHORTEST_DISTANCE, find_pairs
from kqeq_md.pair_search import Ints
from kqeq_md.structure import Floats, Structure
from kqeq_md.train.config import Keys

log = logging.getLogger("kqeq_md")

CHARGE_SUM_TOLERANCE = 0.01
"""e. Rounding in files and partitioning schemes stays below."""


@dataclass(frozen=True)
class Frame:
    """A structure (with its total charge and field) and its labels; None where a label is missing.

    Attributes:
        structure: atoms, total charge, field.
        energy: eV, field term -mu.F included.
        forces: eV/Angstrom, shape (n, 3).
        charges: e, shape (n,).
        dipole: about the coordinate origin, e Angstrom, shape (3,).
        polarizability: dmu_a/dF_b, e^2 Angstrom^2/eV, shape (3, 3).
        born_charges: dmu_a/dR_ib, e, shape (n, 3, 3).
        fragments: molecule numbers, shape (n,).
        place: file and number of the frame.
        stress: sigma = -W/V, eV/Angstrom^3, shape (3, 3), positive where the cell wants to shrink.
        weight: of the frame in the fit.
        group: name of the part of the data that it belongs to.
    """

    structure: Structure
    energy: float | None
    forces: Floats | None
    charges: Floats | None
    dipole: Floats | None
    polarizability: Floats | None = None
    born_charges: Floats | None = None
    fragments: Ints | None = None
    place: str = "a frame"
    stress: Floats | None = None
    weight: float = 1.0
    group: str = ""


def read_frames(
    files: Sequence[str | Path], keys: Keys, fragments: str | None = None, labelled: bool = True
) -> list[Frame]:
    """All frames of the files, in order.

    Args:
        files: extended XYZ.
        keys: names of labels.
        fragments: name of the array with molecule numbers, if they are wanted.
        labelled: refuse a set without any labels.

    Raises:
        ConfigError: a file that is absent, unreadable or empty, a label that is not finite or has a wrong shape, or
            a set in which no frame has any label of these names.
    """
    frames = []
    for file in files:
        for index, atoms in enumerate(_read(file)):
            place = f"{file}, frame {index}"
            try:
                frames.append(_frame(atoms, keys, fragments, place))
            except KqeqError as error:
                raise ConfigError(f"{place}: {error}") from None
    if labelled and all(
        f.energy is None and f.forces is None and f.charges is None and f.dipole is None for f in frames
    ):
        raise ConfigError(
            f"no frame of {', '.join(map(str, files))} has a label named {keys.energy}, {keys.forces}, "
            f"{keys.charges} or {keys.dipole}: set the names in [data.keys]"
        )
    _warn_of_charge_sums(frames)
    return frames


def _warn_of_charge_sums(frames: Sequence[Frame]) -> None:
    """Charge labels that miss the total charge are often a misnamed key; a fit cannot follow them."""
    off = [
        (abs(frame.charges.sum() - frame.structure.charge), index)
        for index, frame in enumerate(frames)
        if frame.charges is not None and abs(frame.charges.sum() - frame.structure.charge) > CHARGE_SUM_TOLERANCE
    ]
    if off:
        most, index = max(off)
        log.warning(
            "charge labels miss the total charge in %d of %d frames, by up to %.3g e (frame %d): is the key of the "
            "total charge right?", len(off), len(frames), most, index,
        )  # fmt: skip


def species_of(frames: Sequence[Frame]) -> tuple[str, ...]:
    """Symbols of all elements in the frames, by atomic number."""
    numbers = np.unique(np.concatenate([frame.structure.numbers for frame in frames]))
    return tuple(sorted((symbol_of(int(z)) for z in numbers), key=ATOMIC_NUMBERS.__getitem__))


def _read(file: str | Path) -> list[Atoms]:
    if not Path(file).is_file():  # before ASE takes "-" for standard input and "@" for a slice
        raise ConfigError(f"data file {file} does not exist")
    try:
        atoms = read(Path(file), index=":", format="extxyz")
    except Exception as error:  # ASE's reader raises whatever its parser meets
        raise ConfigError(f"data file {file} is no extended XYZ: {type(error).__name__}: {error}") from None
    if not atoms:
        raise ConfigError(f"data file {file} holds no frames")
    return list(atoms)


def _label(atoms: Atoms, name: str, shape: tuple[int, ...]) -> Floats | None:
    """A label by name: in `info`, in `arrays`, or where ASE moves standard names (`calc.results`)."""
    results: dict[str, Any] = atoms.calc.results if atoms.calc is not None else {}
    for store in (atoms.info, atoms.arrays, results):
        if name in store:
            try:
                value = np.array(store[name], dtype=np.float64)
            except (TypeError, ValueError):
                raise ConfigError(f"`{name}` must be numbers, got {store[name]!r}") from None
            if shape == (3, 3) and value.shape == (9,):  # rows, as the format has it where nobody asks for JSON
                value = value.reshape(3, 3)
            if value.shape != shape:
                raise ConfigError(f"`{name}` must have shape {shape}, got {value.shape}")
            if not np.isfinite(value).all():
                raise ConfigError(f"`{name}` must be finite, got {value.tolist()}")
            return value
    return None


def _frame(atoms: Atoms, keys: Keys, fragments: str | None, place: str) -> Frame:
    n = len(atoms)
    energy = _label(atoms, keys.energy, ())
    charge = _label(atoms, keys.total_charge, ())
    structure = Structure(
        atoms.numbers,
        atoms.positions,
        cell=atoms.cell.array,
        pbc=tuple(atoms.pbc),
        charge=0.0 if charge is None else float(charge),
        field=np.zeros(3) if (field := _label(atoms, keys.field, (3,))) is None else field,
    )
    find_pairs(structure, 2.0 * SHORTEST_DISTANCE)  # refuses overlapping atoms
    return Frame(
        structure,
        None if energy is None else float(energy),
        _label(atoms, keys.forces, (n, 3)),
        _label(atoms, keys.charges, (n,)),
        None if structure.boundary != "open" else _label(atoms, keys.dipole, (3,)),
        _label(atoms, keys.polarizability, (3, 3)),
        None if (born := _label(atoms, keys.born_charges, (n, 9))) is None else born.reshape(n, 3, 3),
        None if fragments is None else _molecules(atoms, fragments),
        place,
    )


def _molecules(atoms: Atoms, name: str) -> Ints:
    if name not in atoms.arrays:
        raise ConfigError(f"`fragments` must name an array of the frame ({', '.join(atoms.arrays)}), got {name!r}")
    out: Ints = atoms.arrays[name]
    return out
