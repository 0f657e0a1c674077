"""Energy, forces, virial and charges of a structure: the one way through the package.

structure -> pairs -> power spectrum -> kernels -> chi, E_short -> charges, E -> reverse pass -> forces, virial

A model without charges (an imported potential) goes the same way past the charges.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kqeq_md.charges.charge_model import ChargeModel, Hold, reference_per_element
from kqeq_md.charges.equilibrate import ChargeSolver, Equilibrium, Problem, bond_gradient, electrostatic_gradient
from kqeq_md.charges.field import anchors, effective_field, has_dipole, has_stress
from kqeq_md.charges.leaks import LeakWatch
from kqeq_md.charges.preconditioner import RADIUS
from kqeq_md.charges.split import find_bonds
from kqeq_md.electrostatics.coulomb import Electrostatics
from kqeq_md.electrostatics.plan import FINEST
from kqeq_md.elements import symbol_of
from kqeq_md.errors import ChargeError, FieldError, KqeqError, StructureError
from kqeq_md.halo import SERIAL, Halo, OrderedHalo
from kqeq_md.local_part import LocalKernels, LocalPart
from kqeq_md.model import Model, load_model
from kqeq_md.neighbours import NeighbourList, Pairs
from kqeq_md.pair_search import Ints
from kqeq_md.structure import Floats, Result, Structure
from kqeq_md.threads import kernel_threads, one_blas_thread

log = logging.getLogger("kqeq_md")

QUANTITIES = ("energies", "forces", "virial", "charges", "dipole")
"""What may stand in `want`; energy and charges come always."""


NO_VIRIAL = (
    "`virial` is not defined for charged fragments, atoms with reference charges or fragments without end in a field "
    "along a periodic axis: the energy depends on which of their images are written down"
)

NO_SUCH_CHARGES = "the model has no charges: it is nothing but a short-range potential"

NEARLY_HALF = 0.45
"""Of a lattice vector: bonds of fragments that long are warned of in a field."""

KERNELS = ("low_rank", "exact")

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
        charges: how charge flows: "qeq" (everywhere), "fragments" (inside each fragment) or "split" (over bonds
            between neighbours); None for the one that the model was trained for.
        fragments: "connectivity" (covalent radii), a molecule number for each atom, or a list of the atoms of each
            fragment (atoms in none of them form one more). They are found in the first structure and kept while atoms
            are the same. For split charges they are optional: each holds its sum of reference charges.
        fragment_charges: of each fragment, in the order of the list, of the numbers, or of their first atoms, e; None
            where they are neutral, or where there is only one.
        reference_charges: q0 of elements for split charges, e, instead of the model's; elements that are not named
            have 0.
        kernel: "exact", the kernel of the sparse points, or "low_rank"; None for the low rank if the model has one.
        threads: how many work at once, at most one for each core; None for the environment's number, or what the
            scheduler gives (`threads.kernel_threads`). Results differ by rounding alone.

    Raises:
        KqeqError: accuracy, tolerance, vacuum or threads out of range.
        ChargeError: charges, fragments or reference charges that do not go together.
        ModelError: the file cannot be read.
    """

    def __init__(
        self,
        model: Model | str | Path,
        accuracy: float = 1e-5,
        tolerance: float = 1e-5,
        vacuum: float | None = None,
        charges: str | None = None,
        fragments: str | ArrayLike | Sequence[ArrayLike] | None = None,
        fragment_charges: ArrayLike | None = None,
        reference_charges: Mapping[str, float] | None = None,
        threads: int | None = None,
        kernel: str | None = None,
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
        self.threads = kernel_threads(threads)
        self._use_exact = self._exact(kernel)
        self._neighbours = NeighbourList()
        self.has_charges = self.model.has_charges
        if self.has_charges:
            self._electrostatics = Electrostatics(
                self.model.gaussian_width, self.model.hardness, self.accuracy, vacuum, self.threads
            )
            self._charge_model = self._choose_charges(charges, fragments, fragment_charges, reference_charges)
            self._charges = ChargeSolver(self.tolerance, self.threads)
        elif not charges is fragments is fragment_charges is reference_charges is None:
            raise ChargeError(NO_SUCH_CHARGES)
        self._leaks = LeakWatch()
        self._warned_charged_cell = self._warned_stretched = False

    def _exact(self, kernel: str | None) -> bool:
        if kernel not in (None, *KERNELS):
            raise KqeqError(f"`kernel` must be {' or '.join(KERNELS)}, got {kernel!r}")
        if kernel == "low_rank" and all(term.low_rank is None for term in self.model.terms):
            raise KqeqError("`kernel` must be \"exact\": the model has no kernel of low rank, got 'low_rank'")
        return kernel == "exact"

    @cached_property
    def _kernels(self) -> LocalKernels:
        return LocalKernels(self.model, self._use_exact)

    @property
    def charge_model(self) -> ChargeModel:
        """How charge flows.

        Raises:
            ChargeError: the model has no charges.
        """
        if not self.has_charges:
            raise ChargeError(NO_SUCH_CHARGES)
        return self._charge_model

    def _choose_charges(
        self,
        charges: str | None,
        fragments: str | ArrayLike | Sequence[ArrayLike] | None,
        fragment_charges: ArrayLike | None,
        reference: Mapping[str, float] | None,
    ) -> ChargeModel:
        model = self.model
        name = model.charges if charges is None else charges
        if reference is not None and name != "split":
            raise ChargeError(f'`reference_charges` need charges="split", got charges="{name}"')
        fixed: Floats | None = None if model.learned_reference else model.reference_charge
        if reference is not None:
            fixed = reference_per_element(reference, model.species)
            if model.learned_reference:
                log.warning("`reference_charges` replace those that the model has learned: energies and forces are not "
                            "those of the training data")  # fmt: skip
        out = ChargeModel(name, fragments, fragment_charges, fixed if name == "split" else None)
        if name != model.charges:
            log.warning(
                'charges="%s" for a model that was trained with "%s": charges show what the other model does, energies '
                "and forces are not those of the training data", name, model.charges,
            )  # fmt: skip
        return out

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
        want: Collection[str] | None = None,
        pairs: Pairs | None = None,
        halo: Halo = SERIAL,
    ) -> Result:
        """Equilibrate the charges and return the energy and what else is wanted.

        Args:
            structure: the owned atoms.
            want: any of "energies", "forces", "virial", "charges", "dipole"; None for all that is defined.
            pairs: neighbours within `cutoff` of the owned atoms among owned atoms and ghosts; found here if None.
            halo: how values travel between owners and ghosts. The charges are solved for the owned atoms alone,
                so that one process has to own all of them; ghosts are their images.

        Raises:
            StructureError: unknown elements, overlapping atoms.
            FieldError: a field that has no meaning for the boundary, or a virial that is wanted and has none.
            ChargeError: charges without a minimum, fragments that do not fit, or a result that is not finite.
        """
        _check_structure(structure)
        if want is None:
            want = QUANTITIES
        else:
            unknown = set(want) - set(QUANTITIES)
            if unknown:
                raise KqeqError(f"`want` must be of {', '.join(QUANTITIES)}, got {sorted(unknown)[0]!r}")
            if "virial" in want and not self.has_virial(structure):
                raise FieldError(f"{NO_VIRIAL}, got {structure.field.tolist()} V/Angstrom")
        with one_blas_thread, np.errstate(all="ignore"):  # what overflows is refused below
            if self.has_charges:
                result = self._result(self.equilibrate(structure, pairs, halo), want)
            else:
                result = self._short_range(structure, pairs, halo, want)
        _check_finite(result)
        if self.has_charges and self.charge_model.name == "qeq":
            self._leaks.look(structure, result.charges)
        return result

    def equilibrate(self, structure: Structure, pairs: Pairs | None = None, halo: Halo = SERIAL) -> Equilibrated:
        """Solve for the charges and keep everything that derivatives need; arguments and errors as in `compute`."""
        _check_structure(structure)
        species = self.species_index(structure.numbers)
        hold = self.charge_model.at(structure, species)
        field = effective_field(structure, hold)
        self._warn_charged_cell(structure)
        self._warn_stretched_fragment(structure, hold)
        order, pairs, halo = self._surroundings(structure, pairs, halo)
        local = LocalPart(self._kernels, species[order], pairs, halo, self.threads)
        ordered = replace(structure, numbers=structure.numbers[order], positions=structure.positions[order])
        constraint = hold.constraint.ordered(order)
        bonds = reference = None
        if self.charge_model.name == "split":
            model = self.model
            bonds = find_bonds(pairs, local.species_all, model.compliance, model.compliance_cutoff, halo)
            fixed = hold.reference
            reference = constraint.enforce(local.reference_charge) if fixed is None else fixed[order]
        places = anchors(structure, hold)[order]
        while True:
            operator = self._electrostatics.at(ordered, species[order], self._neighbours)
            problem = Problem(
                ordered, operator, self._neighbours, local.electronegativity, constraint, field,
                places, reference, bonds,
            )  # fmt: skip
            equilibrium = self._charges.solve(problem)
            if self._electrostatics.serves(equilibrium.charges):
                break
            self._update_neighbours(structure)
        return Equilibrated(structure, hold, order, local, halo, problem, equilibrium)

    def _surroundings(self, structure: Structure, pairs: Pairs | None, halo: Halo) -> tuple[Ints, Pairs, Halo]:
        """The spatial order of the neighbour list, in which all is computed, and pairs and halo in that order."""
        self._update_neighbours(structure)
        order = self._neighbours.order
        if pairs is None:
            return order, self._neighbours.pairs(self.cutoff, self.threads), halo
        return order, pairs.of(order), OrderedHalo(halo, order)

    def _short_range(self, structure: Structure, pairs: Pairs | None, halo: Halo, want: Collection[str]) -> Result:
        """The result of a model without charges: E = E_short."""
        if structure.charge != 0.0 or structure.field.any():
            raise ChargeError(
                f"{NO_SUCH_CHARGES}; total charge and field must be zero, got {structure.charge:g} e and "
                f"{structure.field.tolist()} V/Angstrom"
            )
        species = self.species_index(structure.numbers)
        order, pairs, halo = self._surroundings(structure, pairs, halo)
        local = LocalPart(self._kernels, species[order], pairs, halo, self.threads)
        nothing = np.zeros(len(structure))
        grad_pairs = local.gradient(nothing)
        forces = -halo.reverse(pairs.scatter(grad_pairs, len(local.species_all)))
        strain = halo.sum(pairs.vectors.T @ grad_pairs)
        energy = float(halo.sum(local.energies.sum()))
        return Result(
            energy=energy,
            charges=nothing,
            short_range_energy=energy,
            energies=restored(local.energies, order) if "energies" in want else None,
            forces=restored(forces, order) if "forces" in want else None,
            virial=-0.5 * (strain + strain.T) if "virial" in want else None,
        )

    def solve_response(self, problem: Problem) -> Equilibrium:
        """Minimise a problem that is not the next step of a trajectory.

        Raises:
            ChargeError: no minimum, or tolerance not reached.
        """
        return self._charges.respond(problem)

    def _result(self, state: Equilibrated, want: Collection[str]) -> Result:
        structure, hold, order, local = state.structure, state.hold, state.order, state.local
        problem, equilibrium, halo, pairs = state.problem, state.equilibrium, state.halo, state.local.pairs
        charges = restored(equilibrium.charges, order)
        energies = equilibrium.energies + local.energies

        forces = virial = dipole = None
        if "forces" in want or "virial" in want:
            grad_pairs = local.gradient(equilibrium.charges, state.reference_gradient)
            if problem.bonds is not None:
                grad_pairs[problem.bonds.pair] += bond_gradient(problem.bonds, equilibrium.tension)
            grad_r, grad_strain = electrostatic_gradient(problem, hold, equilibrium)
            grad_r += halo.reverse(pairs.scatter(grad_pairs, len(local.species_all)))
            forces = -restored(grad_r, order)
            strain = grad_strain + halo.sum(pairs.vectors.T @ grad_pairs)
            virial = -0.5 * (strain + strain.T) if has_stress(structure, hold) else None
        if "dipole" in want and has_dipole(structure, hold):
            dipole = halo.sum(equilibrium.dipole)
        residual = None
        if self.charge_model.name == "split" and hold.reference is None:
            residual = problem.constraint.excess(local.reference_charge)
        short_range, electric = (float(halo.sum(part.sum())) for part in (local.energies, equilibrium.energies))
        field_energy = -float(problem.field @ equilibrium.dipole)
        return Result(
            energy=short_range + electric,
            charges=charges,
            short_range_energy=short_range,
            charge_energy=electric - field_energy,
            field_energy=field_energy,
            iterations=equilibrium.iterations,
            energies=restored(energies, order) if "energies" in want else None,
            forces=forces if "forces" in want else None,
            virial=virial if "virial" in want else None,
            dipole=dipole,
            reference_residual=residual,
        )

    @property
    def cutoff(self) -> float:
        """How far the pairs of `compute` reach: descriptor, repulsion, bonds of split charges; Angstrom."""
        if self.has_charges and self.charge_model.name == "split":
            return max(self.model.cutoff, float(self.model.compliance_cutoff.max()))
        return self.model.cutoff

    def has_virial(self, structure: Structure) -> bool:
        """Whether a virial is defined: not in every field along a periodic axis (`charges.field`).

        Raises:
            StructureError: unknown elements.
            ChargeError: fragments that do not fit.
        """
        species = self.species_index(structure.numbers)
        return not self.has_charges or has_stress(structure, self.charge_model.at(structure, species))

    def use_fragments(self, fragments: str | ArrayLike | Sequence[ArrayLike] | None) -> None:
        """Take other fragments from now on, or find them anew ("connectivity"); arguments as at the start."""
        self._charge_model = self.charge_model.with_fragments(fragments)

    def _update_neighbours(self, structure: Structure) -> None:
        reach = self.cutoff
        if self.has_charges:
            reach = max(reach, self._electrostatics.cutoff(structure), RADIUS)
        self._neighbours.update(structure, reach)

    def _warn_charged_cell(self, structure: Structure) -> None:
        if structure.periodic and structure.charge != 0 and not self._warned_charged_cell:
            self._warned_charged_cell = True
            log.warning(
                "periodic cell with total charge %g e: a uniform background neutralises it; "
                "energies of cells of different size or charge are not comparable",
                structure.charge,
            )

    def _warn_stretched_fragment(self, structure: Structure, hold: Hold) -> None:
        if self._warned_stretched or hold.fragments is None or not (structure.field.any() and any(structure.pbc)):
            return
        span = hold.fragments.span(structure)
        if span > NEARLY_HALF:
            self._warned_stretched = True
            log.warning(
                "a bond of a fragment spans %.2f of the cell: at 0.5 another image becomes the nearest one, and the "
                "energy in the field jumps; take a larger cell", span,
            )  # fmt: skip


def restored(values: Floats, order: NDArray[np.int64]) -> Floats:
    """Values of atoms `order` in the order of the structure, shape of `values`."""
    out = np.empty_like(values)
    out[order] = values
    return out


def _check_structure(structure: Structure) -> None:
    """Refuse atoms of ASE and the like."""
    if not isinstance(structure, Structure):
        raise KqeqError(
            f"`structure` must be a Structure (kqeq_md.ase.structure_from_atoms makes one of ASE's atoms), got "
            f"{type(structure).__name__}"
        )


def _check_finite(result: Result) -> None:
    """Refuse energies, forces or charges that overflow or are undefined."""
    for name in ("charges", "forces", "virial"):
        values = getattr(result, name)
        if values is not None and not np.isfinite(values).all():
            raise ChargeError(f"`{name}` must be finite, got {values[~np.isfinite(values)][0]}: look at the positions, "
                              "the total charge and the field")  # fmt: skip
    if not np.isfinite(result.energy):
        raise ChargeError(f"`energy` must be finite, got {result.energy}: look at the total charge and the field")


@dataclass(frozen=True, eq=False)
class Equilibrated:
    """A structure with its charges, and what derivatives of its energy need.

    Attributes:
        structure, hold: as they came in.
        order: row k of all that follows is atom order[k] of the structure, shape (n,).
        local: chi, E_short and q0 with their reverse pass.
        halo: of `local.pairs`.
        problem, equilibrium: the charges.
    """

    structure: Structure
    hold: Hold
    order: NDArray[np.int64]
    local: LocalPart
    halo: Halo
    problem: Problem
    equilibrium: Equilibrium

    @property
    def reference_gradient(self) -> Floats | None:
        """dE/d(K w0)_i: phi_i - F.r_i less its mean over the group, for the sums stay; None where q0 is not learned."""
        if self.problem.bonds is None or self.hold.reference is not None:
            return None
        acting = self.equilibrium.potential - self.problem.anchors @ self.problem.field
        return self.problem.constraint.project(acting)
