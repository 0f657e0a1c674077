"""What a driver computes: words of the command line, of i-PI's `<parameters>` and of a PES, read by the same rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from kqeq_md.charges.charge_model import CHARGE_MODELS
from kqeq_md.ipi_driver.protocol import DriverError, brief
from kqeq_md.limits import ACTIONS
from kqeq_md.options import (
    OPEN,
    PERIODIC,
    Axes,
    Vector,
    one_of,
    read_name,
    read_number,
    read_numbers,
    read_slab,
    read_vector,
)
from kqeq_md.potential import PARTS

EXTRAS = ("dipole", "charges", "bec", "extrapolation")


@dataclass(frozen=True)
class Settings:
    """What is not said is None.

    Attributes:
        charge: total charge, e.
        efield: static field, V/Angstrom.
        charges: how charge flows, "qeq", "fragments" or "split".
        fragments: "connectivity", or the name of an array of the template that holds molecule numbers.
        fragment_charges: e.
        part: "all", "short" or "charge".
        extras: which of `EXTRAS` go to i-PI.
        extrapolation: what is done about atoms that extrapolate, "warn", "stop" or "off".
        pbc: periodic along each lattice vector, instead of the template's.
    """

    charge: float | None = None
    efield: Vector | None = None
    charges: str | None = None
    fragments: str | None = None
    fragment_charges: tuple[float, ...] | None = None
    part: str | None = None
    extras: tuple[str, ...] | None = None
    extrapolation: str | None = None
    pbc: Axes | None = None

    def joined(self, others: Settings, mine: str, theirs: str) -> Settings:
        """These and others, said in different places.

        Raises:
            DriverError: both say something, and not the same.
        """
        out = self
        for field in fields(self):
            ours, other = getattr(self, field.name), getattr(others, field.name)
            if ours is not None and other is not None and ours != other:
                raise DriverError(
                    f"`{field.name}` must be the same {mine} and {theirs}, got {_spoken(ours)} and {_spoken(other)}"
                )
            if ours is None:
                out = replace(out, **{field.name: other})
        return out


def _spoken(value: object) -> str:
    return (" ".join(map(str, value)) or "none") if isinstance(value, tuple) else str(value)


def read_settings(words: Mapping[str, Any], origin: str) -> Settings:
    """Settings from names and values, such as `{"charge": "1", "efield": "0 0 0.01"}`.

    Args:
        words: text, numbers, or sequences of them, with the names of the command line's options.
        origin: where they stand, for messages.

    Raises:
        DriverError: unknown names, or values that break their rule.
    """
    out: dict[str, Any] = {}
    for name, value in words.items():
        if name not in READERS:
            raise DriverError(f"{origin} must be of {', '.join(READERS)}, got `{brief(name)}`")
        target, read = READERS[name]
        text = value if isinstance(value, str) else " ".join(map(str, value)) if _many(value) else str(value)
        try:
            setting = read(text.strip())
        except ValueError as error:
            raise DriverError(f"`{name}` in {origin} {error}, got '{brief(text.strip())}'") from None
        if out.setdefault(target, setting) != setting:
            raise DriverError(f"`pbc` and `slab` in {origin} must agree, got '{brief(text.strip())}' for `{name}`")
    return Settings(**out)


def _many(value: object) -> bool:
    return hasattr(value, "__iter__")


def read_extras(text: str) -> tuple[str, ...]:
    """Names of extras, `dipole,charges`; none of them for `none`."""
    names = text.replace(",", " ").split()
    if names == ["none"]:
        return ()
    if not names or set(names) - set(EXTRAS):
        raise ValueError(f"must be `none` or of {', '.join(EXTRAS)}")
    return tuple(name for name in EXTRAS if name in names)


def read_pbc(text: str) -> Axes:
    """Periodic along all lattice vectors or along none."""
    if text.lower() not in ("true", "false", "yes", "no"):
        raise ValueError("must be true or false")
    return PERIODIC if text.lower() in ("true", "yes") else OPEN


READERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "charge": ("charge", read_number),
    "efield": ("efield", read_vector),
    "charges": ("charges", one_of(CHARGE_MODELS)),
    "fragments": ("fragments", read_name),
    "fragment_charges": ("fragment_charges", read_numbers),
    "part": ("part", one_of(PARTS)),
    "extras": ("extras", read_extras),
    "extrapolation": ("extrapolation", one_of(ACTIONS)),
    "pbc": ("pbc", read_pbc),
    "slab": ("pbc", read_slab),
}
"""Of each word: which setting it is, and what reads its text or raises ValueError with the rule."""
