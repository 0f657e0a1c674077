"""ASE calculator."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from numpy.typing import ArrayLike

from kqeq_md.errors import KqeqError
from kqeq_md.model import Model
from kqeq_md.potential import Potential
from kqeq_md.structure import Floats, Structure

NO_FIELD = (0.0, 0.0, 0.0)


def structure_from_atoms(atoms: Atoms, charge: float = 0.0, field: ArrayLike = NO_FIELD) -> Structure:
    """The `Structure` of ASE atoms. Total charge (e) and field (V/Angstrom) come from the arguments alone.

    Raises:
        StructureError: NaN, a cell without volume, a boundary that is periodic along one axis, or a slab whose open
            cell vector is not perpendicular to the periodic ones.
    """
    return Structure(
        atoms.numbers,
        atoms.positions,
        cell=atoms.cell.array,
        pbc=tuple(atoms.pbc),
        charge=charge,
        field=field,
    )


class KQEq(Calculator):
    """Energy, forces, stress, charges and dipole of a kQEq model for ASE.

    Args:
        model: path of a `.kqeq` file, or a `Model`.
        charge: total charge Q, e.
        field: static field F, V/Angstrom, three numbers; the energy is E_0 - F.mu.
        accuracy: target rms force error of the periodic Coulomb sum, eV/Angstrom.
        tolerance: largest accepted relative residual of the charge equilibration, at most 1e-4.

    Units are ASE's: eV, Angstrom, e. `stress` is defined for periodic atoms, and for slabs whose `atoms.cell` has a
    vector along the open axis: it refers to the volume of that cell. `dipole` (e Angstrom, about the coordinate
    origin) is defined for open atoms. Asking for what is not defined raises `PropertyNotImplementedError`.

    Relaxing the cell of a slab needs a mask that leaves the plane where it is (`FrechetCellFilter(atoms, mask=...)`,
    [1, 1, 0, 0, 0, 1] for an open z axis): a tilted open axis is refused.

    `atoms.info["charge"]`, `atoms.info["total_charge"]` and initial charges of atoms are not read: the total charge is
    the argument `charge`, and charges are equilibrated at every call.

    Raises:
        KqeqError: a model that cannot be read, unknown elements, a field along a periodic axis.
    """

    implemented_properties: ClassVar[list[str]] = [
        "energy", "free_energy", "energies", "forces", "stress", "charges", "dipole",
    ]  # fmt: skip

    def __init__(
        self,
        model: str | Path | Model,
        charge: float = 0.0,
        field: ArrayLike | None = None,
        accuracy: float = 1e-5,
        tolerance: float = 1e-5,
    ) -> None:
        super().__init__()
        self.potential = Potential(model, accuracy, tolerance)
        self.set(charge=charge, field=field)

    def set(self, **kwargs: Any) -> dict[str, Any]:
        """Change `charge` or `field` (None: no field); returns what changed, as ASE's calculators do.

        Raises:
            KqeqError: another name, or a value that is not finite.
        """
        for name in kwargs:
            if name not in ("charge", "field"):
                raise KqeqError(f"only `charge` and `field` can be set, got `{name}`")
        if "field" in kwargs and kwargs["field"] is None:
            kwargs["field"] = NO_FIELD
        anything = Structure([1], [[0.0, 0.0, 0.0]], **kwargs)  # checks and copies the values
        changed: dict[str, Any] = super().set(**{name: getattr(anything, name) for name in kwargs})
        if changed:
            self.reset()
        return changed

    @property
    def charge(self) -> float:
        """Total charge Q, e."""
        return float(self.parameters["charge"])

    @charge.setter
    def charge(self, value: float) -> None:
        self.set(charge=value)

    @property
    def field(self) -> Floats:
        """Static field F, V/Angstrom, shape (3,), read-only: assign a new one to change it."""
        field: Floats = self.parameters["field"]
        return field

    @field.setter
    def field(self, value: ArrayLike | None) -> None:
        self.set(field=value)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Fill `results` with everything that the boundary defines."""
        super().calculate(atoms, properties, system_changes)
        wanted = properties or ["energy"]
        structure = structure_from_atoms(self.atoms, self.charge, self.field)
        if structure.boundary != "open" and "dipole" in wanted:
            raise PropertyNotImplementedError(
                "`dipole` is not defined for periodic atoms whose charges flow freely: it depends on their wrapping"
            )
        has_volume = structure.boundary != "open" and self.atoms.cell.rank == 3
        if not has_volume and "stress" in wanted:
            raise PropertyNotImplementedError(
                "`stress` needs a periodic cell with a volume: give a slab a cell vector along its open axis"
                if structure.boundary == "slab"
                else "`stress` needs a periodic cell"
            )
        result = self.potential.compute(structure)
        self.results = {
            "energy": result.energy,
            "free_energy": result.energy,
            "energies": result.energies,
            "forces": result.forces,
            "charges": result.charges,
        }
        if result.virial is not None and has_volume:
            stress = -result.virial / structure.volume
            self.results["stress"] = stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
        if result.dipole is not None:
            self.results["dipole"] = result.dipole
