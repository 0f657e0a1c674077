"""The reference structure that every model carries, and the check that it still gives the same numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kqeq_md.errors import ModelError
from kqeq_md.model import reading
from kqeq_md.potential import Potential
from kqeq_md.structure import Structure

TOLERANCES = {"energy_per_atom": 1e-8, "forces": 1e-7, "charges": 1e-8}
"""Largest deviation between two machines, in eV, eV/Angstrom, e: rounding in sums and libraries, no more."""


def make_reference(potential: Potential, structure: Structure) -> dict[str, Any]:
    """The structure and its energy, forces and charges as JSON."""
    result = potential.compute(structure, want=("forces",))
    assert result.forces is not None
    return {
        "numbers": structure.numbers.tolist(),
        "positions": structure.positions.tolist(),
        "cell": structure.cell.tolist(),
        "pbc": list(structure.pbc),
        "charge": structure.charge,
        "field": structure.field.tolist(),
        "energy": result.energy,
        "forces": result.forces.tolist(),
        "charges": result.charges.tolist(),
    }


def deviations(potential: Potential) -> dict[str, float]:
    """Largest deviation per quantity (keys of `TOLERANCES`) of this machine from the model's reference.

    Raises:
        ModelError: the model has no reference structure.
    """
    reference: Mapping[str, Any] = potential.model.reference
    if not reference:
        raise ModelError("the model holds no reference structure to check")
    with reading("reference"):
        structure = Structure(*(reference[key] for key in ("numbers", "positions", "cell", "pbc", "charge", "field")))
        n = len(structure)
        energy, forces, charges = (
            np.array(reference[name], dtype=float).reshape(shape)
            for name, shape in (("energy", ()), ("forces", (n, 3)), ("charges", (n,)))
        )
    result = potential.compute(structure, want=("forces",))
    assert result.forces is not None
    return {
        "energy_per_atom": float(abs(result.energy - energy) / n),
        "forces": float(np.abs(result.forces - forces).max()),
        "charges": float(np.abs(result.charges - charges).max()),
    }
