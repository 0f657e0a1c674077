"""One frame of an extended XYZ file: its structure and labels, checked and in eV, Angstrom, e, V/Angstrom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms

from kqeq_md.errors import ConfigError
from kqeq_md.neighbours.search import Ints
from kqeq_md.structure import Floats, Structure
from kqeq_md.train.data.config import Keys
from kqeq_md.train.data.unit_system import Factors

LARGEST_LABEL = 1e12
"""Beyond it (in the units of the file) squares of residuals lose what is written behind the point."""

ASYMMETRY = 1e-3
"""Largest asymmetry of a stress, relative to its largest component: rounding in files stays below."""


@dataclass(frozen=True)
class Frame:
    """A structure (with its total charge and field) and its labels; None where a label is missing.

    Attributes:
        structure: atoms, total charge, field.
        energy: eV, field term -mu.F included.
        forces: eV/Angstrom, shape (n, 3).
        charges: e, shape (n,).
        dipole: about the coordinate origin, e Angstrom, shape (3,); of open frames.
        polarizability: dmu_a/dF_b, e^2 Angstrom^2/eV, shape (3, 3).
        born_charges: dmu_a/dR_ib, e, shape (n, 3, 3).
        fragments: molecule numbers, shape (n,).
        place: file and number of the frame.
        stress: (1/V) dE/d(strain), positive under tension, eV/Angstrom^3, shape (3, 3), symmetric; of periodic frames.
        weight: squared errors of all labels count so many times.
        group: name of the group that the weight is from; "" without.
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


def frame_of(atoms: Atoms, keys: Keys, factors: Factors, fragments: str | None, field_term: bool, place: str) -> Frame:
    """The frame that a reader of extended XYZ made `atoms` of.

    Energies without the field term, E0 = E + mu.F, become E = E0 - mu.F; forces, -dE/dR at fixed field, are the same
    in both conventions.

    Args:
        atoms: as ASE reads them, in the units of the file.
        keys: names of labels.
        factors: units of the file.
        fragments: name of the array with molecule numbers, if they are wanted.
        field_term: energies hold -mu.F.
        place: file and number of the frame.

    Raises:
        KqeqError: a label that is not numeric, not finite or has a wrong shape; an unknown element; an energy that
            lacks the field term in a frame without dipole.
    """
    n = len(atoms)
    if n and atoms.numbers.min() < 1:
        raise ConfigError(f"species must be elements, got X for atom {int(np.argmin(atoms.numbers))}")
    energy = _label(atoms, keys.energy, ())
    charge = _label(atoms, keys.total_charge, ())
    field = _label(atoms, keys.field, (3,))
    structure = Structure(
        atoms.numbers,
        factors.length * atoms.positions,
        cell=factors.length * atoms.cell.array,
        pbc=tuple(atoms.pbc),
        charge=0.0 if charge is None else float(charge),
        field=np.zeros(3) if field is None else factors.field * field,
    )
    dipole = None if structure.boundary != "open" else _times(_label(atoms, keys.dipole, (3,)), factors.dipole)
    return Frame(
        structure,
        None if energy is None else factors.energy * float(energy) - _missing_term(structure, dipole, field_term),
        _times(_label(atoms, keys.forces, (n, 3)), factors.forces),
        _label(atoms, keys.charges, (n,)),
        dipole,
        _times(_label(atoms, keys.polarizability, (3, 3)), factors.polarizability),
        None if (born := _label(atoms, keys.born_charges, (n, 9))) is None else born.reshape(n, 3, 3),
        None if fragments is None else _molecules(atoms, fragments),
        place,
        _stress(atoms, keys, factors, structure) if structure.periodic else None,
    )


def _times(label: Floats | None, factor: float) -> Floats | None:
    return None if label is None else factor * label


def _missing_term(structure: Structure, dipole: Floats | None, field_term: bool) -> float:
    """mu.F, eV, where the energy label lacks it."""
    if field_term or not structure.field.any():
        return 0.0
    if dipole is None:
        raise ConfigError(
            "`data.field_term` = false needs a dipole label in every open frame in a field that has an energy, and no "
            f"periodic ones, got none in a field of {structure.field.tolist()} V/Angstrom"
        )
    return float(dipole @ structure.field)


def _stress(atoms: Atoms, keys: Keys, factors: Factors, structure: Structure) -> Floats | None:
    """From the label of the stress, else from that of the virial W = -V stress."""
    if (stress := _tensor(atoms, keys.stress)) is not None:
        return factors.stress * stress
    virial = _tensor(atoms, keys.virial)
    return None if virial is None else -factors.energy * virial / structure.volume


def _tensor(atoms: Atoms, name: str) -> Floats | None:
    """A symmetric 3 x 3 label from nine or six numbers."""
    value = _stored(atoms, name)
    if value is None:
        return None
    if np.shape(value) == (6,):
        xx, yy, zz, yz, xz, xy = _numbers(name, value, (6,))
        return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    tensor = _numbers(name, value, (3, 3))
    if np.abs(tensor - tensor.T).max() > ASYMMETRY * np.abs(tensor).max():
        raise ConfigError(f"`{name}` must be symmetric, got {tensor.tolist()}")
    return 0.5 * (tensor + tensor.T)


def _stored(atoms: Atoms, name: str) -> Any:
    """A value by name: in `info`, in `arrays`, or where ASE moves standard names (`calc.results`); else None."""
    results: dict[str, Any] = atoms.calc.results if atoms.calc is not None else {}
    return next((store[name] for store in (atoms.info, atoms.arrays, results) if name in store), None)


def _label(atoms: Atoms, name: str, shape: tuple[int, ...]) -> Floats | None:
    value = _stored(atoms, name)
    return None if value is None else _numbers(name, value, shape)


def _numbers(name: str, value: Any, shape: tuple[int, ...]) -> Floats:
    try:
        if np.asarray(value).dtype.kind not in "iuf":  # T and F are no numbers, nor is text that looks like one
            raise TypeError
        out = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"`{name}` must be numbers, got {_short(value)}") from None
    if shape == (3, 3) and out.shape == (9,):  # rows, as the format has it where nobody asks for JSON
        out = out.reshape(3, 3)
    if out.shape != shape:
        raise ConfigError(f"`{name}` must have shape {shape}, got {out.shape}")
    if not np.isfinite(out).all():
        raise ConfigError(f"`{name}` must be finite, got {_short(value)}")
    if np.abs(out).max(initial=0.0) > LARGEST_LABEL:
        raise ConfigError(f"`{name}` must lie within {LARGEST_LABEL:g}, got {np.abs(out).max():g}")
    return out


def _short(value: Any) -> str:
    """The value on one line of at most 80 characters."""
    text = " ".join(repr(value.tolist() if isinstance(value, np.ndarray | np.generic) else value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _molecules(atoms: Atoms, name: str) -> Ints:
    if name not in atoms.arrays:
        raise ConfigError(f"`fragments` must name an array of the frame ({', '.join(atoms.arrays)}), got {name!r}")
    out: Ints = atoms.arrays[name]
    return out
