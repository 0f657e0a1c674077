"""Energy, forces, virial and charges of a structure: the one way through the package.

structure -> pairs -> power spectrum -> kernels -> chi, E_short -> charges, E -> reverse pass -> forces, virial
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import replace
from functools import cached_property
from numbers import Real
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kqeq_md.charges.constraints import Constraint, total_charge
from kqeq_md.charges.equilibrate import ChargeSolver, electrostatic_gradient
from kqeq_md.charges.field import dipole, field_potential
from kqeq_md.charges.preconditioner import RADIUS
from kqeq_md.descriptor.power_spectrum import Descriptor
from kqeq_md.electrostatics.coulomb import Electrostatics
from kqeq_md.electrostatics.plan import FINEST
from kqeq_md.elements import symbol_of
from kqeq_md.errors import ChargeError, KqeqError, StructureError
from kqeq_md.halo import SERIAL, Halo
from kqeq_md.kernel import normalise, normalise_vjp, predict, predict_vjp
from kqeq_md.model import Model, load_model
from kqeq_md.neighbours import NeighbourList, Pairs
from kqeq_md.short_range import repulsion
from kqeq_md.structure import Floats, Result, Structure
from kqeq_md.threads import kernel_threads

log = logging.getLogger("kqeq_md")

QUANTITIES = ("energies", "forces", "virial", "charges", "dipole")
"""What may stand in `want`; energy and charges come always."""


ROUGHEST = 0.1
"""eV/Angstrom. Errors beyond it are those of no force field."""

TIGHTEST, LOOSEST = 1e-14, 1e-4
"""Bounds of the tolerance: rounding below, and above forces would no longer be those of the energy."""


class Potential:
    """A model, ready to compute.

    Structures that follow each other, as in molecular dynamics, share neighbour lists, a preconditioner and a guess of
    the charges; a result differs by no more than the tolerance from that of a new `Potential`.

    Args:
        model: a `Model` or the path of a `.kqeq` file.
        accuracy: target rms force error of the Coulomb sum, eV/Angstrom.
        tolerance: largest accepted relative residual of the charge equilibration, at most 1e-4.
        vacuum: between the images of a slab, Angstrom; None for as much as the accuracy needs.

    Raises:
        KqeqError: accuracy, tolerance or vacuum out of range.
        ModelError: the file cannot be read.
    """

    def __init__(
        self,
        model: Model | str | Path,
        accuracy: float = 1e-5,
        tolerance: float = 1e-5,
        vacuum: float | None = None,
    ) -> None:
        for name, value, low, high in (
            ("accuracy", accuracy, FINEST, ROUGHEST), ("tolerance", tolerance, TIGHTEST, LOOSEST),
        ):  # fmt: skip
            if not isinstance(value, Real) or not low <= value <= high:
                raise KqeqError(f"`{name}` must lie between {low:g} and {high:g}, got {value!r}")
        if vacuum is not None and not (isinstance(vacuum, Real) and 0.0 < vacuum < np.inf):
            raise KqeqError(f"`vacuum` must be positive, got {vacuum!r}")
        self.model = model if isinstance(model, Model) else load_model(model)
        self.accuracy, self.tolerance = float(accuracy), float(tolerance)
        threads = kernel_threads()
        self._neighbours = NeighbourList()
        self._electrostatics = Electrostatics(
            self.model.gaussian_width, self.model.hardness, self.accuracy, vacuum, threads
        )
        self._charges = ChargeSolver(self.tolerance, threads)
        self._warned_charged_cell = False

    @cached_property
    def descriptor(self) -> Descriptor:
        """The power spectrum with its tables."""
        return Descriptor(self.model.soap, len(self.model.species))

    def species_index(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Position of each atom's element in `model.species`, shape (n,).

        Raises:
            StructureError: an element that the model does not know.
        """
        out = np.full(len(numbers), -1)
        for index, number in enumerate(self.model.numbers):
            out[numbers == number] = index
        if (out < 0).any():
            atom = int(np.flatnonzero(out < 0)[0])
            raise StructureError(
                f"`numbers`: the model knows {', '.join(self.model.species)}, "
                f"got {symbol_of(int(numbers[atom]))} (atom {atom})"
            )
        return out

    def compute(
        self,
        structure: Structure,
        want: Collection[str] = QUANTITIES,
        pairs: Pairs | None = None,
        halo: Halo = SERIAL,
        constraint: Constraint | None = None,
    ) -> Result:
        """Equilibrate the charges and return the energy and what else is wanted.

        Args:
            structure: the owned atoms.
            want: any of "energies", "forces", "virial", "charges", "dipole".
            pairs: neighbours within `model.cutoff` of the owned atoms among owned atoms and ghosts; found here if None.
            halo: how values travel between owners and ghosts. The charges are solved for the owned atoms alone,
                so that one process has to own all of them; ghosts are their images.
            constraint: sums of charges, as `fragment_charges` makes them; None for the total charge alone.

        Raises:
            StructureError: unknown elements, overlapping atoms.
            FieldError: a field that has no meaning for the boundary.
            ChargeError: charges without a minimum, sums of charges that are not the structure's, or a result that is
                not finite.
        """
        unknown = set(want) - set(QUANTITIES)
        if unknown:
            raise KqeqError(f"`want` must be of {', '.join(QUANTITIES)}, got {sorted(unknown)[0]!r}")
        species = self.species_index(structure.numbers)
        field_potential(structure)  # refuse before anything is computed
        self._warn_charged_cell(structure)
        if constraint is None:
            constraint = total_charge(len(structure), structure.charge)
        constraint.check(len(structure), structure.charge)

        with np.errstate(all="ignore"):  # what overflows is refused below
            result = self._evaluate(structure, want, species, pairs, halo, constraint)
        _check_finite(result)
        return result

    def _evaluate(
        self,
        structure: Structure,
        want: Collection[str],
        species: NDArray[np.int64],
        pairs: Pairs | None,
        halo: Halo,
        constraint: Constraint,
    ) -> Result:
        self._update_neighbours(structure)
        # charges are computed in the spatial order of the neighbour list, the local part in that of its pairs
        order = self._neighbours.order
        local_order = order if pairs is None else np.arange(len(structure))
        pairs = self._neighbours.pairs(self.model.cutoff) if pairs is None else pairs
        local = LocalPart(self.model, self.descriptor, species[local_order], pairs, halo)

        ordered = replace(structure, numbers=structure.numbers[order], positions=structure.positions[order])
        electronegativity = _restored(local.electronegativity, local_order)[order]
        while True:
            operator = self._electrostatics.at(ordered, species[order], self._neighbours)
            solution = self._charges.solve(
                ordered, operator, self._neighbours, electronegativity, constraint.ordered(order)
            )
            if self._electrostatics.serves(solution.charges):
                break
            self._update_neighbours(structure)
        charges = _restored(solution.charges, order)
        energies = _restored(solution.energies, order) + _restored(local.energies, local_order)

        forces = virial = None
        if "forces" in want or "virial" in want:
            grad_pairs = local.gradient(charges[local_order])
            grad_r, grad_strain = electrostatic_gradient(ordered, operator, solution.charges)
            grad_local = halo.reverse(pairs.scatter(grad_pairs, len(local.species_all)))
            forces = -(_restored(grad_r, order) + _restored(grad_local, local_order))
            strain = grad_strain + halo.sum(pairs.vectors.T @ grad_pairs)
            virial = -0.5 * (strain + strain.T)
        return Result(
            energy=float(halo.sum(energies.sum())),
            charges=charges,
            energies=energies if "energies" in want else None,
            forces=forces if "forces" in want else None,
            virial=virial if "virial" in want else None,
            dipole=dipole(structure, charges) if "dipole" in want else None,
        )

    def _update_neighbours(self, structure: Structure) -> None:
        reach = max(self.model.cutoff, self._electrostatics.cutoff(structure), RADIUS)
        self._neighbours.update(structure, reach)

    def _warn_charged_cell(self, structure: Structure) -> None:
        if structure.periodic and structure.charge != 0 and not self._warned_charged_cell:
            self._warned_charged_cell = True
            log.warning(
                "periodic cell with total charge %g e: a uniform background neutralises it; "
                "energies of cells of different size or charge are not comparable",
                structure.charge,
            )


def _restored(values: Floats, order: NDArray[np.int64]) -> Floats:
    """Values of atoms `order` in the order of the structure, shape of `values`."""
    out = np.empty_like(values)
    out[order] = values
    return out


def _check_finite(result: Result) -> None:
    """Refuse energies, forces or charges that overflow or are undefined."""
    for name in ("charges", "forces", "virial"):
        values = getattr(result, name)
        if values is not None and not np.isfinite(values).all():
            raise ChargeError(f"`{name}` must be finite, got {values[~np.isfinite(values)][0]}: look at the positions, "
                              "the total charge and the field")  # fmt: skip
    if not np.isfinite(result.energy):
        raise ChargeError(f"`energy` must be finite, got {result.energy}: look at the total charge and the field")


class LocalPart:
    """Everything that an atom's surroundings within the cutoff decide: chi, E_short, and their reverse pass."""

    def __init__(
        self,
        model: Model,
        descriptor: Descriptor,
        species: NDArray[np.int64],
        pairs: Pairs,
        halo: Halo = SERIAL,
    ) -> None:
        self.model, self.descriptor = model, descriptor
        self.species, self.pairs = species, pairs
        self.species_all = np.asarray(halo.forward(species), dtype=np.int64)
        p, self.coefficients = self.descriptor.power_spectrum(pairs, self.species_all)
        self.unit, self.length = normalise(p)
        kernel = predict(self.unit, species, model.sparse_points, model.weights, model.zeta)
        numbers_all = np.array(model.numbers, dtype=np.float64)[self.species_all]
        repelled, self.repulsion_gradient = repulsion(pairs, numbers_all, model.repulsion_radius[self.species_all])
        self.electronegativity = kernel[:, 0] + model.electronegativity_offset[species]
        self.energies = kernel[:, 1] + model.atom_energy[species] + repelled

    def gradient(self, charges: Floats) -> Floats:
        """dE/d(pair vectors) of E_short + sum_i q_i chi_i, both kernels in one reverse pass; (n_pairs, 3)."""
        model = self.model
        grad_y = np.stack([charges, np.ones_like(charges)], axis=1)
        grad_unit = predict_vjp(self.unit, self.species, model.sparse_points, model.weights, model.zeta, grad_y)
        grad_p = normalise_vjp(self.unit, self.length, grad_unit)
        learned = self.descriptor.power_spectrum_vjp(self.pairs, self.species_all, self.coefficients, grad_p)
        return learned + self.repulsion_gradient
