"""[tune] of the training configuration: what `kqeq tune` searches over, and which values it tries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from kqeq_md.errors import ConfigError

Ranges = dict[str, list[float]]
"""Values to try by name; a name that is absent has the usual ones, an empty list keeps the configured value."""


@dataclass(frozen=True)
class Searched:
    """A hyperparameter that can be searched.

    Attributes:
        table: of the configuration in which it stands.
        low, high: bounds.
        whole: a whole number.
    """

    table: str
    low: float
    high: float
    whole: bool = False


SEARCHED = {
    "radial_scale": Searched("descriptor", 0.0, 1e3),
    "sigma": Searched("descriptor", 0.05, 5.0),
    "cutoff": Searched("descriptor", 0.5, 30.0),
    "n_max": Searched("descriptor", 1, 16, whole=True),
    "l_max": Searched("descriptor", 0, 20, whole=True),
    "zeta": Searched("kernel", 1, 20, whole=True),
    "hardness": Searched("charges", -1e3, 1e3),
    "prior_electronegativity": Searched("fit", 1e-9, 1e9),
    "prior_short_range": Searched("fit", 1e-9, 1e9),
    "prior_reference_charge": Searched("fit", 1e-9, 1e9),
}
"""Everything that is searched over, what matters most first: the search takes them in this order."""


def read_ranges(table: Any, name: str) -> Ranges:
    """[tune], checked.

    Args:
        table: what TOML holds.
        name: of the table, for messages.

    Raises:
        ConfigError: no table, an unknown name (the nearest one is suggested), values that are no list of numbers
            inside the bounds.
    """
    if not isinstance(table, Mapping):
        raise ConfigError(f"`{name}` must be a table, got {table!r}")
    for key in table:
        if key not in SEARCHED:
            near = get_close_matches(key, SEARCHED, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else f"; known are {', '.join(SEARCHED)}"
            raise ConfigError(f"unknown key `{name}.{key}`{hint}")
    return {key: _values(value, f"{name}.{key}", SEARCHED[key]) for key, value in table.items()}


def _values(values: Any, name: str, searched: Searched) -> list[float]:
    if not isinstance(values, list):
        raise ConfigError(f"`{name}` must be a list of values to try, got {values!r}")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"`{name}` must hold numbers, got {value!r}")
        if not searched.low <= value <= searched.high:
            raise ConfigError(f"`{name}` must lie between {searched.low:g} and {searched.high:g}, got {value}")
        if searched.whole and value != int(value):
            raise ConfigError(f"`{name}` must hold whole numbers, got {value}")
    return [int(value) if searched.whole else float(value) for value in values]
