"""[data] of the training configuration: what is read, in which units, with which weights."""

from __future__ import annotations

from dataclasses import dataclass, field

from kqeq_md.elements import ATOMIC_NUMBERS
from kqeq_md.errors import ConfigError
from kqeq_md.train.data.unit_system import Units, factors

LIGHTEST, HEAVIEST = 1e-6, 1e6
"""Weights of groups: beyond, least squares lose one group or the other in rounding."""

LARGEST_ATOM_ENERGY = 1e8
"""eV. All electrons of the heaviest atoms have a hundredth of it."""


@dataclass(frozen=True)
class Keys:
    """Names of the labels in the extended XYZ files (units: eV, Angstrom, e, V/Angstrom, unless `Units` says others).

    Attributes:
        energy: of the frame, eV.
        forces: array of the atoms, eV/Angstrom.
        charges: array of the atoms, e.
        dipole: of the frame, about the coordinate origin, e Angstrom.
        polarizability: of the frame, 3 x 3, e^2 Angstrom^2/eV.
        born_charges: array of nine numbers per atom, dmu_x/dR_x, dmu_x/dR_y, ..., e.
        total_charge: of the frame, e; 0 where there is none.
        field: on the frame, V/Angstrom; 0 where there is none.
        stress: 3 x 3 or six numbers xx, yy, zz, yz, xz, xy, positive under tension, as ASE has them, eV/Angstrom^3.
        virial: -V times the stress, eV; stands in where there is no stress.
    """

    energy: str = "REF_energy"
    forces: str = "REF_forces"
    charges: str = "REF_charges"
    dipole: str = "REF_dipole"
    polarizability: str = "REF_polarizability"
    born_charges: str = "REF_born_charges"
    total_charge: str = "total_charge"
    field: str = "electric_field"
    stress: str = "REF_stress"
    virial: str = "REF_virial"


@dataclass(frozen=True)
class Group:
    """[[data.groups]]: frames with a weight of their own, chosen by file or by a value in their second line.

    Attributes:
        files: paths or globs as in `train`; they choose among its files (and those of `test`).
        key: name in the info of frames, instead of `files`.
        value: what stands there, as text.
        weight: squared errors of all labels of these frames count so many times.
        name: for the report; by default the files, or the value.
    """

    files: list[str] = field(default_factory=list)
    key: str = ""
    value: str = ""
    weight: float = 1.0
    name: str = ""

    @property
    def title(self) -> str:
        """What the report calls the group."""
        return self.name or self.value or ", ".join(self.files)


@dataclass(frozen=True)
class Data:
    """[data]: what is read, and how.

    Attributes:
        train: files or globs, relative to the configuration.
        test: likewise; may be empty.
        keys: names of labels.
        groups: weights of frames; a frame belongs to one group or to none (weight 1).
        units: units of the files.
        check_units: refuse sets whose distances, forces or energies fit other units than the declared ones.
        field_term: energies hold -mu.F; where they don't, it is added with the frame's dipole label.
        atom_energies: energies of free atoms, eV: "fit", "read" from frames with one atom, or a table of elements.
    """

    train: list[str]
    test: list[str] = field(default_factory=list)
    keys: Keys = field(default_factory=Keys)
    groups: list[Group] = field(default_factory=list)
    units: Units = field(default_factory=Units)
    check_units: bool = True
    field_term: bool = True
    atom_energies: str | float | dict[str, float] = "fit"


def check_data(data: Data) -> None:
    """Check what can be checked before files are read.

    Raises:
        ConfigError: naming the key, the rule and the value.
    """
    if not data.train:
        raise ConfigError("`data.train` must name at least one file, got []")
    factors(data.units)
    for group in data.groups:
        _check_group(group)
    if data.atom_energies not in ("fit", "read"):
        _check_atom_energies(data.atom_energies)


def _check_group(group: Group) -> None:
    if bool(group.files) == bool(group.key):
        raise ConfigError(f"`data.groups` must have `files` or `key`, one of the two, got {group}")
    if bool(group.key) != bool(group.value):
        raise ConfigError(f"`data.groups` must have a `value` with `key` and only there, got {group}")
    if not LIGHTEST <= group.weight <= HEAVIEST:
        raise ConfigError(
            f"`data.groups.weight` must lie between {LIGHTEST:g} and {HEAVIEST:g} (leave files out that must not "
            f"count), got {group.weight} for {group.title}"
        )


def _check_atom_energies(given: str | float | dict[str, float]) -> None:
    if not isinstance(given, dict):
        raise ConfigError(f'`data.atom_energies` must be "fit", "read" or a table of elements, got {given!r}')
    for symbol, energy in given.items():
        if symbol not in ATOMIC_NUMBERS:
            raise ConfigError(f"`data.atom_energies` must be given per element, got {symbol!r}")
        if not abs(energy) <= LARGEST_ATOM_ENERGY:
            raise ConfigError(
                f"`data.atom_energies` must lie within {LARGEST_ATOM_ENERGY:g} eV, got {energy} for {symbol}"
            )
