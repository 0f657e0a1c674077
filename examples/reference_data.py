"""What the scripts that make reference data share: labels by GFN2-xTB, forces as functions, and files.

GFN2-xTB: C. Bannwarth, S. Ehlert, S. Grimme, J. Chem. Theory Comput. 15, 1652 (2019),
https://doi.org/10.1021/acs.jctc.8b01176. Needs `pip install kqeq_md[train]`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import NDArray
from tblite.exceptions import TBLiteRuntimeError
from tblite.interface import Calculator

from kqeq_md.ase import KQEq
from kqeq_md.units import BOHR, HARTREE

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Forces = Callable[[Floats], Floats]
"""eV/Angstrom as a function of positions, Angstrom."""

LARGEST_FORCE = 30.0  # eV/Angstrom; beyond it a frame teaches nothing that MD meets
FIELD_STEP = 1e-3 * HARTREE / BOHR  # V/Angstrom (0.001 a.u.), of the differences that give polarizabilities
NO_FIELD = np.zeros(3)


@dataclass(frozen=True)
class Frame:
    """A labelled configuration; units as in the files: eV, Angstrom, e, V/Angstrom, e^2 Angstrom^2/eV."""

    name: str
    test: bool
    numbers: Ints
    positions: Floats
    charge: int
    field: Floats
    energy: float
    forces: Floats
    charges: Floats
    dipole: Floats
    polarizability: Floats | None = None


def gfn2(numbers: Ints, x: Floats, charge: int, field: Floats, accuracy: float = 1.0) -> Calculator:
    """A GFN2-xTB calculator, silent, with the static field F (V/Angstrom) in the Hamiltonian: E = E0 - mu.F."""
    calculator = Calculator("GFN2-xTB", numbers, x / BOHR, charge=charge)
    calculator.set("verbosity", 0)
    calculator.set("accuracy", accuracy)
    if np.any(field):
        calculator.add("electric-field", [float(f) * BOHR / HARTREE for f in field])
    return calculator


def gfn2_forces(numbers: Ints, charge: int, field: Floats) -> Forces:
    """Forces of GFN2, each SCF started from the one before.

    The function raises TBLiteRuntimeError where the SCF does not converge.
    """
    calculator: Calculator | None = None
    result = None

    def forces(x: Floats) -> Floats:
        nonlocal calculator, result
        if calculator is None:
            calculator = gfn2(numbers, x, charge, field)
        calculator.update(x / BOHR)
        result = calculator.singlepoint(result)
        out: Floats = -result.get("gradient") * HARTREE / BOHR
        return out

    return forces


def model_forces(atoms: Atoms, calculator: KQEq) -> Forces:
    """Forces of a model."""
    atoms.calc = calculator

    def forces(x: Floats) -> Floats:
        atoms.positions = x
        out: Floats = atoms.get_forces()
        return out

    return forces


def with_wall(forces: Forces, radius: float, stiffness: float) -> Forces:
    """`forces` plus a harmonic wall, 1/2 k (|r| - R)^2 outside a sphere about the origin (eV/Angstrom^2, Angstrom)."""

    def walled(x: Floats) -> Floats:
        r = np.linalg.norm(x, axis=1, keepdims=True)
        return forces(x) - stiffness * np.maximum(r - radius, 0.0) * x / np.maximum(r, 1e-9)

    return walled


@cache
def free_atom(number: int) -> float:
    """GFN2 energy of the neutral atom, eV."""
    single = gfn2(np.array([number]), np.zeros((1, 3)), 0, NO_FIELD).singlepoint()
    return float(single.get("energy") * HARTREE)


def polarizability(numbers: Ints, x: Floats, charge: int) -> Floats:
    """dmu_a/dF_b without field, e^2 Angstrom^2/eV, symmetrised: central differences of dipoles at tight SCF."""
    rows = []
    for axis in np.eye(3) * FIELD_STEP:
        plus, minus = (
            gfn2(numbers, x, charge, sign * axis, 0.01).singlepoint().get("dipole") * BOHR for sign in (1, -1)
        )
        rows.append((plus - minus) / (2 * FIELD_STEP))
    alpha = np.array(rows)
    symmetric: Floats = (alpha + alpha.T) / 2
    return symmetric


def label(
    name: str, test: bool, numbers: Ints, x: Floats, charge: int, field: Floats, response: bool = False
) -> Frame | str:
    """The labelled frame, or why there is none. Positions and field are those that will be written (6 decimals).

    Args:
        response: with the polarizability.
    """
    x = np.round(x - x.mean(axis=0), 6)
    field = np.round(field, 6)
    try:
        result = gfn2(numbers, x, charge, field).singlepoint()
        alpha = polarizability(numbers, x, charge) if response else None
    except TBLiteRuntimeError:
        return "SCF not converged"
    forces = -result.get("gradient") * HARTREE / BOHR
    charges = result.get("charges")
    if np.abs(forces).max() > LARGEST_FORCE:
        return f"force above {LARGEST_FORCE} eV/A"
    if np.abs(forces.sum(axis=0) - charge * field).max() > 1e-5 or abs(charges.sum() - charge) > 1e-6:
        return "sum rule broken"
    energy = float(result.get("energy") * HARTREE) - sum(free_atom(int(z)) for z in numbers)
    dipole = result.get("dipole") * BOHR
    return Frame(name, test, numbers, x, charge, field, energy, forces, charges, dipole, alpha)


def decimals(row: Floats) -> str:
    """Numbers with 6 decimals, without negative zeros."""
    return " ".join(f"{v:.6f}" for v in np.round(row, 6) + 0.0)


def write(path: Path, frames: list[Frame]) -> None:
    """Extended XYZ; everything with 6 decimals but energies (eV), which have 8."""
    columns = "species:S:1:pos:R:3:REF_forces:R:3:REF_charges:R:1"
    with path.open("w") as file:
        for f in frames:
            alpha = "" if f.polarizability is None else f'REF_polarizability="{decimals(f.polarizability.ravel())}" '
            file.write(
                f"{len(f.numbers)}\nProperties={columns} name={f.name} REF_energy={f.energy:.8f} "
                f'total_charge={f.charge} electric_field="{decimals(f.field)}" '
                f'REF_dipole="{decimals(f.dipole)}" {alpha}pbc="F F F"\n'
            )
            for z, row in zip(f.numbers, np.column_stack([f.positions, f.forces, f.charges]), strict=True):
                file.write(f"{chemical_symbols[z]} {decimals(row)}\n")
