"""Energy, forces, virial and charges of a structure: the one way through the package.

structure -> pairs -> power spectrum -> kernels -> chi, E_short -> charges, E -> reverse pass -> forces, virial

A model without charges (an imported potential) goes the same way past the charges.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kqeq_md.charges.charge_model import ChargeModel, Hold, reference_per_element
from kqeq_md.charges.equilibrate import ChargeSolver, Equilibrium, Problem, electrostatic_gradient
from kqeq_md.charges.field import effective_field, has_dipole, has_stress
from kqeq_md.charges.leaks import LeakWatch
from kqeq_md.charges.split import find_bonds
from kqeq_md.electrostatics.coulomb import Electrostatics
from kqeq_md.electrostatics.plan import FINEST
from kqeq_md.elements import symbol_of
from kqeq_md.errors import ChargeError, FieldError, KqeqError, StructureError
from kqeq_md.extrapolation import Extrapolation, largest_measure
from kqeq_md.local_part import LocalKernels, LocalPart
from kqeq_md.machine.threads import kernel_threads, one_blas_thread
from kqeq_md.model import Model, load_model
from kqeq_md.process import OneProcess, Process, Rank, Site
from kqeq_md.ranks.domain import Domain
from kqeq_md.ranks.halo import Halo
from kqeq_md.structure import Floats, Result, Structure

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

NAMED_ATOMS = 8
"""At most, in messages."""

KERNELS = ("low_rank", "exact")

PARTS = ("all", "short", "charge")
"""E, E_short alone, and E without E_short."""

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
        part: "all", or one of two parts that add up to it, for engines that evaluate them on different scales: "short",
            E_short, which knows no charges, total charge or field, and "charge", the charges' energy in the field.
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
        part: str = "all",
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
        self._vacuum = vacuum
        if part not in PARTS:
            raise KqeqError(f"`part` must be {', '.join(PARTS)}, got {part!r}")
        self.part = part
        self.has_charges = self.model.has_charges and part != "short"
        if self.model.has_charges:
            self._charge_model = self._choose_charges(charges, fragments, fragment_charges, reference_charges)
        elif part == "charge" or any(x is not None for x in (charges, fragments, fragment_charges, reference_charges)):
            raise ChargeError(NO_SUCH_CHARGES)
        self._leaks, self._said = LeakWatch(), set[str]()
        self._begin()

    def _begin(self) -> None:
        """Forget what structures that follow each other share."""
        self._alone, self._rank = OneProcess(), Rank()
        if self.has_charges:
            self._electrostatics = Electrostatics(
                self.model.gaussian_width, self.model.hardness, self.accuracy, self._vacuum, self.threads
            )
            self._charges = ChargeSolver(self.tolerance, self.threads)

    def twin(self) -> Potential:
        """Another one of the same for a second trajectory, such as another replica.

        Both share the kernels and the fragments, not neighbour lists and charges; they may compute at the same time in
        two threads. What one of them has warned of, the other does not.
        """
        self._kernels  # noqa: B018  (made once, before there are two)
        out = copy(self)
        out._begin()
        return out

    def _exact(self, kernel: str | None) -> bool:
        if kernel not in (None, *KERNELS):
            raise KqeqError(f"`kernel` must be {' or '.join(KERNELS)}, got {kernel!r}")
        if kernel == "low_rank" and all(term.low_rank is None for term in self.model.terms):
            raise KqeqError("`kernel` must be \"exact\": the model has no kernel of low rank, got 'low_rank'")
        return kernel == "exact"

    @cached_property
    def _kernels(self) -> LocalKernels:
        return LocalKernels(self.model, self._use_exact)

    @cached_property
    def _extrapolation(self) -> Extrapolation:
        return Extrapolation(self._kernels)

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
        self, structure: Structure, want: Collection[str] | None = None, domain: Domain | None = None
    ) -> Result:
        """Equilibrate the charges and return the energy and what else is wanted.

        Args:
            structure: the atoms; on one of several ranks those that it owns.
            want: any of "energies", "forces", "virial", "charges", "dipole"; None for all that is defined.
            domain: what this rank knows of the others' atoms; None for one process. All ranks call together. Energies
                of the whole, virial and dipole are the same on each; what belongs to atoms is that of the owned ones.

        Raises:
            StructureError: unknown elements, overlapping atoms.
            FieldError: a field that has no meaning for the boundary, or a virial that is wanted and has none.
            ChargeError: charges without a minimum, fragments that do not fit, or a result that is not finite.
        """
        _check_structure(structure)
        unknown = set(want or ()) - set(QUANTITIES)
        if unknown:
            raise KqeqError(f"`want` must be of {', '.join(QUANTITIES)}, got {sorted(unknown)[0]!r}")
        with one_blas_thread, np.errstate(all="ignore"):  # what overflows is refused
            if self.has_charges:
                return self.result(self.equilibrate(structure, domain, want), want, domain)
            result = self._short_range(structure, domain, want)
        _check_finite(result)
        return result

    def equilibrate(
        self, structure: Structure, domain: Domain | None = None, want: Collection[str] | None = None
    ) -> Equilibrated:
        """Solve for the charges and keep everything that derivatives need; arguments and errors as in `compute`."""
        _check_structure(structure)
        process = self._take(structure, domain)
        everyone = process.everyone
        hold = self.charge_model.at(everyone, self.species_index(everyone.numbers))
        if want is not None and "virial" in want and not has_stress(everyone, hold):
            raise FieldError(f"{NO_VIRIAL}, got {structure.field.tolist()} V/Angstrom")
        field = effective_field(everyone, hold)
        self._warn_charged_cell(everyone)
        self._warn_stretched_fragment(everyone, hold)
        in_place = want is None or "dipole" in want or bool(field.any())
        process.update(self.cutoff, self._electrostatics)
        local = self._local(structure, process)
        site = process.site(hold, local.pairs, in_place)
        process.migrate(self._charges, site)
        while True:
            problem = self._problem(site, local, field)
            equilibrium = self._charges.solve(problem)
            if self._electrostatics.serves(equilibrium.charges, site.halo):
                break
            process.update(self.cutoff, self._electrostatics)
            site = process.site(hold, local.pairs, in_place)
        return Equilibrated(structure, hold, process.order, local, site, problem, equilibrium)

    def result(self, state: Equilibrated, want: Collection[str] | None = None, domain: Domain | None = None) -> Result:
        """What follows from equilibrated charges, for those who need more of them than `compute` returns; arguments
        and errors as there."""
        with one_blas_thread, np.errstate(all="ignore"):
            result = self._result(state, want)
        _check_finite(result)
        if self.charge_model.name == "qeq" and (domain is None or domain.renewed):
            process = self._process(domain)
            self._leaks.look(process.everyone, process.collect(result.charges))
        return result

    def _problem(self, site: Site, local: LocalPart, field: Floats) -> Problem:
        """The charges of a site, with chi and q0 of the local part."""
        model = self.model
        species = self.species_index(site.structure.numbers)
        species_all = np.asarray(site.halo.forward(species), dtype=np.int64)
        reference = bonds = None
        if self.charge_model.name == "split":
            bonds = find_bonds(site.pairs, species_all, model.compliance, model.compliance_cutoff, site.halo)
            reference = site.reference
            if reference is None:
                reference = site.constraint.enforce(site.enter(local.reference_charge))
        operator = self._electrostatics.at(site.structure, species_all, site.neighbours, site.halo, site.longest)
        return Problem(
            site.structure, operator, site.neighbours, site.enter(local.electronegativity), site.constraint, field,
            site.anchors, reference, bonds,
        )  # fmt: skip

    def _process(self, domain: Domain | None) -> OneProcess | Rank:
        return self._alone if domain is None else self._rank

    def _take(self, structure: Structure, domain: Domain | None) -> OneProcess | Rank:
        """The process, with these atoms."""
        if domain is None:
            self._alone.take(structure)
        else:
            self._rank.take(structure, domain)
        return self._process(domain)

    def _local(self, structure: Structure, process: Process) -> LocalPart:
        species = self.species_index(structure.numbers)[process.order]
        return LocalPart(self._kernels, species, process.pairs(self.cutoff, self.threads), process.halo, self.threads)

    def _short_range(self, structure: Structure, domain: Domain | None, want: Collection[str] | None) -> Result:
        """The result without charges: E = E_short."""
        if not self.model.has_charges and (structure.charge != 0.0 or structure.field.any()):
            raise ChargeError(
                f"{NO_SUCH_CHARGES}; total charge and field must be zero, got {structure.charge:g} e and "
                f"{structure.field.tolist()} V/Angstrom"
            )
        process = self._take(structure, domain)
        process.update(self.cutoff, None)
        local, order = self._local(structure, process), process.order
        nothing = np.zeros(len(structure))
        grad_r, strain = local.carried_home(local.gradient(nothing))
        energy = float(process.halo.sum(local.energies.sum()))
        wanted = QUANTITIES if want is None else want
        virial = -0.5 * (strain + strain.T) if "virial" in wanted else None
        return Result(
            energy=energy,
            charges=nothing,
            short_range_energy=energy,
            energies=restored(local.energies, order) if "energies" in wanted else None,
            forces=-restored(grad_r, order) if "forces" in wanted else None,
            virial=virial,
            unsymmetrized_virial=virial,
        )

    def extrapolation(self, structure: Structure, domain: Domain | None = None, result: Result | None = None) -> Floats:
        """How far each atom is from those of the training set, shape (n,).

        Within it atoms measure at most about 1; beyond `largest_measure` energies, forces and charges are not to be
        trusted (see `kqeq_md.extrapolation`). Takes about as long as the local part of a step; arguments and errors
        as in `compute`.

        Args:
            structure, domain: as in `compute`.
            result: of this structure, for its charges and forces; None where only surroundings count.
        """
        _check_structure(structure)
        process = self._take(structure, domain)
        process.update(self.cutoff, None)
        halo, species = process.halo, self.species_index(structure.numbers)
        ordered = species[process.order]
        species_all = np.asarray(halo.forward(ordered), dtype=np.int64)
        with one_blas_thread:
            pairs = process.pairs(self.cutoff, self.threads)
            measure = self._extrapolation.measure(ordered, pairs, species_all, self.threads, halo)
        measure = restored(measure, process.order)
        if result is None or not self.has_charges:
            return measure
        measure = self._extrapolation.with_result(measure, species, result)
        if (limits := self._extrapolation.limits) is not None:
            n_atoms = int(halo.sum(np.array(float(len(structure)))))
            measure = np.maximum(measure, limits.beyond_total(structure.charge, n_atoms))
        return measure

    @property
    def largest_measure(self) -> float:
        """Atoms beyond it extrapolate."""
        return largest_measure(self.model)

    def solve_response(self, problem: Problem) -> Equilibrium:
        """Minimise a problem that is not the next step of a trajectory.

        Raises:
            ChargeError: no minimum, or tolerance not reached.
        """
        return self._charges.respond(problem)

    def _result(self, state: Equilibrated, want: Collection[str] | None) -> Result:
        structure, hold, order, local, site = state.structure, state.hold, state.order, state.local, state.site
        problem, equilibrium, wanted = state.problem, state.equilibrium, QUANTITIES if want is None else want

        forces = virial = unsymmetrized = dipole = None
        if "forces" in wanted or "virial" in wanted:
            charges = site.leave(equilibrium.charges)
            whole = float(self.part == "all")
            grad_r, strain = local.carried_home(local.gradient(charges, state.reference_gradient, whole))
            grad_site, grad_strain = electrostatic_gradient(problem, hold, equilibrium)
            forces = -restored(grad_r + site.leave(grad_site), order)
            if has_stress(structure, hold):
                unsymmetrized = -(strain + grad_strain)
                virial = 0.5 * (unsymmetrized + unsymmetrized.T)
        if "dipole" in wanted and has_dipole(structure, hold):
            dipole = equilibrium.dipole
        residual = None
        if self.charge_model.name == "split" and site.reference is None:
            residual = problem.constraint.excess(site.enter(local.reference_charge))
        short_ranges = local.energies if self.part == "all" else np.zeros_like(local.energies)
        energies = site.leave(equilibrium.energies) + short_ranges
        short_range = float(state.halo.sum(short_ranges.sum()))
        electric = float(site.halo.sum(equilibrium.energies.sum()))
        field_energy = -float(problem.field @ equilibrium.dipole)
        return Result(
            energy=short_range + electric,
            charges=restored(site.leave(equilibrium.charges), order),
            short_range_energy=short_range,
            charge_energy=electric - field_energy,
            field_energy=field_energy,
            iterations=equilibrium.iterations,
            energies=restored(energies, order) if "energies" in wanted else None,
            forces=forces if "forces" in wanted else None,
            virial=virial if "virial" in wanted else None,
            unsymmetrized_virial=unsymmetrized if "virial" in wanted else None,
            dipole=dipole,
            reference_residual=residual,
        )

    @property
    def cutoff(self) -> float:
        """How far the pairs of `compute` reach: descriptor, repulsion, bonds of split charges; Angstrom."""
        if self.has_charges and self.charge_model.name == "split":
            return max(self.model.cutoff, float(self.model.compliance_cutoff.max()))
        return self.model.cutoff

    def reach(self, structure: Structure, halo: Halo) -> float:
        """How far the ghosts of a rank have to reach so that several ranks sum as one process does, Angstrom.

        Where ghosts do not suffice, as the cell has changed much, another splitting of the Coulomb sum with a shorter
        cutoff has the same accuracy.
        """
        if not self.has_charges:
            return self.cutoff
        return max(self.cutoff, self._electrostatics.longest_cutoff(structure, halo))

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
        self._rank.forget()

    def _warn_charged_cell(self, structure: Structure) -> None:
        if structure.periodic and structure.charge != 0 and "charged cell" not in self._said:
            self._said.add("charged cell")
            log.warning(
                "periodic cell with total charge %g e: a uniform background neutralises it; "
                "energies of cells of different size or charge are not comparable",
                structure.charge,
            )

    def _warn_stretched_fragment(self, structure: Structure, hold: Hold) -> None:
        if "stretched" in self._said or hold.fragments is None or not (structure.field.any() and any(structure.pbc)):
            return
        span = hold.fragments.span(structure)
        if span > NEARLY_HALF:
            self._said.add("stretched")
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
    """Refuse energies, forces or charges that overflow or are undefined, and name the atoms."""
    for name in ("charges", "forces", "virial", "dipole", "energy"):
        values = np.asarray(getattr(result, name), dtype=np.float64)  # nan for None
        bad = ~np.isfinite(values)
        if getattr(result, name) is not None and bad.any():
            where = ""
            if name in ("charges", "forces"):
                atoms = np.unique(np.argwhere(bad)[:, 0])
                more = f" and {len(atoms) - NAMED_ATOMS} more" if len(atoms) > NAMED_ATOMS else ""
                where = f" for atoms {', '.join(map(str, atoms[:NAMED_ATOMS]))}{more} (counted from 0)"
            raise ChargeError(f"`{name}` must be finite, got {values[bad][0]}{where}: look at the positions, the total "
                              "charge and the field")  # fmt: skip


@dataclass(frozen=True, eq=False)
class Equilibrated:
    """A structure with its charges, and what derivatives of its energy need.

    Attributes:
        structure: as it came in.
        hold: what holds its charges.
        order: row k of `local` is atom order[k] of the structure, shape (n,).
        local: chi, E_short and q0 with their reverse pass.
        site: where the charges are solved, which may be in other rows.
        problem, equilibrium: the charges.
    """

    structure: Structure
    hold: Hold
    order: NDArray[np.int64]
    local: LocalPart
    site: Site
    problem: Problem
    equilibrium: Equilibrium

    @property
    def halo(self) -> Halo:
        """Of the ranks that own the other atoms."""
        return self.local.halo

    @property
    def reference_gradient(self) -> Floats | None:
        """dE/d(K w0)_i: phi_i - F.r_i less its mean over the group, for the sums stay; None where q0 is not learned."""
        if self.problem.bonds is None or self.hold.reference is not None:
            return None
        acting = self.equilibrium.potential - self.problem.anchors @ self.problem.field
        return self.site.leave(self.problem.constraint.project(acting))
