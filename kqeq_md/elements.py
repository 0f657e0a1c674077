"""Chemical elements: symbols, atomic numbers and covalent radii (the only use of ASE's tables in the core)."""

from __future__ import annotations

from ase.data import atomic_numbers as ATOMIC_NUMBERS
from ase.data import chemical_symbols as SYMBOLS
from ase.data import covalent_radii as COVALENT_RADII

__all__ = ["ATOMIC_NUMBERS", "COVALENT_RADII", "SYMBOLS", "symbol_of"]


def symbol_of(number: int) -> str:
    """ "Na" for 11; "Z = 200" where there is no such element."""
    return str(SYMBOLS[number]) if 0 < number < len(SYMBOLS) else f"Z = {number}"
