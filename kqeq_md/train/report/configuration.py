"""The configuration as the page shows it: one list of keys and values for each table of the TOML file."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from kqeq_md.train.report.markup import definitions, typeset, written

UNITS = {
    "descriptor": {
        "cutoff": "Angstrom", "cutoff_width": "Angstrom", "sigma": "Angstrom", "radial_scale": "Angstrom",
    },
    "charges": {
        "hardness": "eV/e^2", "gaussian_width": "Angstrom", "compliance": "e^2/eV", "compliance_cutoff": "Angstrom",
        "reference_charges": "e",
    },
    "short_range": {"repulsion_radius": "Angstrom"},
    "fit": {
        "sigma_energy": "eV per atom", "sigma_forces": "eV/A", "sigma_charges": "e", "sigma_dipole": "e A per atom",
        "sigma_reference": "e", "sigma_virial": "eV per atom", "sigma_polarizability": "e^2 A^2/eV per atom",
        "prior_electronegativity": "eV/e", "prior_short_range": "eV", "prior_reference_charge": "e",
    },
}  # fmt: skip
"""Of the keys that have one, by table: those of `train.config`."""


def configuration_lists(config: Mapping[str, Any]) -> str:
    """All keys with their values and units, those of nested tables in lists of their own.

    Args:
        config: the whole configuration as JSON; a value that is None was left to its default.
    """
    return f'<div class="settings">{_lists(config, "", "")}</div>\n'


def _lists(values: Mapping[str, Any], name: str, title: str) -> str:
    """The list of one table, and after it those of the tables inside."""
    nested = {key: value for key, value in values.items() if _is_table(value, name)}
    units = UNITS.get(name, {})
    own = [(key, _value(value, units.get(key, ""))) for key, value in values.items() if key not in nested]
    heading = f"<h4>{escape(title)}</h4>\n" if title else ""
    out = f"<div>{heading}{definitions(own)}</div>\n" if own else ""
    return out + "".join(_inner(value, f"{name}.{key}" if name else key) for key, value in nested.items())


def _inner(value: Any, name: str) -> str:
    """One table, or a list of such: TOML's [[data.groups]]."""
    if isinstance(value, Mapping):
        return _lists(value, name, f"[{name}]")
    return "".join(_lists(entry, name, f"[[{name}]]") for entry in value)


def _value(value: Any, unit: str) -> str:
    """HTML: only a unit is typeset, as file names may look like one."""
    if value is None:
        return "by default"
    if isinstance(value, str):
        return escape(value) or "–"
    if isinstance(value, Mapping):
        text = ", ".join(f"{of} {written(number)}" for of, number in value.items())
    else:
        text = written(value) or "none"
    return escape(text) + (f" {typeset(unit)}" if unit else "")


def _is_table(value: Any, where: str) -> bool:
    """Whether TOML has it as a table of its own: all of the outermost ones, and inside of them those that do not give
    a number to each element."""
    if isinstance(value, Mapping):
        return not where or not all(isinstance(entry, int | float) for entry in value.values())
    return isinstance(value, list) and len(value) > 0 and all(isinstance(entry, Mapping) for entry in value)
