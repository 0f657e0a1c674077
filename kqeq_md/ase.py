"""ASE calculator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from numpy.typing import ArrayLike, NDArray

from kqeq_md.charges.charge_model import CONNECTIVITY
from kqeq_md.errors import ChargeError, FieldError, KqeqError
from kqeq_md.limits import Watch
from kqeq_md.model import Model
from kqeq_md.potential import NO_SUCH_CHARGES, Potential
from kqeq_md.response import response
from kqeq_md.structure import Floats, Result, Structure

NO_FIELD = (0.0, 0.0, 0.0)
RESPONSES = ("born_effective_charges", "polarizability", "dielectric_tensor")


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
    """Energy, forces, stress, charges, dipole and field response of a kQEq model for ASE.

    Args:
        model: path of a `.kqeq` file, or a `Model`.
        charge: total charge Q, e.
        field: static field F, V/Angstrom, three numbers; the energy is E_0 - F.mu.
        accuracy: target rms force error of the periodic Coulomb sum, eV/Angstrom.
        tolerance: largest accepted relative residual of the charge equilibration, at most 1e-4.
        charges: how charge flows, "qeq", "fragments" or "split"; by default as the model was trained.
        fragments: as in `Potential`, or the name of an array of the atoms that holds molecule numbers (`mol-id` where
            ASE has read a LAMMPS data file).
        fragment_charges, reference_charges, threads, kernel: as in `Potential`.
        extrapolation: what is done about atoms that extrapolate (`kqeq_md.extrapolation`): "warn" (once), "stop"
            (raise `ExtrapolationError`) or "off". The first calculation is looked at, every 100th from there, and one
            whose atoms are not those of the calculation before or are more than 1 Angstrom from their places.

    Units are ASE's: eV, Angstrom, e. `stress` is defined for periodic atoms, and for slabs whose `atoms.cell` has a
    vector along the open axis: it refers to the volume of that cell. `dipole` (e Angstrom, about the coordinate
    origin) is defined for open atoms, and for periodic ones with fragments or split charges (`charges.field` has the
    rules); so are `polarizability` (dmu_a/dF_b, e^2 Angstrom^2/eV, shape (3, 3)), `born_effective_charges`
    (Z[i, a, b] = dmu_a/dR_ib, e, shape (n, 3, 3), not symmetric) and `dielectric_tensor` (infinite frequency, for
    cells periodic along all axes), which are computed when they are asked for. So is `extrapolation`, the measure of
    each atom, shape (n,): `calc.get_property("extrapolation", atoms)`. Asking for what is not defined raises
    `PropertyNotImplementedError`.

    Relaxing the cell of a slab needs a mask that leaves the plane where it is (`FrechetCellFilter(atoms, mask=...)`,
    [1, 1, 0, 0, 0, 1] for an open z axis): a tilted open axis is refused.

    `atoms.info["charge"]`, `atoms.info["total_charge"]` and initial charges of atoms are not read: the total charge is
    the argument `charge`, and charges are equilibrated at every call.

    Raises:
        KqeqError: a model that cannot be read, unknown elements, a field along a periodic axis.
    """

    implemented_properties: ClassVar[list[str]] = [
        "energy", "free_energy", "energies", "forces", "stress", "charges", "dipole", *RESPONSES, "extrapolation",
    ]  # fmt: skip

    def __init__(
        self,
        model: str | Path | Model,
        charge: float = 0.0,
        field: ArrayLike | None = None,
        accuracy: float = 1e-5,
        tolerance: float = 1e-5,
        charges: str | None = None,
        fragments: str | ArrayLike | Sequence[ArrayLike] | None = None,
        fragment_charges: ArrayLike | None = None,
        reference_charges: Mapping[str, float] | None = None,
        threads: int | None = None,
        kernel: str | None = None,
        extrapolation: str = "warn",
    ) -> None:
        super().__init__()
        self._array = fragments if isinstance(fragments, str) and fragments != CONNECTIVITY else None
        self._numbers: NDArray[np.int64] | None = None
        # an array of the atoms is known once there are atoms; until then its name stands for any fragments
        given = CONNECTIVITY if self._array is not None else fragments
        self.potential = Potential(
            model, accuracy, tolerance, None, charges, given, fragment_charges, reference_charges, threads, kernel
        )
        self._watch = Watch(extrapolation, self.potential.largest_measure)
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
        self._take_fragments()
        has_volume = structure.boundary != "open" and self.atoms.cell.rank == 3
        if not has_volume and "stress" in wanted:
            raise PropertyNotImplementedError(
                "`stress` needs a periodic cell with a volume: give a slab a cell vector along its open axis"
                if structure.boundary == "slab"
                else "`stress` needs a periodic cell"
            )
        without = [name for name in ("charges", "dipole", *RESPONSES) if name in wanted]
        if without and not self.potential.has_charges:
            raise PropertyNotImplementedError(f"`{without[0]}` is not defined: {NO_SUCH_CHARGES}")
        result = self.potential.compute(structure)
        if "stress" in wanted and result.virial is None:
            raise PropertyNotImplementedError(
                "`stress` is not defined in a field along a periodic axis for charged fragments, for atoms with "
                "reference charges, nor for fragments without end"
            )
        if "dipole" in wanted and result.dipole is None:
            raise PropertyNotImplementedError(
                "`dipole` is not defined where charge flows freely across a periodic boundary (without fragments, or "
                "in fragments of several pieces or without end): it depends on how atoms are wrapped"
            )
        self.results = {
            "energy": result.energy,
            "free_energy": result.energy,
            "energies": result.energies,
            "forces": result.forces,
        }
        if self.potential.has_charges:
            self.results["charges"] = result.charges
        if result.virial is not None and has_volume:
            stress = -result.virial / structure.volume
            self.results["stress"] = stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
        if result.dipole is not None:
            self.results["dipole"] = result.dipole
        self._look_at_extrapolation(structure, result, "extrapolation" in wanted)
        if any(name in wanted for name in RESPONSES):
            self._respond(structure, wanted)

    def _look_at_extrapolation(self, structure: Structure, result: Result, wanted: bool) -> None:
        due = self._watch.due(structure.positions)
        if due or wanted:
            self.results["extrapolation"] = measure = self.potential.extrapolation(structure, result=result)
            if due:
                self._watch.look(measure)

    def _respond(self, structure: Structure, wanted: list[str]) -> None:
        try:
            answer = response(self.potential, structure)
        except FieldError as error:
            raise PropertyNotImplementedError(str(error)) from None
        if "dielectric_tensor" in wanted and answer.dielectric is None:
            raise PropertyNotImplementedError("`dielectric_tensor` needs a cell that is periodic along all axes")
        self.results["polarizability"] = answer.polarizability
        self.results["born_effective_charges"] = answer.born_charges
        if answer.dielectric is not None:
            self.results["dielectric_tensor"] = answer.dielectric

    def _take_fragments(self) -> None:
        """Molecule numbers from the array of the atoms that `fragments` names."""
        if self._array is None:
            return
        numbers = molecule_numbers(self.atoms, self._array)
        if self._numbers is None or not np.array_equal(numbers, self._numbers):
            self._numbers = numbers.copy()
            self.potential.use_fragments(self._numbers)


def molecule_numbers(atoms: Atoms, array: str) -> NDArray[np.int64]:
    """Molecule numbers from the array of the atoms with this name, shape (n,).

    Raises:
        ChargeError: no such array.
    """
    if array not in atoms.arrays:
        raise ChargeError(
            f'`fragments` must be "{CONNECTIVITY}", molecule numbers, lists of atoms, or an array of the atoms '
            f"with whole numbers ({', '.join(_numberings(atoms)) or 'it has none'}), got {array!r}"
        )
    return atoms.arrays[array]


def _numberings(atoms: Atoms) -> list[str]:
    """Arrays that could hold molecule numbers."""
    return [
        name
        for name, values in atoms.arrays.items()
        if name != "numbers" and values.ndim == 1 and np.issubdtype(values.dtype, np.integer)
    ]
