"""Units of data files and the factors that turn them into eV, Angstrom, e and V/Angstrom."""

from __future__ import annotations

from dataclasses import dataclass

from kqeq_md.errors import ConfigError
from kqeq_md.units import BOHR, DEBYE, HARTREE, KCAL_PER_MOL, KJ_PER_MOL, NANOMETER

ENERGIES = {"eV": 1.0, "hartree": HARTREE, "Ry": HARTREE / 2.0, "kcal/mol": KCAL_PER_MOL, "kJ/mol": KJ_PER_MOL}
"""eV."""

LENGTHS = {"Angstrom": 1.0, "bohr": BOHR, "nm": NANOMETER}
"""Angstrom."""

FIELDS = {"V/Angstrom": 1.0, "a.u.": HARTREE / BOHR}
"""V/Angstrom."""

FOLLOWS = "energy/length"
FORCES = {f"{e}/{length}": ENERGIES[e] / LENGTHS[length] for e in ENERGIES for length in LENGTHS}
"""eV/Angstrom."""


@dataclass(frozen=True)
class Units:
    """[data.units]: units of the files, each one of those named here; charges are in e.

    Attributes:
        energy: "eV", "hartree", "Ry", "kcal/mol" or "kJ/mol".
        length: "Angstrom", "bohr" or "nm", of positions and cells.
        forces: "energy/length" (from the two above), or a unit of energy over one of length, "hartree/bohr".
        dipole: "e*length" or "debye".
        field: "V/Angstrom" or "a.u.".
    """

    energy: str = "eV"
    length: str = "Angstrom"
    forces: str = "energy/length"
    dipole: str = "e*length"
    field: str = "V/Angstrom"


@dataclass(frozen=True)
class Factors:
    """What the numbers of a file are multiplied with.

    Attributes:
        energy: to eV, virials too.
        length: to Angstrom.
        forces: to eV/Angstrom.
        dipole: to e Angstrom.
        field: to V/Angstrom.
        stress: to eV/Angstrom^3.
        polarizability: to e^2 Angstrom^2/eV.
    """

    energy: float
    length: float
    forces: float
    dipole: float
    field: float
    stress: float
    polarizability: float


def factors(units: Units) -> Factors:
    """The factors of declared units.

    Stresses are energy/length^3 and polarizabilities e^2 length^2/energy.

    Raises:
        ConfigError: a unit that is not known.
    """
    energy = _look_up("energy", units.energy, ENERGIES)
    length = _look_up("length", units.length, LENGTHS)
    return Factors(
        energy=energy,
        length=length,
        forces=_look_up("forces", units.forces, {FOLLOWS: energy / length, **FORCES}),
        dipole=_look_up("dipole", units.dipole, {"e*length": length, "debye": DEBYE}),
        field=_look_up("field", units.field, FIELDS),
        stress=energy / length**3,
        polarizability=length**2 / energy,
    )


def _look_up(name: str, unit: str, table: dict[str, float]) -> float:
    if unit not in table:
        raise ConfigError(f"`data.units.{name}` must be one of {', '.join(table)}, got {unit!r}")
    return table[unit]
