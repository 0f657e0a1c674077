"""The training configuration, a TOML file: every key, its meaning and its default."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from kqeq_md.charges.charge_model import CHARGE_MODELS
from kqeq_md.descriptor.radial import SoapParameters
from kqeq_md.elements import ATOMIC_NUMBERS
from kqeq_md.errors import ConfigError
from kqeq_md.model import LARGEST_COMPLIANCE, LONGEST_BOND, SHORTEST_BOND
from kqeq_md.train.data.config import Data, Group, Keys, check_data
from kqeq_md.train.data.files import data_files
from kqeq_md.train.data.unit_system import Units
from kqeq_md.train.tune_config import Ranges, read_ranges

__all__ = ["Config", "Data", "Group", "Keys", "Units", "read_config"]

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")
LARGEST_NUMBER = 1e30
"""Beyond it (infinity and NaN among them) a value is a mistake; TOML knows whole numbers of any length."""

PerElement = float | dict[str, float]
"""One number, or a table of elements; for compliances a table of pairs of elements, "H-O"."""

LEARNED = "learned"

PHYSICAL = ("hardness", "gaussian_width", "compliance")
"""Parameters of the Hamiltonian that can be fitted."""

WIDE_ENOUGH = 0.6
"""Angstrom, for split charges. Hydrogen atoms with 0.22 take so little charge from their bonds that polarizabilities of
molecules scatter by a factor of two around those of GFN2-xTB."""

HARDNESS = {"qeq": 10.0, "fragments": 10.0, "split": 5.0}
"""eV/e^2, unless the configuration says otherwise: bonds of split charges are hard by themselves."""


@dataclass(frozen=True)
class Kernel:
    """[kernel]: k(u, u') = (u . u')^zeta over sparse points that farthest-point sampling chooses.

    Attributes:
        zeta: exponent, 1 to 20; only 2 has a kernel of low rank, which is faster.
        sparse_points: of each element, at most.
    """

    zeta: int = 2
    sparse_points: int = 300


@dataclass(frozen=True)
class Charges:
    """[charges]: one number for all elements, or a table per element.

    Attributes:
        model: "qeq" (charge flows everywhere), "fragments" (inside neutral molecules, found by connectivity in each
            frame) or "split" (over bonds).
        hardness: eta, eV/e^2; by default HARDNESS of the model.
        gaussian_width: s, Angstrom; by default 0.7 times the covalent radius, for split charges at least WIDE_ENOUGH.
        compliance: c0 of split charges, e^2/eV: one number, or a table of pairs, "H-O" = 0.04; pairs that are not named
            have that of `usual_compliance`.
        compliance_cutoff: r_c of split charges, Angstrom, likewise.
        reference_charges: q0 of split charges, e: "learned" from the surroundings, or fixed by element.
    """

    model: str = "qeq"
    hardness: PerElement | None = None
    gaussian_width: PerElement | None = None
    compliance: PerElement | None = None
    compliance_cutoff: PerElement | None = None
    reference_charges: str | PerElement = LEARNED

    @property
    def learns_reference(self) -> bool:
        """True if the kernel has its part in q0."""
        return self.model == "split" and self.reference_charges == LEARNED


@dataclass(frozen=True)
class ShortRange:
    """[short_range]: one number for all elements, or a table per element.

    Attributes:
        repulsion_radius: r_i, Angstrom; two atoms repel below r_i + r_j. By default 0.7 times the covalent radius.
    """

    repulsion_radius: PerElement | None = None


@dataclass(frozen=True)
class Fit:
    """[fit]: what one standard deviation means for each label and each prior.

    Attributes:
        targets: labels that charges are fitted to: "charges", "dipole", or both.
        sigma_energy: of energies, eV per atom.
        sigma_forces: of components of forces, eV/Angstrom.
        sigma_charges: of charges of atoms, e.
        sigma_dipole: of components of dipoles, e Angstrom per atom.
        sigma_reference: e, how near learned reference charges stay to the charge labels, and their sum to the total
            charge.
        sigma_virial: eV per atom, of the virial of frames with a stress.
        sigma_polarizability: e^2 Angstrom^2/eV per atom; polarizabilities tell physical parameters alone.
        prior_electronegativity: of the kernel's electronegativity, eV/e.
        prior_short_range: of the kernel's energy of an atom, eV.
        prior_reference_charge: of the kernel's part of learned q0, e.
        prior_physical: of the logarithm of physical parameters around their start values.
        physical: which of them are fitted: "hardness", "gaussian_width", "compliance". Hardness and width of an element
            act nearly alike, through eta + kC / (sqrt(pi) s): together they end where the prior says.
        regularisation: "held_out" multiplies the priors by what serves the held-out frames best, "given" leaves them.
        held_out: part of the training frames that the fit does not see while priors, and the limits of the model, are
            found; they take part in the final fit.
        rounds: how often everything is refined together on all labels, at most: they end when nothing changes any more.
    """

    targets: list[str] = field(default_factory=lambda: ["charges"])
    sigma_energy: float = 0.002
    sigma_forces: float = 0.05
    sigma_charges: float = 0.005
    sigma_dipole: float = 0.02
    prior_electronegativity: float = 2.0
    prior_short_range: float = 1.0
    sigma_reference: float = 0.05
    sigma_virial: float = 0.02
    sigma_polarizability: float = 0.005
    prior_reference_charge: float = 1.0
    prior_physical: float = 1.0
    physical: list[str] = field(default_factory=lambda: ["hardness"])
    regularisation: str = "held_out"
    held_out: float = 0.1
    rounds: int = 10


@dataclass(frozen=True)
class Config:
    """A whole configuration.

    Attributes:
        data: what is read, and how.
        seed: starts the farthest-point sampling, and chooses the frames that are held out.
        descriptor: the power spectrum.
        kernel: on power spectra.
        charges: how charge flows, and the physical parameters of the Hamiltonian.
        short_range: what is not learned of it.
        fit: what the labels count, and the priors.
        tune: values that `kqeq tune` tries; `kqeq train` does not look at them.
    """

    data: Data
    seed: int = 0
    descriptor: SoapParameters = field(default_factory=SoapParameters)
    kernel: Kernel = field(default_factory=Kernel)
    charges: Charges = field(default_factory=Charges)
    short_range: ShortRange = field(default_factory=ShortRange)
    fit: Fit = field(default_factory=Fit)
    tune: Ranges = field(default_factory=dict)


def read_config(path: str | Path) -> Config:
    """Read and check a configuration; data files are taken relative to it.

    Raises:
        ConfigError: the file is absent or no TOML, a key is unknown (the nearest name is suggested), a value is wrong.
    """
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"configuration {path} does not exist") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"configuration {path} cannot be read: {error}") from None
    if "data" not in table:
        raise ConfigError(f"configuration {path} needs a table [data] with `train`")
    config = build(Config, table, "")
    _check(config)
    folder = Path(path).parent
    data = replace(
        config.data,
        train=data_files(folder, config.data.train, "data.train"),
        test=data_files(folder, config.data.test, "data.test"),
    )
    return Config(**{**{f.name: getattr(config, f.name) for f in fields(Config)}, "data": data})


def build(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """An instance of the dataclass `cls` from a table of TOML or JSON; `where` stands before its keys in messages.

    Raises:
        ConfigError: naming the key, and the nearest known one or the kind of value that it needs.
    """
    hints = get_type_hints(cls)
    for key in table:
        if key not in hints:
            near = get_close_matches(key, hints, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else f"; known are {', '.join(hints)}"
            raise ConfigError(f"unknown key `{where}{key}`{hint}")
    values = {key: _value(hints[key], value, f"{where}{key}") for key, value in table.items()}
    try:
        return cls(**values)
    except TypeError:
        missing = [f.name for f in fields(cls) if f.name not in values]  # type: ignore[arg-type]
        raise ConfigError(f"`{where}{missing[0]}` is needed") from None


def _value(hint: Any, value: Any, name: str) -> Any:
    if hint == Ranges:
        return read_ranges(value, name)
    if is_dataclass(hint):
        if not isinstance(value, dict):
            raise ConfigError(f"`{name}` must be a table, got {value!r}")
        return build(hint, value, f"{name}.")  # type: ignore[arg-type]
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST_NUMBER
    if hint is int and not (number and float(value).is_integer()):
        raise ConfigError(f"`{name}` must be a whole number, got {value!r}")
    if hint is float and not number:
        raise ConfigError(f"`{name}` must be a number, got {value!r}")
    if hint is str and not isinstance(value, str):
        raise ConfigError(f"`{name}` must be a string, got {value!r}")
    if hint is bool and not isinstance(value, bool):
        raise ConfigError(f"`{name}` must be true or false, got {value!r}")
    if get_origin(hint) is list and is_dataclass(get_args(hint)[0]):
        if not isinstance(value, list):
            raise ConfigError(f"`{name}` must be tables, [[{name}]], got {value!r}")
        return [_value(get_args(hint)[0], item, name) for item in value]
    if hint == list[str]:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise ConfigError(f"`{name}` must be a list of strings, got {value!r}")
        if len(set(items)) < len(items):
            raise ConfigError(f"`{name}` must name each entry once, got {value!r}")
        return items
    if hint == str | PerElement and isinstance(value, str):
        return value
    if hint in (PerElement, PerElement | None, str | PerElement):
        return _numbers(value, name)
    return hint(value)


def _numbers(value: Any, name: str) -> PerElement:
    entries = value if isinstance(value, dict) else {"all": value}
    for key, entry in entries.items():
        if isinstance(entry, bool) or not isinstance(entry, int | float) or not abs(entry) < LARGEST_NUMBER:
            raise ConfigError(f"`{name}` must hold numbers, got {entry!r} for {key}")
    return {k: float(v) for k, v in value.items()} if isinstance(value, dict) else float(value)


def _check(config: Config) -> None:
    fit, kernel = config.fit, config.kernel
    for entry in fields(fit):
        if entry.name.startswith(("sigma_", "prior_")):
            _between(f"fit.{entry.name}", getattr(fit, entry.name), 1e-9, 1e9)
    _between("fit.held_out", fit.held_out, 0.0, 0.5)
    if fit.regularisation not in ("held_out", "given"):
        raise ConfigError(f'`fit.regularisation` must be "held_out" or "given", got {fit.regularisation!r}')
    if set(fit.physical) - set(PHYSICAL):
        raise ConfigError(f"`fit.physical` must be of {', '.join(PHYSICAL)}, got {fit.physical}")
    _between("fit.rounds", fit.rounds, 0, 100)
    _between("kernel.zeta", kernel.zeta, 1, 20)
    _between("kernel.sparse_points", kernel.sparse_points, 1, 100_000)
    _between("seed", config.seed, 0, 2**63)
    _check_charges(config.charges)
    _check_numbers("short_range.repulsion_radius", config.short_range.repulsion_radius, 0.0, 10.0)
    if not config.fit.targets or set(config.fit.targets) - {"charges", "dipole"}:
        raise ConfigError(f'`fit.targets` must be "charges", "dipole" or both, got {config.fit.targets}')
    check_data(config.data)


def _check_charges(charges: Charges) -> None:
    if charges.model not in CHARGE_MODELS:
        raise ConfigError(f"`charges.model` must be {', '.join(CHARGE_MODELS)}, got {charges.model!r}")
    if isinstance(charges.reference_charges, str) and charges.reference_charges != LEARNED:
        raise ConfigError(
            f'`charges.reference_charges` must be "{LEARNED}", a number or a table of elements, got '
            f"{charges.reference_charges!r}"
        )
    _check_numbers("charges.hardness", charges.hardness, -1e3, 1e3)
    _check_numbers("charges.gaussian_width", charges.gaussian_width, 0.05, 10.0)
    if not isinstance(charges.reference_charges, str):
        _check_numbers("charges.reference_charges", charges.reference_charges, -20.0, 20.0)
    _check_numbers("charges.compliance", charges.compliance, 0.0, LARGEST_COMPLIANCE, elements=2)
    _check_numbers("charges.compliance_cutoff", charges.compliance_cutoff, SHORTEST_BOND, LONGEST_BOND, elements=2)


def _check_numbers(name: str, value: PerElement | None, low: float, high: float, elements: int = 1) -> None:
    """Bounds of all entries, and keys of so many element symbols, each key once."""
    table = value if isinstance(value, dict) else {}
    for key in table:
        symbols = key.split("-")
        if len(symbols) != elements or not set(symbols) <= set(ATOMIC_NUMBERS):
            unit = "element" if elements == 1 else "pair of elements"
            raise ConfigError(f"`{name}` must be given per {unit}, got {key!r}")
        if (other := "-".join(reversed(symbols))) != key and other in table:
            raise ConfigError(f"`{name}` must name a pair once, got {key!r} and {other!r}")
    for entry in table.values() if isinstance(value, dict) else [value]:
        if entry is not None:
            _between(name, entry, low, high)


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"`{name}` must lie between {low:g} and {high:g}, got {value}")
