"""What the numbers mean, in words, and what to do."""

from __future__ import annotations

from dataclasses import dataclass

from kqeq_md.charges.leaks import LEAK
from kqeq_md.charges.stability import SAFE

LINEAR = 0.15
"""How far a healthy exponent is from 1: ends and dipoles that enhance each other still count in chains of 16 and 32."""

FLAT = 0.3
"""Exponents below it are none of matter that grows."""

WIRE = 1.5
"""Exponents beyond it are those of charge that runs from end to end: a wire has 3 (less a logarithm), molecules in a
row have 1."""

MOVED = 0.01
"""e. Transfer between molecules that do not touch has no physical part; below, it changes no result."""

WHOLE = 1e-6
"""e. Charges that close to integers are integers."""


@dataclass(frozen=True)
class Finding:
    """A number, None where there is none, its meaning in words, and whether it is the number of a disease."""

    value: float | None
    verdict: str
    sick: bool = False

    def number(self, unit: str) -> str:
        """The value in words: "0.41 e", "< 1e-06 e", "-"."""
        if self.value is None:
            return "-"
        digits = f"< {WHOLE:g}" if 0.0 <= self.value < WHOLE else f"{self.value:.4g}"
        return f"{digits} {unit}".rstrip()


def judge_exponent(value: float | None) -> Finding:
    """dlog(alpha) / dlog(size)."""
    if value is None:
        return Finding(value, "nothing to measure: no charge can move, or there is only one size")
    if value > WIRE:
        return Finding(value, f"overpolarizes: twice the size, {2.0**value:.1f} times the polarizability", sick=True)
    if value > 1.0 + LINEAR:
        return Finding(value, "grows faster than the size; larger samples tell whether that ends")
    if value < FLAT:
        return Finding(value, "hardly grows: a molecule cut into fragments, or structures that are not of one kind")
    if value < 1.0 - LINEAR:
        return Finding(value, "grows more slowly than the size: the ends of short samples still count")
    return Finding(value, "healthy: grows in proportion to the size")


def judge_charge_left(value: float | None) -> Finding:
    """Distance of a charge from the nearest integer, e."""
    if value is None:
        return Finding(value, "nothing to measure: there are no two pieces")
    little = f"a fraction of a charge is left, less than {LEAK:g} e"
    return _judge_charge(value, LEAK, "leaks: separate pieces of matter share an electron", little, "whole charges")


def judge_transfer(value: float | None) -> Finding:
    """Largest charge moved between separate copies, e."""
    if value is None:
        return Finding(value, "nothing to measure: there are no two copies")
    leaks, little = "leaks in a field: charge crosses empty space", "a little charge crosses empty space"
    return _judge_charge(value, MOVED, leaks, f"{little}, less than {MOVED:g} e", "molecules keep their charges")


def judge_eigenvalue(value: float | None) -> Finding:
    """Lowest eigenvalue of the Hamiltonian, eV/e^2."""
    if value is None:
        return Finding(value, "nothing to measure: no charge can move")
    if value <= 0.0:
        return Finding(value, "polarization catastrophe: the energy has no minimum", sick=True)
    if value < SAFE:
        return Finding(value, f"close to polarization catastrophe: below {SAFE:g} eV/e^2", sick=True)
    return Finding(value, "stable: every charge transfer costs energy")


def judge_molecules(value: float | None) -> Finding:
    """Largest distance of a molecule's charge from an integer, e."""
    if value is None:
        return Finding(value, "nothing to measure")
    little = f"molecules exchange less than {LEAK:g} e"
    return _judge_charge(value, LEAK, "leaks: molecules hold fractions of an electron", little, "whole charges")


def _judge_charge(value: float, bound: float, leaks: str, little: str, healthy: str) -> Finding:
    """A charge where there should be none: a disease above `bound`, nothing below WHOLE, e."""
    if value > bound:
        return Finding(value, leaks, sick=True)
    if value > WHOLE:
        return Finding(value, little)
    return Finding(value, f"healthy: {healthy}")
